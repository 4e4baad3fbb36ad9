package distros

import "slices"

func init() {
	d := ubuntu("26.04", "resolute")
	d.KeyringSHA256 = map[string]string{
		// GoogleCloudPlatform/compute-gpu-installation, config.py.
		"ubuntu2604/x86_64": "f7f474b5f6a4adf987aa587920df00e713285958ef6a913dda1945a544a3099e",
	}
	// Of NVIDIA's repository only the unsuffixed packages are known here; 580 comes from Ubuntu.
	d.Offers = slices.Concat(
		ubuntuNVIDIA(nil, 595, "NVIDIA/gpu-driver-container pins full versions on 26.04; cuda-drivers 615.71.09 seen in ubuntu2604"),
		ubuntuServer(580, bothFlavors, true, "packages.ubuntu.com: nvidia-graphics-drivers-580-server and linux-modules-nvidia-580(-server)-open-* in resolute-updates"),
		ubuntuServer(595, bothFlavors, false, "packages.ubuntu.com: nvidia-graphics-drivers-595-server in resolute-updates restricted"),
		ubuntuServer(615, openOnly, false, "packages.ubuntu.com: nvidia-headless-615-server-open in resolute-updates"),
	)
	register(d)
}
