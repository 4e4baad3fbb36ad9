package distros

// RHEL 10 and its rebuilds: no module streams any more.
func init() {
	for _, d := range rebuilds("10", newDNF("dnf4"), "crb") {
		d.GCC = 14
		d.RepoKey = nvidiaKey("CDF6BA43")
		d.kernel = elKernels{matched: true}
		if d.ID == "rocky" {
			d.Tested = map[string]string{SourceNVIDIA: testedDNF}
		}
		d.Offers = locked(Offer{Min: 580}, "kernel modules and version locking of the guide: 580 by versionlock on RHEL 10")
		if d.ID == "almalinux" {
			almaSigned(&d)
		}
		register(d)
	}
}
