package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"gpuguest/internal/bake"
	"gpuguest/internal/lab"
)

// bakery is a folder with a Debian 12 base and the program.
type bakery struct {
	*world
	t    *testing.T
	dir  string
	sum  string // SHA-256 of the base
	want string // lines of what every image is to have
	oven string
}

// TestNspawnBake bakes the lab's Debian 12 disk in the oven nspawn: a partition table, GRUB, a real systemd, apt and
// DKMS, which builds for the image's kernel and not this machine's. NVIDIA's repository is the lab's stand-in.
func TestNspawnBake(t *testing.T) {
	containerTier(t)
	t.Parallel()
	b := newBakery(t)
	b.standIns()

	// Killed at its phases, a bake leaves the base, no image, no process and no device.
	for _, at := range []string{bake.PhaseBase, bake.PhaseCopy, bake.PhaseBoot, "blocklist"} {
		b.kill("one", at)
	}
	first, took := b.bake("one", "baked")
	t.Logf("baked in %s: %s", took, phases(first))
	b.isSealed("one")
	b.isDescribed(first)
	if again, took := b.bake("one", "there"); again.SHA256 != first.SHA256 || took > 2*time.Minute {
		t.Errorf("the second time took %s", took)
	}

	// The second image has the first one's lock, and is killed late.
	b.copy("one.lock", "two.lock")
	for _, at := range []string{bake.PhaseSeal, bake.PhaseCompact} {
		b.kill("two", at)
	}
	second, _ := b.bake("two", "baked")
	if !slices.Equal(first.Packages, second.Packages) {
		t.Error("two bakes from one lock have other packages")
	}
	b.isSealed("two")
}

// TestRealDriverBake bakes Debian's own NVIDIA packages: DKMS builds the real modules.
func TestRealDriverBake(t *testing.T) {
	if os.Getenv("GPUGUEST_CONTAINER_REAL") == "" {
		t.Skip("GPUGUEST_CONTAINER_REAL is not set")
	}
	b := newBakery(t)
	b.want = "    source: distro\n    first-boot-verify: true\n"
	m, took := b.bake("one", "baked")
	t.Logf("baked in %s, %d bytes from %d: %s", took, m.Bytes, b.size("base.qcow2"), phases(m))
	b.isSealed("one")
	b.isDescribed(m)
	if !m.FirstBootVerify || len(m.Modules) < 4 || !slices.ContainsFunc(m.Modules, func(mod bake.Module) bool { return mod.License == "NVIDIA" }) {
		t.Errorf("modules %+v", m.Modules)
	}
	if left := b.inside("one", `cat etc/systemd/system/gpuguest-verify.service | grep -c ExecStart; ls var/lib/gpuguest/verify.due`); left != "1\nvar/lib/gpuguest/verify.due" {
		t.Errorf("the first boot's verification: %s", left)
	}
}

func phases(m bake.Manifest) string {
	var all []string
	for _, p := range m.Phases {
		all = append(all, fmt.Sprintf("%s %.0f s", p.Name, p.Seconds))
	}
	return strings.Join(all, ", ")
}

// containerTier skips a test unless this tier was asked for.
func containerTier(t *testing.T) {
	t.Helper()
	if os.Getenv("GPUGUEST_CONTAINER") == "" {
		t.Skip("GPUGUEST_CONTAINER is not set")
	}
}

// standIns has every image take its driver from the lab's stand-in for NVIDIA's repository.
func (b *bakery) standIns() {
	b.t.Helper()
	repo, err := lab.ServeRepo(b.t.Context(), lab.RepoSpec{})
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { repo.Close() })
	b.want = fmt.Sprintf("    source: nvidia\n    mirror: %s\n    keyring-sha256: %s\n", repo.URL, repo.KeyringSHA256["debian12"])
}

func newBakery(t *testing.T) *bakery {
	t.Helper()
	image, err := lab.Build(t.Context(), lab.Spec{})
	if err != nil {
		t.Fatal(err)
	}
	b := &bakery{world: &world{home: t.TempDir()}, t: t, dir: t.TempDir(), oven: bake.OvenNspawn}
	if b.bin, err = binary(); err != nil {
		t.Fatal(err)
	}
	raw := b.path("base.raw")
	b.tool("cp", "--sparse=always", image.Disk, raw)
	// An initramfs with every driver of the kernel takes a minute each time, one with those of this disk seconds.
	b.tool("unshare", "--mount", "--propagation", "private", "sh", "-c", `mount -o loop,offset=1048576 "$1" /mnt
sed -i 's/^MODULES=.*/MODULES=list/' /mnt/etc/initramfs-tools/initramfs.conf
printf '%s\n' virtio_pci virtio_blk virtio_net ext4 crc32c_generic crc32c_intel >>/mnt/etc/initramfs-tools/modules`, "sh", raw)
	b.tool("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, b.path("base.qcow2"))
	if err := os.Remove(raw); err != nil {
		t.Fatal(err)
	}
	b.sum = b.sha256("base.qcow2")
	return b
}

func (b *bakery) path(name string) string { return filepath.Join(b.dir, name) }

func (b *bakery) tool(name string, args ...string) string {
	b.t.Helper()
	out, err := exec.CommandContext(b.t.Context(), name, args...).CombinedOutput()
	if err != nil {
		b.t.Fatalf("%s: %v: %s", name, err, out)
	}
	return strings.TrimSpace(string(out))
}

func (b *bakery) sha256(name string) string {
	b.t.Helper()
	sum, err := sha256File(b.path(name))
	if err != nil {
		b.t.Fatal(err)
	}
	return sum
}

func (b *bakery) size(name string) int64 {
	b.t.Helper()
	st, err := os.Stat(b.path(name))
	if err != nil {
		b.t.Fatal(err)
	}
	return st.Size()
}

func (b *bakery) copy(from, to string) {
	b.t.Helper()
	raw, err := os.ReadFile(b.path(from))
	if err = errors.Join(err, os.WriteFile(b.path(to), raw, 0o644)); err != nil {
		b.t.Fatal(err)
	}
}

// file writes the bake.yaml of one image and returns the command line.
func (b *bakery) file(name string) []string {
	b.t.Helper()
	text := fmt.Sprintf("images:\n  %[1]s:\n    base: base.qcow2\n    sha256: %[2]s\n    output: out/%[1]s.qcow2\n    lock: %[1]s.lock\n    oven: %[3]s\n    target-gpu: GeForce GTX 1050 Ti\n%[4]s", name, b.sum, b.oven, b.want)
	if err := os.WriteFile(b.path(name+".yaml"), []byte(text), 0o644); err != nil {
		b.t.Fatal(err)
	}
	return []string{"bake", "-f", b.path(name + ".yaml"), "--json"}
}

// bake bakes one image and returns its manifest.
func (b *bakery) bake(name, want string) (bake.Manifest, time.Duration) {
	b.t.Helper()
	began := time.Now()
	c, err := b.client(b.t.Context(), nil, b.file(name)...)
	if err != nil {
		b.t.Fatal(err)
	}
	r, err := c.end()
	if err != nil || r.code != exitDone {
		b.t.Fatal(err, r)
	}
	var result struct{ Images []bakedImage }
	if err := json.Unmarshal([]byte(r.out), &result); err != nil || len(result.Images) != 1 || result.Images[0].Result != want {
		b.t.Fatalf("%v, want %s: %s", err, want, r)
	}
	m, err := bake.ReadManifest(b.path("out/" + name + ".qcow2.json"))
	if err != nil {
		b.t.Fatal(err)
	}
	if sum := b.sha256("out/" + name + ".qcow2"); sum != m.SHA256 || result.Images[0].SHA256 != sum {
		b.t.Errorf("the image's SHA-256 is %s, its manifest says %s", sum, m.SHA256)
	}
	b.isWhole(name, true)
	return m, time.Since(began)
}

// kill kills a bake when a line of what it tells has the word in it.
func (b *bakery) kill(name, word string) {
	b.t.Helper()
	c, err := b.client(b.t.Context(), nil, b.file(name)...)
	if err != nil {
		b.t.Fatal(err)
	}
	killed := false
	for line := range c.lines {
		if !killed && strings.Contains(line, ": ") && strings.Contains(line, word) {
			killed = true
			if err := c.cmd.Process.Signal(syscall.SIGKILL); err != nil {
				b.t.Fatal(err)
			}
		}
	}
	r, err := c.end()
	if err != nil || !killed || r.code != -1 {
		b.t.Fatalf("not killed at %q: %v %s", word, err, r)
	}
	// What the kernel ends along with it is gone in a moment.
	deadline := time.Now().Add(20 * time.Second)
	for time.Now().Before(deadline) && b.atWork() != "" {
		time.Sleep(100 * time.Millisecond)
	}
	b.isWhole(name, false)
}

// atWork are the processes, a line each, that name a work folder of the images.
func (b *bakery) atWork() string {
	b.t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		b.t.Fatal(err)
	}
	var found []string
	for _, file := range all {
		// One that has ended in the meantime is none.
		if words, err := os.ReadFile(file); err == nil && strings.Contains(string(words), b.dir+"/out/.") {
			found = append(found, file+": "+strings.ReplaceAll(string(words), "\x00", " "))
		}
	}
	return strings.Join(found, "\n")
}

// isWhole tells whether there is a whole image or none, and nothing of it at work.
func (b *bakery) isWhole(name string, want bool) {
	b.t.Helper()
	if sum := b.sha256("base.qcow2"); sum != b.sum {
		b.t.Fatal("the base was written to")
	}
	_, err := os.Stat(b.path("out/" + name + ".qcow2"))
	_, merr := os.Stat(b.path("out/" + name + ".qcow2.json"))
	_, werr := os.Stat(b.path("out/." + name + ".qcow2.bake"))
	if (err == nil) != want || (merr == nil) != want || want && werr == nil {
		b.t.Errorf("image: %v, manifest: %v, work folder: %v", err, merr, werr)
	}
	if mounts, err := os.ReadFile("/proc/self/mounts"); err != nil || strings.Contains(string(mounts), b.dir) {
		b.t.Errorf("mounts are left, %v", err)
	}
	if at := b.atWork(); at != "" {
		b.t.Errorf("processes are left: %s", at)
	}
}

// inside runs a script in the file system of an image, which is mounted read-only in a mount name space of its own.
func (b *bakery) inside(name, script string) string {
	b.t.Helper()
	raw := b.path(name + ".raw")
	b.tool("qemu-img", "convert", "-f", "qcow2", "-O", "raw", b.path("out/"+name+".qcow2"), raw)
	defer os.Remove(raw)
	// The lab's one partition begins at sector 2048.
	return b.tool("unshare", "--mount", "--propagation", "private", "sh", "-c",
		`mount -o loop,ro,noload,offset=1048576 "$1" /mnt && cd /mnt && eval "$2"`, "sh", raw, script)
}

// isSealed looks into an image by other means than gpuguest's own.
func (b *bakery) isSealed(name string) {
	b.t.Helper()
	left := b.inside(name, `
for f in etc/ssh/ssh_host_* root/.*_history home/*/.*_history var/lib/apt/lists/* var/cache/apt/archives/*.deb var/log/journal/* var/lib/dhcp/* \
	var/lib/gpuguest/jobs etc/apt/preferences.d/00gpuguest-lock etc/initramfs-tools/conf.d/zz-gpuguest-oven etc/apt/apt.conf.d/*oven* var/lib/systemd/random-seed; do
	if [ -e "$f" ]; then echo "$f"; fi
done
if [ -s etc/machine-id ]; then echo "machine-id"; fi
find var/log -type f -size +0
grep -rl one-time root/.ssh home/*/.ssh etc/ssh 2>/dev/null
grep -l 127.0.0.1:3128 -r etc 2>/dev/null
test -s var/lib/gpuguest/journal || echo "no journal"
grep -q 'root=UUID=' boot/grub/grub.cfg || echo "grub.cfg has another root"
grep -q loop boot/grub/grub.cfg && echo "grub.cfg has a loop device"
test -e etc/systemd/system/gpuguest-hostkeys.service || echo "nothing makes host keys"
true`)
	if left != "" {
		b.t.Errorf("in image %s:\n%s", name, left)
	}
}

// isDescribed holds a manifest against what the image must be.
func (b *bakery) isDescribed(m bake.Manifest) {
	b.t.Helper()
	kernel := b.inside("one", `ls lib/modules`)
	if m.Kernel != kernel || len(m.Modules) == 0 {
		b.t.Fatalf("the manifest says kernel %s, and the image has %s; modules %v", m.Kernel, kernel, m.Modules)
	}
	for _, mod := range m.Modules {
		if !strings.HasPrefix(mod.Vermagic, kernel+" ") || mod.Version != m.Driver {
			b.t.Errorf("module %+v in an image with kernel %s and driver %s", mod, kernel, m.Driver)
		}
	}
	if len(m.Packages) < 200 || len(m.Journal) < 5 || m.Oven != "nspawn" || !slices.ContainsFunc(m.KernelArgs, func(a string) bool { return strings.HasPrefix(a, "root=UUID=") }) ||
		!slices.ContainsFunc(m.Targets, func(s string) bool { return strings.Contains(s, "GeForce GTX 1050 Ti") }) {
		b.t.Errorf("manifest: %d packages, %d records, oven %s, arguments %q, targets %q", len(m.Packages), len(m.Journal), m.Oven, m.KernelArgs, m.Targets)
	}
	var offline bool
	for _, s := range m.Report.Steps {
		offline = offline || s.ID == "verify-offline" && s.State == "met"
	}
	if !offline {
		b.t.Errorf("the verification without a GPU is not in the report: %+v", m.Report.Steps)
	}
}
