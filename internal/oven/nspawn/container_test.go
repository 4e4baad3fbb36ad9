package nspawn_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gpuguest/internal/guest"
	"gpuguest/internal/lab"
	"gpuguest/internal/oven"
	"gpuguest/internal/oven/nspawn"
)

// TestContainerOven starts the lab's Debian 12 disk, with its partition table and GRUB, as a container.
func TestContainerOven(t *testing.T) {
	if os.Getenv("GPUGUEST_CONTAINER") == "" {
		t.Skip("GPUGUEST_CONTAINER is not set")
	}
	image, err := lab.Build(t.Context(), lab.Spec{})
	if err != nil {
		t.Fatal(err)
	}
	o := nspawn.New()
	if err := o.Usable(t.Context()); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	disk := filepath.Join(dir, "disk")
	if out, err := exec.CommandContext(t.Context(), "cp", "--sparse=always", image.Disk, disk).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	scratch := filepath.Join(dir, "scratch")
	start := func() oven.Guest {
		t.Helper()
		if err := errors.Join(os.RemoveAll(scratch), os.Mkdir(scratch, 0o700)); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		g, err := o.Start(t.Context(), oven.Spec{Disk: disk, Format: oven.FormatRaw, Scratch: scratch})
		if err != nil {
			var boot *oven.BootError
			if errors.As(err, &boot) {
				t.Log(boot.Tail)
			}
			t.Fatal(err)
		}
		t.Logf("answered after %s", time.Since(began).Round(time.Millisecond))
		t.Cleanup(func() {
			if err := g.Close(); err != nil {
				t.Error(err)
			}
			if t.Failed() {
				t.Log(g.Console())
			}
		})
		return g
	}
	run := func(g oven.Guest, script string) string {
		t.Helper()
		host, port := g.Address()
		conn, err := guest.Dial(t.Context(), guest.Config{Host: host, Port: port, User: g.User(), Identities: []string{g.Identity()},
			SSHConfig: "none", KnownHosts: g.KnownHosts(), HostKeyCheck: guest.Strict, Home: dir})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		res, err := conn.Run(t.Context(), guest.Command{Script: script})
		if err != nil || res.Exit != 0 {
			t.Fatalf("%s: %v, exit %d: %s%s", script, err, res.Exit, res.Stdout, res.Stderr)
		}
		return strings.TrimSpace(string(res.Stdout))
	}
	g := start()
	if got := run(g, `. /etc/os-release; echo "$VERSION_ID"; ls /boot/grub/grub.cfg; ip -br link | awk '{print $1}'`); got != "12\n/boot/grub/grub.cfg\nlo" {
		t.Errorf("the guest says %q", got)
	}
	before := run(g, `grep -o 'root=[^ ]*' /boot/grub/grub.cfg | sort -u`)
	run(g, `systemd-run --quiet --wait --collect --property=StandardOutput=file:/root/out --property=StandardError=file:/root/out apt-get -q update || { cat /root/out; exit 1; }
update-grub 2>/root/out || { cat /root/out; exit 1; }
rm /root/out`)
	if after := run(g, `grep -o 'root=[^ ]*' /boot/grub/grub.cfg | sort -u`); after != before || !strings.HasPrefix(after, "root=UUID=") {
		t.Errorf("update-grub made %q of %q", after, before)
	}
	if got := run(g, `echo kept >/root/kept; update-initramfs -u 2>&1; lsinitramfs /boot/initrd.img-* | grep -c '/virtio_blk\.ko'`); !strings.HasSuffix(got, "\n1") {
		t.Errorf("the initramfs does not find a virtual machine's disk: %s", got)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if err := g.PowerOff(ctx); err != nil {
		t.Fatal(err)
	}
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}

	// What was written is on the disk; what the oven put there is not. A plug that is pulled leaves no device.
	g = start()
	if got := run(g, `cat /root/kept; ls /etc/initramfs-tools/conf.d /etc/systemd/system | grep -c gpuguest || true; cut -d' ' -f3 /root/.ssh/authorized_keys`); got != "" && !strings.HasPrefix(got, "kept") {
		t.Errorf("the second time: %q", got)
	}
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "losetup", "-n", "-j", disk).Output(); err != nil || len(out) > 0 {
		t.Errorf("losetup -j: %s, %v", out, err)
	}
	if m, err := os.ReadFile("/proc/self/mounts"); err != nil || strings.Contains(string(m), dir) {
		t.Errorf("mounts are left: %v", err)
	}

	// An image without a system is said to be one.
	empty := filepath.Join(dir, "empty")
	if err := errors.Join(os.WriteFile(empty, nil, 0o600), os.Truncate(empty, 64<<20), os.RemoveAll(scratch), os.Mkdir(scratch, 0o700)); err != nil {
		t.Fatal(err)
	}
	var unfit *nspawn.UnfitError
	if _, err := o.Start(t.Context(), oven.Spec{Disk: empty, Format: oven.FormatRaw, Scratch: scratch}); !errors.As(err, &unfit) {
		t.Errorf("an empty disk: %v", err)
	}
}
