package oven

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"time"
)

// What QEMU can run a guest on.
const (
	KVM = "kvm"
	TCG = "tcg,thread=multi" // emulation
)

const qemuProgram = "qemu-system-x86_64"

// bootSector is a program that ends QEMU through its debug-exit port, with
// status 2*0x10+1: mov dx, 0xf4; mov al, 0x10; out dx, al; hlt; jmp to the hlt.
var bootSector = []byte{0xba, 0xf4, 0x00, 0xb0, 0x10, 0xee, 0xf4, 0xeb, 0xfd}

const bootSectorExit = 0x10<<1 | 1

// Accelerator finds out what QEMU can run on, KVM or TCG, by running something on it: there are hosts where /dev/kvm
// opens, QEMU starts, and no guest instruction is ever executed. It is an error when there is no QEMU.
func Accelerator(ctx context.Context) (string, error) {
	if _, err := exec.LookPath(qemuProgram); err != nil {
		return "", fmt.Errorf("%s is not installed (Debian's qemu-system-x86): %w", qemuProgram, err)
	}
	if _, err := os.Stat("/dev/kvm"); err != nil {
		return TCG, nil
	}
	disk, err := os.CreateTemp("", "gpuguest-probe-")
	if err != nil {
		return "", err
	}
	defer os.Remove(disk.Name())
	defer disk.Close()
	sector := make([]byte, 1<<20) // the BIOS takes no smaller a disk
	copy(sector, bootSector)
	sector[510], sector[511] = 0x55, 0xaa
	if _, err := disk.Write(sector); err != nil {
		return "", err
	}
	probe, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	err = exec.CommandContext(probe, qemuProgram, "-machine", "q35", "-accel", KVM, "-cpu", "max", "-m", "64",
		"-display", "none", "-monitor", "none", "-serial", "none", "-nic", "none",
		"-device", "isa-debug-exit,iobase=0xf4,iosize=0x04",
		"-drive", "file="+doubled(disk.Name())+",format=raw").Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == bootSectorExit {
		return KVM, nil
	}
	return TCG, ctx.Err()
}
