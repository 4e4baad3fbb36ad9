package distros

// ToolkitOnly returns a file, and what it must hold, that keeps the package manager from taking anything of a
// driver from NVIDIA's repository: for a guest that has its driver from elsewhere and only CUDA from there.
// path is "" where there is no such file: see ForToolkits for dnf.
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

// ForToolkits returns NVIDIA's repository as a guest reads it that has its driver from another source and takes CUDA
// alone from there: where the package manager leaves packages of one repository out, those of a driver. dnf calls the
// list excludepkgs (dnf.conf(5)), yum calls it exclude (yum.conf(5)). zypper knows no such list, and tdnf passes over
// one (Azure/azhpc-images): there it is only that no toolkit asks for a driver.
//
// The fabric manager and what belongs to it stay: a driver from NVIDIA's installer needs them at its own version.
// AlmaLinux's own driver is its modules beside NVIDIA's libraries, so that these stay.
func (d Distro) ForToolkits(r Repo, source string) Repo {
	if d.Family != "dnf" {
		return r
	}
	names := "cuda-drivers* cuda-compat* dnf-plugin-nvidia kmod-nvidia* nvidia-open nvidia-open-[0-9]*"
	if source != SourceDistro {
		names = "cuda-drivers* cuda-compat* dnf-plugin-nvidia kmod-nvidia* libnvidia-cfg* libnvidia-fbc* libnvidia-gpucomp* libnvidia-ml* nvidia-driver* nvidia-kmod-common " +
			"nvidia-libXNVCtrl* nvidia-modprobe nvidia-open* nvidia-persistenced nvidia-settings nvidia-xconfig xorg-x11-nvidia*"
	}
	option := "excludepkgs"
	if m, ok := d.Packages.(dnf); ok && m.tool == "yum" {
		option = "exclude"
	}
	r.List += option + "=" + names + "\n"
	return r
}
