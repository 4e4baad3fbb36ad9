package bake

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"gpuguest/internal/engine"
	"gpuguest/internal/report"
)

// Manifest says what an image is and how it came about. Its names are part of the interface.
type Manifest struct {
	Schema   int       `json:"gpuguest_manifest"` // 1
	Name     string    `json:"name"`
	File     string    `json:"file"` // name of the image, beside which the manifest lies
	Format   string    `json:"format"`
	SHA256   string    `json:"sha256"`
	Bytes    int64     `json:"bytes"` // that the file holds
	Virtual  int64     `json:"virtual_bytes"`
	Gpuguest Maker     `json:"gpuguest"`
	Recipe   string    `json:"recipe_sha256"` // of all that was asked for
	Base     BaseImage `json:"base"`
	Oven     string    `json:"oven"`
	Baked    time.Time `json:"baked"`

	Distro     string   `json:"distro"`
	Arch       string   `json:"arch"`
	Kernel     string   `json:"kernel"`      // that the image starts
	KernelArgs []string `json:"kernel_args"` // the words of its command line; null unknown
	Driver     string   `json:"driver"`
	Flavor     string   `json:"flavor"`
	Source     string   `json:"source"`
	By         string   `json:"modules_by"`
	Targets    []string `json:"target_gpus,omitempty"` // what the driver was chosen for: "Tesla T4 (10de:1eb8)"
	Modules    []Module `json:"modules"`
	Signer     string   `json:"signer,omitempty"` // of the main module, "" unsigned

	// Flavors are kept for the first boot to pick from; null where all machines have Modules.
	Flavors []FlavorModules `json:"module_flavors,omitempty"`

	FirstBootVerify bool              `json:"first_boot_verify"`
	Packages        []Package         `json:"packages"`
	Journal         []json.RawMessage `json:"journal"` // what gpuguest did in it, in order
	Report          engine.Report     `json:"report"`  // of the run that installed, with the verification that needs no GPU
	Phases          []Phase           `json:"phases"`
}

// Maker is the gpuguest that baked.
type Maker struct {
	Version string `json:"version"`
	Commit  string `json:"commit,omitempty"`
}

// BaseImage is what an image was made from.
type BaseImage struct {
	File   string `json:"file"`
	Format string `json:"format"`
	SHA256 string `json:"sha256"`
}

// Module is one kernel module of the driver.
type Module struct {
	File     string `json:"file"`
	Version  string `json:"version"`
	Vermagic string `json:"vermagic"`
	License  string `json:"license"`
	Signer   string `json:"signer,omitempty"`
}

// FlavorModules are the modules of one flavor, by where they are kept.
type FlavorModules struct {
	Flavor  string   `json:"flavor"`
	Modules []Module `json:"modules"`
}

// Package is one package of an image.
type Package struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	Arch    string `json:"arch"`
}

func (p Package) String() string { return p.Name + " " + p.Version + " " + p.Arch }

// Phase is one part of baking and how long it took.
type Phase struct {
	Name    string  `json:"name"`
	Seconds float64 `json:"seconds"`
}

// Lock is the file that keeps the set of packages. Its plan is what "gpuguest plan --json" prints, made when the
// guest was first looked at.
type Lock struct {
	Schema     int             `json:"gpuguest_lock"` // 1
	BaseSHA256 string          `json:"base_sha256"`
	Plan       json.RawMessage `json:"plan"`
	Packages   []Package       `json:"packages"`
	Gone       []Package       `json:"gone,omitempty"` // that the other flavor's modules came with, and that others took the place of
}

// Planned is what a lock's plan says of the driver; a zero value is that of no lock.
type Planned struct {
	Branch  int    `json:"branch"`
	Flavor  string `json:"flavor"`
	Source  string `json:"source"`
	Modules string `json:"modules"`
}

// manifestOf is the manifest's name beside an image.
func manifestOf(image string) string { return image + ".json" }

// ReadManifest reads a manifest. It is an fs.ErrNotExist when there is none.
func ReadManifest(path string) (Manifest, error) {
	var m Manifest
	raw, err := os.ReadFile(path)
	if err != nil {
		return m, err
	}
	if err := json.Unmarshal(raw, &m); err != nil || m.Schema != 1 {
		return m, fmt.Errorf("%s: it is no manifest of gpuguest", path)
	}
	return m, nil
}

// readLock returns nil when there is no lock yet.
func readLock(path string) (*Lock, error) {
	if path == "" {
		return nil, nil
	}
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	var l Lock
	if err := json.Unmarshal(raw, &l); err != nil || l.Schema != 1 || len(l.Packages) == 0 {
		return nil, fmt.Errorf("lock %s: %s; a bake writes one where the file is not there yet", path, noLock(raw))
	}
	return &l, nil
}

// noLock says what a file is that is no lock.
func noLock(raw []byte) string {
	var d struct {
		Manifest int               `json:"gpuguest_manifest"`
		Distro   string            `json:"distro"`
		Flavor   *string           `json:"flavor"`
		Steps    []json.RawMessage `json:"steps"`
	}
	switch err := json.Unmarshal(raw, &d); {
	case err == nil && d.Manifest != 0:
		return "it is the manifest of an image, not the lock that was written beside it"
	case err == nil && d.Distro != "" && d.Flavor != nil && len(d.Steps) > 0:
		return "it is a plan, as gpuguest plan --json prints it, and a lock holds besides every package's version and the base that they are of"
	}
	return "it is none of gpuguest's"
}

// planned is what the lock says of the driver.
func (l *Lock) planned() (Planned, error) {
	var p Planned
	if l == nil {
		return p, nil
	}
	if err := json.Unmarshal(l.Plan, &p); err != nil {
		return p, fmt.Errorf("lock: its plan: %w", err)
	}
	return p, nil
}

// tabbed is the list of packages as assets/bake.sh reads it.
func (l *Lock) tabbed() string {
	var b strings.Builder
	for _, p := range slices.Concat(l.Packages, l.Gone) {
		b.WriteString(p.Name + "\t" + p.Version + "\t" + p.Arch + "\n")
	}
	return b.String()
}

// differences says in which packages two sets differ, at most most lines and how many more there are.
func differences(locked, got []Package, most int) []string {
	versions := func(all []Package) map[[2]string][]string {
		m := make(map[[2]string][]string)
		for _, p := range all {
			m[[2]string{p.Name, p.Arch}] = append(m[[2]string{p.Name, p.Arch}], p.Version)
		}
		return m
	}
	a, b := versions(locked), versions(got)
	var names [][2]string
	for n := range a {
		names = append(names, n)
	}
	for n := range b {
		if a[n] == nil {
			names = append(names, n)
		}
	}
	slices.SortFunc(names, func(x, y [2]string) int { return cmp.Or(cmp.Compare(x[0], y[0]), cmp.Compare(x[1], y[1])) })
	var out []string
	for _, n := range names {
		slices.Sort(a[n])
		slices.Sort(b[n])
		was, is := strings.Join(a[n], " and "), strings.Join(b[n], " and ")
		switch {
		case was == is:
		case was == "":
			out = append(out, fmt.Sprintf("%s %s is not in the lock", n[0], is))
		case is == "":
			out = append(out, fmt.Sprintf("%s %s is locked, and not there", n[0], was))
		default:
			out = append(out, fmt.Sprintf("%s %s is locked, and %s is there", n[0], was, is))
		}
	}
	if more := len(out) - most; more > 0 {
		out = append(out[:most], fmt.Sprintf("and %d more", more))
	}
	return out
}

// parsePackages reads what assets/bake.sh's packages prints.
func parsePackages(text string) ([]Package, error) {
	var all []Package
	for line := range strings.Lines(text) {
		f := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		if len(f) != 3 || f[0] == "" || f[1] == "" {
			return nil, fmt.Errorf("list of packages: %q", line)
		}
		all = append(all, Package{f[0], f[1], f[2]})
	}
	if len(all) == 0 {
		return nil, errors.New("the guest lists no packages")
	}
	return all, nil
}

// parseModules reads what assets/bake.sh's modules prints.
func parseModules(text string) ([]Module, error) {
	var all []Module
	for line := range strings.Lines(text) {
		f := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		if len(f) != 5 {
			return nil, fmt.Errorf("list of modules: %q", line)
		}
		all = append(all, Module{File: f[0], Version: f[1], Vermagic: strings.TrimSpace(f[2]), License: f[3], Signer: f[4]})
	}
	return all, nil
}

// parseFlavors reads what assets/bake.sh's flavors prints.
func parseFlavors(text string) ([]FlavorModules, error) {
	var all []FlavorModules
	for line := range strings.Lines(text) {
		flavor, rest, _ := strings.Cut(line, "\t")
		modules, err := parseModules(rest)
		if err != nil {
			return nil, err
		}
		if n := len(all); n == 0 || all[n-1].Flavor != flavor {
			all = append(all, FlavorModules{Flavor: flavor})
		}
		last := &all[len(all)-1]
		last.Modules = append(last.Modules, modules...)
	}
	return all, nil
}

// sameVersion refuses kept modules that are not of the flavors of so many first runs and one more, or not all of one
// version: the libraries in the image are of one.
func sameVersion(all []FlavorModules, first int) error {
	if first > 0 && len(all) != first+1 {
		return fmt.Errorf("of %d flavors of the modules, the image keeps %d", first+1, len(all))
	}
	version := func(f FlavorModules) string {
		i := slices.IndexFunc(f.Modules, func(m Module) bool { return strings.HasPrefix(filepath.Base(m.File), "nvidia.ko") })
		if i < 0 {
			return ""
		}
		return f.Modules[i].Version
	}
	for _, f := range all {
		if v := version(f); v == "" || v != version(all[0]) {
			return fmt.Errorf("the %s modules are of version %q, and the %s ones of version %q", all[0].Flavor, version(all[0]), f.Flavor, v)
		}
	}
	return nil
}

// gone are the packages of a list that others, or other versions, took the place of in another.
func gone(early, now []Package) []Package {
	var all []Package
	for _, p := range early {
		if !slices.ContainsFunc(now, func(q Package) bool { return q.Name == p.Name && q.Arch == p.Arch }) && !slices.Contains(all, p) {
			all = append(all, p)
		}
	}
	return all
}

// journalLines are the lines of a journal that are JSON; a torn one, as a power cut leaves, is left out.
func journalLines(raw string) []json.RawMessage {
	all := []json.RawMessage{}
	for line := range strings.Lines(raw) {
		if line = strings.TrimSpace(line); json.Valid([]byte(line)) {
			all = append(all, json.RawMessage(line))
		}
	}
	return all
}

// writeJSON writes v whole or not at all, in lines that a diff can be read of.
func writeJSON(path string, v any) error {
	return report.Write(path, report.Public, func(w io.Writer) error {
		var b bytes.Buffer
		enc := json.NewEncoder(&b)
		enc.SetEscapeHTML(false)
		enc.SetIndent("", "  ")
		if err := enc.Encode(v); err != nil {
			return err
		}
		_, err := w.Write(b.Bytes())
		return err
	})
}

func fileSHA256(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
