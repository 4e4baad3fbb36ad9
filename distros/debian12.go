package distros

func init() {
	d := debian("12", "bookworm", "contrib", "non-free", "non-free-firmware")
	d.KeyringSHA256 = map[string]string{
		// GoogleCloudPlatform/compute-gpu-installation, config.py.
		"debian12/x86_64": "e7f219eab6fe4819cdb5c15b98233dc3420302d9c00883219cd3d896857cf48d",
	}
	d.Offers = append(
		debianNVIDIA([]int{570, 580}, 590, "nvidia-driver-pinning-570 and -580 seen in debian12, later branches in debian13"),
		debianOwn(535, FlavorProprietary, "535.309.01", "Debian 12 non-free, nvidia-kernel-dkms"),
		debianOwn(535, FlavorOpen, "535.309.01", "Debian 12 contrib, nvidia-open-kernel-dkms"),
		debianVariant(470, "tesla-470", "470.256.02", "Debian 12 non-free, nvidia-tesla-470-kernel-dkms 470.256.02-1~deb12u1"),
	)
	d.Tested = map[string]string{
		SourceNVIDIA:  "real guest (virtual machine and container), with a stand-in for NVIDIA's packages",
		SourceDistro:  "real guest (container), Debian's 535 packages by hand",
		SourceRunfile: "real guest (container), with stand-ins for NVIDIA's installers",
	}
	register(d)
}
