package bake

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"gpuguest/internal/inventory"
	"gpuguest/internal/oven"
)

// Words of Image.Oven.
const (
	OvenAuto   = "auto" // the fastest that can be used here and can start the image
	OvenQEMU   = "qemu"
	OvenNspawn = "nspawn"
)

// Formats are those that images come in and go out, by qemu-img's names.
var Formats = []string{oven.FormatQcow2, oven.FormatRaw, "vmdk", "vhdx"}

// byExtension tells a format from a file's name.
var byExtension = map[string]string{
	".qcow2": oven.FormatQcow2, ".raw": oven.FormatRaw, ".img": oven.FormatRaw, ".vmdk": "vmdk", ".vhdx": "vhdx",
}

// FormatByName is the format that a file's name says, "" for none of Formats.
func FormatByName(file string) string { return byExtension[strings.ToLower(filepath.Ext(file))] }

// Config is what a bake.yaml says.
type Config struct {
	Memory int // MiB that all images at work may take together, 0: what the machine has free
	CPUs   int // of all images at work together, 0: those of the machine
	Images []Image
}

// Image is one image to bake. Its paths are those of the file, made absolute or relative to where gpuguest runs.
type Image struct {
	Name  string
	Where inventory.Position // of its name

	Base       string // disk image that it is made from, which is never written to
	SHA256     string // of the base, 64 lower-case hexadecimal digits
	BaseFormat string // by qemu-img's name; "": by the file's extension. It is never probed: a raw disk may look like anything.
	Output     string
	Format     string // of the output

	Oven     string // OvenAuto, OvenQEMU or OvenNspawn
	Firmware string // oven.FirmwareBIOS, oven.FirmwareUEFI or "" for what the image shows
	User     string // login that the one-time key is given to, "" root
	Memory   int    // MiB, 0: DefaultMemory
	CPUs     int    // 0: as many as DefaultCPUs, or the budget if that is less
	DiskSize int    // MiB that its disk is to have, 0: DefaultDisk, or the base's if that is more

	Lock            string // file that holds the set of packages, "" none
	Targets         []string
	FirstBootVerify bool // leave a unit that verifies at the first boot
	Compress        bool // a qcow2 output is compressed

	Options []inventory.Option // flags of install by their names, in the names' order; Targets are among them
}

// DefaultMemory, DefaultCPUs and DefaultDisk, the first and the last in MiB, are an image's when nothing is said: what
// building a driver takes.
const (
	DefaultMemory = 2048
	DefaultCPUs   = 2
	// DefaultDisk has room for a driver of any source beside a server system: stock images for clouds leave the growing
	// of their few GiB to the machine that they are started in. Blocks that hold nothing take nothing.
	DefaultDisk = 10 << 10
)

// Source is a bake.yaml to read.
type Source struct {
	Name string // of the file, for messages; its paths are relative to the folder that it is in
	Text []byte

	// Check says what is wrong with an option, which is every key that is not Image's own, and of those target-gpu.
	// nil: nothing is.
	Check func(name string, values []string) error
}

// Parse reads a bake.yaml. Its error is inventory.Problems, all of them at once.
func Parse(s Source) (Config, error) {
	p := &parser{Source: s, told: make(map[inventory.Problem]bool)}
	c := p.config()
	if len(p.problems) > 0 {
		slices.SortFunc(p.problems, func(a, b inventory.Problem) int {
			return cmp.Or(cmp.Compare(a.Where.Line, b.Where.Line), cmp.Compare(a.Where.Col, b.Where.Col), cmp.Compare(a.What, b.What))
		})
		return Config{}, p.problems
	}
	return c, nil
}

// parser collects mistakes.
type parser struct {
	Source
	problems inventory.Problems
	told     map[inventory.Problem]bool
	visited  int // keys looked at, aliases followed
}

func (p *parser) at(n *yaml.Node) inventory.Position {
	return inventory.Position{File: p.Name, Line: n.Line, Col: n.Column}
}

func (p *parser) wrong(at inventory.Position, format string, args ...any) {
	one := inventory.Problem{Where: at, What: fmt.Sprintf(format, args...)}
	if !p.told[one] {
		p.told[one] = true
		p.problems = append(p.problems, one)
	}
}

// yamlLine is where the library says the line of a mistake in its message: there is no other way to it.
var yamlLine = regexp.MustCompile(`^yaml: line ([0-9]+): `)

func (p *parser) document() *yaml.Node {
	var doc, second yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(p.Text))
	if err := dec.Decode(&doc); err != nil && !errors.Is(err, io.EOF) {
		at, what := inventory.Position{File: p.Name}, err.Error()
		if m := yamlLine.FindStringSubmatch(what); m != nil {
			at.Line, _ = strconv.Atoi(m[1])
			what = what[len(m[0]):]
		}
		p.wrong(at, "not YAML: %s", strings.TrimPrefix(what, "yaml: "))
		return nil
	}
	if err := dec.Decode(&second); err == nil {
		p.wrong(p.at(&second), "a second document; one is read")
	}
	if len(doc.Content) == 0 {
		return nil
	}
	return followed(doc.Content[0])
}

// followed is what an alias stands for.
func followed(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

// maxKeys is how many keys are looked at. A few aliases of aliases stand for more than any machine can read.
const maxKeys = 100_000

// each goes through a mapping's keys and refuses one that is there twice.
func (p *parser) each(m *yaml.Node, what string, visit func(key, value *yaml.Node)) {
	m = followed(m)
	if m.Kind != yaml.MappingNode {
		p.wrong(p.at(m), "%s: names, each with a colon and its value behind it", what)
		return
	}
	seen := make(map[string]bool)
	for i := 0; i+1 < len(m.Content); i += 2 {
		key, value := followed(m.Content[i]), m.Content[i+1]
		if p.visited++; p.visited > maxKeys {
			p.wrong(inventory.Position{File: p.Name}, "more than %d keys", maxKeys)
			return
		}
		switch {
		case key.Kind != yaml.ScalarNode || key.Tag == "!!merge":
			p.wrong(p.at(m.Content[i]), "a key that is no word")
		case seen[key.Value]:
			p.wrong(p.at(key), "%q is there twice", key.Value)
		default:
			seen[key.Value] = true
			visit(key, value)
		}
	}
}

// words are a value: one word, or a list of them. It is nil when there is none, which is told.
func (p *parser) words(name string, n *yaml.Node) []string {
	n = followed(n)
	all := []*yaml.Node{n}
	if n.Kind == yaml.SequenceNode {
		all = n.Content
	}
	var words []string
	for _, one := range all {
		one = followed(one)
		if one.Kind != yaml.ScalarNode || one.Tag == "!!null" {
			p.wrong(p.at(one), "%s: it is a word or a list of words", name)
			return nil
		}
		words = append(words, one.Value)
	}
	if len(words) == 0 {
		p.wrong(p.at(n), "%s: an empty list", name)
	}
	return words
}

// settings are the values of one mapping, by key.
type settings map[string]inventory.Option

// own are the keys of an image that are no flags of install. Those below defaults are without the ones that no two
// images can share.
var own = []string{"base", "base-format", "compress", "cpus", "disk-size", "firmware", "first-boot-verify", "format", "lock", "memory", "output", "oven", "sha256", "user"}

var single = []string{"lock", "output"}

const targets = "target-gpu"

func (p *parser) config() Config {
	var c Config
	root := p.document()
	if root == nil {
		if len(p.problems) == 0 {
			p.wrong(inventory.Position{File: p.Name}, "it says nothing: there are memory, cpus, defaults and images")
		}
		return c
	}
	defaults := make(settings)
	var images *yaml.Node
	p.each(root, "bake.yaml", func(key, value *yaml.Node) {
		switch key.Value {
		case "memory":
			c.Memory = p.size(inventory.Option{Name: "memory", Values: p.words("memory", value), Where: p.at(value)})
		case "cpus":
			c.CPUs = p.count(inventory.Option{Name: "cpus", Values: p.words("cpus", value), Where: p.at(value)})
		case "defaults":
			p.settings(value, "defaults", defaults, single)
		case "images":
			images = value
		default:
			p.wrong(p.at(key), "unknown key %q: there are memory, cpus, defaults and images", key.Value)
		}
	})
	if images == nil {
		p.wrong(inventory.Position{File: p.Name}, "it has no images")
		return c
	}
	p.each(images, "images", func(key, value *yaml.Node) {
		found := make(settings)
		p.settings(value, "image "+key.Value, found, nil)
		for name, o := range defaults {
			if _, ok := found[name]; !ok {
				found[name] = o
			}
		}
		c.Images = append(c.Images, p.image(key, found))
	})
	if len(c.Images) == 0 {
		p.wrong(p.at(images), "images: there is none")
	}
	p.together(c)
	return c
}

func (p *parser) settings(m *yaml.Node, what string, into settings, not []string) {
	p.each(m, what, func(key, value *yaml.Node) {
		values := p.words(key.Value, value)
		if values == nil {
			return
		}
		o := inventory.Option{Name: key.Value, Values: values, Where: p.at(value)}
		switch {
		case slices.Contains(not, key.Value):
			p.wrong(p.at(key), "%s: each image has its own", key.Value)
			return
		case slices.Contains(own, key.Value):
			if len(values) != 1 {
				p.wrong(o.Where, "%s: one value, not %d", key.Value, len(values))
				return
			}
		case p.Check != nil:
			if err := p.Check(key.Value, values); err != nil {
				p.wrong(p.at(key), "%v", err)
				return
			}
		}
		into[key.Value] = o
	})
}

// imageName is what an image may be called: a word that is a file's name too.
var imageName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

var sha256Word = regexp.MustCompile(`^[0-9a-fA-F]{64}$`)

func (p *parser) image(key *yaml.Node, found settings) Image {
	at := p.at(key)
	im := Image{Name: key.Value, Where: at, Oven: OvenAuto}
	if !imageName.MatchString(im.Name) {
		p.wrong(at, "image %q: its name has letters, digits, dots, dashes and underscores, at most 64, and begins with a letter or a digit", im.Name)
	}
	text := func(name string) string {
		if o, ok := found[name]; ok {
			return o.Values[0]
		}
		return ""
	}
	choose := func(name string, words ...string) string {
		v := text(name)
		if v != "" && !slices.Contains(words, v) {
			p.wrong(found[name].Where, "%s %q: it is %s or %s", name, v, strings.Join(words[:len(words)-1], ", "), words[len(words)-1])
		}
		return v
	}
	im.Base, im.Output, im.Lock = p.path(text("base")), p.path(text("output")), p.path(text("lock"))
	for _, need := range []string{"base", "sha256", "output"} {
		if text(need) == "" {
			p.wrong(at, "image %s: %s is missing", im.Name, need)
		}
	}
	im.SHA256 = strings.ToLower(text("sha256"))
	if im.SHA256 != "" && !sha256Word.MatchString(im.SHA256) {
		p.wrong(found["sha256"].Where, "sha256 %q: it is 64 hexadecimal digits", im.SHA256)
	}
	im.BaseFormat = p.format(at, im.Base, "base-format", choose("base-format", Formats...))
	im.Format = p.format(at, im.Output, "format", choose("format", Formats...))
	im.Oven = cmp.Or(choose("oven", OvenAuto, OvenQEMU, OvenNspawn), OvenAuto)
	im.Firmware = choose("firmware", oven.FirmwareBIOS, oven.FirmwareUEFI)
	im.User = text("user")
	im.Memory, im.CPUs, im.DiskSize = p.size(found["memory"]), p.count(found["cpus"]), p.size(found["disk-size"])
	im.FirstBootVerify, im.Compress = p.yes(found["first-boot-verify"]), p.yes(found["compress"])
	if im.Compress && im.Format != "" && im.Format != oven.FormatQcow2 {
		p.wrong(found["compress"].Where, "compress: only a qcow2 output is compressed, and this one is %s", im.Format)
	}
	for name, o := range found {
		if !slices.Contains(own, name) {
			im.Options = append(im.Options, o)
		}
	}
	slices.SortFunc(im.Options, func(a, b inventory.Option) int { return cmp.Compare(a.Name, b.Name) })
	im.Targets = slices.Clone(found[targets].Values)
	return im
}

// path makes a path of the file relative to the file.
func (p *parser) path(s string) string {
	if s == "" || filepath.IsAbs(s) {
		return s
	}
	return filepath.Join(filepath.Dir(p.Name), s)
}

func (p *parser) format(at inventory.Position, file, key, given string) string {
	if given != "" || file == "" {
		return given
	}
	f := FormatByName(file)
	if f == "" {
		p.wrong(at, "%s: its extension says no format that is known: give it by %s, one of %s", file, key, strings.Join(Formats, ", "))
	}
	return f
}

// sizeWord is a size with its unit.
var sizeWord = regexp.MustCompile(`^([0-9]{1,9})([MG]?)$`)

// size reads MiB; a G behind the number makes them GiB.
func (p *parser) size(o inventory.Option) int {
	if len(o.Values) == 0 {
		return 0
	}
	m := sizeWord.FindStringSubmatch(o.Values[0])
	n := 0
	if m != nil {
		n, _ = strconv.Atoi(m[1])
		if m[2] == "G" {
			n <<= 10
		}
	}
	if m == nil || n < 1 || len(o.Values) > 1 {
		p.wrong(o.Where, "%s %q: it is a size, as in 2048M or 2G", o.Name, strings.Join(o.Values, " "))
		return 0
	}
	return n
}

func (p *parser) count(o inventory.Option) int {
	if len(o.Values) == 0 {
		return 0
	}
	n, err := strconv.Atoi(o.Values[0])
	if err != nil || n < 1 || n > 1<<16 || len(o.Values) > 1 {
		p.wrong(o.Where, "%s %q: it is a whole number from 1 on", o.Name, strings.Join(o.Values, " "))
		return 0
	}
	return n
}

func (p *parser) yes(o inventory.Option) bool {
	if len(o.Values) == 0 {
		return false
	}
	switch strings.ToLower(o.Values[0]) {
	case "true", "yes", "on":
		return true
	case "false", "no", "off":
		return false
	}
	p.wrong(o.Where, "%s %q: it is true or false", o.Name, o.Values[0])
	return false
}

// together says what is wrong with images beside each other.
func (p *parser) together(c Config) {
	writes := make(map[string]string) // path → whose
	bases := make(map[string]string)
	for _, im := range c.Images {
		bases[filepath.Clean(im.Base)] = im.Name
	}
	for _, im := range c.Images {
		for _, f := range []string{im.Output, im.Lock} {
			if f == "" {
				continue
			}
			f = filepath.Clean(f)
			if of, ok := bases[f]; ok {
				p.wrong(im.Where, "image %s would write over %s, the base of image %s", im.Name, f, of)
			}
			if of, ok := writes[f]; ok {
				p.wrong(im.Where, "image %s writes %s, and so does image %s", im.Name, f, of)
			}
			writes[f] = im.Name
		}
		if c.Memory > 0 && im.memory() > c.Memory {
			p.wrong(im.Where, "image %s takes %d MiB of memory, and all together may take %d", im.Name, im.memory(), c.Memory)
		}
		if c.CPUs > 0 && im.CPUs > c.CPUs {
			p.wrong(im.Where, "image %s takes %d CPUs, and all together may take %d", im.Name, im.CPUs, c.CPUs)
		}
	}
}

func (im Image) memory() int { return cmp.Or(im.Memory, DefaultMemory) }
