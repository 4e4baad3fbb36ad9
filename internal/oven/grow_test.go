package oven

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"gpuguest/internal/guest"
	"gpuguest/internal/guest/guesttest"
)

// table is a partition table as sfdisk --json prints it.
type table struct {
	Partitiontable struct {
		ID         string
		Partitions []struct {
			Node, Type, UUID string
			Start, Size      int64
		}
	}
}

// grown is a disk image, a tree of sysfs that knows it as the disk "pretend", and the programs that grow.sh calls: a real
// sfdisk, for which /dev/pretend is the image, a partx that tells sysfs what is in the table, and notes of the rest.
type grown struct {
	t    *testing.T
	disk string
	sys  string
	bin  string
	log  string
}

func newGrown(t *testing.T, layout string) *grown {
	t.Helper()
	real, err := exec.LookPath("sfdisk")
	if err != nil {
		t.Skip("sfdisk is not installed")
	}
	dir := t.TempDir()
	g := &grown{t: t, disk: filepath.Join(dir, "disk"), sys: filepath.Join(dir, "sys"), bin: filepath.Join(dir, "bin"), log: filepath.Join(dir, "log")}
	for _, d := range []string{g.bin, filepath.Join(g.sys, "class/block"), filepath.Join(g.sys, "devices/pretend")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(g.disk, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	g.resize(256 << 20)
	g.tool("sfdisk", `case "$*" in *--help*) echo --no-tell-kernel; exit ;; esac
echo "sfdisk $*" >>`+g.log+`
for last; do :; done
[ "$last" = /dev/pretend ] || exit 3
n=$#
while [ "$n" -gt 1 ]; do set -- "$@" "$1"; shift; n=$((n - 1)); done
shift
exec `+real+` "$@" `+g.disk+"\n")
	g.tool("partx", "echo \"partx $*\" >>"+g.log+"\n"+real+" --dump "+g.disk+` | sed -n 's|^.*disk\([0-9]*\) : start= *\([0-9]*\), size= *\([0-9]*\),.*|\1 \2 \3|p' | while read -r n start size; do
	echo "$size" >`+g.sys+`/devices/pretend/pretend$n/size
done
`)
	for _, name := range []string{"resize2fs", "xfs_growfs", "btrfs"} {
		g.tool(name, "echo \""+name+" $*\" >>"+g.log+"\n")
	}
	if layout != "" {
		cmd := exec.Command(real, "-q", g.disk)
		cmd.Stdin = strings.NewReader(layout)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("sfdisk: %v: %s", err, out)
		}
		for _, p := range g.table().Partitiontable.Partitions {
			n := strings.TrimPrefix(p.Node, g.disk)
			g.put("devices/pretend/pretend"+n+"/partition", n)
			g.put("devices/pretend/pretend"+n+"/start", fmt.Sprint(p.Start))
			g.put("devices/pretend/pretend"+n+"/size", fmt.Sprint(p.Size))
			g.link("pretend/pretend"+n, "pretend"+n)
		}
	}
	g.link("pretend", "pretend")
	return g
}

func (g *grown) tool(name, script string) {
	g.t.Helper()
	if err := os.WriteFile(filepath.Join(g.bin, name), []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		g.t.Fatal(err)
	}
}

func (g *grown) put(name, text string) {
	g.t.Helper()
	path := filepath.Join(g.sys, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		g.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text+"\n"), 0o644); err != nil {
		g.t.Fatal(err)
	}
}

func (g *grown) link(device, name string) {
	g.t.Helper()
	if err := os.Symlink("../../devices/"+device, filepath.Join(g.sys, "class/block", name)); err != nil {
		g.t.Fatal(err)
	}
}

func (g *grown) resize(bytes int64) {
	g.t.Helper()
	if err := os.Truncate(g.disk, bytes); err != nil {
		g.t.Fatal(err)
	}
	g.put("devices/pretend/size", strconv.FormatInt(bytes/512, 10))
}

func (g *grown) table() table {
	g.t.Helper()
	out, err := exec.Command("sfdisk", "--json", g.disk).Output()
	if err != nil {
		g.t.Fatal(err)
	}
	var t table
	if err := json.Unmarshal(out, &t); err != nil {
		g.t.Fatal(err)
	}
	return t
}

// grow calls grow.sh and returns what it says, and which programs it called.
func (g *grown) grow(call string) (said, called string, ok bool) {
	g.t.Helper()
	_ = os.Remove(g.log) // it may not be there
	cmd := exec.Command("sh", "-euc", GrowScript+"\n"+call)
	cmd.Env = []string{"PATH=" + g.bin + ":" + os.Getenv("PATH"), "GPUGUEST_SYS=" + g.sys, "GPUGUEST_PROC=" + filepath.Join(g.sys, "proc")}
	out, err := cmd.CombinedOutput()
	log, rerr := os.ReadFile(g.log)
	if rerr != nil && !os.IsNotExist(rerr) {
		g.t.Fatal(rerr)
	}
	return LastLine(string(out)), string(log), err == nil
}

// Layouts of a disk of 256 MiB. Debian's images for clouds have the root as partition 1 behind 14 and 15.
const (
	layoutLast   = "label: gpt\nstart=2048, size=65536, type=U\nstart=67584, type=L\n"
	layoutDebian = "label: gpt\ndisk1 : start=262144, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709\n" +
		"disk14 : start=2048, size=6144, type=21686148-6449-6E6F-744E-656564454649\ndisk15 : start=8192, size=126976, type=U\n"
	layoutGap    = "label: gpt\nstart=262144, size=131072, type=L\n"
	layoutMBR    = "label: dos\nstart=2048, type=83, bootable\n"
	layoutMiddle = "label: gpt\nstart=2048, size=262144, type=L\nstart=264192, type=S\n"
)

func TestRootIsGrownToTheEndOfItsDisk(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		layout, root, fs, tool string
		number                 int
	}{
		"last":                     {layoutLast, "pretend2", "ext4", "resize2fs /dev/pretend2", 2},
		"number 1, last on a disk": {layoutDebian, "pretend1", "ext4", "resize2fs /dev/pretend1", 1},
		"a hole in front of it":    {layoutGap, "pretend1", "xfs", "xfs_growfs /mnt", 1},
		"MBR":                      {layoutMBR, "pretend1", "btrfs", "btrfs filesystem resize max /mnt", 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := newGrown(t, test.layout)
			before := g.table()
			g.resize(1 << 30)
			said, called, ok := g.grow("grow " + test.root + " /mnt " + test.fs)
			if !ok {
				t.Fatal(said)
			}
			if !strings.HasSuffix(called, test.tool+"\n") || !strings.Contains(called, fmt.Sprintf("partx --update --nr %d /dev/pretend\n", test.number)) {
				t.Errorf("it called\n%s", called)
			}
			after := g.table()
			if after.Partitiontable.ID != before.Partitiontable.ID || len(after.Partitiontable.Partitions) != len(before.Partitiontable.Partitions) {
				t.Fatalf("another table: %+v", after)
			}
			for i, p := range after.Partitiontable.Partitions {
				was := before.Partitiontable.Partitions[i]
				if p.Node == g.disk+strconv.Itoa(test.number) {
					if end := (p.Start + p.Size) * 512; end < 1<<30-2<<20 || end > 1<<30 {
						t.Errorf("it ends at %d", end)
					}
					was.Size = p.Size
				}
				if p != was {
					t.Errorf("%+v was %+v", p, was)
				}
			}
			if out, err := exec.Command("sfdisk", "--verify", g.disk).CombinedOutput(); err != nil || !strings.Contains(string(out), "No errors") {
				t.Errorf("%v: %s", err, out)
			}
			// Again: the table is left alone.
			if said, called, ok := g.grow("grow " + test.root + " /mnt " + test.fs); !ok || called != test.tool+"\n" {
				t.Errorf("the second time: %s, called\n%s", said, called)
			}
		})
	}
}

func TestWhatIsNotGrownIsSaid(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct{ layout, call, want string }{
		"not the last":     {layoutMiddle, "grow pretend1 / ext4", "partition 1 is not the last on its disk, so there is nowhere to grow to"},
		"LVM":              {layoutLast, "grow dm-0 / ext4", "it is on dm-0 (LVM, LUKS or RAID) and not on a partition"},
		"file system":      {layoutLast, "grow pretend2 / zfs", "its file system is of type zfs, and only ext4, XFS and btrfs are grown"},
		"no program":       {layoutLast, "command() { return 1; }; grow pretend2 / xfs", "there is no xfs_growfs, which a file system of type xfs is grown with"},
		"program that can": {layoutLast, "resize2fs() { echo one; echo 'Online shrinking not supported' >&2; return 1; }; grow pretend2 / ext4", "resize2fs: one Online shrinking not supported"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := newGrown(t, test.layout)
			before := g.table()
			if name != "program that can" {
				g.resize(1 << 30)
			}
			said, _, ok := g.grow(test.call)
			if ok || said != test.want {
				t.Errorf("%v, %q, want %q", ok, said, test.want)
			}
			after := g.table()
			for i, p := range after.Partitiontable.Partitions {
				if p != before.Partitiontable.Partitions[i] {
					t.Errorf("%+v was %+v", p, before.Partitiontable.Partitions[i])
				}
			}
		})
	}
	// A file system without a table is as large as its disk once it is told.
	g := newGrown(t, "")
	g.resize(1 << 30)
	if said, called, ok := g.grow("grow pretend / ext4"); !ok || called != "resize2fs /dev/pretend\n" {
		t.Errorf("%s, called %s", said, called)
	}
}

// TestRootsDeviceIsFound by lines of proc_pid_mountinfo(5): as a partition is mounted, under the kernel's name for what it
// found by its command line, from a subvolume, over another file system, and on LVM.
func TestRootsDeviceIsFound(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct{ mounts, want, called string }{
		"partition":        {"24 1 254:2 / / rw,relatime shared:1 - ext4 /dev/pretend2 rw,errors=remount-ro\n25 24 0:5 / /dev rw - devtmpfs udev rw\n", "", "resize2fs /dev/pretend2\n"},
		"/dev/root":        {"24 1 254:2 / / rw,relatime - ext4 /dev/root rw\n", "", "resize2fs /dev/pretend2\n"},
		"subvolume":        {"24 1 0:33 /root / rw,relatime shared:1 master:2 - btrfs /dev/pretend2 rw,subvol=/root\n", "", "btrfs filesystem resize max /\n"},
		"over another one": {"1 1 0:2 / / rw - rootfs rootfs rw\n24 1 254:2 / / rw,relatime shared:1 - xfs /dev/pretend2 rw\n", "", "xfs_growfs /\n"},
		"LVM":              {"24 1 253:0 / / rw,relatime shared:1 - ext4 /dev/mapper/vg-root rw\n", "it is on dm-0 (LVM, LUKS or RAID) and not on a partition", ""},
		"overlay":          {"24 1 0:40 / / rw - overlay overlay rw,lowerdir=/a\n", "its file system is of type overlay, and only ext4, XFS and btrfs are grown", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := newGrown(t, layoutLast)
			for _, dir := range []string{"dev/block", "devices/dm-0"} {
				if err := os.MkdirAll(filepath.Join(g.sys, dir), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			for number, to := range map[string]string{"254:2": "pretend/pretend2", "253:0": "dm-0"} {
				if err := os.Symlink("../../devices/"+to, filepath.Join(g.sys, "dev/block", number)); err != nil {
					t.Fatal(err)
				}
			}
			g.put("proc/self/mountinfo", strings.TrimSuffix(test.mounts, "\n"))
			said, called, ok := g.grow("grow_root")
			if ok != (test.want == "") || test.want != "" && said != test.want || called != test.called {
				t.Errorf("%v: %q, want %q; called %q", ok, said, test.want, called)
			}
		})
	}
}

// TestWhyARootWasNotGrownIsItsLastWord: sudo says things of its own.
func TestWhyARootWasNotGrownIsItsLastWord(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		stdout, stderr string
		exit           int
		want           string
	}{
		"grown":   {"The filesystem on /dev/vda1 is now 2621179 (4k) blocks long.\n", "sudo: unable to resolve host\n", 0, ""},
		"refused": {"partition 1 is not the last on its disk\n", "sudo: unable to resolve host\n", 1, "partition 1 is not the last on its disk"},
		"broken":  {"", "sh: awk: not found\n", 127, "sh: awk: not found"},
		"silent":  {"", "", 137, "exit 137"},
	} {
		signer := guesttest.HostKey(t)
		dir := t.TempDir()
		keys, err := NewKeys(dir)
		if err != nil {
			t.Fatal(err)
		}
		login, _, _, _, err := ssh.ParseAuthorizedKey([]byte(keys.Authorized))
		if err != nil {
			t.Fatal(err)
		}
		srv := guesttest.New(t, guesttest.Options{Keys: []ssh.PublicKey{login}, HostKeys: []ssh.Signer{signer},
			Exec: guesttest.Plain(func(_ context.Context, cmd string, stdin io.Reader, stdout, stderr io.Writer) int {
				if !strings.Contains(cmd, "grow_root") {
					t.Errorf("unplanned: %.200s", cmd)
				}
				fmt.Fprint(stdout, test.stdout)
				fmt.Fprint(stderr, test.stderr)
				return test.exit
			})})
		keys.HostPublic = strings.TrimSpace(string(ssh.MarshalAuthorizedKey(signer.PublicKey())))
		known := filepath.Join(dir, "known_hosts")
		if err := keys.WriteKnownHosts(known, srv.Host(), srv.Port()); err != nil {
			t.Fatal(err)
		}
		conn, err := guest.Dial(t.Context(), Login{Host: srv.Host(), Port: srv.Port(), User: "root", Identity: keys.Identity, KnownHosts: known}.Config())
		if err != nil {
			t.Fatal(err)
		}
		if why, err := growRoot(t.Context(), conn); err != nil || why != test.want {
			t.Errorf("%s: %q, %v, want %q", name, why, err, test.want)
		}
		conn.Close()
	}
}
