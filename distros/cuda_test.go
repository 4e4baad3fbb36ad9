package distros

import (
	"path"
	"slices"
	"strings"
	"testing"
)

// What the file names must be all of a driver and nothing of a toolkit. The names are those of NVIDIA's repository.
func TestToolkitOnlyTakesNoDriverAndEveryToolkit(t *testing.T) {
	for _, d := range All() {
		file, text := d.ToolkitOnly()
		if d.Family != "apt" {
			if file != "" {
				t.Errorf("%s: %s", d, file)
			}
			continue
		}
		var patterns []string
		for line := range strings.Lines(text) {
			if p, ok := strings.CutPrefix(line, "Package: "); ok {
				patterns = strings.Fields(p)
			}
		}
		taken := func(name string) bool {
			return !slices.ContainsFunc(patterns, func(p string) bool { ok, _ := path.Match(p, name); return ok })
		}
		for _, name := range []string{"cuda-toolkit-12-8", "cuda-toolkit-12-8-config-common", "cuda-nvcc-12-8", "cuda-driver-dev-12-8", "cuda-nvml-dev-12-8", "libcublas-12-8",
			"libnvjitlink-12-8", "libnvjpeg-12-8", "libcufile-12-8", "nsight-compute-2025.1.1", "nsight-systems-2024.6.2", "gds-tools-12-8", "libnpp-dev-12-8", "libnvvm-13-0"} {
			if !taken(name) {
				t.Errorf("%s: %s is of the toolkit", d, name)
			}
		}
		for _, name := range []string{"cuda-drivers", "cuda-drivers-580", "cuda-compat-12-8", "nvidia-open", "nvidia-driver-cuda", "nvidia-kernel-dkms", "nvidia-persistenced", "libnvidia-ml1", "libnvidia-compute-580", "libcuda1"} {
			if taken(name) {
				t.Errorf("%s: %s is of the driver", d, name)
			}
		}
	}
}
