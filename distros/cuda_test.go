package distros

import (
	"path"
	"slices"
	"strings"
	"testing"
)

// What is left out must be all of a driver and nothing of a toolkit. The names are those of NVIDIA's repositories.
func TestNVIDIAsRepositoryGivesToolkitsAndNoDriver(t *testing.T) {
	toolkit := []string{"cuda-toolkit-12-8", "cuda-toolkit-12-8-config-common", "cuda-nvcc-12-8", "cuda-driver-dev-12-8", "cuda-driver-devel-12-8", "cuda-nvml-dev-12-8", "cuda-nvml-devel-12-8", "libcublas-12-8",
		"libnvjitlink-12-8", "libnvjpeg-12-8", "libcufile-12-8", "nsight-compute-2025.1.1", "nsight-systems-2024.6.2", "gds-tools-12-8", "libnpp-dev-12-8", "libnvvm-13-0"}
	deb := []string{"cuda-drivers", "cuda-drivers-580", "cuda-compat-12-8", "nvidia-open", "nvidia-driver-cuda", "nvidia-kernel-dkms", "nvidia-persistenced", "libnvidia-ml1", "libnvidia-compute-580", "libcuda1"}
	modules := []string{"cuda-drivers", "cuda-drivers-580", "cuda-compat-12-8", "nvidia-open", "nvidia-open-580", "kmod-nvidia-open-dkms", "kmod-nvidia-580.95.05-5.14.0-570.12.1"}
	held := func(d Distro, patterns string, gives, keeps []string) {
		taken := func(name string) bool {
			return !slices.ContainsFunc(strings.Fields(patterns), func(p string) bool { ok, _ := path.Match(p, name); return ok })
		}
		for _, name := range gives {
			if !taken(name) {
				t.Errorf("%s: %s is not of the driver, or comes from there", d, name)
			}
		}
		for _, name := range keeps {
			if taken(name) {
				t.Errorf("%s: %s is of the driver", d, name)
			}
		}
	}
	list := func(d Distro, source, option string) string {
		r := d.ForToolkits(Repo{List: "[cuda]\nenabled=1\n"}, source)
		rest, ok := strings.CutPrefix(r.List, "[cuda]\nenabled=1\n"+option+"=")
		if !ok || strings.Count(rest, "\n") != 1 {
			t.Errorf("%s: the repository file holds %q", d, r.List)
		}
		return rest
	}
	for _, d := range All() {
		file, text := d.ToolkitOnly()
		if (file != "") != (d.Family == "apt") {
			t.Errorf("%s: %s", d, file)
		}
		switch d.Family {
		case "apt":
			for line := range strings.Lines(text) {
				if patterns, ok := strings.CutPrefix(line, "Package: "); ok {
					held(d, patterns, toolkit, deb)
				}
			}
		case "dnf":
			option := "excludepkgs"
			if d.Version == "7" {
				option = "exclude"
			}
			held(d, list(d, SourceRunfile, option), append([]string{"nvidia-fabricmanager", "libnvidia-nscq"}, toolkit...), append(modules, driverNames...))
			held(d, list(d, SourceDistro, option), append([]string{"nvidia-driver-cuda", "nvidia-driver-cuda-libs", "nvidia-persistenced"}, toolkit...), modules)
		default:
			if r := d.ForToolkits(Repo{List: "x"}, SourceRunfile); r.List != "x" {
				t.Errorf("%s: the repository file holds %q", d, r.List)
			}
		}
	}
}
