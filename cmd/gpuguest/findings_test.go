package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"gpuguest/internal/choice"
	"gpuguest/internal/cuda"
	"gpuguest/internal/diagnosis"
	"gpuguest/internal/facts"
	"gpuguest/steps"
)

// A row of the catalogue for a line that gpuguest itself prints is dead when the line is worded anew. Each such row's
// example must be what the code prints, and be matched.
func TestRowsOfOurOwnMessagesMatchWhatIsPrinted(t *testing.T) {
	const v, other = "580.65.06", "580.95.05"
	gpu := []facts.PCI{{Address: "0000:0a:00.0"}}
	failed := func(f cuda.Failure) string { return probeFindings(cuda.Report{Failures: []cuda.Failure{f}}) }
	said := map[string]string{
		"no-gpu":             findings(facts.Facts{}),
		"gpu-without-driver": findings(facts.Facts{GPUs: gpu}),
		"gpu-unbound":        findings(facts.Facts{GPUs: gpu, Driver: facts.Driver{Library: v}}),
		"loaded-mismatch":    verifyPrints(t, "verify-versions", v, map[string]string{"libnvidia-ml": other, "libcuda": other}),
		"library-missing":    verifyPrints(t, "verify-versions", v, map[string]string{"libnvidia-ml": v}),
		"next-mismatch":      verifyPrints(t, "verify-packages", v, map[string]string{"libnvidia-ml": other, "libcuda": other}),
		"cuda-dead":          failed(cuda.Failure{Kind: "count", What: "CUDA sees 1 GPUs, the guest has 2"}),
		"cuda-wrong":         failed(cuda.Failure{Kind: "kernel-result", PCI: gpu[0].Address, What: "element 7 of the vector kernel's result is 3 and must be 4"}),
		"cuda-slow-link":     failed(cuda.Failure{Kind: "link-bandwidth", PCI: gpu[0].Address, What: "pinned copies to the GPU reach 1.20 GB/s, which is 8 % of the 15.75 GB/s that its PCIe link carries (8.0 GT/s x16); at least 50 % is asked for"}),
		"smi-hung":           "", // seen by TestAHungProgramIsLeftBehind
	}
	all, err := diagnosis.Signatures()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range all {
		text, known := said[s.ID]
		if !strings.HasPrefix(s.Source, "gpuguest's own ") {
			continue
		}
		if delete(said, s.ID); !known {
			t.Errorf("%s: nothing here prints its line", s.ID)
		}
		if text == "" {
			continue
		}
		found, err := diagnosis.Read("", strings.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(text, s.Example) || !slices.ContainsFunc(found, func(v diagnosis.Verdict) bool { return v.ID == s.ID }) {
			t.Errorf("%s: printed is %q, which it finds %v in; its example is %q", s.ID, text, found, s.Example)
		}
	}
	if len(said) > 0 {
		t.Errorf("no rows of our own: %v", said)
	}
}

// verifyPrints is what a check of verify prints in a guest with this module and libraries of these versions.
func verifyPrints(t *testing.T, id steps.ID, module string, libraries map[string]string) string {
	t.Helper()
	root := t.TempDir()
	write := func(name, text string) {
		p := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write("proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX x86_64 Kernel Module  "+module+"  Tue Sep 23 10:11:16 UTC 2025\n")
	write("bin/modinfo", "#!/bin/sh\necho "+module+"\n")
	for name, version := range libraries {
		write("usr/lib/x86_64-linux-gnu/"+name+".so."+version, "")
	}
	all := steps.Install()
	at := slices.IndexFunc(all, func(s steps.Step) bool { return s.ID == id })
	if at < 0 {
		t.Fatalf("no step %s", id)
	}
	in := steps.Input{
		Facts:  facts.Facts{GPUs: []facts.PCI{{Address: "0000:0a:00.0"}}, Kernel: facts.Kernel{Next: "6.1.0-50-amd64"}},
		Choice: choice.Choice{Module: "nvidia", Branch: 580, License: choice.LicenseProprietary},
		Proves: true,
	}
	script := strings.NewReplacer(" /proc/driver", " "+root+"/proc/driver", " /usr/lib", " "+root+"/usr/lib").Replace(all[at].Check(in))
	cmd := exec.Command("/bin/sh", "-c", "set -eu\n"+script)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "PATH="+filepath.Join(root, "bin")+":"+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	if err == nil {
		t.Fatalf("%s is met: %s", id, out)
	}
	return string(out)
}
