package facts

import (
	"fmt"
	"io"
	"slices"
	"sort"
	"strings"
)

// Print writes what a person wants to know of a guest in ten seconds, a line a thing. name gives a PCI
// function's name from the tables, "" when they do not have it; it may be nil. Errors are w's.
func Print(w io.Writer, f Facts, name func(PCI) string) error {
	p := &printer{w: w}
	p.row("guest", "%s, %s, %s", or(f.Host, "host name unknown"), or(f.OS.Name, or(f.OS.ID, "unknown system")), or(f.Arch, "unknown architecture"))
	p.row("runs in", "%s, init %s", or(f.Virt, "unknown"), join(", ", or(f.Init.Name, "unknown"), f.Init.State))
	p.kernel(f)
	p.gpus(f, name)
	p.modules(f)
	p.driver(f)
	p.row("secure boot", "%s", secure(f))
	p.row("command line", "%s", or(strings.Join(f.Kernel.Cmdline, " "), "unknown"))
	if f.Kernel.NextCmdline != nil && !sameWords(f.Kernel.Cmdline, f.Kernel.NextCmdline) {
		p.row("", "at the next boot: %s", strings.Join(f.Kernel.NextCmdline, " "))
	}
	p.packages(f)
	p.disks(f)
	if f.Cloud != "" {
		p.row("cloud-init", "%s", join(": ", f.Cloud, f.CloudNote))
	}
	if n := strings.Count(f.State.Journal, "\n"); n > 0 {
		p.row("gpuguest", "%d records in the journal", n)
	}
	if len(f.State.Jobs) > 0 {
		p.row("jobs", "not ended: %s", strings.Join(f.State.Jobs, ", "))
	}
	for i, u := range f.Unknown {
		label := ""
		if i == 0 {
			label = "unknown"
		}
		p.row(label, "%s", u)
	}
	return p.err
}

// printer writes rows and keeps the first error.
type printer struct {
	w   io.Writer
	err error
}

func (p *printer) row(label, format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, "%-13s %s\n", label, printable(fmt.Sprintf(format, args...)))
	}
}

// printable keeps a guest's text from moving the cursor or colouring the terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || (r >= 0x80 && r < 0xa0) {
			return '?'
		}
		return r
	}, s)
}

func (p *printer) kernel(f Facts) {
	k := f.Kernel
	next := "next unknown: " + or(k.NextFrom, "not told")
	if k.Next != "" {
		next = "next " + k.Next + " (" + k.NextFrom + ")"
		if k.Next == k.Running {
			next = "next the same (" + k.NextFrom + ")"
		}
	}
	p.row("kernel", "%s, %s", or(k.Running, "unknown"), next)
	if k.Next == "" {
		return
	}
	headers := "headers missing"
	if slices.Contains(k.Headers, k.Next) {
		headers = "headers there"
	}
	p.row("", "%s", join(", ", headers, k.Compiler, f.Boot.Loader, f.Boot.Initramfs))
}

func (p *printer) gpus(f Facts, name func(PCI) string) {
	if len(f.GPUs) == 0 {
		p.row("gpu", "none")
	}
	for _, g := range f.GPUs {
		n := ""
		if name != nil {
			n = name(g)
		}
		p.row("gpu", "%s %s [%s:%s] subsystem [%s:%s] driver %s", g.Address, or(n, "unknown GPU"),
			g.Vendor, g.Device, or(g.Subvendor, "????"), or(g.Subdevice, "????"), or(g.Driver, "none"))
		p.row("", "%s", join(", ", bars(g), override(g), node(g)))
	}
	for _, o := range f.Other {
		p.row("", "with it: %s [%s:%s] class %s driver %s", o.Address, o.Vendor, o.Device, o.Class, or(o.Driver, "none"))
	}
}

func override(g PCI) string {
	if g.Override == "" {
		return ""
	}
	return "driver_override " + g.Override
}

func node(g PCI) string {
	if g.NUMA < 0 {
		return ""
	}
	return fmt.Sprintf("NUMA node %d", g.NUMA)
}

// bars tells the memory windows of a GPU: "BAR0 16 MiB, BAR1 not assigned (256 MiB)".
func bars(g PCI) string {
	var all []string
	for _, b := range g.BARs {
		if b.Index > 5 || b.Flags&0x100 != 0 {
			continue
		}
		switch {
		case b.Size == 0:
			all = append(all, fmt.Sprintf("BAR%d 0M", b.Index))
		case b.Start == 0:
			all = append(all, fmt.Sprintf("BAR%d not assigned (%s)", b.Index, bytesText(b.Size)))
		default:
			all = append(all, fmt.Sprintf("BAR%d %s", b.Index, bytesText(b.Size)))
		}
	}
	return or(strings.Join(all, ", "), "no memory window")
}

func (p *printer) modules(f Facts) {
	if f.Loaded == nil {
		p.row("modules", "unknown")
		return
	}
	var all []string
	for _, m := range []string{"nouveau", "nova_core", "nova_drm", "nvidiafb", "vfio_pci"} {
		switch {
		case f.Loaded[m]:
			all = append(all, m+" loaded")
		case f.Loadable[m] && m != "vfio_pci":
			all = append(all, m+" loadable")
		}
	}
	p.row("modules", "%s", or(strings.Join(all, ", "), "nouveau, nova and nvidiafb neither loaded nor loadable"))
}

func (p *printer) driver(f Facts) {
	d := f.Driver
	if d.Loaded == "" && d.Next.Path == "" && d.Library == "" {
		p.row("nvidia", "no driver")
	} else {
		next := "no module for the next kernel"
		if d.Next.Path != "" {
			next = fmt.Sprintf("next kernel's module %s (%s)", or(d.Next.Version, "unknown"), or(d.Next.License, "no licence"))
		}
		loaded := "not loaded"
		if d.Loaded != "" {
			loaded = "loaded " + join(" ", d.Loaded, d.LoadedFlavor)
		}
		p.row("nvidia", "%s, %s, libraries %s, persistenced %s", loaded, next, or(d.Library, "none"), or(d.PersistenceUnit, "none"))
	}
	if f.Runfile.Uninstaller != "" {
		p.row("", "from a .run file: %s, %s", or(f.Runfile.Version, "version unknown"), f.Runfile.Uninstaller)
	}
	if len(f.CUDA) > 0 {
		p.row("cuda", "%s", strings.Join(f.CUDA, ", "))
	}
}

func secure(f Facts) string {
	s := or(f.Secure.State, "unknown")
	if f.Secure.Setup {
		s += ", in setup mode"
	}
	if l := f.Kernel.Lockdown; l != "" && l != "none" {
		s += ", lockdown " + l
	}
	if f.Kernel.SigEnforce {
		s += ", signed modules only"
	}
	return s
}

func (p *printer) packages(f Facts) {
	if f.Lock != nil {
		p.row("lock", "%s held by %s (pid %d)", f.Lock.File, f.Lock.Command, f.Lock.PID)
	}
	if len(f.Held) > 0 {
		p.row("held", "%s", strings.Join(f.Held, ", "))
	}
	if len(f.Broken) > 0 {
		p.row("broken", "%s", strings.Join(f.Broken, ", "))
	}
	if len(f.OldNVIDIA) > 0 {
		p.row("old sources", "%s", strings.Join(f.OldNVIDIA, ", "))
	}
}

func (p *printer) disks(f Facts) {
	// One file system is named once, by the first path on it: same size and same room.
	seen := map[[2]uint64]bool{}
	var all []string
	for _, d := range f.Disks {
		key := [2]uint64{d.Size, d.Free}
		if seen[key] {
			continue
		}
		seen[key] = true
		s := d.Path + " " + bytesText(d.Free)
		if d.ReadOnly {
			s += " READ-ONLY"
		}
		all = append(all, s)
	}
	sort.Strings(all)
	if len(all) > 0 {
		p.row("free", "%s", strings.Join(all, ", "))
	}
}

// sameWords compares command lines without BOOT_IMAGE, which GRUB adds to the running one.
func sameWords(a, b []string) bool {
	clean := func(words []string) []string {
		return slices.DeleteFunc(slices.Clone(words), func(w string) bool { return strings.HasPrefix(w, "BOOT_IMAGE=") })
	}
	return slices.Equal(clean(a), clean(b))
}

// bytesText is a size in the largest binary unit that leaves a whole number, else in one decimal.
func bytesText(n uint64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	i, v := 0, float64(n)
	for v >= 1024 && i < len(units)-1 {
		v /= 1024
		i++
	}
	if v == float64(uint64(v)) {
		return fmt.Sprintf("%d %s", uint64(v), units[i])
	}
	return fmt.Sprintf("%.1f %s", v, units[i])
}

func or(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

// join joins the words that are not empty.
func join(sep string, words ...string) string {
	return strings.Join(slices.DeleteFunc(words, func(s string) bool { return s == "" }), sep)
}
