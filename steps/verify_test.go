package steps

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gpuguest/internal/choice"
)

// TestModuleLibrariesAndFirmwareMustBeOfOneVersion runs verify-versions over a tree that stands for the guest's.
func TestModuleLibrariesAndFirmwareMustBeOfOneVersion(t *testing.T) {
	const (
		module   = "proc/driver/nvidia/version"
		ml       = "usr/lib/x86_64-linux-gnu/nvidia/current/libnvidia-ml.so."
		cuda     = "usr/lib/x86_64-linux-gnu/libcuda.so."
		firmware = "lib/firmware/nvidia/"
		v, other = "580.95.05", "580.178.04"
	)
	for _, c := range []struct {
		name    string
		files   []string
		open    bool
		without bool
		code    int
		text    string
	}{
		{"all agree", []string{ml + v, cuda + v}, false, false, 0, "module, libraries and firmware are " + v},
		{"rpm's folder", []string{"usr/lib64/libnvidia-ml.so." + v, "usr/lib64/libcuda.so." + v}, false, false, 0, "are " + v},
		{"NVML of another version", []string{ml + other, cuda + v}, false, false, 1, "libnvidia-ml in the guest is " + other},
		{"no NVML", []string{cuda + v}, false, false, 1, "libnvidia-ml in the guest is missing"},
		{"two versions of NVML", []string{ml + v, "usr/lib64/libnvidia-ml.so." + other, cuda + v}, false, false, 1, "libnvidia-ml in the guest is " + other + "\n" + v},
		{"libcuda of another version", []string{ml + v, cuda + other}, false, false, 1, "libcuda in the guest is " + other},
		{"no libcuda", []string{ml + v}, false, false, 1, "libcuda in the guest is missing"},
		{"no libcuda where CUDA is not wanted", []string{ml + v}, false, true, 0, "are " + v},
		{"libcuda of another version where CUDA is not wanted", []string{ml + v, cuda + other}, false, true, 1, "libcuda in the guest is " + other},
		{"open modules and their firmware", []string{ml + v, cuda + v, firmware + v + "/gsp_ga10x.bin"}, true, false, 0, "are " + v},
		{"open modules and compressed firmware", []string{ml + v, cuda + v, firmware + v + "/gsp_ga10x.bin.zst"}, true, false, 0, "are " + v},
		{"open modules without firmware", []string{ml + v, cuda + v, firmware + other + "/gsp_ga10x.bin"}, true, false, 1, "holds no GSP firmware"},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := t.TempDir()
			line := "NVRM version: NVIDIA UNIX x86_64 Kernel Module  " + v + "  Tue Sep 23 10:11:16 UTC 2025\n"
			for _, name := range append(c.files, module) {
				p := filepath.Join(root, name)
				if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(p, []byte(line), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			in := twoGPUs()
			in.Choice = choice.Choice{Branch: 580, License: choice.LicenseProprietary}
			in.Want.WithoutCUDA = c.without
			if c.open {
				in.Choice.License = choice.LicenseOpen
			}
			script := strings.NewReplacer(" /proc/driver", " "+root+"/proc/driver", " /usr/lib", " "+root+"/usr/lib", " /lib/firmware", " "+root+"/lib/firmware").
				Replace(find(t, "verify-versions").Check(in))
			code, text, _ := ask(t, script)
			if code != c.code || !strings.Contains(text, c.text) {
				t.Errorf("exit %d:\n%s", code, text)
			}
		})
	}
}
