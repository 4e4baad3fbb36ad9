package hypervisor_test

import (
	"bufio"
	"context"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"gpuguest/internal/hypervisor"
)

const ovmf = "/usr/share/OVMF/OVMF_CODE_4M.fd"

// qemuArgs are a tree's arguments as they are printed, but for the accelerator and the processor, which need
// KVM, and for what stands in for vfio-pci.
func qemuArgs(t *testing.T, tree, address, standIn string) []string {
	t.Helper()
	if os.Getenv("GPUGUEST_LAB") == "" {
		t.Skip("GPUGUEST_LAB is not set: make test-vm runs the tier of real virtual machines")
	}
	args, err := hypervisor.QEMUArgs(look(t, plant(t, tree)), []string{address}, hypervisor.VM{HideKVM: true, SSH: "127.0.0.1:50225"})
	if err != nil {
		t.Fatal(err)
	}
	host := regexp.MustCompile(`^vfio-pci,host=[^,]*`)
	for i, a := range args {
		a = strings.Replace(a, "accel=kvm", "accel=tcg", 1)
		if rest, ok := strings.CutPrefix(a, "host,"); ok {
			a = "max," + rest
		}
		if standIn != "" {
			a = host.ReplaceAllString(a, standIn)
		}
		args[i] = a
	}
	return append(args, "-nodefaults", "-display", "none", "-m", "256")
}

// TestVMOnlyTheDeviceIsMissing has QEMU read the arguments whole: all it may complain of is that this machine
// has no such device.
func TestVMOnlyTheDeviceIsMissing(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, "qemu-system-x86_64", qemuArgs(t, "intel-twins", "41:00.0", "")...).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "0000:41:00.0") || !strings.Contains(string(out), "no such host device") {
		t.Errorf("%v: %s", err, out)
	}
}

// TestVMTheWindowHoldsTheBAR starts a VM with the arguments of an L4's host and a device with a BAR as large
// as an L4's, and reads from QEMU's monitor that OVMF gave it addresses above 4 GB.
func TestVMTheWindowHoldsTheBAR(t *testing.T) {
	args := append(qemuArgs(t, "intel-l4-clean", "65:00.0", "pci-testdev,membar=32G"),
		"-drive", "if=pflash,format=raw,readonly=on,file="+ovmf, "-monitor", "stdio")
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, "qemu-system-x86_64", args...)
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var complaint strings.Builder
	c.Stderr = &complaint
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	asked := make(chan struct{})
	go func() {
		defer close(asked)
		for ctx.Err() == nil {
			if _, err := io.WriteString(in, "info pci\n"); err != nil {
				return
			}
			time.Sleep(time.Second)
		}
	}()
	// 32 GB are 0x800000000 bytes; an address that OVMF has not given yet is all ones or zero.
	placed := regexp.MustCompile(`64 bit prefetchable memory at 0x([0-9a-f]{9,}) \[0x[0-9a-f]*7ffffffff\]`)
	found := ""
	lines := bufio.NewScanner(out)
	for found == "" && lines.Scan() {
		if m := placed.FindStringSubmatch(lines.Text()); m != nil && !strings.HasPrefix(m[1], "ffffffff") {
			found = m[0]
		}
	}
	cancel()
	<-asked
	_ = c.Wait()
	if found == "" {
		t.Fatalf("the BAR got no address: %s", complaint.String())
	}
	t.Log(found)
}
