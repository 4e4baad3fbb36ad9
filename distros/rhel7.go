package distros

// RHEL 7 and what is made from it. NVIDIA's repository for it gets nothing new; its packages carry their flavor in
// their names, and only latest-dkms is built by DKMS (NVIDIA/yum-packaging-nvidia-driver, guide for RHEL 7).
func init() {
	m := newDNF("yum")
	offer := Offer{
		Source: SourceNVIDIA, Flavor: FlavorProprietary, Modules: ModulesDKMS, Branches: []int{450, 470, 515, 525, 535, 550}, Arches: []string{"x86_64"},
		Packages: []string{"kmod-nvidia-latest-dkms={branch}", "nvidia-driver-latest-dkms={branch}", "nvidia-driver-latest-dkms-cuda={branch}"},
		Module:   "nvidia", DKMSName: "nvidia",
		Persistence: Persistence{Unit: "nvidia-persistenced.service"},
		Caveat:      "which versions NVIDIA's frozen repository for RHEL 7 holds of this branch has not been looked at: the install will tell",
		Fact:        "NVIDIA/yum-packaging-nvidia-driver, flavor latest-dkms since 418.87; RHEL 7 was supported until June 2024, when 550 was the newest production branch",
	}
	for _, r := range []struct{ id, name string }{{"rhel", "Red Hat Enterprise Linux 7"}, {"centos", "CentOS Linux 7"}, {"ol", "Oracle Linux 7"}} {
		d := el(r.id, "7", r.name, m)
		d.Arches = map[string]string{"x86_64": "x86_64"}
		d.RepoDir = map[string]string{"x86_64": "rhel7/x86_64"}
		d.Frozen = "it gets no new drivers"
		d.Glibc = "2.17"
		d.Boot.Loaders = []Loader{grubDefaults{}}
		d.Offers = []Offer{offer}
		switch r.id {
		case "rhel":
			d.Extras = []Extra{epelFromFedora(m, "7")}
		case "ol":
			d.Extras = []Extra{releasePackage(m, "EPEL", "ol7_developer_EPEL", "oracle-epel-release-el7")}
		default:
			d.Vault = centosReleases["7"]
			d.Extras = []Extra{centosVault(), releasePackage(m, "EPEL", "epel", "epel-release")}
			d.Tested = map[string]string{SourceRunfile: "real package manager (dnf 4.14 in yum's place) on a constructed guest, with stand-ins for NVIDIA's installers"}
		}
		register(d)
	}
}
