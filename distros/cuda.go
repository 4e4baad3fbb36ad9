package distros

// ToolkitOnly returns a file, and what it must hold, that keeps the package manager from taking anything of a
// driver from NVIDIA's repository: for a guest that has its driver from elsewhere and only CUDA from there.
// path is "" where the package manager needs none.
//
// NVIDIA's keyring package gives its whole repository priority 600, so that Debian's and Ubuntu's own packages
// of the same names would be replaced. Records with a package's name or pattern go before those for all
// (apt_preferences(5)).
func (d Distro) ToolkitOnly() (path, text string) {
	if d.Family != "apt" {
		return "", ""
	}
	return "/etc/apt/preferences.d/gpuguest-cuda", "# Written by gpuguest: NVIDIA's repository is for CUDA here, and not for the driver.\n" +
		"Package: cuda-drivers* cuda-compat* nvidia-* libnvidia-* libcuda1* libnvcuvid* libnvoptix* firmware-nvidia-* xserver-xorg-video-nvidia*\n" +
		"Pin: release l=NVIDIA CUDA\n" +
		"Pin-Priority: -1\n"
}
