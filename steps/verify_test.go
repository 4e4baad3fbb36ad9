package steps

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gpuguest/internal/choice"
	"gpuguest/internal/facts"
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

// A half of an upgrade waits for the next boot to part module and libraries; what runs now agrees, and every version is
// of the planned branch.
func TestLibrariesMustBeThoseOfTheNextBootsModule(t *testing.T) {
	s := find(t, "verify-packages")
	in := Input{Facts: facts.Facts{Kernel: facts.Kernel{Next: "6.1.0-50-amd64"}}, Choice: choice.Choice{Module: "nvidia", Branch: 580}}
	if s.Wanted(in) {
		t.Error("an install proves by its own packages")
	}
	if in.Proves = true; !s.Wanted(in) {
		t.Error("verify does not look")
	}
	root := t.TempDir()
	for _, c := range []struct {
		name, module, libraries string
		code                    int
		says                    string
	}{
		{"one version", "580.95.05", "libnvidia-ml.so.580.95.05 libcuda.so.580.95.05", 0, "the next boot's module and the libraries are 580.95.05"},
		{"the module moved on", "580.95.05", "libnvidia-ml.so.580.65.06 libcuda.so.580.65.06", 1, "the next boot loads module 580.95.05, libnvidia-ml in the guest is 580.65.06"},
		{"only libcuda stayed", "580.95.05", "libnvidia-ml.so.580.95.05 libcuda.so.580.65.06", 1, "libcuda in the guest is 580.65.06"},
		{"no CUDA", "580.95.05", "libnvidia-ml.so.580.95.05", 0, ""},
		{"no library", "580.95.05", "", 1, "libnvidia-ml in the guest is missing"},
		{"no module", "", "libnvidia-ml.so.580.95.05", 1, "the next boot loads module unknown"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := filepath.Join(root, strings.ReplaceAll(c.name, " ", "-"))
			lib := filepath.Join(dir, "usr/lib/x86_64-linux-gnu")
			if err := os.MkdirAll(lib, 0o755); err != nil {
				t.Fatal(err)
			}
			for _, f := range strings.Fields(c.libraries) {
				if err := os.WriteFile(filepath.Join(lib, f), nil, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			modinfo := "#!/bin/sh\n[ \"$*\" = '-k 6.1.0-50-amd64 -F version nvidia' ] || exit 99\n[ -n '" + c.module + "' ] || exit 1\necho '" + c.module + "'\n"
			if err := os.WriteFile(filepath.Join(dir, "modinfo"), []byte(modinfo), 0o755); err != nil {
				t.Fatal(err)
			}
			code, text, _ := ask(t, strings.ReplaceAll(s.Check(in), " /usr/lib", " "+dir+"/usr/lib"), "PATH="+dir+":"+os.Getenv("PATH"))
			if code != c.code || !strings.Contains(text, c.says) {
				t.Errorf("exit %d: %s", code, text)
			}
		})
	}
}

// A virtual GPU has no sensor for its temperature, which is no failure of it; of a real one it is.
func TestOnlyAVirtualGPUMayHaveNoTemperature(t *testing.T) {
	bin := t.TempDir()
	if err := os.WriteFile(filepath.Join(bin, "nvidia-smi"), []byte("#!/bin/sh\ncase $1 in -q) exit 1 ;; esac\necho \"00000000:0A:00.0, GRID T4-8Q, 535.183.01, Enabled, ${DEGREES}\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		virtual bool
		degrees string
		code    int
	}{{true, "[N/A]", 0}, {true, "N/A", 0}, {true, "41", 0}, {true, "", 1}, {false, "[N/A]", 1}, {false, "41", 0}} {
		in := twoGPUs()
		in.Facts.GPUs = in.Facts.GPUs[:1]
		in.Choice = choice.Choice{Branch: 535, GPUs: []choice.GPU{{Virtual: c.virtual}}}
		code, text, _ := ask(t, find(t, "verify-smi").Check(in), "PATH="+bin+":"+os.Getenv("PATH"), "DEGREES="+c.degrees)
		if code != c.code {
			t.Errorf("%+v: exit %d: %s", c, code, text)
		}
	}
}
