package distros

// RHEL 8 and its rebuilds.
func init() {
	for _, d := range rebuilds("8", newDNF("dnf4"), "powertools") {
		if d.ID == "centos" {
			d.Name = "CentOS 8" // CentOS Linux 8 and CentOS Stream 8 call themselves alike
			d.Vault = centosReleases["8"]
			d.Extras = append([]Extra{centosVault()}, d.Extras...)
		}
		d.GCC = 8
		d.Offers = append(
			streamed(Offer{Min: 515}, "module streams 515-open to 580-open and 515-dkms to 580-dkms: NVIDIA's repository for rhel8"),
			dkmsOffer(FlavorProprietary, Offer{Branches: []int{470}, Stream: "nvidia-driver:{branch}-dkms"}, "NVIDIA/yum-packaging-fabric-manager issue 3 lists stream 470 of rhel8"),
			precompiled())
		register(d)
	}
}
