package main

import (
	"cmp"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"gpuguest/internal/bake"
	"gpuguest/internal/choice"
	"gpuguest/internal/facts"
	"gpuguest/internal/inventory"
	"gpuguest/internal/plan"
)

// TestBakeFileOfTheDocumentsIsTaken: docs/bake.yaml parses, and every key that it and docs/bake.md name is one.
func TestBakeFileOfTheDocumentsIsTaken(t *testing.T) {
	path, _ := doc(t, "bake.yaml")
	c, err := (baking{file: path}).images(nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Images) != 2 || c.Memory != 8192 || !c.Images[1].FirstBootVerify || c.Images[1].Format != "vhdx" {
		t.Errorf("%+v", c)
	}
	a := &app{}
	for _, im := range c.Images {
		r, err := a.recipe(path, im, bake.Planned{})
		if err != nil {
			t.Errorf("%s: %v", im.Name, err)
			continue
		}
		if r.Close != nil {
			if err := r.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	_, text := doc(t, "bake.md")
	for _, row := range regexp.MustCompile("(?m)^\\| (`.*?) \\|").FindAllStringSubmatch(text, -1) {
		for _, key := range regexp.MustCompile("`([a-z0-9-]+)`").FindAllStringSubmatch(row[1], -1) {
			line := "    " + key[1] + ": [a, b]\n"
			_, err := bake.Parse(bake.Source{Name: "x", Text: []byte("images:\n  a:\n" + line), Check: newWish().set})
			if err == nil || strings.Contains(err.Error(), "unknown key") {
				t.Errorf("docs/bake.md has the key %s: %v", key[1], err)
			}
		}
	}
}

func TestImageOptionsAreInstallsFlags(t *testing.T) {
	dir := t.TempDir()
	keyring := filepath.Join(dir, "keyring.deb")
	if err := os.WriteFile(keyring, []byte("a package"), 0o600); err != nil {
		t.Fatal(err)
	}
	parse := func(text string) (bake.Image, error) {
		c, err := bake.Parse(bake.Source{Name: filepath.Join(dir, "bake.yaml"), Check: newWish().set,
			Text: []byte("images:\n  a:\n    base: b.raw\n    sha256: " + strings.Repeat("0", 64) + "\n    output: o.raw\n" + text)})
		if err != nil {
			return bake.Image{}, err
		}
		return c.Images[0], nil
	}
	im, err := parse("    keyring: keyring.deb\n    kernel-arg: [a=1, b=2]\n    target-gpu: [tesla t4, \"10de:2330\"]\n")
	if err != nil {
		t.Fatal(err)
	}
	r, err := (&app{}).recipe(filepath.Join(dir, "bake.yaml"), im, bake.Planned{})
	if err != nil || len(r.Engine.Files) != 1 {
		t.Fatalf("%+v, %v", r.Engine.Files, err)
	}
	for _, file := range r.Engine.Files {
		if file != keyring {
			t.Errorf("the keyring is %s, a name relative to the file", file)
		}
	}
	for text, want := range map[string]string{
		"    reboot: never\n":       `unknown key "reboot"`,
		"    host: vm\n":            `unknown key "host"`,
		"    no-gpu: true\n":        `unknown key "no-gpu"`,
		"    driver: [1, 2]\n":      "driver: one value, not 2",
		"    hold-kernel: much\n":   `hold-kernel "much": it is true or false`,
		"    target-gpu: Voodoo\n":  `target-gpu: no GPU of the tables is named "Voodoo"`,
		"    target-gpu: GeForce\n": `target-gpu: "GeForce" is several GPUs`,
	} {
		if _, err := parse(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", text, err, want)
		}
	}
}

// TestBothFlavorsArePutInWhereGPUsNeedThem: a GTX 1050 Ti (no GSP), a B200 (open modules only), a T4 and an H100 (either),
// a K80 (no branch after 470).
func TestBothFlavorsArePutInWhereGPUsNeedThem(t *testing.T) {
	for _, devices := range [][]string{{"10de:1c82", "10de:2901"}, {"10de:1eb8", "10de:2901", "10de:1c82"}} {
		if both, err := together(choice.Want{Devices: devices}); err != nil || !both {
			t.Errorf("%q: both %v, %v", devices, both, err)
		}
	}
	for _, devices := range [][]string{nil, {"10de:1eb8", "10de:2330"}, {"10de:1c82", "10de:1eb8"}, {"nonsense"}, {"10de:ffff", "10de:1c82"}} {
		if both, err := together(choice.Want{Devices: devices}); err != nil || both {
			t.Errorf("%q: both %v, %v", devices, both, err)
		}
	}
	var refusal *choice.Refusal
	mixed := []string{"10de:1c82", "10de:2901"}
	for name, test := range map[string]struct {
		want   choice.Want
		reason string
	}{
		"no branch":   {choice.Want{Devices: []string{"10de:102d", "10de:2330"}}, "no branch after 470 drives the second"},
		"flavor":      {choice.Want{Devices: mixed, Flavor: choice.FlavorOpen}, "flavor says open"},
		"runfile":     {choice.Want{Devices: mixed, Source: choice.SourceRunfile}, "only from packages that DKMS builds"},
		"precompiled": {choice.Want{Devices: mixed, Modules: choice.ModulesPrecompiled}, "only from packages that DKMS builds"},
	} {
		_, err := together(test.want)
		if !errors.As(err, &refusal) || !strings.Contains(err.Error(), test.reason+": make an image for each") || exitCode(err) != exitUnsupported {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestRecipeOfBothFlavorsInstallsOneAfterTheOther: two runs of the engine in one guest, of one branch, the open flavor last.
func TestRecipeOfBothFlavorsInstallsOneAfterTheOther(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join("..", "..", "testdata", "guests", "debian12-no-gpu.txt"))
	if err != nil {
		t.Fatal(err)
	}
	f, err := facts.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	im := bake.Image{Name: "both", Options: []inventory.Option{{Name: "target-gpu", Values: []string{"10de:1c82", "10de:2901"}}}}
	// The lock says what the driver was; of two flavors it can say one, which stands for nothing.
	for _, locked := range []bake.Planned{{}, {Branch: 570, Flavor: choice.FlavorProprietary, Source: choice.SourceNVIDIA, Modules: choice.ModulesDKMS}} {
		r, err := (&app{}).recipe("bake.yaml", im, locked)
		if err != nil || len(r.First) != 1 {
			t.Fatalf("%d first runs, %v", len(r.First), err)
		}
		first, err := r.First[0].Plan(f)
		if err != nil {
			t.Fatal(err)
		}
		last, err := r.Engine.Plan(f)
		if err != nil {
			t.Fatal(err)
		}
		branch := cmp.Or(locked.Branch, 580)
		if a, b := first.Choice, last.Choice; a.Flavor != choice.FlavorProprietary || b.Flavor != choice.FlavorOpen || a.Branch != branch || b.Branch != branch || a.Source != choice.SourceNVIDIA || len(b.GPUs) != 2 {
			t.Errorf("first %s %d from %s, then %s %d for %d GPUs", a.Flavor, a.Branch, a.Source, b.Flavor, b.Branch, len(b.GPUs))
		}
		for _, p := range []plan.Plan{first, last} {
			if !slices.ContainsFunc(p.Items(), func(it plan.Item) bool { return it.ID == "both-flavors" }) {
				t.Errorf("the %s run keeps no modules", p.Choice.Flavor)
			}
		}
	}
}

func TestTargetGPUsStandForSeenOnes(t *testing.T) {
	w := newWish()
	if err := w.set("target-gpu", []string{"Tesla T4", "10de:2330"}); err != nil {
		t.Fatal(err)
	}
	if want := []string{"10de:1eb8", "10de:2330"}; !slices.Equal(w.want.Devices, want) || !w.want.NoGPU {
		t.Errorf("devices %q, no GPU %v", w.want.Devices, w.want.NoGPU)
	}
}
