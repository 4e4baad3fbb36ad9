package distros

import (
	"strings"

	"gpuguest/internal/facts"
)

func init() {
	d := el("amzn", "2023", "Amazon Linux 2023", newDNF("dnf4"))
	d.RepoDir = map[string]string{"x86_64": "amzn2023/x86_64", "aarch64": "amzn2023/sbsa"}
	d.Suites = []string{"amazonlinux"}
	d.GCC = 11 // CUDA installation guide 13.0, validated configurations
	d.kernel = amazonKernels{}
	d.Offers = streamed(Offer{Min: 570}, "kernel modules of the guide: streams of Amazon Linux 2023 from 570 on")
	register(d)
}

// amazonKernels knows releases like 6.1.115-126.197.amzn2023.x86_64. The packages of the first kernel are called
// kernel, those of each later series carry its number: kernel6.12.
type amazonKernels struct{}

func (amazonKernels) flavor(release string) string {
	if !strings.Contains(release, ".amzn2023.") {
		return ""
	}
	return "standard"
}

func (amazonKernels) meta(string, []string) string { return "" }

func (amazonKernels) prefix(release string) string {
	if strings.HasPrefix(release, "6.1.") {
		return "kernel"
	}
	major, rest, _ := strings.Cut(release, ".")
	minor, _, _ := strings.Cut(rest, ".")
	return "kernel" + major + "." + minor
}

// kernel-modules-extra holds DRM modules that NVIDIA's need (NVIDIA driver installation guide, Amazon Linux).
func (k amazonKernels) headers(release string) []string {
	return []string{k.prefix(release) + "-devel-" + release, k.prefix(release) + "-modules-extra-" + release}
}

func (amazonKernels) later(string, facts.Facts) []string { return nil }

func (k amazonKernels) newest(release string, _ facts.Facts) []string {
	if k.flavor(release) == "" {
		return nil
	}
	return []string{k.prefix(release)}
}

func (amazonKernels) carries(name, _ string, _ facts.Facts) bool { return rpmKernel(name) }
