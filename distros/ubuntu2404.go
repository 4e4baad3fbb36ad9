package distros

import "slices"

func init() {
	d := ubuntu("24.04", "noble")
	d.KeyringSHA256 = map[string]string{
		// GoogleCloudPlatform/compute-gpu-installation, config.py.
		"ubuntu2404/x86_64": "d2a6b11c096396d868758b86dab1823b25e14d70333f1dfa74da5ddaf6a06dba",
	}
	// 535, 550 and 570 are left out: Canonical turns branches past their end into transitions to 580.
	d.Offers = slices.Concat(
		ubuntuNVIDIA([]int{570, 580}, 590, "nvidia-driver-pinning-580.126.20 seen in ubuntu2404"),
		ubuntuServer(580, bothFlavors, true, "packages.ubuntu.com: nvidia-graphics-drivers-580-server and linux-modules-nvidia-580-server(-open)-generic in noble-updates"),
		ubuntuServer(595, bothFlavors, true, "packages.ubuntu.com: nvidia-graphics-drivers-595-server in noble-updates; linux-modules-nvidia-595-server-open seen on 24.04"),
		narrow(ubuntuServer(470, proprietaryOnly, false, "packages.ubuntu.com: nvidia-headless-470-server in noble-updates, amd64 only"), "x86_64"),
		ubuntuServer(615, openOnly, false, "packages.ubuntu.com: nvidia-headless-615-server-open in noble-updates multiverse"),
	)
	register(d)
}
