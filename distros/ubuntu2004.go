package distros

func init() {
	d := ubuntu("20.04", "focal")
	d.KeyringSHA256 = map[string]string{
		// GoogleCloudPlatform/compute-gpu-installation, config.py.
		"ubuntu2004/x86_64": "cf5ca9853118b9fb2b78dd2708786e1eb5ab14e39d8738539281429428eb4efe",
	}
	d.Frozen = "it gets no new drivers since CUDA 13"
	nvidia := Offer{
		Source: SourceNVIDIA, Flavor: FlavorProprietary, Modules: ModulesDKMS, Branches: []int{515, 520, 550}, Arches: []string{"x86_64"},
		Packages: []string{"cuda-drivers-{branch}"}, Module: "nvidia", DKMSName: "nvidia",
		Persistence: Persistence{Unit: "nvidia-persistenced.service"},
		Fact:        "cuda-drivers-515, -520 and -550 seen installed from ubuntu2004; a frozen repository has no pinning packages",
	}
	open := nvidia
	open.Flavor, open.Branches, open.Packages = FlavorOpen, []int{550}, []string{"nvidia-driver-{branch}-open"}
	open.Fact = "nvidia-driver-550-open seen installed from ubuntu2004"
	own := Offer{
		Source: SourceDistro, Flavor: FlavorProprietary, Modules: ModulesDKMS, Branches: []int{535},
		Packages: []string{"nvidia-headless-{branch}", "nvidia-utils-{branch}"}, Module: "nvidia", DKMSName: "nvidia",
		Persistence: ubuntuPersistence("nvidia-compute-utils-{branch}"),
		Fact:        "packages.ubuntu.com: nvidia-graphics-drivers-535 in focal-updates",
	}
	ownOpen := own
	ownOpen.Flavor, ownOpen.Packages = FlavorOpen, []string{"nvidia-headless-{branch}-open", "nvidia-utils-{branch}"}
	d.Offers = append([]Offer{nvidia, open, own, ownOpen},
		narrow(ubuntuServer(470, proprietaryOnly, true, "linux-modules-nvidia-470-server-5.4.0-90-generic seen offered on 20.04; packages.ubuntu.com: amd64 only"), "x86_64")...)
	register(d)
}
