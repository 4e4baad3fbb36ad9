package distros

func init() {
	d := debian("13", "trixie", "contrib", "non-free", "non-free-firmware")
	d.KeyringSHA256 = map[string]string{
		// GoogleCloudPlatform/compute-gpu-installation, config.py.
		"debian13/x86_64": "dd28f1f6ba0038180d6b23f846cefca1e3de4c9327751665241370bacea452a1",
	}
	d.Offers = append(
		debianNVIDIA(nil, 590, "debian13 starts at 590: NVIDIA/cuda-repo-management issues 38 and 40 (580 still absent in August 2026)"),
		debianOwn(550, FlavorProprietary, "550.163.01", "Debian 13 non-free, nvidia-kernel-dkms 550.163.01-2"),
		debianOwn(550, FlavorOpen, "550.163.01", "Debian 13 contrib, nvidia-open-kernel-dkms 550.163.01-2"),
		debianVariant(535, "tesla-535", "535.274.02", "Debian 13 non-free, nvidia-tesla-535-kernel-dkms 535.274.02-1~deb13u1"),
	)
	d.Tested = map[string]string{
		SourceNVIDIA: "real guest (container), with a stand-in for NVIDIA's packages",
		SourceDistro: "real guest (container), Debian's packages built by DKMS: proprietary 550",
	}
	register(d)
}
