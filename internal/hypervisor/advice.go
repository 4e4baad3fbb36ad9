package hypervisor

import (
	"fmt"

	"gpuguest/internal/facts"
)

// WindowAdvice returns the lines that say what to change at a VM whose guest has no room for its GPUs' BARs, from
// what the guest sees of them. A guest whose kernel gave a BAR up no longer knows its size; then the lines name
// the command that computes it on the host, where the GPU tells.
func WindowAdvice(gpus []facts.PCI) []string {
	var all []GPU
	for _, p := range gpus {
		all = append(all, GPU{Slot: p.Address, Functions: []Function{{Address: p.Address, BARs: p.BARs}}})
	}
	gb, mb, kib := "<GB>", "<MB>", "<KiB>"
	compute := "on the host, `gpuguest hypervisor qemu-args` (libvirt: `gpuguest hypervisor libvirt-xml`) works the sizes out from the GPU's BARs and prints them:"
	if window, err := GuestWindow(all); err == nil && len(all) > 0 {
		gb, mb, kib = fmt.Sprint(window/gib), fmt.Sprint(window>>20), fmt.Sprint(window>>10)
		compute = "on the host, give the VM a 64-bit PCI window that holds its GPUs' BARs:"
	}
	return []string{
		compute,
		"  QEMU      -global q35-pcihost.pci-hole64-size=" + gb + "G -fw_cfg name=opt/ovmf/X-PciMmio64Mb,string=" + mb,
		"  libvirt   <controller type='pci' index='0' model='pcie-root'><pcihole64 unit='KiB'>" + kib + "</pcihole64></controller>",
		"            <qemu:arg value='-fw_cfg'/><qemu:arg value='name=opt/ovmf/X-PciMmio64Mb,string=" + mb + "'/>",
		"then power the VM off and on; a reboot from within does not change the window",
		"`gpuguest hypervisor check` on the host tells whether the host itself has the BARs; without 64-bit addressing in its firmware, start the host's kernel with pci=realloc",
	}
}
