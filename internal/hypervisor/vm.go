package hypervisor

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// VM says what else is known of the virtual machine.
type VM struct {
	HideKVM bool   // keep KVM's signature from the guest
	SSH     string // "address:port" of the host that leads to the guest's port 22, "" none
}

// HiddenBefore is the first driver branch that starts a GeForce in a VM which shows that it is one: it came
// with "beta support for virtualization on GeForce GPUs", which holds for the Linux driver too
// (pop-os/nvidia-graphics-drivers, pull request 93, on 465.24). Older ones need KVM's signature hidden.
const HiddenBefore = 465

// HidesFor tells whether a guest with this driver, "390" or "390.157", needs KVM hidden.
func HidesFor(driver string) (bool, error) {
	branch, _, _ := strings.Cut(driver, ".")
	n, err := strconv.Atoi(branch)
	if err != nil || n < 1 {
		return false, fmt.Errorf("driver %q: a branch or a version, as in 390 or 390.157", driver)
	}
	return n < HiddenBefore, nil
}

var errNotX86 = errors.New("only x86 hosts are known here: the q35 machine and its 64-bit window are x86's")

// forVM returns the GPUs and the VM's 64-bit window.
func forVM(h Host, addresses []string) ([]GPU, uint64, error) {
	if h.Arch != "" && h.Arch != "x86_64" {
		return nil, 0, errNotX86
	}
	gpus, err := h.GPUs(addresses)
	if err != nil {
		return nil, 0, err
	}
	if len(gpus) == 0 {
		return nil, 0, errors.New("no NVIDIA GPU to pass through")
	}
	window, err := GuestWindow(gpus)
	return gpus, window, err
}

// passed are the functions of a GPU that a VM is given: all but bridges.
func (g GPU) passed() []Function {
	var all []Function
	for _, fn := range g.Functions {
		if !fn.bridge() {
			all = append(all, fn)
		}
	}
	return all
}

// QEMUArgs returns the arguments that give a q35 VM the GPUs at the given addresses, all of them when none is
// given, one option and its value after the other. Disks, memory and firmware are the caller's. Each GPU gets
// a root port of its own and keeps its functions together in one slot, as they are on the host.
func QEMUArgs(h Host, addresses []string, vm VM) ([]string, error) {
	gpus, window, err := forVM(h, addresses)
	if err != nil {
		return nil, err
	}
	// OVMF trusts the guest's address width only where it is the host's (edk2, MemDetect.c,
	// PlatformAddressWidthFromCpuid: "Run qemu with host-phys-bits=on").
	cpu := "host,host-phys-bits=on"
	if vm.HideKVM {
		cpu += ",kvm=off"
	}
	args := []string{
		"-machine", "q35,accel=kvm",
		"-cpu", cpu,
		"-global", fmt.Sprintf("q35-pcihost.pci-hole64-size=%dG", window/gib),
		"-fw_cfg", fmt.Sprintf("name=opt/ovmf/X-PciMmio64Mb,string=%d", window>>20),
	}
	for i, g := range gpus {
		port := fmt.Sprintf("gpu%d", i)
		args = append(args, "-device", fmt.Sprintf("pcie-root-port,id=%s,bus=pcie.0,chassis=%d,slot=%d", port, 16+i, 16+i))
		passed := g.passed()
		for n, fn := range passed {
			dev := fmt.Sprintf("vfio-pci,host=%s,bus=%s,addr=00.%d", fn.Address, port, n)
			if n == 0 && len(passed) > 1 {
				dev += ",multifunction=on"
			}
			args = append(args, "-device", dev)
		}
	}
	if vm.SSH != "" {
		address, number, ok := cutLast(vm.SSH)
		if p, err := strconv.Atoi(number); !ok || err != nil || p < 1 || p > 65535 || strings.ContainsAny(address, " ,-") {
			return nil, fmt.Errorf("%q: an address and a port, as in 127.0.0.1:5022", vm.SSH)
		}
		args = append(args, "-netdev", "user,id=ssh,hostfwd=tcp:"+address+":"+number+"-:22", "-device", "virtio-net-pci,netdev=ssh")
	}
	return args, nil
}

func cutLast(s string) (before, after string, found bool) {
	i := strings.LastIndexByte(s, ':')
	if i < 0 {
		return "", "", false
	}
	return s[:i], s[i+1:], true
}

// firstBus is the first PCI bus that LibvirtXML uses; libvirt numbers its own from 1 and adds what is missing
// in between.
const firstBus = 16

// LibvirtXML returns what to put into a libvirt domain for the GPUs at the given addresses, all of them when
// none is given: a whole <domain> that holds only these parts, to be merged by hand. OVMF's window is given on
// QEMU's command line, which needs the namespace in its first line.
func LibvirtXML(h Host, addresses []string, vm VM) (string, error) {
	gpus, window, err := forVM(h, addresses)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	b.WriteString("<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>\n")
	if vm.HideKVM {
		b.WriteString("  <features>\n    <kvm>\n      <hidden state='on'/>\n    </kvm>\n  </features>\n")
	}
	b.WriteString("  <cpu mode='host-passthrough'>\n    <!-- since libvirt 8.7; leave it out before -->\n    <maxphysaddr mode='passthrough'/>\n  </cpu>\n")
	b.WriteString("  <devices>\n")
	fmt.Fprintf(&b, "    <controller type='pci' index='0' model='pcie-root'>\n      <pcihole64 unit='KiB'>%d</pcihole64>\n    </controller>\n", window>>10)
	for i, g := range gpus {
		fmt.Fprintf(&b, "    <controller type='pci' index='%d' model='pcie-root-port'/>\n", firstBus+i)
		passed := g.passed()
		for n, fn := range passed {
			domain, rest, _ := strings.Cut(fn.Address, ":")
			bus, rest, _ := strings.Cut(rest, ":")
			slot, function, _ := strings.Cut(rest, ".")
			multi := ""
			if n == 0 && len(passed) > 1 {
				multi = " multifunction='on'"
			}
			fmt.Fprintf(&b, `    <hostdev mode='subsystem' type='pci' managed='yes'>
      <source>
        <address domain='0x%s' bus='0x%s' slot='0x%s' function='0x%s'/>
      </source>
      <address type='pci' domain='0x0000' bus='0x%02x' slot='0x00' function='0x%x'%s/>
    </hostdev>
`, domain, bus, slot, function, firstBus+i, n, multi)
		}
	}
	b.WriteString("  </devices>\n")
	fmt.Fprintf(&b, "  <qemu:commandline>\n    <qemu:arg value='-fw_cfg'/>\n    <qemu:arg value='name=opt/ovmf/X-PciMmio64Mb,string=%d'/>\n  </qemu:commandline>\n", window>>20)
	b.WriteString("</domain>\n")
	return b.String(), nil
}
