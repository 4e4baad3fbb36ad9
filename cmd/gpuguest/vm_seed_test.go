package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"gpuguest/internal/engine"
	"gpuguest/internal/lab"
	"gpuguest/internal/oven"
)

// says asserts what commands print in the guest.
func (g *vmGuest) says(all map[string]string) {
	g.t.Helper()
	for script, want := range all {
		if got := strings.TrimSpace(g.shell(script)); !strings.Contains(got, want) {
			g.t.Errorf("%s: %q, want %q", script, got, want)
		}
	}
}

// TestVMSeedUbuntu2204 is Ubuntu 22.04 under OVMF: NVIDIA's keyring, cuda-drivers, Secure Boot noticed, and pci=realloc
// through update-grub, without which BAR 1 has no window. Real are the firmware and its Secure Boot, shim, GRUB, the
// kernel's lockdown, apt, DKMS, sign-file, update-grub and the reboots. The guest passes for Ubuntu by its os-release: its
// packages are Debian 12's. The GPU and NVIDIA's packages are the lab's; below cuda-drivers-580 they have the names that
// they have for Debian.
func TestVMSeedUbuntu2204(t *testing.T) {
	// What is needed to build is there from the start: unpacking it is no part of this.
	g := bootVM(t, lab.Spec{Firmware: oven.FirmwareUEFI, As: "ubuntu2204", Installed: []string{"linux-headers-amd64", "dkms", "libc6-dev"}},
		lab.BootSpec{SecureBoot: true, Mode: lab.ModeNeedsRealloc})
	g.says(map[string]string{
		`mokutil --sb-state`:                "SecureBoot enabled",
		`cat /sys/kernel/security/lockdown`: "[integrity]",
		// The signature behind the file goes with the symbols.
		`objcopy --strip-debug "$(modinfo -n dummy)" /tmp/dummy.ko; insmod /tmp/dummy.ko 2>&1 || true; rm /tmp/dummy.ko; grep -w ^dummy /proc/modules || echo "not loaded"`: "not loaded",
		`. /etc/os-release; echo "$ID $VERSION_ID"`: "ubuntu 22.04",
	})
	was := g.snapshot()

	// Without a key, and with one that the firmware does not know, nothing is changed.
	install := append(g.mirror(), "--source", "nvidia", "--kernel-arg", "pci=realloc")
	r, code := g.run("install", install...)
	if code != exitUnsupported || r.Error == nil || !strings.Contains(r.Error.Message, "Secure Boot is enforced") || !strings.Contains(r.Error.Message, "--secure-boot-key") {
		t.Errorf("install without a key: exit %d, error %+v", code, r.Error)
	}
	key, cert, _ := signingPair(t)
	logs := t.TempDir()
	install = append(install, "--secure-boot-key", key, "--secure-boot-cert", cert, "--log-dir", logs)
	r, code = g.run("install", install...)
	if code != exitUnsupported || r.Error == nil || !strings.Contains(r.Error.Message, "does not trust the certificate") || !strings.Contains(r.Error.Message, "--add-db") {
		t.Errorf("install with a key that is not enrolled: exit %d, error %+v", code, r.Error)
	}
	ready, err := os.ReadFile(filepath.Join(logs, "cert.enrol.der"))
	if err != nil {
		t.Fatal(err)
	}
	if is := g.snapshot(); is != was {
		t.Errorf("a refusal changed the guest:\n%s", lineDiff(was, is))
	}

	// What was written out is enrolled on the host, as the message says.
	g.offFor(func() error { return g.vm.Enrol(ready) })
	r, code = g.run("install", install...)
	if code != exitDone || r.Reboots != 1 {
		t.Fatalf("install: exit %d, %d reboots, error %+v", code, r.Reboots, r.Error)
	}
	g.says(map[string]string{
		`lspci -nnk -d 10de:`:               "Kernel driver in use: nvidia",
		`cat /proc/cmdline`:                 " pci=realloc",
		`mokutil --sb-state`:                "SecureBoot enabled",
		`cat /sys/kernel/security/lockdown`: "[integrity]",
		`modinfo -F signer nvidia`:          "gpuguest lab key",
		`dpkg-query -W -f '${db:Status-Status}' cuda-keyring cuda-drivers-580 nvidia-driver-pinning-580`:                                   "installedinstalledinstalled",
		`stat -c '%a %U' /var/lib/gpuguest/secure-boot/key.pem`:                                                                            "600 root",
		`if grep '^[[:space:]]*linux[[:space:]]' /boot/grub/grub.cfg | grep -v ' pci=realloc'; then :; else echo "every entry has it"; fi`: "every entry has it",
		// The firmware starts shim and GRUB by the fallback path, and GRUB's own file on that partition leads to the menu.
		`cmp /usr/lib/shim/shimx64.efi.signed /boot/efi/EFI/BOOT/BOOTX64.EFI && cat /boot/efi/EFI/debian/grub.cfg`: "($root)'/boot/grub'\nconfigfile $prefix/grub.cfg",
		`dmesg | grep 'BAR1 is 0M' || echo "BAR 1 has its window"`:                                                 "BAR 1 has its window",
	})
	if d := detail(r, "next-boot"); !strings.Contains(d, "signed by gpuguest lab key") {
		t.Errorf("of the next boot it is said: %q", d)
	}
	r, code = g.run("install", install...)
	if code != exitDone || r.Reboots != 0 || slices.ContainsFunc(r.Steps, func(s engine.StepReport) bool { return s.State != engine.Met }) {
		t.Errorf("second install: exit %d, %d reboots, %+v", code, r.Reboots, r.Steps)
	}
	if _, code = g.run("verify"); code != exitDone {
		t.Errorf("verify: exit %d", code)
	}

	if r, code = g.run("uninstall"); code != exitDone {
		t.Fatalf("uninstall: exit %d, error %+v", code, r.Error)
	}
	if is := g.snapshot(); is != was {
		t.Errorf("the guest is not what it was:\n%s", lineDiff(was, is))
	}
	g.says(map[string]string{`[ ! -e /var/lib/gpuguest/secure-boot ] && echo "the key is gone"`: "the key is gone"})
}
