// Package hypervisor says whether a machine can pass its GPUs through to VMs, and what to write and to start
// so that it does: the answers of one script (assets/hypervisor.sh), parsed, judged and turned into files and
// arguments.
//
// It never runs anything and never reaches a machine. What the machine did not tell is the zero value, with
// the reason in Host.Unknown: unknown is a value.
package hypervisor

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"gpuguest/internal/facts"
)

// Host is one look at a machine that runs VMs.
type Host struct {
	Kernel    string            `json:"kernel"` // uname -r
	Arch      string            `json:"arch"`   // uname -m
	Name      string            `json:"name"`
	CPU       CPU               `json:"cpu"`
	Cmdline   []string          `json:"cmdline"`   // the running kernel's words; nil unknown
	Tables    []string          `json:"tables"`    // of DMAR, IVRS, IORT: the ACPI tables there are
	IOMMUs    []string          `json:"iommus"`    // the IOMMUs that the kernel drives: "dmar0", "ivhd0"
	Log       []string          `json:"log"`       // lines of the kernel log that are about any of this
	Loaded    []string          `json:"loaded"`    // modules of interest, loaded or built in
	Loadable  map[string]string `json:"loadable"`  // vfio_pci, vfio_iommu_type1 → "module" or "builtin"
	Params    map[string]string `json:"params"`    // "kvm.ignore_msrs" → "Y"
	Functions []Function        `json:"functions"` // every PCI function, by address
	Windows   []Window          `json:"windows"`   // the root buses' windows
	Tools     map[string]string `json:"tools"`     // update-initramfs, dracut, … → path
	BootFiles []BootFile        `json:"boot_files"`
	Unknown   map[string]string `json:"unknown"` // section → why it is not (fully) known
}

// BootFile is a file that a boot loader has the kernel's arguments from.
type BootFile struct {
	Path string `json:"path"`
	Text string `json:"text"`
}

// CPU is the first processor.
type CPU struct {
	Vendor       string `json:"vendor"`        // "GenuineIntel", "AuthenticAMD", "" unknown
	Virt         string `json:"virt"`          // "vmx", "svm", "none", "" unknown
	PhysicalBits int    `json:"physical_bits"` // width of a physical address, 0 unknown
}

// Function is one PCI function, as sysfs tells it. What is below Group is told of NVIDIA's only. Ids are four
// lower-case hex digits.
type Function struct {
	Address   string      `json:"address"` // "0000:41:00.0"
	Vendor    string      `json:"vendor"`
	Device    string      `json:"device"`
	Subvendor string      `json:"subvendor"`
	Subdevice string      `json:"subdevice"`
	Class     string      `json:"class"`  // six hex digits: "030000"
	Driver    string      `json:"driver"` // bound driver, "" none
	Group     int         `json:"group"`  // IOMMU group, -1 none
	Override  string      `json:"override"`
	BootVGA   bool        `json:"boot_vga"`  // the machine's firmware put its console here
	TotalVFs  int         `json:"total_vfs"` // virtual functions it could have, 0 none
	NumVFs    int         `json:"num_vfs"`   // virtual functions it has
	Virtual   bool        `json:"virtual"`   // is itself a virtual function
	Mdev      bool        `json:"mdev"`      // a vGPU manager offers mediated devices of it
	BARs      []facts.BAR `json:"bars"`
	Registers []uint32    `json:"bar_registers,omitempty"` // the six base address registers of its configuration space; nil unknown
}

// ID is what vfio-pci's ids parameter goes by.
func (f Function) ID() string { return f.Vendor + ":" + f.Device }

// Slot is the function's address without the function number.
func (f Function) Slot() string {
	slot, _, _ := strings.Cut(f.Address, ".")
	return slot
}

func (f Function) display() bool { return strings.HasPrefix(f.Class, "03") }

// bridge tells what VFIO lets stay with its own driver in a group: a PCI interconnect, not an endpoint
// (vfio_dev_driver_allowed in Linux's drivers/vfio/vfio.c).
func (f Function) bridge() bool { return strings.HasPrefix(f.Class, "06") }

// Window is a range of addresses that a root bus hands out, both ends included.
type Window struct {
	Start uint64 `json:"start"`
	End   uint64 `json:"end"`
	Bus   string `json:"bus"` // "0000:00"
}

// GPU is one slot with an NVIDIA display function, and all functions in it: they belong together, for they
// are reset together.
type GPU struct {
	Slot      string     `json:"slot"` // "0000:41:00"
	Functions []Function `json:"functions"`
}

const head = "gpuguest-hypervisor 1"

var addressForm = regexp.MustCompile(`^[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]$`)

// Parse reads the output of hypervisor.sh. It is strict about the framing and about lines it cannot read; a
// section that is missing, or that the machine could not answer, goes to Host.Unknown.
func Parse(raw []byte) (Host, error) {
	sections, err := facts.Sections(raw, head)
	if err != nil {
		return Host{}, fmt.Errorf("hypervisor: %w", err)
	}
	h := Host{Loadable: map[string]string{}, Params: map[string]string{}, Tools: map[string]string{}, Unknown: map[string]string{}}
	for _, part := range []struct {
		name string
		read func(string) error
	}{
		{"id", h.readID},
		{"cpu", h.readCPU},
		{"cmdline", h.readCmdline},
		{"acpi", func(l string) error { h.Tables = append(h.Tables, l); return nil }},
		{"iommu", func(l string) error { h.IOMMUs = append(h.IOMMUs, l); return nil }},
		{"log", func(l string) error { h.Log = append(h.Log, l); return nil }},
		{"modules", h.readModule},
		{"parameters", func(l string) error { return pair(l, h.Params) }},
		{"pci", h.readPCI},
		{"windows", h.readWindow},
		{"tools", func(l string) error { return pair(l, h.Tools) }},
		{"bootfiles", h.readBootFile},
	} {
		s, ok := sections[part.name]
		if !ok {
			h.Unknown[part.name] = "not in the machine's answer"
			continue
		}
		if len(s.Reasons) > 0 {
			h.Unknown[part.name] = strings.Join(s.Reasons, "; ")
		}
		for _, l := range s.Lines {
			if err := part.read(l.Text); err != nil {
				return Host{}, fmt.Errorf("hypervisor: section %s: line %d: %.80q: %w", part.name, l.No, l.Text, err)
			}
		}
	}
	slices.SortFunc(h.Functions, func(a, b Function) int { return strings.Compare(a.Address, b.Address) })
	return h, nil
}

// errLine is the answer to a line of no known form.
var errLine = errors.New("not understood")

func pair(l string, to map[string]string) error {
	k, v, ok := strings.Cut(l, "\t")
	if !ok {
		return errLine
	}
	to[k] = v
	return nil
}

// readBootFile reads a file's path, and then a line of it.
func (h *Host) readBootFile(l string) error {
	if path, ok := strings.CutPrefix(l, "f\t"); ok {
		h.BootFiles = append(h.BootFiles, BootFile{Path: path})
		return nil
	}
	text, ok := strings.CutPrefix(l, "l")
	if !ok || len(h.BootFiles) == 0 {
		return errLine
	}
	h.BootFiles[len(h.BootFiles)-1].Text += text + "\n"
	return nil
}

// bootFile is the text of a file that a boot loader has its arguments from; false when the machine has none.
func (h Host) bootFile(path string) (string, bool) {
	i := slices.IndexFunc(h.BootFiles, func(f BootFile) bool { return f.Path == path })
	if i < 0 {
		return "", false
	}
	return h.BootFiles[i].Text, true
}

func (h *Host) readID(l string) error {
	k, v, ok := strings.Cut(l, "\t")
	if !ok {
		return errLine
	}
	switch k {
	case "kernel":
		h.Kernel = v
	case "arch":
		h.Arch = v
	case "name":
		h.Name = v
	}
	return nil
}

func (h *Host) readCPU(l string) error {
	k, v, ok := strings.Cut(l, ":")
	if !ok {
		return errLine
	}
	v = strings.TrimSpace(v)
	switch strings.TrimSpace(k) {
	case "vendor_id":
		h.CPU.Vendor = v
	case "virt":
		h.CPU.Virt = v
	case "address sizes":
		// "46 bits physical, 48 bits virtual"
		bits, _, _ := strings.Cut(v, " bits physical")
		n, err := strconv.Atoi(bits)
		if err != nil || n < 1 || n > 64 {
			return errLine
		}
		h.CPU.PhysicalBits = n
	}
	return nil
}

func (h *Host) readCmdline(l string) error {
	h.Cmdline = append([]string{}, strings.Fields(l)...)
	return nil
}

func (h *Host) readModule(l string) error {
	k, v, ok := strings.Cut(l, "\t")
	if !ok {
		return errLine
	}
	name := strings.ReplaceAll(v, "-", "_")
	switch k {
	case "loaded":
		h.Loaded = append(h.Loaded, name)
	case "builtin":
		h.Loadable[name] = "builtin"
	case "dep":
		if h.Loadable[name] == "" {
			h.Loadable[name] = "module"
		}
	default:
		return errLine
	}
	return nil
}

func (h *Host) readPCI(l string) error {
	w := strings.Split(l, "\t")
	if w[0] == "p" {
		return h.readFunction(w[1:])
	}
	if len(h.Functions) == 0 {
		return errLine
	}
	f := &h.Functions[len(h.Functions)-1]
	switch {
	case w[0] == "d" && len(w) == 2:
		f.Driver = w[1]
	case w[0] == "o" && len(w) == 2:
		f.Override = w[1]
	case w[0] == "g" && len(w) == 2:
		n, err := strconv.Atoi(w[1])
		if err != nil || n < 0 {
			return errLine
		}
		f.Group = n
	case w[0] == "a" && len(w) == 3:
		n, err := strconv.Atoi(w[2])
		if err != nil || n < 0 {
			return errLine
		}
		switch w[1] {
		case "boot_vga":
			f.BootVGA = n != 0
		case "sriov_totalvfs":
			f.TotalVFs = n
		case "sriov_numvfs":
			f.NumVFs = n
		case "mdev":
			f.Mdev = n != 0
		case "virtfn":
			f.Virtual = n != 0
		}
	case w[0] == "r" && len(w) == 5:
		b, err := facts.ParseBAR(w[1:])
		if err != nil {
			return err
		}
		f.BARs = append(f.BARs, b)
	case w[0] == "c" && len(w) == 2:
		for _, word := range strings.Fields(w[1]) {
			n, err := strconv.ParseUint(word, 16, 32)
			if err != nil {
				return errLine
			}
			f.Registers = append(f.Registers, uint32(n))
		}
	default:
		return errLine
	}
	return nil
}

// readFunction reads address, four ids and the class.
func (h *Host) readFunction(w []string) error {
	if len(w) != 6 || !addressForm.MatchString(w[0]) {
		return errLine
	}
	f := Function{Address: w[0], Group: -1}
	for i, to := range []*string{&f.Vendor, &f.Device, &f.Subvendor, &f.Subdevice, &f.Class} {
		if w[i+1] == "-" {
			continue
		}
		v, err := strconv.ParseUint(strings.TrimPrefix(w[i+1], "0x"), 16, 32)
		if err != nil {
			return errLine
		}
		digits := 4
		if to == &f.Class {
			digits = 6
		}
		*to = fmt.Sprintf("%0*x", digits, v)
	}
	h.Functions = append(h.Functions, f)
	return nil
}

// readWindow reads a line of /proc/iomem: "4000000000-7fffffffff : PCI Bus 0000:00".
func (h *Host) readWindow(l string) error {
	span, bus, ok := strings.Cut(l, " : PCI Bus ")
	from, to, ok2 := strings.Cut(span, "-")
	if !ok || !ok2 {
		return errLine
	}
	start, err := strconv.ParseUint(from, 16, 64)
	if err != nil {
		return errLine
	}
	end, err := strconv.ParseUint(to, 16, 64)
	if err != nil || end < start {
		return errLine
	}
	h.Windows = append(h.Windows, Window{Start: start, End: end, Bus: bus})
	return nil
}

// GPUs returns the GPUs at the given addresses, or all of them when none is given. An address is "41:00.0",
// "41:00" or either with the domain in front; whichever function is named, all of its slot belong to it.
// Virtual functions are left out, but for one that is named by its full address, which comes alone.
func (h Host) GPUs(addresses []string) ([]GPU, error) {
	var all []GPU
	add := func(g GPU) {
		if !slices.ContainsFunc(all, func(o GPU) bool { return o.Slot == g.Slot }) {
			all = append(all, g)
		}
	}
	if len(addresses) == 0 {
		for _, f := range h.Functions {
			if f.Vendor == nvidia && f.display() && !f.Virtual {
				add(h.gpu(f.Slot()))
			}
		}
		return all, nil
	}
	for _, a := range addresses {
		address := strings.ToLower(a)
		if strings.Count(address, ":") == 1 {
			address = "0000:" + address
		}
		slot, _, _ := strings.Cut(address, ".")
		found := false
		for _, f := range h.Functions {
			switch {
			case f.Vendor != nvidia || !f.display() || f.Slot() != slot:
			case f.Virtual && f.Address == address:
				add(GPU{Slot: address, Functions: []Function{f}})
				found = true
			case !f.Virtual && !h.virtual(address):
				add(h.gpu(slot))
				found = true
			}
		}
		if !found {
			return nil, fmt.Errorf("no NVIDIA GPU at %s", a)
		}
	}
	return all, nil
}

const nvidia = "10de"

// virtual tells whether an address is a virtual function's.
func (h Host) virtual(address string) bool {
	return slices.ContainsFunc(h.Functions, func(f Function) bool { return f.Address == address && f.Virtual })
}

// gpu returns a slot with its functions but the virtual ones.
func (h Host) gpu(slot string) GPU {
	g := GPU{Slot: slot}
	for _, f := range h.Functions {
		if f.Slot() == slot && !f.Virtual {
			g.Functions = append(g.Functions, f)
		}
	}
	return g
}

// arg tells whether the running kernel was given a word, and its value: arg("iommu") of "iommu=pt" is "pt".
func (h Host) arg(name string) (string, bool) {
	for _, w := range slices.Backward(h.Cmdline) {
		if k, v, _ := strings.Cut(w, "="); k == name {
			return v, true
		}
	}
	return "", false
}

func (h Host) loaded(module string) bool { return slices.Contains(h.Loaded, module) }

// logLines returns at most n lines of the kernel log that hold one of the texts.
func (h Host) logLines(n int, texts ...string) []string {
	var found []string
	for _, l := range h.Log {
		if len(found) < n && slices.ContainsFunc(texts, func(t string) bool { return strings.Contains(l, t) }) {
			found = append(found, l)
		}
	}
	return found
}
