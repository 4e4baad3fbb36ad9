package nspawn_test

import (
	"context"
	"errors"
	"fmt"
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
	grow := false
	start := func() oven.Guest {
		t.Helper()
		if err := errors.Join(os.RemoveAll(scratch), os.Mkdir(scratch, 0o700)); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		g, err := o.Start(t.Context(), oven.Spec{Disk: disk, Format: oven.FormatRaw, Scratch: scratch, Grow: grow, CPUs: 1, Memory: 2048})
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
	if got := run(g, "nproc"); got != "1" {
		t.Errorf("the guest counts %s processors", got)
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

	// What was written is on the disk; what the oven put there is not. A plug that is pulled leaves no device. The disk
	// was made larger meanwhile, and is filled.
	if err := os.Truncate(disk, 20<<30); err != nil {
		t.Fatal(err)
	}
	grow = true
	g = start()
	if why := g.Ungrown(); why != "" {
		t.Errorf("the root was not grown: %s", why)
	}
	if got := run(g, `df -B1G --output=size / | tail -n 1`); got != "20" {
		t.Errorf("the root has %s GiB", got)
	}
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

// TestContainerRootFillsALargerDisk has grow.sh at a loop device with the table of Debian's images for clouds, whose root
// is partition 1 and lies behind 14 and 15, and a real ext4 that is mounted.
func TestContainerRootFillsALargerDisk(t *testing.T) {
	if os.Getenv("GPUGUEST_CONTAINER") == "" {
		t.Skip("GPUGUEST_CONTAINER is not set")
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "grow.sh"), []byte(oven.GrowScript), 0o600); err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	cmd := exec.CommandContext(t.Context(), "unshare", "--mount", "--propagation", "private", "sh", "-eu", "-c", `
cd "$1"
truncate -s 256M disk
sfdisk --quiet disk <<'TABLE'
label: gpt
disk1 : start=262144, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709
disk14 : start=2048, size=6144, type=21686148-6449-6E6F-744E-656564454649
disk15 : start=8192, size=126976, type=U
TABLE
losetup --offset 134217728 --sizelimit 132120576 --find --show disk >loop
mkfs.ext4 -q "$(cat loop)"
losetup --detach "$(cat loop)"
truncate -s 1G disk
loop=$(losetup --find --show --partscan disk)
[ -b "${loop}p1" ] || partx -a "$loop"
trap 'umount root 2>/dev/null || :; partx --delete "$loop" 2>/dev/null || :; losetup --detach "$loop"' EXIT
mkdir root
mount "${loop}p1" root
echo kept >root/file
. ./grow.sh
grow "${loop#/dev/}p1" "$PWD/root" ext4
grow "${loop#/dev/}p1" "$PWD/root" ext4
df -B1M --output=size root | tail -n 1
umount root
e2fsck -fn "${loop}p1" >&2
sfdisk --verify "$loop" >&2
mount "${loop}p1" root
cat root/file
`, "sh", dir)
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s%s", err, out, said.String())
	}
	var size int
	var file string
	if n, err := fmt.Sscan(string(out), &size, &file); n != 2 || size < 800 || file != "kept" {
		t.Errorf("%v: the file system has %d MiB, and the file says %q\n%s", err, size, file, said.String())
	}
	if !strings.Contains(said.String(), "No errors detected") {
		t.Error(said.String())
	}
}

// TestContainerCleanFindsADeviceWithoutANote: whoever attached it was killed before it wrote the device's name down. The
// device of somebody else stays.
func TestContainerCleanFindsADeviceWithoutANote(t *testing.T) {
	if os.Getenv("GPUGUEST_CONTAINER") == "" {
		t.Skip("GPUGUEST_CONTAINER is not set")
	}
	dir := t.TempDir()
	attach := func(name string) string {
		disk := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(disk), 0o755), os.WriteFile(disk, nil, 0o600), os.Truncate(disk, 4<<20)); err != nil {
			t.Fatal(err)
		}
		loop, err := exec.CommandContext(t.Context(), "losetup", "--find", "--show", disk).Output()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = exec.Command("losetup", "--detach", strings.TrimSpace(string(loop))).Run() }) // it may be done
		return disk
	}
	mine, other := attach("a b/.one.bake/disk"), attach(".two.bake/disk")
	scratch := filepath.Join(filepath.Dir(mine), "oven")
	if err := errors.Join(os.Mkdir(scratch, 0o700), os.WriteFile(filepath.Join(scratch, "boot.sh"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := nspawn.New().Clean(t.Context(), scratch); err != nil {
		t.Fatal(err)
	}
	for disk, want := range map[string]bool{mine: false, other: true} {
		out, err := exec.CommandContext(t.Context(), "losetup", "-n", "-j", disk).Output()
		if err != nil || (len(out) > 0) != want {
			t.Errorf("%s: %s, %v", disk, out, err)
		}
	}
}
