package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
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

// bakery is a folder with a Debian base and the program.
type bakery struct {
	*world
	t    *testing.T
	dir  string
	sum  string // SHA-256 of the base
	want string // lines of what every image is to have
	gpus string // that every image is for
	oven string
}

// TestNspawnBake bakes the lab's Debian 12 disk in the oven nspawn: a partition table, GRUB, a real systemd, apt and
// DKMS, which builds for the image's kernel and not this machine's. NVIDIA's repository is the lab's stand-in.
func TestNspawnBake(t *testing.T) {
	containerTier(t)
	t.Parallel()
	b := newBakery(t, lab.Spec{})
	b.standIns()
	b.want += "    disk-size: 14G\n" // the base has 12

	// Killed at ten points, a bake leaves the base, no image, no process and no device, and the next one starts clean. The
	// two images are on their way side by side, as each of the late points takes a whole bake to come to.
	var first bake.Manifest
	t.Run("killed", func(t *testing.T) {
		t.Run("early", func(t *testing.T) {
			t.Parallel()
			b := b.in(t)
			for _, at := range []string{bake.PhaseBase, bake.PhaseCopy, bake.PhaseBoot, bake.PhaseInstall, "blocklist", "headers: install", "install the driver"} {
				b.kill("one", at)
			}
			var took time.Duration
			first, took = b.bake("one", "baked")
			t.Logf("baked in %s: %s", took, phases(first))
			b.isSealed("one")
			b.isDescribed(first)
			if size := b.inside("one", "df -B1G --output=size . | tail -n 1"); first.Virtual != 14<<30 || strings.TrimSpace(size) != "14" {
				t.Errorf("the disk has %d bytes, its root %s GiB", first.Virtual, size)
			}
			if again, took := b.bake("one", "there"); again.SHA256 != first.SHA256 || took > 2*time.Minute {
				t.Errorf("the second time took %s", took)
			}
		})
		t.Run("late", func(t *testing.T) {
			t.Parallel()
			b := b.in(t)
			for _, at := range []string{bake.PhaseSeal, bake.PhaseOff, bake.PhaseCompact} {
				b.kill("two", at)
			}
		})
	})
	if t.Failed() {
		return
	}
	// The second image has the first one's lock.
	b.copy("one.lock", "two.lock")
	second, _ := b.bake("two", "baked")
	if !slices.Equal(first.Packages, second.Packages) {
		t.Error("two bakes from one lock have other packages")
	}
	b.isSealed("two")
}

// TestNspawnFiveImages bakes five images of one file in the memory and the processors of two, in every format. One of
// them is for GPUs that no one flavor of the modules drives.
func TestNspawnFiveImages(t *testing.T) {
	containerTier(t)
	t.Parallel()
	b := newBakery(t, lab.Spec{})
	b.standIns()
	text := fmt.Sprintf("memory: 4G\ncpus: 2\ndefaults:\n  base: base.qcow2\n  sha256: %s\n  oven: nspawn\n  memory: 2G\n  cpus: 1\n  target-gpu: GeForce GTX 1050 Ti\n%simages:\n", b.sum, strings.ReplaceAll(b.want, "    ", "  "))
	formats := map[string]string{"both.qcow2": "qcow2", "small.qcow2": "qcow2", "plain.raw": "raw", "a.vmdk": "vmdk", "a.vhdx": "vhdx"}
	more := map[string]string{
		"both.qcow2":  "    target-gpu: [GeForce GTX 1050 Ti, \"10de:2901\"]\n    first-boot-verify: true\n    lock: both.lock\n",
		"small.qcow2": "    compress: true\n",
	}
	for _, name := range slices.Sorted(maps.Keys(formats)) {
		text += fmt.Sprintf("  %[1]s:\n    output: out/%[1]s\n%s", name, more[name])
	}
	if err := os.WriteFile(b.path("five.yaml"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	c, err := b.client(t.Context(), nil, "bake", "-f", b.path("five.yaml"), "--json")
	if err != nil {
		t.Fatal(err)
	}
	// How many guests there are, is looked at whenever something is told.
	most := 0
	for range c.lines {
		guests, err := filepath.Glob(b.path("out/.*.bake/oven/loop"))
		if err != nil {
			t.Fatal(err)
		}
		most = max(most, len(guests))
	}
	r, err := c.end()
	if err != nil || r.code != exitDone {
		t.Fatal(err, r)
	}
	t.Logf("five images in %.0f s, at most %d at once", time.Since(began).Seconds(), most)
	if most != 2 {
		t.Errorf("%d guests at once in the budget of two", most)
	}
	for name, format := range formats {
		m, err := bake.ReadManifest(b.path("out/" + name + ".json"))
		if err != nil {
			t.Error(err)
			continue
		}
		t.Logf("%s: %d bytes: %s", name, m.Bytes, phases(m))
		if sum := b.sha256("out/" + name); sum != m.SHA256 || m.Format != format || (len(m.Flavors) > 0) != (name == "both.qcow2") {
			t.Errorf("%s: SHA-256 %s, manifest %s, format %s, %d flavors", name, sum, m.SHA256, m.Format, len(m.Flavors))
		}
		if info := b.tool("qemu-img", "info", "-f", format, b.path("out/"+name)); !strings.Contains(info, "file format: "+format) {
			t.Errorf("%s: %s", name, info)
		}
	}
	b.picksByPCIID()
}

// picksByPCIID looks into the image both, and has its own script pick in its own root, over which a tree of PCI devices
// is laid.
func (b *bakery) picksByPCIID() {
	b.t.Helper()
	m, err := bake.ReadManifest(b.path("out/both.qcow2.json"))
	if err != nil {
		b.t.Fatal(err)
	}
	licenses := map[string]string{"open": "Dual MIT/GPL", "proprietary": "NVIDIA"}
	if len(m.Flavors) != 2 || m.Flavor != "open" {
		b.t.Fatalf("flavor %s, flavors %+v", m.Flavor, m.Flavors)
	}
	for _, f := range m.Flavors {
		for _, mod := range f.Modules {
			if mod.License != licenses[f.Flavor] || mod.Version != m.Driver || !strings.HasPrefix(mod.Vermagic, m.Kernel+" ") {
				b.t.Errorf("of the %s modules, for driver %s and kernel %s: %+v", f.Flavor, m.Driver, m.Kernel, mod)
			}
		}
	}
	for _, test := range []struct{ devices, flavor string }{{"1c82", "proprietary"}, {"2901", "open"}, {"1eb8", "open"}, {"1c82 1eb8", "proprietary"}} {
		said := b.inside("both", `set -e
mount -t tmpfs tmpfs /tmp && mkdir /tmp/upper /tmp/work /tmp/root
mount -t overlay overlay -o lowerdir=/mnt,upperdir=/tmp/upper,workdir=/tmp/work /tmp/root && cd /tmp/root
test -e var/lib/gpuguest/flavor.due && test -e etc/modprobe.d/gpuguest-flavor.conf && test -L etc/systemd/system/sysinit.target.wants/gpuguest-flavor.service
mkdir -p proc/sys/kernel/random && echo `+m.Kernel+` >proc/sys/kernel/osrelease && echo boot-1 >proc/sys/kernel/random/boot_id
for id in `+test.devices+`; do
	d=sys/bus/pci/devices/0000:$id:00.0
	mkdir -p $d && echo 0x10de >$d/vendor && echo 0x$id >$d/device && echo 0x030000 >$d/class
done
chroot . env GPUGUEST_ROOT=/ sh /usr/local/lib/gpuguest/flavor.sh open >&2
cat var/lib/gpuguest/flavor
chroot . modinfo -k `+m.Kernel+` -F license nvidia
ls etc/modprobe.d/gpuguest-flavor.conf var/lib/gpuguest/flavor.due 2>/dev/null || :`)
		if !strings.HasSuffix(said, "\n"+test.flavor+"\n"+licenses[test.flavor]) {
			b.t.Errorf("%s: %s", test.devices, said)
		}
	}
}

// TestRealDriverBake bakes Debian's own NVIDIA packages into stock systems: DKMS builds the real modules, natively, and
// the images boot in QEMU without a way out, where the real module meets the pretend GPU. The oven qemu has no part in
// it: emulated, DKMS builds these modules for more than an hour. The two ovens are beside each other in TestVMBake.
func TestRealDriverBake(t *testing.T) {
	if os.Getenv("GPUGUEST_CONTAINER_REAL") == "" {
		t.Skip("GPUGUEST_CONTAINER_REAL is not set")
	}
	for _, c := range []struct{ suite, distro, branch string }{{"bookworm", "Debian 12 (bookworm)", "535."}, {"trixie", "Debian 13 (trixie)", "550."}} {
		t.Run(c.suite, func(t *testing.T) {
			b := newBakery(t, lab.Spec{Suite: c.suite})
			b.want = "    source: distro\n    first-boot-verify: true\n"
			m, took := b.bake("one", "baked")
			t.Logf("%s, oven %s: baked in %.0f s, %d bytes from %d, %d packages: %s", m.Distro, m.Oven, took.Seconds(), m.Bytes, b.size("base.qcow2"), len(m.Packages), phases(m))
			b.isSealed("one")
			b.isDescribed(m)
			if m.Distro != c.distro || !strings.HasPrefix(m.Driver, c.branch) || !m.FirstBootVerify || len(m.Modules) < 4 ||
				!slices.ContainsFunc(m.Modules, func(mod bake.Module) bool { return mod.License == "NVIDIA" }) {
				t.Errorf("%s, driver %s, modules %+v", m.Distro, m.Driver, m.Modules)
			}
			if left := b.inside("one", `cat etc/systemd/system/gpuguest-verify.service | grep -c ExecStart; ls var/lib/gpuguest/verify.due`); left != "1\nvar/lib/gpuguest/verify.due" {
				t.Errorf("the first boot's verification: %s", left)
			}
			b.meetsFakeGPU("one", m)
		})
	}
}

// fakeGPUArgs are gpuguest smoke's flags for the lab's pretend GPU, as internal/lab boots it, and for a network that
// leads nowhere but to the guest's sshd.
var fakeGPUArgs = []string{
	"--qemu-arg=-object", "--qemu-arg=memory-backend-ram,id=bar0,size=128M", "--qemu-arg=-device", "--qemu-arg=ivshmem-plain,memdev=bar0",
	"--qemu-arg=-smbios", "--qemu-arg=type=11,value=fakegpu: gpus=" + lab.DefaultGPU + " mode=" + lab.ModeOK,
	"--qemu-arg=-set", "--qemu-arg=netdev.net.restrict=on",
}

// meetsFakeGPU boots an image with the pretend GPU: the real module is loaded by itself and looks at it. There is no
// silicon behind it, so that the verification says so.
func (b *bakery) meetsFakeGPU(name string, m bake.Manifest) {
	b.t.Helper()
	console := b.path(name + ".console")
	run := smokeImage(b.t, b.path("out/"+name+".qcow2"), append([]string{"--boot-timeout", "25m", "--console", console}, fakeGPUArgs...)...)
	b.t.Logf("smoke: %.0f s, exit %d: %+v", run.took.Seconds(), run.exit, run.Error)
	if run.exit != exitVerify || run.Error == nil || run.Error.Step != "module" {
		log, _ := os.ReadFile(console)
		b.t.Fatalf("exit %d: %+v\n%s\n%s", run.exit, run.Report, run.stderr, log[max(0, len(log)-4000):])
	}
	said := run.Error.Message + "\n" + run.Error.Tail
	for _, word := range []string{"NVRM: ", "0001:00:00.0", m.Driver} {
		if !strings.Contains(said, word) {
			b.t.Errorf("the kernel log of the real module %s does not say %q:\n%s", m.Driver, word, said)
		}
	}
}

// in is the same bakery for a part of the test.
func (b *bakery) in(t *testing.T) *bakery {
	c := *b
	c.t = t
	return &c
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

func newBakery(t *testing.T, spec lab.Spec) *bakery {
	t.Helper()
	image, err := lab.Build(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	b := &bakery{world: &world{home: t.TempDir()}, t: t, dir: t.TempDir(), oven: bake.OvenNspawn, gpus: "GeForce GTX 1050 Ti"}
	if b.bin, err = binary(); err != nil {
		t.Fatal(err)
	}
	if err := lab.BakeBase(t.Context(), image, b.path("base.qcow2")); err != nil {
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
	text := fmt.Sprintf("images:\n  %[1]s:\n    base: base.qcow2\n    sha256: %[2]s\n    output: out/%[1]s.qcow2\n    lock: %[1]s.lock\n    oven: %[3]s\n    target-gpu: %[5]s\n%[4]s", name, b.sum, b.oven, b.want, b.gpus)
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
	for time.Now().Before(deadline) && b.atWork(name) != "" {
		time.Sleep(100 * time.Millisecond)
	}
	b.isWhole(name, false)
}

// folder is where an image is worked on.
func (b *bakery) folder(name string) string { return b.path("out/." + name + ".qcow2.bake") }

// atWork are the processes, a line each, that name an image's work folder.
func (b *bakery) atWork(name string) string {
	b.t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		b.t.Fatal(err)
	}
	var found []string
	for _, file := range all {
		// One that has ended in the meantime is none.
		if words, err := os.ReadFile(file); err == nil && strings.Contains(string(words), b.folder(name)) {
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
	_, werr := os.Stat(b.folder(name))
	if (err == nil) != want || (merr == nil) != want || want && werr == nil {
		b.t.Errorf("image: %v, manifest: %v, work folder: %v", err, merr, werr)
	}
	if mounts, err := os.ReadFile("/proc/self/mounts"); err != nil || strings.Contains(string(mounts), b.folder(name)) {
		b.t.Errorf("mounts are left, %v", err)
	}
	if at := b.atWork(name); at != "" {
		b.t.Errorf("processes are left: %s", at)
	}
}

// inside runs a script in the file system of an image, which is mounted read-only in a mount name space of its own.
func (b *bakery) inside(name, script string) string {
	b.t.Helper()
	raw := b.path(name + ".inside")
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
grep -rl gpuguest-one-time root/.ssh home/*/.ssh etc/ssh 2>/dev/null
grep -l 127.0.0.1:3128 -r etc 2>/dev/null
test -s var/lib/gpuguest/journal || echo "no journal"
grep -q 'root=UUID=' boot/grub/grub.cfg || echo "grub.cfg has another root"
grep -q loop boot/grub/grub.cfg && echo "grub.cfg has a loop device"
test -e etc/systemd/system/gpuguest-hostkeys.service || test -e etc/systemd/system/ssh.service.wants/sshd-keygen.service || echo "nothing makes host keys"
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
