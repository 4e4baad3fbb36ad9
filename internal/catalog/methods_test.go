package catalog

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	"gpuguest/assets"
)

// columns fails unless every row of a table has as many columns as its header, the last of them, its source,
// not empty, and a key, its first columns, that no other row has.
func columns(t *testing.T, name, table string, key int) int {
	t.Helper()
	head, _, _ := strings.Cut(table, "\n")
	want, seen, n := strings.Count(head, "\t"), map[string]bool{}, 0
	for line := range body(table) {
		n++
		f := strings.Split(line, "\t")
		if len(f)-1 != want || f[len(f)-1] == "" {
			t.Errorf("%s: row %d has %d columns, or no source: %q", name, n, len(f), line)
			continue
		}
		k := strings.Join(f[:key], " ")
		if seen[k] {
			t.Errorf("%s: %s is there twice", name, k)
		}
		seen[k] = true
	}
	return n
}

func TestEveryRowOfTheMethodTablesIsSound(t *testing.T) {
	for _, c := range []struct {
		name, table string
		key, rows   int
	}{
		{"toolkits", assets.Toolkits, 1, 73},
		{"toolkit repositories", assets.ToolkitRepos, 1, 20},
		{"toolkit runfiles", assets.ToolkitRunfiles, 2, 156},
		{"driver runfiles", assets.DriverRunfiles, 2, 122},
		{"cuda-samples", assets.CUDASamples, 1, 9},
		{"installer options", assets.InstallerOptions, 1, 115},
		{"capabilities", assets.Capabilities, 1, 40},
	} {
		if n := columns(t, c.name, c.table, c.key); n < c.rows {
			t.Errorf("%s: only %d rows", c.name, n)
		}
	}
	number := regexp.MustCompile(`^\d+(\.\d+)+$`)
	last := ""
	for _, tk := range Toolkits() {
		if err := ParseToolkit(tk.Version); err != nil {
			t.Error(err)
		}
		if last != "" && CompareVersions(last, tk.Version) >= 0 {
			t.Errorf("%s comes after %s", tk.Version, last)
		}
		last = tk.Version
		if !number.MatchString(tk.Driver) || tk.GCCMax < 4 || tk.GCCMin > tk.GCCMax || CompareVersions(tk.CCMin, tk.CCMax) >= 0 {
			t.Errorf("%+v", tk)
		}
		if tk.MinDriver != "" && CompareVersions(tk.MinDriver, tk.Driver) > 0 && !strings.HasPrefix(tk.Version, "11.0.") {
			t.Errorf("%s: its own driver %s is older than the oldest that runs it, %s", tk.Version, tk.Driver, tk.MinDriver)
		}
	}
	sum := regexp.MustCompile(`^[0-9a-f]{64}$`)
	for _, r := range slices.Concat(DriverRunfiles(), ToolkitRunfiles()) {
		if !sum.MatchString(r.SHA256) || !strings.HasPrefix(r.URL, "https://") || !strings.Contains(r.URL, "nvidia.com/") || !slices.Contains([]string{"x86_64", "aarch64", "ppc64le"}, r.Arch) {
			t.Errorf("%+v", r)
		}
	}
	for _, r := range DriverRunfiles() {
		if want := "NVIDIA-Linux-" + r.Arch + "-" + r.Version + ".run"; r.Name() != want {
			t.Errorf("%s is at %s", want, r.URL)
		}
		if b, err := BranchOf(r.Version); err != nil {
			t.Error(err)
		} else if _, known := BranchByNumber(b); !known {
			t.Errorf("branch %d of %s is not in the table of branches", b, r.Version)
		}
	}
	for _, o := range InstallerOptions() {
		if !strings.HasPrefix(o.Name, "--") || !number.MatchString(o.First) || o.Last != "" && CompareVersions(o.First, o.Last) > 0 ||
			!slices.Contains([]string{"flag", "bool", "string", "int"}, o.Kind) {
			t.Errorf("%+v", o)
		}
	}
}

func TestInstallerTakesWhatItsReleaseKnows(t *testing.T) {
	for _, c := range []struct {
		version, option string
		takes           bool
	}{
		{"390.42", "--silent", true},
		{"390.42", "--dkms", true},
		{"390.42", "--no-dkms", true},
		{"390.42", "--kernel-module-type", false},
		{"390.42", "--kernel-module-build-directory", false},
		{"390.42", "--module-signing-secret-key", true},
		{"304.10", "--dkms", false},
		{"535.104.05", "--kernel-module-build-directory", true},
		{"535.104.05", "--kernel-module-type", false},
		{"555.42.02", "--kernel-module-type", true},
		{"580.95.05", "--rebuild-initramfs", true},
		{"580.95.05", "--no-rebuild-initramfs", true},
		{"381.22", "--force-update", true},
		{"384.59", "--force-update", false},
		{"580.95.05", "--no-such-option", false},
	} {
		if got := InstallerTakes(c.version, c.option); got != c.takes {
			t.Errorf("%s of %s: %v", c.option, c.version, got)
		}
	}
}

// The names and capabilities are those of NVIDIA's lists, developer.nvidia.com/cuda-gpus and
// /cuda-legacy-gpus; each is looked up by the first device of that very name.
func TestCapabilitiesAreThoseThatNVIDIALists(t *testing.T) {
	want := map[string]string{
		"Tesla K80": "3.7", "Tesla K20c": "3.5", "Tesla K40m": "3.5", "Tesla M60": "5.2", "Tesla M40": "5.2", "Tesla P40": "6.1", "Tesla P4": "6.1",
		"Tesla P100-PCIE-16GB": "6.0", "Tesla V100-PCIE-16GB": "7.0", "Tesla T4": "7.5", "NVIDIA A100-SXM4-40GB": "8.0", "NVIDIA A40": "8.6",
		"NVIDIA A10": "8.6", "NVIDIA A30": "8.0", "NVIDIA L4": "8.9", "NVIDIA L40S": "8.9", "NVIDIA H100 PCIe": "9.0", "NVIDIA GeForce RTX 5090": "12.0",
		"NVIDIA GeForce GTX 1050 Ti": "6.1", "NVIDIA GeForce GTX 750 Ti": "5.0", "NVIDIA GeForce GTX 980": "5.2", "NVIDIA GeForce RTX 4090": "8.9",
		"NVIDIA GeForce RTX 3090": "8.6", "NVIDIA B200": "10.0", "B300 SXM6 AC": "10.3", "Quadro GV100": "7.0", "Quadro K2200": "5.0", "Quadro K2000": "3.0",
		"GeForce GTX 480": "2.0", "GeForce GTX 460": "2.1",
	}
	found := 0
	for g := range GPUs() {
		if cc, listed := want[g.Name]; listed {
			found++
			if got := Capability(g.Device); got != cc {
				t.Errorf("%s (%s): %q, want %s", g.Name, g.Device, got, cc)
			}
		}
	}
	if found < 28 {
		t.Errorf("only %d of the names are in the table of GPUs", found)
	}
	for _, id := range []string{"ffff", "0020", "", "2b00"} {
		if got := Capability(id); got != "" {
			t.Errorf("%q has capability %s", id, got)
		}
	}
	if Capability("1EB8") != "7.5" {
		t.Error("an id in capitals is not found")
	}
}

// A capability belongs to one architecture, and every GPU that CUDA still builds for has one.
func TestCapabilityAndArchitectureAgree(t *testing.T) {
	of := map[string]string{"2": "Fermi", "3": "Kepler", "5": "Maxwell", "6": "Pascal", "7.0": "Volta", "7.5": "Turing", "8.0": "Ampere", "8.6": "Ampere",
		"8.9": "Ada", "9": "Hopper", "10.0": "Blackwell", "10.3": "Blackwell", "10.7": "Rubin", "12": "Blackwell"}
	without := 0
	for g := range GPUs() {
		cc := Capability(g.Device)
		major, _, _ := strings.Cut(cc, ".")
		arch := of[cc]
		if arch == "" {
			arch = of[major]
		}
		switch {
		case cc == "" && !slices.Contains([]string{"", "pre-Tesla", "Tesla"}, g.Arch):
			without++
		case cc != "" && arch != g.Arch:
			t.Errorf("%s %s is %s with capability %s", g.Device, g.Name, g.Arch, cc)
		}
	}
	if without > 9 {
		t.Errorf("%d GPUs that run CUDA have no capability", without)
	}
}

func TestToolkitsAreFoundByReleaseAndBySeries(t *testing.T) {
	for version, want := range map[string]string{"12.8.1": "12.8.1", "12.8": "12.8.1", "9.1": "9.1.85", "9.1.85": "9.1.85", "13.4.0": "13.4.0", "13.4": "13.4.2", "14.0": "", "": "", "12": ""} {
		if got, _ := ToolkitByVersion(version); got.Version != want {
			t.Errorf("%q: %q, want %q", version, got.Version, want)
		}
	}
	old, _ := ToolkitByVersion("12.8.1")
	for cc, knows := range map[string]bool{"5.0": true, "3.7": false, "10.0": true, "10.3": false, "12.0": true, "12.1": false} {
		if old.Knows(cc) != knows {
			t.Errorf("12.8.1 and capability %s", cc)
		}
	}
	for driver, want := range map[string][2]bool{"525.60.13": {true, false}, "520.61.05": {false, false}, "570.124.06": {true, true}, "580.95.05": {true, true}} {
		if old.Runs(driver) != want[0] || old.Whole(driver) != want[1] {
			t.Errorf("12.8.1 and driver %s: %v %v", driver, old.Runs(driver), old.Whole(driver))
		}
	}
	// The CentOS 7 guest of 2018 ran it on 390.42, and its own runfile brings 387.26.
	if old, _ := ToolkitByVersion("9.1"); !old.Whole("390.42") || old.Runs("384.81") {
		t.Errorf("%+v", old)
	}
	if r, ok := ToolkitRunfile("9.1.85", "x86_64"); !ok || r.Name() != "cuda_9.1.85_387.26_linux" || r.Driver != "387.26" {
		t.Errorf("%+v", r)
	}
	if r, ok := ToolkitRunfile("7.5", "x86_64"); !ok || r.Version != "7.5.18" {
		t.Errorf("%+v", r)
	}
	if _, ok := ToolkitRunfile("9.1.85", "aarch64"); ok {
		t.Error("9.1.85 was never for aarch64")
	}
}

func FuzzParseToolkit(f *testing.F) {
	for _, s := range []string{"12.8", "12.8.1", "", "1", "12.08", "12.8.1.2", "-1.2", "+1.2"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if ParseToolkit(s) == nil && strings.Trim(s, "0123456789.") != "" {
			t.Errorf("%q", s)
		}
	})
}

func TestSamplesGoWithTheToolkitOrOneBeforeIt(t *testing.T) {
	for series, want := range map[string]string{"12.2": "12.2", "12.3": "12.2", "12.6": "12.5", "12.9": "12.9", "13.0": "13.0", "13.9": "13.3", "12.1": "", "11.8": "", "": ""} {
		got, known := SamplesFor(series)
		if got.Version != want || known != (want != "") {
			t.Errorf("%q: %q, want %q", series, got.Version, want)
		}
	}
	sum := regexp.MustCompile(`^[0-9a-f]{64}$`)
	last := "0"
	for _, a := range SampleArchives() {
		if !sum.MatchString(a.SHA256) || a.URL != "https://github.com/NVIDIA/cuda-samples/archive/refs/tags/v"+a.Version+".tar.gz" || CompareVersions(last, a.Version) >= 0 {
			t.Errorf("%+v", a)
		}
		last = a.Version
	}
}
