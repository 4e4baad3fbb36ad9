package distros

import (
	"strings"

	"gpuguest/internal/facts"
)

// Azure Linux 3: NVIDIA serves the open modules only.
func init() {
	m := newTDNF()
	d := el("azurelinux", "3.0", "Azure Linux 3", m)
	d.Family = "tdnf"
	d.RepoDir = map[string]string{"x86_64": "azl3/x86_64", "aarch64": "azl3/sbsa"}
	d.Suites = []string{"azurelinux-official-*"}
	d.Boot.Loaders = []Loader{grubDefaults{}}
	d.Extras = []Extra{releasePackage(m, "the extended repository", "azurelinux-official-extended | azurelinux-extended*", "azurelinux-repos-extended")}
	d.GCC = 13 // CUDA installation guide 13.0, validated configurations
	d.kernel = azureKernels{}
	d.Offers = []Offer{{
		Source: SourceNVIDIA, Flavor: FlavorOpen, Modules: ModulesDKMS, Min: 570, Packages: []string{"nvidia-open={pin}"},
		Module: "nvidia", DKMSName: "nvidia", Persistence: driverPersistence, Caveat: notLooked,
		Fact: "nvidia-driver-assistant 0.23.48: nvidia-open on Azure Linux, the proprietary modules not supported",
	}}
	register(d)
}

// azureKernels knows releases like 6.6.64.2-9.azl3, which carry no machine.
type azureKernels struct{}

func (azureKernels) flavor(release string) string {
	if !strings.HasSuffix(release, ".azl3") {
		return ""
	}
	return "standard"
}

func (azureKernels) meta(string, []string) string { return "" }

func (azureKernels) headers(release string) []string { return []string{"kernel-devel=" + release} }

func (azureKernels) later(string, facts.Facts) []string { return nil }

func (k azureKernels) newest(release string, _ facts.Facts) []string {
	if k.flavor(release) == "" {
		return nil
	}
	return []string{"kernel"}
}

func (azureKernels) carries(name, _ string, _ facts.Facts) bool { return rpmKernel(name) }
