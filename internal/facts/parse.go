package facts

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"
)

// ErrTruncated is what Parse wraps when the output stops before its end mark: a connection or a recording
// was cut. Output that never was facts.sh's is a different error.
var ErrTruncated = errors.New("facts are cut off: no end mark")

// head is the first line of the script's output. The number changes when an older parser would be misled.
const head = "gpuguest-facts 1"

// line is one content line with its number in the input, for messages.
type line struct {
	no   int
	text string
}

// section is what stands between two marks.
type section struct {
	lines   []line
	reasons []string
}

// reader collects facts from the sections.
type reader struct {
	f        Facts
	sections map[string]*section
	files    map[string][]string
	id       map[string]string
	kernels  []kernelDir
	images   []string            // files in /boot
	modules  map[string][]string // release → module files, as modules.dep names them
}

// kernelDir is one directory of /lib/modules.
type kernelDir struct {
	release, image string
	headers        bool
}

// Parse reads the output of facts.sh. Lines that begin with "#" may stand before the head, as a recording's
// comment, and so may empty lines. It is strict about the framing and about lines it cannot read, and says
// which section and line; a section that is missing, or that the guest could not answer, goes to
// Facts.Unknown with the reason.
func Parse(raw []byte) (Facts, error) {
	sections, err := split(raw, head)
	if err != nil {
		return Facts{}, fmt.Errorf("facts: %w", err)
	}
	r := &reader{sections: sections, files: map[string][]string{}, id: map[string]string{}, modules: map[string][]string{}}
	for _, part := range []struct {
		name string
		read func(section) error
	}{
		{"id", r.readID},
		{"files", r.readFiles},
		{"kernels", r.readKernels},
		{"modinfo", r.readModinfo},
		{"pci", r.readPCI},
		{"loaded", r.readLoaded},
		{"packages", r.readPackages},
		{"offered", r.readOffered},
		{"oldnvidia", r.readOldNVIDIA},
		{"lock", r.readLock},
		{"driver", r.readDriver},
		{"tools", r.readTools},
		{"secure", r.readSecure},
		{"units", r.readUnits},
		{"virt", r.readVirt},
		{"cloud", r.readCloud},
		{"disks", r.readDisks},
		{"jobs", r.readJobs},
		{"journal", r.readJournal},
		{"ledger", r.readLedger},
	} {
		s, ok := sections[part.name]
		if !ok {
			r.f.Unknown = append(r.f.Unknown, part.name+": not in the guest's answer")
			continue
		}
		for _, why := range s.reasons {
			r.f.Unknown = append(r.f.Unknown, part.name+": "+why)
		}
		if err := part.read(*s); err != nil {
			return Facts{}, fmt.Errorf("facts: section %s: %w", part.name, err)
		}
	}
	r.conclude()
	return r.f, nil
}

// split cuts the output into sections and checks the framing.
func split(raw []byte, head string) (map[string]*section, error) {
	sections := map[string]*section{}
	var current *section
	began, ended := false, false
	no := 0
	for len(raw) > 0 {
		no++
		text, rest, whole := bytes.Cut(raw, []byte("\n"))
		raw = rest
		l := string(text)
		switch {
		case !began:
			if l == "" || strings.HasPrefix(l, "#") {
				continue
			}
			if l != head {
				return nil, fmt.Errorf("line %d: %.60q in place of %q", no, l, head)
			}
			began = true
		case ended:
			if strings.TrimSpace(l) != "" {
				return nil, fmt.Errorf("line %d: %.60q after the end mark", no, l)
			}
		case l == "== end":
			ended = true
		case !whole:
			// The last line has no end: it was cut in the middle and says nothing sure.
			return nil, fmt.Errorf("line %d: %w", no, ErrTruncated)
		case strings.HasPrefix(l, "== "):
			name := l[3:]
			if sections[name] != nil {
				return nil, fmt.Errorf("line %d: section %.60q twice", no, name)
			}
			current = &section{}
			sections[name] = current
		case current == nil:
			return nil, fmt.Errorf("line %d: %.60q outside any section", no, l)
		case strings.HasPrefix(l, "|"):
			current.lines = append(current.lines, line{no, l[1:]})
		case strings.HasPrefix(l, "!"):
			current.reasons = append(current.reasons, l[1:])
		default:
			return nil, fmt.Errorf("line %d: %.60q is neither a section, nor a line of one", no, l)
		}
	}
	if !began {
		return nil, fmt.Errorf("no output of the script: %w", ErrTruncated)
	}
	if !ended {
		return nil, fmt.Errorf("%d lines: %w", no, ErrTruncated)
	}
	return sections, nil
}

// bad is the error for a line that cannot be read.
func bad(l line) error { return fmt.Errorf("line %d: %.80q is not understood", l.no, l.text) }

func (r *reader) readID(s section) error {
	for _, l := range s.lines {
		k, v, ok := strings.Cut(l.text, "\t")
		if !ok {
			return bad(l)
		}
		r.id[k] = v
	}
	r.f.Kernel.Running = r.id["running"]
	r.f.Arch = r.id["arch"]
	r.f.Host = r.id["host"]
	r.f.BootID = r.id["boot_id"]
	return nil
}

func (r *reader) readFiles(s section) error {
	name := ""
	for _, l := range s.lines {
		switch {
		case strings.HasPrefix(l.text, "@"):
			name = l.text[1:]
			r.files[name] = nil
		case strings.HasPrefix(l.text, ":") && name != "":
			r.files[name] = append(r.files[name], l.text[1:])
		default:
			return bad(l)
		}
	}
	return nil
}

func (r *reader) readKernels(s section) error {
	for _, l := range s.lines {
		w := strings.Split(l.text, "\t")
		switch {
		case w[0] == "k" && len(w) == 4:
			r.kernels = append(r.kernels, kernelDir{release: w[1], image: w[3], headers: w[2] == "1"})
		case w[0] == "f" && len(w) == 2:
			r.images = append(r.images, w[1])
		case w[0] == "m" && len(w) == 3:
			r.modules[w[1]] = append(r.modules[w[1]], w[2])
		case w[0] == "c" && len(w) == 3:
			r.files["compiler:"+w[1]] = []string{w[2]}
		default:
			return bad(l)
		}
	}
	for _, k := range r.kernels {
		if k.image != "" {
			r.f.Kernel.Installed = append(r.f.Kernel.Installed, k.release)
		}
		if k.headers {
			r.f.Kernel.Headers = append(r.f.Kernel.Headers, k.release)
		}
	}
	return nil
}

func (r *reader) readModinfo(s section) error {
	var m *Module
	for _, l := range s.lines {
		k, v, ok := strings.Cut(l.text, ":")
		if !ok {
			return bad(l)
		}
		v = strings.TrimSpace(v)
		if k == "filename" {
			r.f.Driver.Modules = append(r.f.Driver.Modules, Module{Path: v})
			m = &r.f.Driver.Modules[len(r.f.Driver.Modules)-1]
			continue
		}
		if m == nil {
			return bad(l)
		}
		switch k {
		case "version":
			m.Version = v
		case "license":
			m.License = v
		case "vermagic":
			m.Vermagic = v
		case "signer":
			m.Signer = v
		}
	}
	return nil
}

// hex4 takes sysfs's "0x10de" to "10de"; "-" stays unknown.
func hexID(s string, digits int) (string, bool) {
	if s == "-" {
		return "", true
	}
	v, err := strconv.ParseUint(strings.TrimPrefix(s, "0x"), 16, 32)
	if err != nil {
		return "", false
	}
	return fmt.Sprintf("%0*x", digits, v), true
}

func (r *reader) readPCI(s section) error {
	var all []PCI
	for _, l := range s.lines {
		w := strings.Split(l.text, "\t")
		if w[0] == "p" && len(w) == 8 {
			p := PCI{Address: w[1], NUMA: -1}
			for i, to := range []*string{&p.Vendor, &p.Device, &p.Subvendor, &p.Subdevice, &p.Class} {
				digits := 4
				if to == &p.Class {
					digits = 6
				}
				v, ok := hexID(w[2+i], digits)
				if !ok {
					return bad(l)
				}
				*to = v
			}
			if n, err := strconv.Atoi(w[7]); err == nil {
				p.NUMA = n
			}
			all = append(all, p)
			continue
		}
		if len(all) == 0 {
			return bad(l)
		}
		p := &all[len(all)-1]
		switch {
		case w[0] == "d" && len(w) == 2:
			p.Driver = w[1]
		case w[0] == "o":
			p.Override = strings.Join(w[1:], "\t")
		case w[0] == "r" && len(w) == 5:
			b, err := ParseBAR(w[1:])
			if err != nil {
				return fmt.Errorf("line %d: %w", l.no, err)
			}
			p.BARs = append(p.BARs, b)
		default:
			return bad(l)
		}
	}
	sort.SliceStable(all, func(i, j int) bool { return all[i].Address < all[j].Address })
	for _, p := range all {
		if strings.HasPrefix(p.Class, "03") {
			r.f.GPUs = append(r.f.GPUs, p)
		} else {
			r.f.Other = append(r.f.Other, p)
		}
	}
	return nil
}

// ParseBAR reads index, start, end and flags of a resource line, four words.
func ParseBAR(w []string) (BAR, error) {
	index, err := strconv.Atoi(w[0])
	if err != nil {
		return BAR{}, err
	}
	var v [3]uint64
	for i := range v {
		if v[i], err = strconv.ParseUint(strings.TrimPrefix(w[i+1], "0x"), 16, 64); err != nil {
			return BAR{}, err
		}
	}
	b := BAR{Index: index, Start: v[0], Flags: v[2]}
	if v[1] > v[0] {
		b.Size = v[1] - v[0] + 1
	}
	return b, nil
}

func (r *reader) readLoaded(s section) error {
	if len(s.lines) == 0 && len(s.reasons) > 0 {
		return nil
	}
	r.f.Loaded = map[string]bool{}
	for _, m := range moduleNames {
		r.f.Loaded[m] = false
	}
	for _, l := range s.lines {
		r.f.Loaded[l.text] = true
	}
	r.f.Loaded["nova_drm"] = r.f.Loaded["nova_drm"] || r.f.Loaded["nova"]
	return nil
}

// dpkgStates are the words for the second letter of dpkg's status, other than "i" installed and "n"/"c" gone.
var dpkgStates = map[byte]string{
	'H': "half-installed", 'U': "unpacked", 'F': "half-configured", 'W': "triggers-awaited", 't': "triggers-pending",
}

func (r *reader) readPackages(s section) error {
	type pkg struct{ name, version, arch string }
	var installed []pkg
	native := ""
	for _, l := range s.lines {
		w := strings.Split(l.text, "\t")
		if len(w) != 4 {
			return bad(l)
		}
		p := pkg{w[1], w[2], w[3]}
		if w[0] == "rpm" {
			installed = append(installed, p)
			continue
		}
		if len(w[0]) < 2 {
			return bad(l)
		}
		if p.name == "dpkg" {
			native = p.arch
		}
		state := dpkgStates[w[0][1]]
		if state == "" && len(w[0]) > 2 && w[0][2] == 'R' {
			state = "reinstallation required"
		}
		if state != "" {
			r.f.Broken = append(r.f.Broken, fmt.Sprintf("%s (%s)", p.name, state))
		}
		if w[0][0] == 'h' {
			r.f.Held = append(r.f.Held, p.name)
		}
		if w[0][1] == 'i' {
			installed = append(installed, p)
		}
	}
	if len(s.lines) == 0 {
		return nil
	}
	r.f.Packages = map[string]string{}
	for _, p := range installed {
		name := p.name
		if native != "" && p.arch != native && p.arch != "all" {
			name += ":" + p.arch
		}
		// Several versions of one rpm may be installed at a time, in the order of their installation.
		if old := r.f.Packages[name]; old != "" {
			p.version = old + " " + p.version
		}
		r.f.Packages[name] = p.version
	}
	sort.Strings(r.f.Broken)
	sort.Strings(r.f.Held)
	r.f.Broken = slices.Compact(r.f.Broken)
	r.f.Held = slices.Compact(r.f.Held)
	for _, p := range installed {
		if metaKernel.MatchString(p.name) {
			r.f.Kernel.Meta = append(r.f.Kernel.Meta, p.name)
		}
	}
	sort.Strings(r.f.Kernel.Meta)
	r.f.Kernel.Meta = slices.Compact(r.f.Kernel.Meta)
	return nil
}

// metaKernel is a package that depends on the newest kernel image: linux-image-amd64, linux-image-cloud-arm64,
// linux-image-generic-hwe-24.04, linux-generic, linux-virtual. An image itself has its release, which begins
// with a digit, after linux-image-.
var metaKernel = regexp.MustCompile(`^linux-(image-[a-tv-z][a-z0-9.+-]*|(generic|virtual|lowlatency|aws|azure|gcp|oracle|kvm|nvidia)(-[a-z0-9.]+)*)$`)

func (r *reader) readOffered(s section) error {
	if len(s.lines) == 0 {
		return nil
	}
	r.f.Offered = map[string]string{}
	var o Offer
	for _, l := range s.lines {
		w := strings.Split(l.text, "\t")
		switch {
		case w[0] == "c" && len(w) == 3:
			r.f.Offered[w[1]] = w[2]
		case w[0] == "v" && len(w) == 3:
			o = Offer{Package: w[1], Version: w[2]}
		case w[0] == "s" && len(w) == 4 && o.Package != "":
			n, err := strconv.Atoi(w[1])
			if err != nil {
				return bad(l)
			}
			o.Priority, o.URI, o.Suite = n, w[2], w[3]
			r.f.Offers = append(r.f.Offers, o)
		default:
			return bad(l)
		}
	}
	// apt calls a package that is installed, and that no source has any more, a candidate as well.
	type exact struct{ name, version string }
	held := map[exact]bool{}
	for _, o := range r.f.Offers {
		held[exact{o.Package, o.Version}] = true
	}
	for name, version := range r.f.Offered {
		if !held[exact{name, version}] {
			delete(r.f.Offered, name)
		}
	}
	sort.SliceStable(r.f.Offers, func(i, j int) bool { return r.f.Offers[i].Package < r.f.Offers[j].Package })
	return nil
}

func (r *reader) readOldNVIDIA(s section) error {
	for _, l := range s.lines {
		r.f.OldNVIDIA = append(r.f.OldNVIDIA, l.text)
	}
	sort.Strings(r.f.OldNVIDIA)
	r.f.OldNVIDIA = slices.Compact(r.f.OldNVIDIA)
	return nil
}

func (r *reader) readLock(s section) error {
	for _, l := range s.lines {
		w := strings.SplitN(l.text, "\t", 3)
		if len(w) != 3 {
			return bad(l)
		}
		pid, err := strconv.Atoi(w[0])
		if err != nil {
			return bad(l)
		}
		if r.f.Lock == nil {
			r.f.Lock = &Holder{PID: pid, File: w[1], Command: strings.TrimSpace(w[2])}
		}
	}
	return nil
}

// libVersion is the version in a library's file name: libnvidia-ml.so.535.309.01.
var libVersion = regexp.MustCompile(`\.so\.([0-9]+\.[0-9]+(\.[0-9]+)?)$`)

func (r *reader) readDriver(s section) error {
	d := &r.f.Driver
	for _, l := range s.lines {
		w := strings.Split(l.text, "\t")
		switch {
		case w[0] == "lib" && len(w) == 2:
			v := libVersion.FindStringSubmatch(w[1])
			if v == nil {
				continue
			}
			d.Libraries = append(d.Libraries, w[1])
			if d.Library == "" || strings.Contains(w[1], "libnvidia-ml") {
				d.Library = v[1]
			}
		case w[0] == "uninstall" && len(w) == 3:
			if w[2] == "0" && r.f.Runfile.Uninstaller == "" {
				r.f.Runfile.Uninstaller = w[1]
			}
		case w[0] == "cuda" && len(w) == 2:
			r.f.CUDA = append(r.f.CUDA, w[1])
		case w[0] == "dkms" && len(w) == 5:
			state := w[1] + "/" + w[2] + ": added"
			if w[3] != "" {
				state = fmt.Sprintf("%s/%s, %s, %s: %s", w[1], w[2], w[3], w[4], r.dkmsState(w[1], w[3]))
			}
			d.DKMS = append(d.DKMS, state)
		default:
			return bad(l)
		}
	}
	sort.Strings(d.DKMS)
	return nil
}

// dkmsState tells whether a module that DKMS built for a release has also been installed there: DKMS puts its
// files into updates/dkms (Debian, Ubuntu), extra (EL) or updates (SUSE).
func (r *reader) dkmsState(module, release string) string {
	for _, f := range r.modules[release] {
		dir := strings.TrimPrefix(f, "/lib/modules/"+release+"/")
		if (strings.HasPrefix(dir, "updates/") || strings.HasPrefix(dir, "extra/")) && strings.HasPrefix(path.Base(f), "nvidia") {
			return "installed"
		}
	}
	if !strings.HasPrefix(module, "nvidia") {
		return "built, perhaps installed"
	}
	return "built"
}

func (r *reader) readTools(s section) error {
	r.f.Tools = map[string]string{}
	for _, l := range s.lines {
		name, _, ok := strings.Cut(l.text, "\t")
		if !ok {
			return bad(l)
		}
		r.f.Tools[name] = upstream(r.f.Packages[name])
	}
	return nil
}

// upstream is a package version without its epoch and revision: "4:12.2.0-3" → "12.2.0".
func upstream(v string) string {
	if _, rest, ok := strings.Cut(v, ":"); ok {
		v = rest
	}
	if i := strings.LastIndexByte(v, '-'); i > 0 {
		v = v[:i]
	}
	return v
}

func (r *reader) readSecure(s section) error {
	b := &r.f.Secure
	for _, l := range s.lines {
		k, v, ok := strings.Cut(l.text, "\t")
		if !ok {
			return bad(l)
		}
		switch k {
		case "efi":
			b.EFI = v == "1"
			if !b.EFI {
				b.State = "unsupported"
			}
		case "SecureBoot":
			switch v {
			case "1":
				b.State = "enabled"
			case "0":
				b.State = "disabled"
			}
		case "SetupMode":
			b.Setup = v == "1"
		case "MokSBState":
			// Stands behind SecureBoot.
			if v == "1" && b.State == "enabled" {
				b.State = "disabled"
			}
		case "key":
			b.SigningKeys = append(b.SigningKeys, v)
		case "cert":
			file, text, _ := strings.Cut(v, "\t")
			// What is no certificate is none of the guest's facts; that the file is there was said.
			if der, err := base64.StdEncoding.DecodeString(text); err == nil {
				if c, err := x509.ParseCertificate(der); err == nil {
					b.Certificates = append(b.Certificates, Certificate{File: file, Subject: c.Subject.CommonName, Issuer: c.Issuer.CommonName, KeyID: KeyID(c)})
				}
			}
		case "loader":
			r.id["loader"] = v
		default:
			return bad(l)
		}
	}
	for _, l := range r.files["/proc/keys"] {
		// "3ad2ee5f I------     1 perm 1f030000     0     0 asymmetri Debian Secure Boot CA: X509.rsa 53b61ccf []"
		_, desc, ok := strings.Cut(l, " asymmetri ")
		if !ok {
			continue
		}
		if i := strings.LastIndex(desc, ": X509."); i >= 0 {
			desc = desc[:i]
		}
		b.Keys = append(b.Keys, desc)
	}
	return nil
}

func (r *reader) readUnits(s section) error {
	systemd := false
	unit := map[string]string{}
	flush := func() {
		if id := unit["Id"]; id != "" && unit["LoadState"] != "not-found" && unit["LoadState"] != "" {
			if r.f.Units == nil {
				r.f.Units = map[string]string{}
			}
			r.f.Units[id] = strings.TrimSpace(unit["ActiveState"] + " " + unit["UnitFileState"])
		}
		unit = map[string]string{}
	}
	for _, l := range s.lines {
		k, v, ok := strings.Cut(l.text, "\t")
		switch {
		case ok && k == "systemd":
			systemd = true
		case ok && k == "state":
			r.f.Init.State = v
		case ok && k == "u":
			name, value, _ := strings.Cut(v, "=")
			if name == "" {
				flush()
				continue
			}
			unit[name] = value
		default:
			return bad(l)
		}
	}
	flush()
	_, upstart := r.f.Tools["initctl"]
	switch {
	case systemd:
		r.f.Init.Name = "systemd"
	case r.id["init"] == "init" && upstart:
		r.f.Init.Name = "upstart"
	case r.id["init"] == "init":
		r.f.Init.Name = "sysv"
	}
	switch active, enabled, _ := strings.Cut(r.f.Units["nvidia-persistenced.service"], " "); {
	case active == "active":
		r.f.Driver.PersistenceUnit = "active"
	case strings.HasPrefix(enabled, "enabled"):
		r.f.Driver.PersistenceUnit = "enabled"
	case active != "":
		r.f.Driver.PersistenceUnit = "disabled"
	}
	return nil
}

func (r *reader) hasFile(name string) bool {
	_, ok := r.files[name]
	return ok
}

// first is the first line of a file, trimmed; "" when there is none.
func (r *reader) first(name string) string {
	if l := r.files[name]; len(l) > 0 {
		return strings.TrimSpace(l[0])
	}
	return ""
}

func (r *reader) readVirt(s section) error {
	if len(s.lines) > 0 {
		r.f.Virt = strings.TrimSpace(s.lines[0].text)
	}
	if r.f.Virt != "" {
		return nil
	}
	vendor := r.first("/sys/class/dmi/id/sys_vendor")
	for _, known := range []struct{ in, word string }{
		{"QEMU", "qemu"}, {"VMware", "vmware"}, {"innotek", "oracle"}, {"Xen", "xen"}, {"Amazon EC2", "amazon"},
		{"Google", "google"}, {"Microsoft Corporation", "microsoft"}, {"Parallels", "parallels"},
	} {
		if strings.Contains(vendor, known.in) {
			r.f.Virt = known.word
			return nil
		}
	}
	if v := r.first("/sys/hypervisor/type"); v != "" {
		r.f.Virt = v
	}
	return nil
}

// cloudResult is /run/cloud-init/result.json: written when cloud-init has ended in this boot.
type cloudResult struct {
	V1 struct {
		Errors []string `json:"errors"`
	} `json:"v1"`
}

func (r *reader) readCloud(s section) error {
	seen := map[string]bool{}
	for _, l := range s.lines {
		seen[path.Base(l.text)] = true
	}
	result, ended := r.files["/run/cloud-init/result.json"]
	switch {
	case ended:
		r.f.Cloud = "done"
		var v cloudResult
		if err := json.Unmarshal([]byte(strings.Join(result, "\n")), &v); err != nil {
			r.f.Cloud = ""
			r.f.Unknown = append(r.f.Unknown, "cloud: /run/cloud-init/result.json is not readable: "+err.Error())
			return nil
		}
		if len(v.V1.Errors) > 0 {
			r.f.Cloud = "error"
			r.f.CloudNote = v.V1.Errors[0]
		}
	case seen["disabled"], seen["cloud-init.disabled"], slices.Contains(strings.Fields(r.first("/proc/cmdline")), "cloud-init=disabled"):
		r.f.Cloud = "disabled"
	case r.hasFile("/run/cloud-init/status.json"), seen["enabled"]:
		r.f.Cloud = "running"
	case seen["cloud-init"]:
		r.f.Cloud = "not run"
	}
	return nil
}

func (r *reader) readDisks(s section) error {
	for _, l := range s.lines {
		w := strings.Split(l.text, "\t")
		if len(w) != 5 {
			return bad(l)
		}
		var n [4]uint64
		for i := range n {
			v, err := strconv.ParseUint(w[i+1], 10, 64)
			if err != nil {
				return bad(l)
			}
			n[i] = v
		}
		r.f.Disks = append(r.f.Disks, Disk{
			Path: w[0], Free: n[0] * n[1], Size: n[2] * n[1], Inodes: n[3], ReadOnly: r.readOnly(w[0]),
		})
	}
	return nil
}

// readOnly tells whether the mount that p is on is read-only: the longest mount point above it, the last one
// when several are mounted on each other.
func (r *reader) readOnly(p string) bool {
	best, ro := -1, false
	for _, l := range r.files["/proc/mounts"] {
		w := strings.Fields(l)
		if len(w) < 4 {
			continue
		}
		at := w[1]
		if at != p && at != "/" && !strings.HasPrefix(p, at+"/") {
			continue
		}
		if len(at) >= best {
			best, ro = len(at), slices.Contains(strings.Split(w[3], ","), "ro")
		}
	}
	return ro
}

func (r *reader) readJobs(s section) error {
	type attempt struct {
		name  string
		ended bool
	}
	last := map[string]attempt{}
	for _, l := range s.lines {
		w := strings.Split(l.text, "\t")
		if len(w) != 3 {
			return bad(l)
		}
		old, ok := last[w[0]]
		if !ok || laterAttempt(w[1], old.name) {
			last[w[0]] = attempt{w[1], w[2] == "1"}
		}
	}
	for job, a := range last {
		if !a.ended {
			r.f.State.Jobs = append(r.f.State.Jobs, job)
		}
	}
	sort.Strings(r.f.State.Jobs)
	return nil
}

// laterAttempt orders the names of attempts: by number where they are numbers, so that 10 comes after 9.
func laterAttempt(a, b string) bool {
	x, errX := strconv.ParseUint(a, 10, 64)
	y, errY := strconv.ParseUint(b, 10, 64)
	if errX == nil && errY == nil {
		return x > y
	}
	return a > b
}

func (r *reader) readJournal(s section) error {
	var b strings.Builder
	for _, l := range s.lines {
		b.WriteString(l.text)
		b.WriteByte('\n')
	}
	r.f.State.Journal = b.String()
	return nil
}

// nvrm is the first line of /proc/driver/nvidia/version:
//
//	NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.309.01  Mon …
//	NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build …
var nvrm = regexp.MustCompile(`^NVRM version: .*Kernel Module(?: for \S+)?\s+([0-9]+\.[0-9.]+)`)

// version is a driver version somewhere in a text.
var version = regexp.MustCompile(`\b[0-9]{3}\.[0-9]{2,3}(\.[0-9]{2})?\b`)

// conclude works out what needs several sections.
func (r *reader) conclude() {
	f := &r.f
	f.OS = readOS(r.files)
	f.Kernel.Cmdline = strings.Fields(r.first("/proc/cmdline"))
	if _, chosen, ok := strings.Cut(r.first("/sys/kernel/security/lockdown"), "["); ok {
		f.Kernel.Lockdown, _, _ = strings.Cut(chosen, "]")
	}
	f.Kernel.SigEnforce = r.first("/sys/module/module/parameters/sig_enforce") == "Y"
	if l := r.first("/proc/driver/nvidia/version"); l != "" {
		if m := nvrm.FindStringSubmatch(l); m != nil {
			f.Driver.Loaded = m[1]
			f.Driver.LoadedFlavor = "proprietary"
			if strings.Contains(l, "Open Kernel Module") {
				f.Driver.LoadedFlavor = "open"
			}
		} else {
			f.Unknown = append(f.Unknown, "driver: /proc/driver/nvidia/version is not understood: "+l)
		}
	}
	if f.Runfile.Uninstaller != "" {
		f.Runfile.Version = f.Driver.Library
		for _, l := range r.files["/var/lib/nvidia/log"] {
			if v := version.FindString(l); v != "" {
				f.Runfile.Version = v
				break
			}
		}
	}
	f.Sources = readSources(r.files)
	r.versionLocks()
	r.boot()
	r.nextModules()
}

// versionLocks adds the packages that dnf, yum, zypper or tdnf is told to leave at their version. A line with a
// pattern for the version keeps packages within a branch and holds none.
func (r *reader) versionLocks() {
	for _, name := range []string{"/etc/dnf/plugins/versionlock.list", "/etc/yum/pluginconf.d/versionlock.list"} {
		for _, l := range r.files[name] {
			if m := lockedVersion.FindStringSubmatch(strings.TrimSpace(l)); m != nil {
				r.f.Held = append(r.f.Held, m[1])
			}
		}
	}
	locked := ""
	for _, l := range r.files["/etc/dnf/versionlock.toml"] {
		key, value, _ := strings.Cut(l, "=")
		value = strings.Trim(strings.TrimSpace(value), `"`)
		switch strings.TrimSpace(key) {
		case "name":
			locked = value
		case "comparator":
			if value == "=" {
				r.f.Held = append(r.f.Held, locked)
			}
		}
	}
	for _, l := range r.files["/etc/zypp/locks"] {
		if n, ok := strings.CutPrefix(l, "solvable_name:"); ok {
			r.f.Held = append(r.f.Held, strings.TrimSpace(n))
		}
	}
	for name, lines := range r.files {
		if strings.HasPrefix(name, "/etc/tdnf/locks.d/") {
			for _, l := range lines {
				r.f.Held = append(r.f.Held, strings.TrimSpace(l))
			}
		}
	}
	sort.Strings(r.f.Held)
	r.f.Held = slices.Compact(r.f.Held)
}

// lockedVersion is a line of dnf's or yum's list of locked versions: "kernel-core-0:5.14.0-570.el9.*",
// "0:kernel-3.10.0-1160.el7.*".
var lockedVersion = regexp.MustCompile(`^(?:[0-9]+:)?([^!*].*)-[^-*]+-[^-*]+\.\*$`)

// nextModules fills what depends on the kernel that starts next.
func (r *reader) nextModules() {
	f := &r.f
	k := &f.Kernel
	for _, m := range f.Driver.Modules {
		if moduleOf(m.Path, k.Running) {
			f.Driver.Running = m
		}
		if moduleOf(m.Path, k.Next) {
			f.Driver.Next = m
		}
	}
	if k.Next == "" || !k.NextModules {
		return
	}
	f.Loadable = map[string]bool{}
	for _, m := range moduleNames {
		f.Loadable[m] = false
	}
	for _, file := range r.modules[k.Next] {
		name, _, _ := strings.Cut(path.Base(file), ".ko")
		name = strings.ReplaceAll(name, "-", "_")
		// Debian names its files nvidia-current.ko, nvidia-current-drm.ko and the like; the module within
		// keeps NVIDIA's own name.
		if m := debianName.FindStringSubmatch(name); m != nil {
			name = "nvidia" + m[2]
		}
		if _, ok := f.Loadable[name]; ok {
			f.Loadable[name] = true
		}
	}
	f.Loadable["nova_drm"] = f.Loadable["nova_drm"] || f.Loadable["nova"]
	for _, at := range []string{"/boot/config-" + k.Next, "/lib/modules/" + k.Next + "/config"} {
		l := r.first("compiler:" + at)
		if l == "" {
			continue
		}
		l = strings.TrimPrefix(l, "CONFIG_CC_VERSION_TEXT=")
		l = strings.TrimPrefix(l, "# Compiler: ")
		k.Compiler = strings.Trim(l, `"`)
		break
	}
}

var debianName = regexp.MustCompile(`^nvidia_(?:current|tesla|legacy)(?:_[0-9]+(?:xx)?)?(?:_open)?((_uvm|_modeset|_drm|_peermem)?)$`)

// moduleOf tells whether a module file belongs to a kernel release.
func moduleOf(file, release string) bool {
	return release != "" && strings.Contains(file, "/lib/modules/"+release+"/")
}

// readOS reads os-release, whose values may be quoted as in sh.
func readOS(files map[string][]string) OS {
	lines, ok := files["/etc/os-release"]
	if !ok {
		lines = files["/usr/lib/os-release"]
	}
	v := assignments(lines)
	return OS{ID: v["ID"], VersionID: v["VERSION_ID"], Codename: v["VERSION_CODENAME"], Name: v["PRETTY_NAME"], Like: strings.Fields(v["ID_LIKE"])}
}

// assignments reads NAME=value lines; a later one wins.
func assignments(lines []string) map[string]string {
	v := map[string]string{}
	for _, l := range lines {
		name, value, ok := strings.Cut(strings.TrimSpace(l), "=")
		if !ok || strings.HasPrefix(name, "#") {
			continue
		}
		v[name] = unquote(value)
	}
	return v
}

// unquote takes one pair of quotes off, and the backslashes that os-release(5) asks for within them.
func unquote(s string) string {
	s = strings.TrimSpace(s)
	if len(s) < 2 || s[0] != s[len(s)-1] || (s[0] != '"' && s[0] != '\'') {
		return s
	}
	single := s[0] == '\''
	s = s[1 : len(s)-1]
	if single {
		return s
	}
	return unescape.Replace(s)
}

var unescape = strings.NewReplacer(`\"`, `"`, `\$`, `$`, `\\`, `\`, "\\`", "`")

func (r *reader) readLedger(s section) error {
	st := &r.f.State
	was := map[string]string{}
	for _, l := range s.lines {
		w := strings.Split(l.text, "\t")
		switch {
		case len(w) == 1 && w[0] == "before":
			st.Before = true
		case len(w) == 4 && w[0] == "package" && w[1] == "added":
			st.Added = appendNew(st.Added, w[2])
		case len(w) == 4 && w[0] == "package" && w[1] == "changed":
			// The first record tells the version of before; later ones tell of gpuguest's own work.
			if _, ok := was[w[2]]; !ok && !slices.Contains(st.Added, w[2]) {
				was[w[2]] = w[3]
				st.Changed = append(st.Changed, Changed{Name: w[2], Was: w[3]})
			}
		case len(w) == 4 && w[0] == "package":
		case len(w) == 2 && w[0] == "held":
			st.Held = appendNew(st.Held, w[1])
		case len(w) == 2 && w[0] == "product":
			st.Products = appendNew(st.Products, w[1])
		case len(w) == 2 && w[0] == "args":
			st.KernelArgs = strings.Fields(w[1])
		case len(w) == 2 && w[0] == "runfile":
			st.Runfile = w[1]
		case len(w) == 2 && w[0] == "toolkit":
			st.Toolkits = appendNew(st.Toolkits, w[1])
		case len(w) == 2 && w[0] == "cuda-link":
			st.CUDALink = w[1]
		case len(w) == 1 && w[0] == "signing-key":
			st.SigningKey = true
		case len(w) == 2 && w[0] == "account":
			st.Accounts = appendNew(st.Accounts, w[1])
		case len(w) == 2 && w[0] == "service":
			st.Services = appendNew(st.Services, w[1])
		case len(w) == 2 && w[0] == "kept":
			st.Kept = append(st.Kept, w[1])
		case len(w) == 2 && w[0] == "absent":
			st.Absent = append(st.Absent, w[1])
		default:
			return bad(l)
		}
	}
	sort.Strings(st.Kept)
	sort.Strings(st.Absent)
	return nil
}

func appendNew(all []string, s string) []string {
	if slices.Contains(all, s) {
		return all
	}
	return append(all, s)
}
