package distros

// SLES 15 and openSUSE Leap 15.
func init() {
	for _, d := range []Distro{
		suse("sles", "15", "SUSE Linux Enterprise Server 15", "sles15", true),
		suse("opensuse-leap", "15", "openSUSE Leap 15", "opensuse15", false),
	} {
		if d.ID == "sles" {
			d.Extras = []Extra{packageHub(d.Packages, d.Name)}
			d.Tested = map[string]string{SourceNVIDIA: "real package manager (zypper 1.14) on a constructed guest, with stand-ins for all packages"}
		}
		d.GCC = 7 // CUDA installation guide 13.0, validated configurations
		d.Offers = suseOffers(570, []int{580}, "guides 590 to 620 serve SLES 15 and Leap 15.6")
		register(d)
	}
}
