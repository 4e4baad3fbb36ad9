package distros

func init() {
	d := debian("12", "bookworm", "contrib", "non-free", "non-free-firmware")
	d.KeyringSHA256 = map[string]string{
		// GoogleCloudPlatform/compute-gpu-installation, config.py.
		"debian12/x86_64": "e7f219eab6fe4819cdb5c15b98233dc3420302d9c00883219cd3d896857cf48d",
	}
	// Its security archive has a newer driver, all but the open modules, which take none but the firmware and the
	// libraries of their own version.
	open := debianOwn(535, FlavorOpen, "535.261.03", "Debian 12 contrib, nvidia-open-kernel-dkms 535.261.03-1")
	open.Suite = d.Codename
	open.Caveat = "Debian 12's open modules did not follow the driver of its security archive (535.309.01), so the whole driver is taken from before it"
	// Built in a container on 2026-11-23: pci_resize_resource of this kernel takes an argument more.
	open.Breaks = "6.1.0-56"
	d.Offers = append(
		debianNVIDIA([]int{570, 580}, 590, "nvidia-driver-pinning-570 and -580 seen in debian12, later branches in debian13"),
		debianOwn(535, FlavorProprietary, "535.309.01", "Debian 12 security non-free, nvidia-kernel-dkms 535.309.01-0+deb12u1"),
		open,
		debianVariant(470, "tesla-470", "470.256.02", "Debian 12 non-free, nvidia-tesla-470-kernel-dkms 470.256.02-1~deb12u1"),
	)
	d.Tested = map[string]string{
		SourceNVIDIA:  "real guest (virtual machine and container), with a stand-in for NVIDIA's packages",
		SourceDistro:  "real guest (container), Debian's packages built by DKMS: proprietary; open 535.261.03 did not compile for kernel 6.1.0-56",
		SourceRunfile: "real guest (container), with stand-ins for NVIDIA's installers",
	}
	register(d)
}
