package distros

// SLES 16 and openSUSE Leap 16, which NVIDIA serves from one repository.
func init() {
	for _, d := range []Distro{
		suse("sles", "16", "SUSE Linux Enterprise Server 16", "suse16", true),
		suse("opensuse-leap", "16", "openSUSE Leap 16", "suse16", true),
	} {
		if d.ID == "sles" {
			d.Extras = []Extra{packageHub(d.Packages, d.Name)}
		}
		d.RepoKey = nvidiaKey("3A8B5622")
		d.Offers = suseOffers(595, nil, "guides from 610 on serve SLES 16.0 and Leap 16.0")
		register(d)
	}
}
