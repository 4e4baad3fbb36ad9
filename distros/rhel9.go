package distros

// RHEL 9 and its rebuilds.
func init() {
	for _, d := range rebuilds("9", newDNF("dnf4"), "crb") {
		d.GCC = 11
		d.kernel = elKernels{matched: true}
		if d.ID == "rocky" {
			d.Tested = map[string]string{SourceNVIDIA: testedDNF}
		}
		d.Offers = append(
			streamed(Offer{Min: 515}, "module streams of rhel9: NVIDIA/yum-packaging-precompiled-kmod issue 63 lists them from 535, NVIDIA/ansible-role-nvidia-driver issue 75 has 525-dkms"),
			precompiled())
		if d.ID == "almalinux" {
			almaSigned(&d)
		}
		register(d)
	}
}
