package catalog

import (
	"slices"
	"strings"
	"testing"

	"gpuguest/assets"
)

func TestLookupKnowsGPUsOfEveryKind(t *testing.T) {
	for _, c := range []struct {
		id   string // device, or device:subvendor:subdevice
		want GPU    // Device and Source are not compared
	}{
		{"102d", GPU{Name: "Tesla K80", Arch: "Kepler", Open: No, Proprietary: Yes, First: 340, Last: 470}},
		{"1c82", GPU{Name: "NVIDIA GeForce GTX 1050 Ti", Arch: "Pascal", Open: No, Proprietary: Yes, First: 375, Last: 580}},
		{"1db4", GPU{Name: "Tesla V100-PCIE-16GB", Arch: "Volta", Open: No, Proprietary: Yes, First: 384, Last: 580}},
		{"1db4:10de:1306", GPU{Name: "Tesla V100-PCIE-16GB-LS", Arch: "Volta", Open: No, Proprietary: Yes, First: 384, Last: 580}},
		{"1eb8:10de:12a2", GPU{Name: "Tesla T4", Arch: "Turing", Open: Yes, Proprietary: Yes, First: 410}},
		{"1EB8:10DE:12A2", GPU{Name: "Tesla T4", Arch: "Turing", Open: Yes, Proprietary: Yes, First: 410}},
		{"1eb8:1234:5678", GPU{Name: "Tesla T4", Arch: "Turing", Open: Yes, Proprietary: Yes, First: 410}},
		{"20b0", GPU{Name: "NVIDIA A100-SXM4-40GB", Arch: "Ampere", Open: Yes, Proprietary: Yes, First: 450}},
		{"2342", GPU{Name: "GH200 120GB / 480GB", Arch: "Hopper", Open: Required, Proprietary: No, First: 535}},
		{"2b85", GPU{Name: "NVIDIA GeForce RTX 5090", Arch: "Blackwell", Open: Required, Proprietary: No, First: 570}},
		{"3182", GPU{Name: "B300 SXM6 AC", Arch: "Blackwell", Open: Required, Proprietary: No, First: 580}},
		{"1eb8:10de:1309", GPU{Name: "Tesla T4", Arch: "Turing", Open: Yes, Proprietary: Yes, First: 410, VGPU: true, NoGSP: true}},
		{"0020", GPU{Name: "RIVA TNT", Arch: "pre-Tesla", Open: No, Proprietary: Yes, Last: 71}},
		{"30ff", GPU{Name: "GR102", Arch: "Rubin", Open: Required, Proprietary: No, First: 616}},
	} {
		p := append(strings.Split(c.id, ":"), "", "")
		got, ok := Lookup("10de", p[0], p[1], p[2])
		if !ok {
			t.Errorf("%s: not found", c.id)
			continue
		}
		if got.Device != strings.ToLower(p[0]) || got.Source == "" {
			t.Errorf("%s: device %q, source %q", c.id, got.Device, got.Source)
		}
		got.Device, got.Source = "", ""
		if got != c.want {
			t.Errorf("%s:\n got %+v\nwant %+v", c.id, got, c.want)
		}
	}
}

func TestLookupDoesNotKnowStrangers(t *testing.T) {
	for _, id := range [][2]string{{"10de", "0000"}, {"10de", "ffff"}, {"10de", ""}, {"10de", "1eb"}, {"10de", "1eb88"}, {"8086", "1eb8"}, {"", ""}, {"10de", "device"}} {
		if g, ok := Lookup(id[0], id[1], "", ""); ok {
			t.Errorf("%v: found %+v", id, g)
		}
	}
}

func TestEveryRowOfTheGPUTableIsFoundAndSound(t *testing.T) {
	known := map[string][]string{"open": {Yes, No, Required}, "proprietary": {Yes, No, Unknown}}
	archs := []string{"", "pre-Tesla", "Tesla", "Fermi", "Kepler", "Maxwell", "Pascal", "Volta", "Turing", "Ampere", "Ada", "Hopper", "Blackwell", "Rubin"}
	previous, n := "", 0
	for line := range body(assets.GPUs) {
		n++
		f := strings.Split(line, "\t")
		if key := f[0] + f[1]; key <= previous {
			t.Fatalf("%q is not behind %q: the table must be sorted", key, previous)
		} else {
			previous = key
		}
		sub := append(strings.Split(f[1], ":"), "")
		g, ok := Lookup(NVIDIA, f[0], sub[0], sub[1])
		switch {
		case !ok || g.Name != f[2] || g.Name == "":
			t.Errorf("%s %s: found %v, %+v", f[0], f[1], ok, g)
		case !slices.Contains(known["open"], g.Open) || !slices.Contains(known["proprietary"], g.Proprietary) || !slices.Contains(archs, g.Arch):
			t.Errorf("%s: %+v", f[0], g)
		case g.Open == Required && g.Proprietary == Yes, g.Open == No && g.Proprietary == No:
			t.Errorf("%s: open %s and proprietary %s cannot be", f[0], g.Open, g.Proprietary)
		case g.Last != 0 && g.Open != No:
			t.Errorf("%s: a GPU that later branches dropped (%d) has no GSP, yet open is %s", f[0], g.Last, g.Open)
		case g.First != 0 && g.Last != 0 && g.First > g.Last:
			t.Errorf("%s: first branch %d after last %d", f[0], g.First, g.Last)
		case slices.Contains([]string{"Maxwell", "Pascal", "Volta"}, g.Arch) && (g.Open != No || g.Last != 580):
			t.Errorf("%s: %s must be proprietary up to 580: %+v", f[0], g.Arch, g)
		case slices.Contains([]string{"Blackwell", "Rubin"}, g.Arch) && (g.Open != Required || g.Last != 0):
			t.Errorf("%s: %s needs the open modules: %+v", f[0], g.Arch, g)
		}
	}
	devices := 0
	for range GPUs() {
		devices++
	}
	if n < 1600 || devices != 1442 {
		t.Errorf("%d rows, %d devices: the table lost some", n, devices)
	}
}

func TestVGPUTableIsSortedAndMeetsNoPhysicalBoard(t *testing.T) {
	previous := ""
	physical := map[string]bool{}
	for line := range body(assets.GPUs) {
		f := strings.Split(line, "\t")
		physical[f[0]+" "+f[1]] = true
	}
	n := 0
	for line := range body(assets.VGPUs) {
		f := strings.Split(line, "\t")
		if f[0] <= previous {
			t.Fatalf("%q is not behind %q", f[0], previous)
		}
		previous = f[0]
		for _, s := range strings.Fields(f[1] + " " + f[2]) {
			n++
			if physical[f[0]+" "+s] {
				t.Errorf("%s %s is a physical board too", f[0], s)
			}
			v, d, _ := strings.Cut(s, ":")
			if g, _ := Lookup(NVIDIA, f[0], v, d); !g.VGPU {
				t.Errorf("%s %s: not seen as a vGPU", f[0], s)
			}
		}
	}
	if n != 1059 {
		t.Errorf("%d subsystem ids, want 1059", n)
	}
}

func TestEveryBranchIsSound(t *testing.T) {
	all := Branches()
	if len(all) < 25 {
		t.Fatalf("only %d branches", len(all))
	}
	for i, b := range all {
		if i > 0 && b.Number <= all[i-1].Number {
			t.Errorf("%d is not behind %d", b.Number, all[i-1].Number)
		}
		if !slices.Contains([]string{LTSB, PB, NFB, Developer, Legacy, Unknown}, b.Kind) || !slices.Contains([]string{"supported", "ended", Unknown}, b.State) ||
			!slices.Contains([]string{OpenNo, OpenOptIn, OpenDefault, OpenOnly}, b.Open) || b.EOL == "" || b.Source == "" {
			t.Errorf("%d: %+v", b.Number, b)
		}
		if strings.Contains(b.Source, "memory") {
			t.Errorf("%d: its source is nobody's", b.Number)
		}
		if b.Latest != "" {
			if n, err := BranchOf(b.Latest); err != nil || n != b.Number {
				t.Errorf("%d: latest %s", b.Number, b.Latest)
			}
		}
		if b.State == "supported" && b.EOL < "2026-11" {
			t.Errorf("%d: supported, yet its end was %s", b.Number, b.EOL)
		}
		if got, ok := BranchByNumber(b.Number); !ok || got != b {
			t.Errorf("%d is not found by its number", b.Number)
		}
	}
	// Every branch that was the first or the last one to drive some GPU is there, but for those of before 340.
	for g := range GPUs() {
		for _, n := range []int{g.First, g.Last} {
			if _, ok := BranchByNumber(n); !ok && n > 340 {
				t.Errorf("%s: branch %d is not in the table", g.Device, n)
			}
		}
	}
	if _, ok := BranchByNumber(581); ok {
		t.Error("581 is no branch")
	}
}

func TestBranchOf(t *testing.T) {
	for version, want := range map[string]int{
		"580": 580, "580.95.05": 580, "535.309.01-1": 535, "470.256.02-1~deb12u1": 470, "580.173.02-0ubuntu0.24.04.1": 580, "7.0.0-30.30": 7,
		"": 0, "x": 0, "580x": 0, "-580": 0, ".580": 0, "0": 0, "0580": 0, "58000": 0, "+580": 0, "latest": 0, "580,95": 0,
	} {
		got, err := BranchOf(version)
		if got != want || (err != nil) != (want == 0) {
			t.Errorf("BranchOf(%q) = %d, %v; want %d", version, got, err, want)
		}
	}
}

func TestCompareVersions(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{{"580.95.05", "580.105.08", -1}, {"580.95.05", "580.95.05", 0}, {"580.95", "580.95.05", -1}, {"595.1", "580.999.99", 1}, {"535.309.01", "535.309.1", 0}} {
		if got := CompareVersions(c.a, c.b); got != c.want {
			t.Errorf("CompareVersions(%q, %q) = %d, want %d", c.a, c.b, got, c.want)
		}
		if got := CompareVersions(c.b, c.a); got != -c.want {
			t.Errorf("CompareVersions(%q, %q) = %d, want %d", c.b, c.a, got, -c.want)
		}
	}
}

func FuzzLookupNeverPanics(f *testing.F) {
	f.Add("10de", "1eb8", "10de", "12a2")
	f.Add("10de", "\n", "\t", "")
	f.Fuzz(func(t *testing.T, v, d, sv, sd string) {
		if g, ok := Lookup(v, d, sv, sd); ok && g.Device != strings.ToLower(d) {
			t.Errorf("asked for %q, got %q", d, g.Device)
		}
	})
}

func BenchmarkLookup(b *testing.B) {
	for b.Loop() {
		Lookup("10de", "2b85", "10de", "0000")
	}
}
