package steps

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gpuguest/distros"
	"gpuguest/internal/choice"
	"gpuguest/internal/facts"
)

// TestVersionThatTheRepositoryLacksIsRefusedFirst runs the check with an apt that knows nothing of the repository yet.
func TestVersionThatTheRepositoryLacksIsRefusedFirst(t *testing.T) {
	d, err := distros.For(facts.OS{ID: "debian", VersionID: "12"}, "")
	if err != nil {
		t.Fatal(err)
	}
	if first := Install()[0]; first.ID != "available" {
		t.Errorf("%s comes before it", first.ID)
	}
	const index = "Package: nvidia-driver-pinning-580\nVersion: 1\n\nPackage: nvidia-driver-pinning-580.65.06\n\nPackage: nvidia-driver-pinning-580.178.04\n\nPackage: nvidia-driver-pinning-580.95.05\n\nPackage: nvidia-driver-pinning-595.91.07\n\nPackage: nvidia-open\n"
	for _, c := range []struct {
		name, driver, index string
		known               bool // the guest's own lists offer it
		code                int
		says                string
	}{
		{"it is there", "580.95.05", index, false, 0, ""},
		{"it is not", "580.95.99", index, false, 1, "NVIDIA's repository has no driver 580.95.99; the nearest that it has: 580.65.06 580.95.05 580.178.04"},
		{"nor is its branch", "610.43.02", index, false, 1, "no driver 610.43.02; the nearest that it has: 580.95.05 580.178.04 595.91.07"},
		{"only a longer one", "580.178.0", index, false, 1, "no driver 580.178.0;"},
		{"the guest's lists offer it", "580.95.99", "", true, 0, ""},
		{"the index cannot be read", "580.95.99", "", false, 0, "not known beforehand"},
		{"the index is another's", "580.95.99", "Package: bash\n", false, 0, "not known beforehand"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			offered := "exit 1"
			if c.known {
				offered = "exit 0"
			}
			for name, text := range map[string]string{
				"index": c.index, "dpkg-query": "exit 1", "apt-cache": "exit 1", "apt-get": offered,
				"apt-helper": `[ "$1" = download-file ] && [ "$2" = https://developer.download.nvidia.com/compute/cuda/repos/debian12/x86_64/Packages.gz ] || exit 99
[ -s ` + dir + `/index ] || exit 100
gzip -c <` + dir + `/index >"$3"`,
			} {
				if name != "index" {
					text = "#!/bin/sh\n" + text + "\n"
				}
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			in := Input{Distro: d, Want: choice.Want{Driver: c.driver}, Facts: facts.Facts{Arch: "x86_64"}}
			in.Choice = choice.Choice{Source: choice.SourceNVIDIA, Version: c.driver, Pin: []string{"nvidia-driver-pinning-" + c.driver}}
			s := find(t, "available")
			if !s.Wanted(in) || !s.Refuses || s.Apply != nil {
				t.Fatal("it is not asked")
			}
			script := strings.ReplaceAll(s.Check(in), "/usr/lib/apt/apt-helper", dir+"/apt-helper")
			if c.known {
				script = strings.Replace(script, d.Packages.Offered(in.Choice.Pin...), "true", 1)
			}
			code, text, _ := ask(t, script, "PATH="+dir+":"+os.Getenv("PATH"))
			if code != c.code || !strings.Contains(text, c.says) {
				t.Errorf("exit %d: %s", code, text)
			}
			for what, other := range map[string]func(*Input){
				"a branch":         func(in *Input) { in.Want.Driver = "580" },
				"a proof alone":    func(in *Input) { in.Proves = true },
				"its own packages": func(in *Input) { in.Choice.Source = choice.SourceDistro },
			} {
				not := in
				if other(&not); s.Wanted(not) {
					t.Errorf("it is asked for %s", what)
				}
			}
		})
	}
}
