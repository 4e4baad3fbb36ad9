package bake_test

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	"gpuguest/internal/bake"
	"gpuguest/internal/inventory"
)

const sum = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

// knows is a check of options that knows three.
func knows(name string, _ []string) error {
	switch name {
	case "driver", "kernel-arg", "target-gpu":
		return nil
	}
	return fmt.Errorf("unknown key %q", name)
}

func parse(text string) (bake.Config, error) {
	return bake.Parse(bake.Source{Name: "dir/bake.yaml", Text: []byte(text), Check: knows})
}

func TestConfigIsRead(t *testing.T) {
	got, err := parse(`
memory: 6G
cpus: 4
defaults:
  base: base.qcow2
  sha256: ` + strings.ToUpper(sum) + `
  oven: nspawn
  driver: 535
images:
  t4:
    output: out/t4.vhdx
    lock: t4.lock
    target-gpu: [Tesla T4, "10de:2330"]
    first-boot-verify: yes
  own:
    base: /images/own.img
    sha256: ` + sum + `
    base-format: vmdk
    output: own.qcow2
    oven: qemu
    firmware: uefi
    user: admin
    memory: 512M
    cpus: 1
    disk-size: 12G
    compress: true
    driver: 580.95.05
    kernel-arg: pci=realloc
`)
	if err != nil {
		t.Fatal(err)
	}
	at := func(line, col int) inventory.Position {
		return inventory.Position{File: "dir/bake.yaml", Line: line, Col: col}
	}
	option := func(name string, line, col int, values ...string) inventory.Option {
		return inventory.Option{Name: name, Values: values, Where: at(line, col)}
	}
	want := bake.Config{Memory: 6144, CPUs: 4, Images: []bake.Image{
		{
			Name: "t4", Where: at(10, 3), Base: "dir/base.qcow2", SHA256: sum, BaseFormat: "qcow2", Output: "dir/out/t4.vhdx", Format: "vhdx",
			Oven: "nspawn", Lock: "dir/t4.lock", Targets: []string{"Tesla T4", "10de:2330"}, FirstBootVerify: true,
			Options: []inventory.Option{option("driver", 8, 11, "535"), option("target-gpu", 13, 17, "Tesla T4", "10de:2330")},
		},
		{
			Name: "own", Where: at(15, 3), Base: "/images/own.img", SHA256: sum, BaseFormat: "vmdk", Output: "dir/own.qcow2", Format: "qcow2",
			Oven: "qemu", Firmware: "uefi", User: "admin", Memory: 512, CPUs: 1, DiskSize: 12288, Compress: true,
			Options: []inventory.Option{option("driver", 27, 13, "580.95.05"), option("kernel-arg", 28, 17, "pci=realloc")},
		},
	}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestMistakesAreToldWithLineAndColumn(t *testing.T) {
	image := "images:\n  a:\n    base: b.qcow2\n    sha256: " + sum + "\n    output: o.qcow2\n"
	for name, test := range map[string]struct{ text, want string }{
		"nothing":             {"", "dir/bake.yaml: it says nothing: there are memory, cpus, defaults and images"},
		"no images":           {"memory: 1G\n", "dir/bake.yaml: it has no images"},
		"not YAML":            {"images: [\n", "dir/bake.yaml:1: not YAML: did not find expected node content"},
		"second document":     {image + "---\nx: 1\n", "dir/bake.yaml:6:1: a second document; one is read"},
		"unknown at the top":  {image + "image: x\n", `dir/bake.yaml:6:1: unknown key "image": there are memory, cpus, defaults and images`},
		"unknown in an image": {image + "    drivr: 535\n", `dir/bake.yaml:6:5: unknown key "drivr"`},
		"unknown in defaults": {"defaults:\n  drivr: 535\n" + image, `dir/bake.yaml:2:3: unknown key "drivr"`},
		"twice":               {image + "    base: c.qcow2\n", `dir/bake.yaml:6:5: "base" is there twice`},
		"output in defaults":  {"defaults:\n  output: x.raw\n" + image, "dir/bake.yaml:2:3: output: each image has its own"},
		"checksum":            {strings.Replace(image, sum, "abc", 1), `dir/bake.yaml:4:13: sha256 "abc": it is 64 hexadecimal digits`},
		"checksum missing":    {strings.Replace(image, "    sha256: "+sum+"\n", "", 1), "dir/bake.yaml:2:3: image a: sha256 is missing"},
		"format unknown":      {strings.Replace(image, "o.qcow2", "o.box", 1), "dir/bake.yaml:2:3: dir/o.box: its extension says no format that is known: give it by format, one of qcow2, raw, vmdk, vhdx"},
		"oven":                {image + "    oven: aga\n", `dir/bake.yaml:6:11: oven "aga": it is auto, qemu or nspawn`},
		"memory":              {image + "    memory: much\n", `dir/bake.yaml:6:13: memory "much": it is a size, as in 2048M or 2G`},
		"memory above all":    {"memory: 1G\n" + image, "dir/bake.yaml:3:3: image a takes 2048 MiB of memory, and all together may take 1024"},
		"disk-size":           {image + "    disk-size: 12 GB\n", `dir/bake.yaml:6:16: disk-size "12 GB": it is a size, as in 2048M or 2G`},
		"cpus":                {image + "    cpus: 0\n", `dir/bake.yaml:6:11: cpus "0": it is a whole number from 1 on`},
		"a list for one":      {image + "    oven: [qemu, nspawn]\n", "dir/bake.yaml:6:11: oven: one value, not 2"},
		"no value":            {image + "    driver:\n", "dir/bake.yaml:6:12: driver: it is a word or a list of words"},
		"compressed vmdk":     {strings.Replace(image, "o.qcow2", "o.vmdk", 1) + "    compress: true\n", "dir/bake.yaml:6:15: compress: only a qcow2 output is compressed, and this one is vmdk"},
		"over its base":       {strings.Replace(image, "o.qcow2", "./b.qcow2", 1), "dir/bake.yaml:2:3: image a would write over dir/b.qcow2, the base of image a"},
		"name":                {strings.Replace(image, "  a:", "  ../a:", 1), `dir/bake.yaml:2:3: image "../a": its name has letters, digits, dots, dashes and underscores, at most 64, and begins with a letter or a digit`},
		"two of one output":   {image + strings.Replace(strings.TrimPrefix(image, "images:\n"), "a:", "b:", 1), "dir/bake.yaml:6:3: image b writes dir/o.qcow2, and so does image a"},
		"a list of images":    {"images: [a, b]\n", "dir/bake.yaml:1:9: images: names, each with a colon and its value behind it\ndir/bake.yaml:1:9: images: there is none"},
		"all at once":         {image + "    oven: aga\n    cpus: no\n", `dir/bake.yaml:6:11: oven "aga": it is auto, qemu or nspawn` + "\n" + `dir/bake.yaml:7:11: cpus "no": it is a whole number from 1 on`},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := parse(test.text)
			if err == nil {
				t.Fatalf("taken: %+v", c)
			}
			got := err.Error()
			if _, rest, many := strings.Cut(got, " mistakes\n"); many {
				got = rest
			}
			if got != test.want {
				t.Errorf("got  %s\nwant %s", got, test.want)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	f.Add("images:\n  a:\n    base: b.qcow2\n    sha256: " + sum + "\n    output: o.qcow2\n")
	f.Add("defaults: &d\n  driver: 535\nimages:\n  a: *d\n  b: {base: x.raw, output: y.vmdk, memory: 9G, kernel-arg: [a, b]}\n")
	f.Add("memory: 99999999999G\ncpus: [1]\nimages: {a: {}}\n---\n")
	f.Add("a: &a [*a]\n")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := parse(text)
		if err != nil {
			return
		}
		for _, im := range c.Images {
			if im.Base == "" || im.Output == "" || len(im.SHA256) != 64 || im.Format == "" || im.BaseFormat == "" {
				t.Errorf("taken although something is missing: %+v", im)
			}
		}
	})
}
