package oven

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// machine is everything that QEMU's arguments are made of.
type machine struct {
	accel, cpu   string
	memory, cpus int
	disk, format string
	seed         string // NoCloud image
	credential   string // file with an SMBIOS string, "" none
	firmware     ovmf   // zero: BIOS
	port         int    // on 127.0.0.1, leads to the guest's 22
	consoleFD    int    // what the serial console is written to
	extra        []string
}

// arguments is the machine as QEMU's command line: a q35 without anything that it was not given, a virtio disk and
// network, QMP on standard input and output. No secret is in it. What is extra comes last, and so has the last word.
func (m machine) arguments() []string {
	args := []string{
		"-nodefaults", "-no-user-config",
		// Without graphics the BIOS, and GRUB through it, say on the serial console what they would say on a screen.
		"-machine", "q35,graphics=off", "-accel", m.accel, "-cpu", m.cpu,
		"-smp", strconv.Itoa(m.cpus), "-m", strconv.Itoa(m.memory),
		// GRUB's menu hangs where there is no VGA at all.
		"-display", "none", "-vga", "std",
	}
	if m.firmware != (ovmf{}) {
		args = append(args,
			"-drive", "if=pflash,unit=0,format=raw,readonly=on,file="+doubled(m.firmware.code),
			"-drive", "if=pflash,unit=1,format=raw,file="+doubled(m.firmware.vars))
	}
	args = append(args,
		// The disk is thrown away when something goes wrong, so what the guest flushes need not be waited for.
		"-drive", "if=none,id=disk,format="+m.format+",cache=unsafe,discard=unmap,detect-zeroes=unmap,file="+doubled(m.disk),
		"-device", "virtio-blk-pci,drive=disk,bootindex=0",
		"-drive", "if=none,id=seed,format=raw,readonly=on,file="+doubled(m.seed),
		"-device", "virtio-blk-pci,drive=seed",
		// Nothing but the disk is booted: no firmware spends minutes on the network.
		"-boot", "strict=on",
		"-netdev", fmt.Sprintf("user,id=net,hostfwd=tcp:127.0.0.1:%d-:22", m.port),
		"-device", "virtio-net-pci,netdev=net,romfile=",
		"-device", "virtio-rng-pci",
	)
	if m.credential != "" {
		args = append(args, "-smbios", "type=11,path="+doubled(m.credential))
	}
	args = append(args,
		"-chardev", "stdio,id=qmp,signal=off", "-mon", "chardev=qmp,mode=control",
		"-chardev", fmt.Sprintf("file,id=console,path=/dev/fd/%d", m.consoleFD), "-serial", "chardev:console",
	)
	return slices.Concat(args, m.extra)
}

// doubled writes a value of a QEMU option: a comma in it is doubled.
func doubled(s string) string { return strings.ReplaceAll(s, ",", ",,") }
