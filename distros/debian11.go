package distros

func init() {
	d := debian("11", "bullseye", "contrib", "non-free")
	d.Frozen = "it gets no new drivers, and which of its packages still install is not known"
	// The security archive moved the main packages from 470 to 535; those that have 470 in their names stayed.
	d.Offers = []Offer{
		debianOwn(535, FlavorProprietary, "535.309.01", "Debian 11 security non-free, nvidia-kernel-dkms 535.309.01-0+deb11u1"),
		debianVariant(470, "tesla-470", "470.256.02", "Debian 11 non-free, nvidia-tesla-470-kernel-dkms 470.256.02-1~deb11u2"),
		withArches(debianVariant(390, "legacy-390xx", "390.157", "Debian 11 non-free, nvidia-legacy-390xx-kernel-dkms 390.157-1~deb11u1 (amd64)"), "x86_64"),
	}
	d.Tested = map[string]string{SourceDistro: "real guest (container), Debian's packages built by DKMS: 470"}
	register(d)
}
