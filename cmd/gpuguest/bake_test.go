package main

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"gpuguest/internal/bake"
	"gpuguest/internal/choice"
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

func TestOneImageHasOneSetOfModules(t *testing.T) {
	var refusal *choice.Refusal
	for _, devices := range [][]string{{"10de:1c82", "10de:2901"}, {"10de:102d", "10de:2330"}} {
		if err := together(devices); !errors.As(err, &refusal) || !strings.Contains(err.Error(), "make an image for each") || exitCode(err) != exitUnsupported {
			t.Errorf("%q: %v", devices, err)
		}
	}
	for _, devices := range [][]string{nil, {"10de:1eb8", "10de:2330"}, {"10de:1c82", "10de:1eb8"}, {"nonsense"}, {"10de:ffff", "10de:1c82"}} {
		if err := together(devices); err != nil {
			t.Errorf("%q: %v", devices, err)
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
