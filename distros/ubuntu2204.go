package distros

import "slices"

func init() {
	d := ubuntu("22.04", "jammy")
	d.KeyringSHA256 = map[string]string{
		// GoogleCloudPlatform/compute-gpu-installation, config.py.
		"ubuntu2204/x86_64": "d93190d50b98ad4699ff40f4f7af50f16a76dac3bb8da1eaaf366d47898ff8df",
	}
	d.Offers = slices.Concat(
		ubuntuNVIDIA([]int{570, 580}, 590, "nvidia-driver-pinning-570 seen; azhpc-images pins 580 on 22.04"),
		ubuntuServer(580, bothFlavors, true, "packages.ubuntu.com: nvidia-graphics-drivers-580-server and linux-modules-nvidia-580-server(-open)-generic in jammy-updates"),
		ubuntuServer(570, bothFlavors, true, "packages.ubuntu.com: nvidia-headless-570-server(-open) in jammy-updates"),
		ubuntuServer(535, bothFlavors, true, "packages.ubuntu.com: nvidia-headless-535-server(-open) and linux-modules-nvidia-535-server in jammy-updates"),
		narrow(ubuntuServer(470, proprietaryOnly, true, "packages.ubuntu.com: nvidia-headless-470-server and linux-modules-nvidia-470-server in jammy-updates, amd64 only"), "x86_64"),
		ubuntuServer(595, bothFlavors, false, "packages.ubuntu.com: nvidia-graphics-drivers-595-server in jammy-updates multiverse"),
		ubuntuServer(615, openOnly, false, "packages.ubuntu.com: nvidia-headless-615-server-open in jammy-updates multiverse"),
	)
	register(d)
}
