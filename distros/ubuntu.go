package distros

import (
	"regexp"
	"strings"
)

// ubuntu fills in what all releases of Ubuntu share.
func ubuntu(version, codename string) Distro {
	dir := "ubuntu" + strings.ReplaceAll(version, ".", "")
	return Distro{
		ID: "ubuntu", Version: version, Codename: codename, Name: "Ubuntu " + version + " (" + codename + ")",
		Family:     "apt",
		Arches:     map[string]string{"x86_64": "amd64", "aarch64": "arm64"},
		Packages:   apt{},
		RepoDir:    map[string]string{"x86_64": dir + "/x86_64", "aarch64": dir + "/sbsa"},
		BuildTools: []string{"gcc", "make", "dkms"},
		// gcc itself only recommends the headers.
		Compiler:   []string{"gcc", "libc6-dev"},
		CXX:        "g++",
		Components: []string{"restricted", "multiverse"},
		Suites:     []string{codename, codename + "-updates"},
		Keyring:    "/usr/share/keyrings/ubuntu-archive-keyring.gpg",
		Marks: map[string][]string{
			SourceNVIDIA: {"cuda-drivers*", "nvidia-open", "nvidia-open-[0-9]*", "nvidia-driver-open", "nvidia-dkms-open", "nvidia-dkms"},
			SourceDistro: {"linux-modules-nvidia-*", "nvidia-*-server", "nvidia-*-server-open"},
		},
		Boot:     debianBoot,
		DKMSKey:  "/var/lib/shim-signed/mok/MOK.priv",
		DKMSCert: "/var/lib/shim-signed/mok/MOK.der",
		kernel:   debKernels{ubuntuKernels{}},
	}
}

// ubuntuNVIDIA are the offers of NVIDIA's repository for Ubuntu. Up to 580 its packages carry the branch in
// their names, from 590 on they do not. The full metapackages are taken: they are what NVIDIA documents for
// every branch, and whether the compute-only set brings nvidia-smi is not.
func ubuntuNVIDIA(suffixed []int, from int, fact string) []Offer {
	offer := func(o Offer, flavor, name string) Offer {
		o.Source, o.Flavor, o.Modules = SourceNVIDIA, flavor, ModulesDKMS
		o.Packages = []string{name}
		o.Pin = []string{"nvidia-driver-pinning-{pin}"}
		o.Module, o.DKMSName = "nvidia", "nvidia"
		o.Persistence = Persistence{Package: "nvidia-persistenced", Unit: "nvidia-persistenced.service"}
		o.Fact = "NVIDIA driver installation guide, Ubuntu and version locking; " + fact
		return o
	}
	var offers []Offer
	if len(suffixed) > 0 {
		offers = append(offers, offer(Offer{Branches: suffixed}, FlavorOpen, "nvidia-open-{branch}"),
			offer(Offer{Branches: suffixed}, FlavorProprietary, "cuda-drivers-{branch}"))
	}
	return append(offers, offer(Offer{Min: from}, FlavorOpen, "nvidia-open"), offer(Offer{Min: from}, FlavorProprietary, "cuda-drivers"))
}

// ubuntuPersistence is how Ubuntu packages the daemon: its unit turns persistence mode off again, stops when
// nothing needs it and is in no target (seen in systemctl status and systemctl cat of 20.04 to 24.04).
func ubuntuPersistence(pkg string) Persistence {
	return Persistence{
		Package: pkg, Unit: "nvidia-persistenced.service", User: "nvidia-persistenced",
		DropIn: "[Unit]\nStopWhenUnneeded=false\n\n[Service]\nExecStart=\nExecStart=/usr/bin/nvidia-persistenced --user nvidia-persistenced --verbose\n\n[Install]\nWantedBy=multi-user.target\n",
	}
}

// ubuntuServer are the offers of Ubuntu's own -server packages for one branch: built by DKMS, and, with
// precompiled, prebuilt and signed by Canonical for each of Ubuntu's kernels. libcuda and the compiler of PTX
// are in libnvidia-compute, which is named so that they do not hang on another package's dependencies.
func ubuntuServer(branch int, flavors []string, precompiled bool, fact string) []Offer {
	var offers []Offer
	for _, flavor := range flavors {
		suffix := "-{branch}-server"
		if flavor == FlavorOpen {
			suffix += "-open"
		}
		o := Offer{
			Source: SourceDistro, Flavor: flavor, Modules: ModulesDKMS, Branches: []int{branch},
			Packages: []string{"nvidia-headless" + suffix, "nvidia-utils-{branch}-server", "libnvidia-compute-{branch}-server"},
			Module:   "nvidia", DKMSName: "nvidia", Fact: fact,
			Persistence: ubuntuPersistence("nvidia-compute-utils-{branch}-server"),
		}
		offers = append(offers, o)
		if precompiled {
			o.Modules, o.DKMSName, o.Signed = ModulesPrecompiled, "", true
			o.Packages = []string{"linux-modules-nvidia" + suffix + "-{kernel}", "linux-modules-nvidia" + suffix + "-{kmeta}",
				"nvidia-headless-no-dkms" + suffix, "nvidia-utils-{branch}-server", "libnvidia-compute-{branch}-server"}
			offers = append(offers, o)
		}
	}
	return offers
}

var (
	bothFlavors     = []string{FlavorOpen, FlavorProprietary}
	openOnly        = []string{FlavorOpen}
	proprietaryOnly = []string{FlavorProprietary}
)

// withArches narrows an offer to machines.
func withArches(o Offer, machines ...string) Offer {
	o.Arches = machines
	return o
}

// narrow narrows several.
func narrow(offers []Offer, machines ...string) []Offer {
	for i := range offers {
		offers[i].Arches = machines
	}
	return offers
}

// ubuntuKernels knows releases like 6.8.0-45-generic and 5.15.0-1054-azure.
type ubuntuKernels struct{}

var ubuntuFlavor = regexp.MustCompile(`^\d+\.\d+\.\d+-\d+-([a-z][a-z0-9-]*)$`)

// ubuntuSeries is what a meta package's name has behind the flavor: -hwe-24.04, -lts-22.04, -6.8.
var ubuntuSeries = regexp.MustCompile(`^(-(hwe-|lts-)?\d+\.\d+(-edge)?)?$`)

func (ubuntuKernels) flavor(release string) string {
	if m := ubuntuFlavor.FindStringSubmatch(release); m != nil {
		return m[1]
	}
	return ""
}

// meta returns the tail of the installed meta package that brings kernels of this flavor
// (linux-image-generic-hwe-24.04, linux-azure, linux-virtual). The virtual ones bring generic kernels.
// With none known it is the flavor itself; with others known and none that fits, the kernel was put in
// by hand and nothing will ever upgrade it.
func (k ubuntuKernels) meta(release string, installed []string) string {
	flavor := k.flavor(release)
	if flavor == "" {
		return ""
	}
	known := false
	for _, name := range installed {
		tail, ok := strings.CutPrefix(name, "linux-image-")
		if !ok {
			tail, ok = strings.CutPrefix(name, "linux-")
		}
		if !ok || tail == "" || tail[0] >= '0' && tail[0] <= '9' || strings.HasPrefix(tail, "headers-") || strings.HasPrefix(tail, "modules-") {
			continue
		}
		known = true
		if rest, ok := strings.CutPrefix(tail, "virtual"); ok && flavor == "generic" {
			tail = "generic" + rest
		}
		if rest, ok := strings.CutPrefix(tail, flavor); ok && ubuntuSeries.MatchString(rest) {
			return tail
		}
	}
	if known {
		return ""
	}
	return flavor
}
