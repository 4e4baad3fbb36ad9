package distros

func init() {
	d := debian("11", "bullseye", "contrib", "non-free")
	d.Frozen = "it gets no new drivers, and which of its packages still install is not known"
	d.Offers = []Offer{
		debianOwn(470, FlavorProprietary, "470.256.02", "Debian 11 non-free, nvidia-kernel-dkms 470.256.02-2"),
		withArches(debianVariant(390, "legacy-390xx", "390.157", "Debian 11 non-free, nvidia-legacy-390xx-kernel-dkms 390.157-1~deb11u1 (amd64)"), "x86_64"),
	}
	register(d)
}
