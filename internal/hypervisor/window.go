package hypervisor

import (
	"fmt"
	"math/bits"

	"gpuguest/internal/facts"
)

// Flags of a resource line, from Linux's include/linux/ioport.h.
const (
	resourceMem   = 0x00000200
	resourceMem64 = 0x00100000
	resourceUnset = 0x20000000
)

const (
	gib = uint64(1) << 30

	// defaultWindow is what a VM has when nobody asks for more: QEMU's Q35_PCI_HOST_HOLE64_SIZE_DEFAULT
	// (hw/pci-host/q35.c), and historically OVMF's own (edk2, OvmfPkg/RUNTIME_CONFIG.md, X-PciMmio64Mb).
	defaultWindow = 32 * gib

	// maxWindow is the most that OVMF takes, 0x1000000 MB; it ignores a larger number
	// (edk2, OvmfPkg/Library/PlatformInitLib/MemDetect.c).
	maxWindow = uint64(0x1000000) << 20

	// otherDevices is room for the 64-bit BARs of the VM's other devices and for the gaps that alignment
	// leaves between small ones. Theirs are kilobytes; OVMF rounds to whole gigabytes anyway.
	otherDevices = gib
)

// bars64 returns the 64-bit memory BARs of a GPU's functions. ROMs and SR-IOV windows are not among them:
// the first live below 4 GB, the second are not shown to a VM.
func (g GPU) bars64() []facts.BAR {
	var all []facts.BAR
	for _, f := range g.Functions {
		for _, b := range f.BARs {
			if b.Index <= 5 && b.Flags&resourceMem != 0 && b.Flags&resourceMem64 != 0 {
				all = append(all, b)
			}
		}
	}
	return all
}

// GuestWindow returns the size in bytes of the 64-bit PCI window that a VM with these GPUs needs: the sum of
// their 64-bit BARs and some room for other devices, rounded up to a power of two, and never below the
// default of QEMU and OVMF. A power of two because OVMF aligns the window by the largest power of two in it,
// so that the largest BAR, aligned to its own size, fits without a gap (edk2, MemDetect.c, as above).
//
// It is an error when a BAR's size is not known, and when OVMF could not be given such a window.
func GuestWindow(gpus []GPU) (uint64, error) {
	sum := otherDevices
	for _, g := range gpus {
		all := g.bars64()
		if len(all) == 0 {
			return 0, fmt.Errorf("%s: its BARs are not known, so the VM's 64-bit window cannot be computed", g.Slot)
		}
		for _, b := range all {
			if b.Size == 0 {
				return 0, fmt.Errorf("%s: the size of BAR %d is not known, so the VM's 64-bit window cannot be computed", g.Slot, b.Index)
			}
			if b.Size > maxWindow {
				return 0, fmt.Errorf("%s: BAR %d has %s, more than OVMF has room for (%s)", g.Slot, b.Index, size(b.Size), size(maxWindow))
			}
			sum += b.Size
		}
	}
	if sum > maxWindow {
		return 0, fmt.Errorf("the GPUs' 64-bit BARs need %s, and OVMF gives at most %s", size(sum), size(maxWindow))
	}
	return max(defaultWindow, uint64(1)<<bits.Len64(sum-1)), nil
}

// size writes bytes in the largest unit that divides them.
func size(n uint64) string {
	units := []string{"bytes", "KB", "MB", "GB", "TB"}
	i := 0
	for n >= 1024 && n%1024 == 0 && i < len(units)-1 {
		n /= 1024
		i++
	}
	return fmt.Sprintf("%d %s", n, units[i])
}
