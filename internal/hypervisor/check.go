package hypervisor

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"gpuguest/internal/facts"
)

// Status is what a check came to.
type Status string

// The words are part of the interface.
const (
	OK      Status = "ok"
	Warn    Status = "warn"    // passthrough can work; something is not as it should be
	Bad     Status = "bad"     // passthrough cannot work like this
	Unknown Status = "unknown" // the machine did not tell
)

// Finding is one check's result.
type Finding struct {
	ID       string   `json:"id"`
	Device   string   `json:"device,omitempty"` // slot or address that it is about, "" the machine
	Status   Status   `json:"status"`
	Seen     string   `json:"seen"`
	Evidence []string `json:"evidence,omitempty"` // lines or files that show it
	Fix      string   `json:"fix,omitempty"`      // what to do, "" nothing
}

// Check judges a machine: first itself, then each GPU by address.
func Check(h Host) []Finding {
	all := []Finding{
		checkCPU(h), checkFirmware(h), checkKernel(h), checkArguments(h), checkVFIO(h), checkMSRs(h),
	}
	gpus, _ := h.GPUs(nil)
	if len(gpus) == 0 {
		f := Finding{ID: "gpu", Status: Bad, Seen: "no NVIDIA GPU on any PCI bus", Fix: "seat the card, connect its power, and look whether the firmware sees it"}
		if why := h.Unknown["pci"]; why != "" {
			f = Finding{ID: "gpu", Status: Unknown, Seen: why}
		}
		return append(all, f)
	}
	for _, g := range gpus {
		all = append(all, checkDriver(g), checkGroup(h, g), checkIDs(h, g), checkBARs(h, g), checkWidth(h, g), checkSplit(g), checkConsole(g))
	}
	return all
}

func checkCPU(h Host) Finding {
	f := Finding{ID: "cpu"}
	switch {
	case h.CPU.Virt == "":
		f.Status, f.Seen = Unknown, "whether the processor can run VMs is not known"
	case h.CPU.Virt == "none":
		f.Status, f.Seen = Bad, "the processor shows neither vmx nor svm"
		f.Fix = "switch VT-x (Intel) or SVM (AMD) on in the firmware's setup; a VM needs nested virtualization from its own host"
	case !h.loaded("kvm_intel") && !h.loaded("kvm_amd") && h.Unknown["modules"] == "":
		f.Status, f.Seen = Bad, "the processor can ("+h.CPU.Virt+"), but neither kvm_intel nor kvm_amd is loaded"
		f.Fix = "load it, and look in the kernel log why it was not: `modprobe " + map[string]string{"vmx": "kvm_intel", "svm": "kvm_amd"}[h.CPU.Virt] + "`"
	default:
		f.Status, f.Seen = OK, "the processor runs VMs ("+h.CPU.Virt+")"
	}
	return f
}

func checkFirmware(h Host) Finding {
	f := Finding{ID: "iommu-firmware"}
	switch {
	case slices.Contains(h.Tables, "DMAR"):
		f.Status, f.Seen, f.Evidence = OK, "the firmware describes an Intel IOMMU", []string{"/sys/firmware/acpi/tables/DMAR"}
	case slices.Contains(h.Tables, "IVRS"):
		f.Status, f.Seen, f.Evidence = OK, "the firmware describes an AMD IOMMU", []string{"/sys/firmware/acpi/tables/IVRS"}
	case slices.Contains(h.Tables, "IORT"):
		f.Status, f.Seen, f.Evidence = OK, "the firmware describes an Arm SMMU", []string{"/sys/firmware/acpi/tables/IORT"}
	case len(h.IOMMUs) > 0:
		f.Status, f.Seen = OK, "an IOMMU is at work: "+strings.Join(h.IOMMUs, ", ")
	case h.Unknown["acpi"] != "":
		f.Status, f.Seen = Unknown, h.Unknown["acpi"]
	default:
		f.Status, f.Seen = Bad, "the firmware has no table of an IOMMU (DMAR, IVRS or IORT)"
		f.Fix = "switch VT-d (Intel) or IOMMU, AMD-Vi (AMD) on in the firmware's setup; it is off on many boards as they come"
	}
	return f
}

// groups counts the IOMMU groups that devices are in.
func (h Host) groups() int {
	seen := map[int]bool{}
	for _, f := range h.Functions {
		if f.Group >= 0 {
			seen[f.Group] = true
		}
	}
	return len(seen)
}

func checkKernel(h Host) Finding {
	f := Finding{ID: "iommu-kernel"}
	f.Evidence = h.logLines(3, "IOMMU enabled", "AMD-Vi: Interrupt remapping enabled", "IOMMU performance counters", "Directed I/O", "DMAR: No ATSR", "DMAR: IOMMU disabled")
	n := h.groups()
	switch {
	case n > 0:
		f.Status, f.Seen = OK, fmt.Sprintf("the kernel drives the IOMMU: devices are in %d groups", n)
	case h.Unknown["iommu"] != "" || h.Unknown["pci"] != "":
		f.Status, f.Seen = Unknown, strings.TrimPrefix(h.Unknown["iommu"]+"; "+h.Unknown["pci"], "; ")
	default:
		f.Status, f.Seen = Bad, "no device is in an IOMMU group, so none can be passed through"
		args := wantedArgs(h)
		switch {
		case len(h.Tables) == 0 && h.Unknown["acpi"] == "":
			f.Fix = "switch the IOMMU on in the firmware's setup first: see iommu-firmware"
		case !slices.Contains(args, intelOn):
			f.Fix = "an AMD IOMMU needs no argument: look for AMD-Vi in the kernel log, and for an argument that switches it off"
		default:
			f.Fix = "start the kernel with `" + strings.Join(args, " ") + "`, as `gpuguest hypervisor plan` writes it"
		}
	}
	return f
}

// wantedArgs are the kernel arguments for this processor. AMD's IOMMU is on by default and its parser knows no
// "on": it logs "AMD-Vi: Unknown option - 'on'" (Linux, parse_amd_iommu_options in drivers/iommu/amd/init.c).
// Intel's depends on CONFIG_INTEL_IOMMU_DEFAULT_ON (drivers/iommu/intel/Kconfig).
func wantedArgs(h Host) []string {
	if h.CPU.Vendor == "GenuineIntel" || slices.Contains(h.Tables, "DMAR") {
		return []string{intelOn, "iommu=pt"}
	}
	return []string{"iommu=pt"}
}

const intelOn = "intel_iommu=on"

func checkArguments(h Host) Finding {
	f := Finding{ID: "iommu-arguments"}
	if h.Cmdline == nil {
		f.Status, f.Seen = Unknown, "the kernel's arguments are not known"
		return f
	}
	for _, name := range []string{"intel_iommu", "amd_iommu", "iommu"} {
		if v, ok := h.arg(name); ok {
			f.Evidence = append(f.Evidence, name+"="+v)
			if slices.Contains(strings.Split(v, ","), "off") {
				f.Status, f.Seen, f.Fix = Bad, "the IOMMU is switched off by "+name+"="+v, "take it out of the kernel's arguments"
				return f
			}
		}
	}
	var missing []string
	for _, w := range wantedArgs(h) {
		k, want, _ := strings.Cut(w, "=")
		if v, _ := h.arg(k); !slices.Contains(strings.Split(v, ","), want) {
			missing = append(missing, w)
		}
	}
	switch {
	case len(missing) == 0:
		f.Status, f.Seen = OK, "the kernel was started with "+strings.Join(wantedArgs(h), " ")
	case h.groups() > 0 || !slices.Contains(missing, intelOn):
		f.Status, f.Seen = Warn, "the kernel was started without "+strings.Join(missing, " ")
		f.Fix = "iommu=pt spares the host's own devices the translation; `gpuguest hypervisor plan` writes it"
	default:
		f.Status, f.Seen = Bad, "the kernel was started without "+strings.Join(missing, " ")
		f.Fix = "write what `gpuguest hypervisor plan` prints, and reboot"
	}
	if v, _ := h.arg("amd_iommu"); v == "on" {
		f.Seen += "; amd_iommu=on means nothing to the kernel"
	}
	return f
}

func checkVFIO(h Host) Finding {
	f := Finding{ID: "vfio"}
	var missing []string
	for _, m := range []string{"vfio_pci", "vfio_iommu_type1"} {
		switch {
		case h.loaded(m):
		case h.Loadable[m] != "":
			f.Evidence = append(f.Evidence, m+": not loaded, comes with the kernel")
		default:
			missing = append(missing, m)
		}
	}
	switch {
	case len(missing) > 0 && h.Unknown["modules"] != "":
		f.Status, f.Seen = Unknown, strings.Join(missing, ", ")+": "+h.Unknown["modules"]
	case len(missing) > 0:
		f.Status, f.Seen = Bad, "this kernel ("+h.Kernel+") has no "+strings.Join(missing, ", ")
		f.Fix = "install the kernel's extra modules (linux-modules-extra on Ubuntu, kernel-modules on Fedora and its kin), or another kernel"
	case !h.loaded("vfio_pci"):
		f.Status, f.Seen = Warn, "vfio-pci is not loaded"
		f.Fix = "write what `gpuguest hypervisor plan` prints: it loads before the GPU's other drivers then"
	default:
		f.Status, f.Seen = OK, "vfio-pci is loaded"
	}
	return f
}

// checkMSRs warns only where a VM stumbled: by default KVM gives a guest that touches a register it does not
// know a fault (kvm.ignore_msrs in Linux's kernel-parameters.txt), which most guests take well.
func checkMSRs(h Host) Finding {
	f := Finding{ID: "ignore-msrs"}
	f.Evidence = h.logLines(3, "unhandled rdmsr", "unhandled wrmsr")
	v := h.Params["kvm.ignore_msrs"]
	switch {
	case v == "":
		f.Status, f.Seen = Unknown, "kvm's ignore_msrs is not known: kvm is not loaded"
	case v == "Y" || v == "1":
		f.Status, f.Seen = OK, "KVM ignores registers it does not know"
	case len(f.Evidence) > 0:
		f.Status, f.Seen = Warn, "a VM touched a register that KVM does not know, and got a fault"
		f.Fix = "if that VM fails: `options kvm ignore_msrs=1` in /etc/modprobe.d/kvm.conf, and reboot"
	case h.Unknown["log"] != "":
		f.Status, f.Seen = Unknown, "ignore_msrs is off, and whether a VM minded is not known: "+h.Unknown["log"]
	default:
		f.Status, f.Seen = OK, "ignore_msrs is off, and no VM has minded"
	}
	return f
}

// checkDriver tells who holds each function of a GPU.
func checkDriver(g GPU) Finding {
	f := Finding{ID: "driver", Device: g.Slot, Status: OK, Seen: "all functions are with vfio-pci"}
	var held, free []string
	for _, fn := range g.Functions {
		line := fn.Address + " [" + fn.ID() + "] " + classWord(fn.Class) + ": " + orNone(fn.Driver)
		if fn.Override != "" {
			line += ", driver_override " + fn.Override
		}
		f.Evidence = append(f.Evidence, line)
		switch {
		case fn.bridge(), fn.Driver == "vfio-pci", fn.Driver == "pci-stub":
		case fn.Driver == "":
			free = append(free, fn.Address)
		default:
			held = append(held, fn.Address+" by "+fn.Driver)
		}
	}
	switch {
	case len(held) > 0:
		f.Status, f.Seen = Bad, "held by the host's own driver: "+strings.Join(held, ", ")
		f.Fix = "write what `gpuguest hypervisor plan " + g.Slot + "` prints, rebuild the initramfs and reboot; libvirt can also take it over when the VM starts (managed='yes'), as long as nothing on the host uses it"
	case len(free) > 0:
		f.Status, f.Seen = Warn, "no driver holds "+strings.Join(free, ", ")
		f.Fix = "bind it to vfio-pci: `gpuguest hypervisor plan " + g.Slot + "`; libvirt does it by itself (managed='yes')"
	}
	return f
}

func classWord(class string) string {
	for _, c := range []struct{ prefix, word string }{
		{"0300", "VGA"}, {"0302", "3D"}, {"03", "display"}, {"0403", "audio"}, {"0c03", "USB"}, {"0c80", "USB-C"}, {"02", "network"}, {"01", "storage"}, {"06", "bridge"},
	} {
		if strings.HasPrefix(class, c.prefix) {
			return c.word
		}
	}
	return "class " + class
}

func orNone(driver string) string {
	if driver == "" {
		return "no driver"
	}
	return driver
}

// checkGroup tells what else is in the GPU's IOMMU groups. VFIO takes a group only whole: each of its devices
// has to be with vfio-pci, with pci-stub or without a driver; bridges may stay (vfio_group_viable and
// vfio_dev_driver_allowed in Linux's drivers/vfio/vfio.c).
func checkGroup(h Host, g GPU) Finding {
	f := Finding{ID: "group", Device: g.Slot}
	var groups []int
	for _, fn := range g.Functions {
		if fn.Group >= 0 && !slices.Contains(groups, fn.Group) {
			groups = append(groups, fn.Group)
		}
	}
	if len(groups) == 0 {
		f.Status, f.Seen = Bad, "in no IOMMU group"
		f.Fix = "the IOMMU has to be on: see iommu-firmware and iommu-kernel"
		if h.Unknown["pci"] != "" {
			f.Status, f.Fix = Unknown, ""
		}
		return f
	}
	var foreign, busy []string
	for _, fn := range h.Functions {
		if !slices.Contains(groups, fn.Group) || g.has(fn) || fn.bridge() {
			continue
		}
		line := fn.Address + " [" + fn.ID() + "] " + classWord(fn.Class) + ": " + orNone(fn.Driver)
		f.Evidence = append(f.Evidence, line)
		foreign = append(foreign, fn.Address)
		if fn.Driver != "" && fn.Driver != "vfio-pci" && fn.Driver != "pci-stub" {
			busy = append(busy, fn.Address+" by "+fn.Driver)
		}
	}
	name := strings.Trim(strings.ReplaceAll(fmt.Sprint(groups), " ", ", "), "[]")
	switch {
	case len(busy) > 0:
		f.Status, f.Seen = Bad, "group "+name+" holds devices that the host uses: "+strings.Join(busy, ", ")
		f.Fix = "a group goes to a VM whole: put the card into a slot behind another root port, or switch ACS on in the firmware's setup; else give up those devices on the host too"
	case len(foreign) > 0:
		f.Status, f.Seen = Warn, "group "+name+" holds other devices too: "+strings.Join(foreign, ", ")
		f.Fix = "they go to the same VM, or to none"
	default:
		f.Status, f.Seen = OK, "group "+name+" holds nothing else"
	}
	return f
}

func (g GPU) has(f Function) bool {
	return slices.ContainsFunc(g.Functions, func(own Function) bool { return own.Address == f.Address })
}

// twins returns the functions outside the given GPUs that vfio-pci's ids parameter could not tell from theirs.
// Virtual ones do not count: they are gone when their GPU is passed through whole.
func (h Host) twins(gpus []GPU) []Function {
	ids := map[string]bool{}
	for _, g := range gpus {
		for _, fn := range g.Functions {
			if !fn.bridge() {
				ids[fn.ID()] = true
			}
		}
	}
	var all []Function
	for _, fn := range h.Functions {
		if ids[fn.ID()] && !fn.Virtual && !slices.ContainsFunc(gpus, func(g GPU) bool { return g.has(fn) }) {
			all = append(all, fn)
		}
	}
	return all
}

func checkIDs(h Host, g GPU) Finding {
	f := Finding{ID: "ids", Device: g.Slot}
	twins := h.twins([]GPU{g})
	others := false
	for _, fn := range twins {
		f.Evidence = append(f.Evidence, fn.Address+" ["+fn.ID()+"]: "+orNone(fn.Driver))
		others = others || fn.Driver != "vfio-pci"
	}
	switch {
	case others:
		f.Status, f.Seen = Warn, "other devices of the host have the same vendor:device ids, so `options vfio-pci ids=` would take them too"
		f.Fix = "set driver_override by address: `gpuguest hypervisor plan " + g.Slot + "` does"
	case len(twins) > 0:
		f.Status, f.Seen = OK, "other devices have the same vendor:device ids, and all of them are with vfio-pci"
	default:
		f.Status, f.Seen = OK, "no other device has its vendor:device ids"
	}
	return f
}

// lostBAR is a BAR that the kernel found no room for. It may have forgotten its size.
type lostBAR struct {
	index int
	size  uint64 // 0 unknown
	wide  bool   // it is a 64-bit one
}

func (b lostBAR) on(fn Function) string {
	if b.size == 0 {
		return fmt.Sprintf("BAR %d of %s (of unknown size)", b.index, fn.Address)
	}
	return fmt.Sprintf("BAR %d of %s (%s)", b.index, fn.Address, size(b.size))
}

// barLine is what the kernel says of a BAR's place, in its wording since 6.9 and before (drivers/pci/setup-res.c). The
// last line of a BAR is what became of it.
var barLine = regexp.MustCompile(`\b([0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]): BAR ([0-5])(?: \[([^\]]*)\])?: (can't assign; no space|no space for|failed to assign|assigned)(?: \[([^\]]*)\])?`)

// lost are the BARs of a function that have no addresses: as the kernel's list of resources tells, and of those that
// it has forgotten, as the registers or the kernel's log do.
func (h Host) lost(fn Function) []lostBAR {
	var all []lostBAR
	listed := map[int]bool{}
	for _, b := range fn.BARs {
		if b.Index > 5 {
			continue
		}
		listed[b.Index] = true
		if b.Flags&resourceMem != 0 && (b.Start == 0 || b.Size == 0 || b.Flags&resourceUnset != 0) {
			all = append(all, lostBAR{index: b.Index, size: b.Size, wide: b.Flags&resourceMem64 != 0})
		}
	}
	forgotten := map[int]lostBAR{}
	// Bit 0 is clear for memory, and bits 1 and 2 are 10b for a 64-bit BAR, whatever stands above them (PCI Local Bus
	// Specification 3.0, 6.2.5.1). A function that is switched off answers with ones only.
	const off = 1<<32 - 1
	for i := 0; i < len(fn.Registers) && !fn.bridge() && !slices.Contains(fn.Registers, off); i++ {
		switch r := fn.Registers[i]; {
		case r&7 == 4:
			if !listed[i] {
				forgotten[i] = lostBAR{index: i, wide: true}
			}
			i++
		case r != 0 && r&1 == 0 && !listed[i]:
			forgotten[i] = lostBAR{index: i}
		}
	}
	said := map[int]lostBAR{}
	for _, l := range h.Log {
		m := barLine.FindStringSubmatch(l)
		if m == nil || m[1] != fn.Address {
			continue
		}
		i := int(m[2][0] - '0')
		if delete(said, i); m[4] == "assigned" || listed[i] {
			continue
		}
		b := lostBAR{index: i}
		for _, w := range strings.Fields(m[3] + " " + m[5]) {
			if n, err := strconv.ParseUint(w, 0, 64); err == nil {
				b.size = n
			}
			b.wide = b.wide || w == "64bit"
		}
		said[i] = b
	}
	for i := range 6 {
		b, is := forgotten[i]
		if told, ok := said[i]; ok {
			b, is = told, true
		}
		if is {
			all = append(all, b)
		}
	}
	return all
}

func checkBARs(h Host, g GPU) Finding {
	f := Finding{ID: "bars", Device: g.Slot}
	sum := uint64(0)
	var lost []string
	for _, fn := range g.Functions {
		for _, b := range fn.BARs {
			if b.Index > 5 || b.Flags&resourceMem == 0 {
				continue
			}
			f.Evidence = append(f.Evidence, fmt.Sprintf("%s BAR %d: %s at 0x%x", fn.Address, b.Index, size(b.Size), b.Start))
			if b.Flags&resourceMem64 != 0 {
				sum += b.Size
			}
		}
		for _, b := range h.lost(fn) {
			lost = append(lost, b.on(fn))
			if b.wide && !slices.ContainsFunc(fn.BARs, func(k facts.BAR) bool { return k.Index == b.index }) {
				sum += b.size
			}
		}
	}
	if len(g.bars64()) == 0 && len(lost) == 0 {
		f.Status, f.Seen = Unknown, "its BARs are not known"
		return f
	}
	realloc := false
	if v, ok := h.arg("pci"); ok {
		realloc = slices.ContainsFunc(strings.Split(v, ","), func(w string) bool { return w == "realloc" || w == "realloc=on" })
	}
	above := uint64(0)
	for _, w := range h.Windows {
		if w.Start >= 4*gib {
			above += w.End - w.Start + 1
			f.Evidence = append(f.Evidence, fmt.Sprintf("/proc/iomem: %x-%x: PCI Bus %s", w.Start, w.End, w.Bus))
		}
	}
	f.Evidence = append(f.Evidence, h.logLines(3, "can't assign", "no space for", "failed to assign")...)
	switch {
	case len(lost) == 0:
		f.Status, f.Seen = OK, "every BAR has its addresses on the host ("+size(sum)+" in 64-bit ones)"
		if realloc {
			f.Seen += ", with pci=realloc"
		}
	case h.Unknown["windows"] == "" && above < sum:
		opened := "nothing"
		if above > 0 {
			opened = size(above)
		}
		f.Status, f.Seen = Bad, "no address for "+strings.Join(lost, ", ")+": the firmware opened "+opened+" above 4 GB and the GPU needs "+size(sum)
		f.Fix = "switch \"Above 4G Decoding\" (or \"64-bit BAR\", \"Large BAR\", \"MMIO High Size\") on in the firmware's setup, or update the firmware"
	case realloc:
		f.Status, f.Seen = Bad, "no address for "+strings.Join(lost, ", ")+", even with pci=realloc"
		f.Fix = "switch \"Above 4G Decoding\" (or \"64-bit BAR\", \"Large BAR\") on in the firmware's setup, then take pci=realloc away, or try pci=realloc=off"
	default:
		f.Status, f.Seen = Bad, "no address for "+strings.Join(lost, ", ")
		f.Fix = "switch \"Above 4G Decoding\" (or \"64-bit BAR\", \"Large BAR\") on in the firmware's setup; where there is none, start the host's kernel with pci=realloc"
	}
	return f
}

// checkWidth tells whether the VM's window can be addressed. The firmware aligns the window by its size and
// puts it above the VM's memory, so it has to fit twice below the width of a physical address.
func checkWidth(h Host, g GPU) Finding {
	f := Finding{ID: "address-width", Device: g.Slot}
	window, err := GuestWindow([]GPU{g})
	switch {
	case err != nil:
		f.Status, f.Seen = Unknown, err.Error()
	case h.CPU.PhysicalBits == 0:
		f.Status, f.Seen = Unknown, "the width of a physical address is not known"
	case h.CPU.PhysicalBits < 64 && window > uint64(1)<<(h.CPU.PhysicalBits-1):
		f.Status = Bad
		f.Seen = fmt.Sprintf("a VM needs a 64-bit window of %s, and the processor's physical addresses have %d bits (%s)", size(window), h.CPU.PhysicalBits, size(uint64(1)<<h.CPU.PhysicalBits))
		f.Fix = "another machine: no setting widens a processor's addresses. A smaller BAR1, where the card's firmware or the host's setup can resize it, also helps"
	default:
		f.Status, f.Seen = OK, fmt.Sprintf("a VM needs a 64-bit window of %s; physical addresses have %d bits", size(window), h.CPU.PhysicalBits)
	}
	return f
}

// checkSplit tells whether the GPU is, or could be, cut into virtual functions or vGPUs.
func checkSplit(g GPU) Finding {
	f := Finding{ID: "sriov", Device: g.Slot, Status: OK, Seen: "no SR-IOV, no vGPU: it goes to one VM, whole"}
	for _, fn := range g.Functions {
		switch {
		case fn.Mdev:
			f.Status, f.Seen = Warn, fn.Address+" is with a vGPU manager on this host"
			f.Fix = "either hand out its vGPUs, or take the vGPU manager off this host to pass the whole GPU through: not both"
		case fn.NumVFs > 0:
			f.Status, f.Seen = Warn, fmt.Sprintf("%s has %d virtual functions at work", fn.Address, fn.NumVFs)
			f.Fix = "to pass the whole GPU through: echo 0 > /sys/bus/pci/devices/" + fn.Address + "/sriov_numvfs"
		case fn.TotalVFs > 0:
			f.Seen = fmt.Sprintf("can have %d virtual functions (SR-IOV), and has none now: it goes to one VM, whole", fn.TotalVFs)
		}
	}
	return f
}

func checkConsole(g GPU) Finding {
	f := Finding{ID: "console", Device: g.Slot, Status: OK, Seen: "the host's console is not on it"}
	for _, fn := range g.Functions {
		if fn.BootVGA {
			f.Status, f.Seen = Warn, "the firmware put the host's console on it (boot_vga is 1)"
			f.Evidence = []string{"/sys/bus/pci/devices/" + fn.Address + "/boot_vga: 1"}
			f.Fix = "choose another display adapter in the firmware's setup, or work on the host over the network; the host's screen goes dark when a VM takes this GPU"
		}
	}
	return f
}
