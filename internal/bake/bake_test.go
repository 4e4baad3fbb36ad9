package bake_test

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"gpuguest/distros"
	"gpuguest/internal/action"
	"gpuguest/internal/bake"
	"gpuguest/internal/choice"
	"gpuguest/internal/engine"
	"gpuguest/internal/facts"
	"gpuguest/internal/guest"
	"gpuguest/internal/guest/guesttest"
	"gpuguest/internal/oven"
	"gpuguest/internal/plan"
	"gpuguest/internal/sh"
)

// fakeOven boots a pretend guest: a real SSH server and sh, with a folder in place of the guest's /. Its disks are
// text; when it is turned off, the names of the guest's files are appended to the disk.
type fakeOven struct {
	t     *testing.T
	name  string
	cold  error      // why it is not usable
	fails error      // why it boots nothing
	host  bool       // it shares this machine's kernel
	stuck string     // why no root is grown
	ends  chan error // of a guest's bad ends
	mu    sync.Mutex
	grow  []bool // Spec.Grow of every start
	on    int
	most  int
	began atomic.Int32
}

func (o *fakeOven) Name() string                        { return o.name }
func (o *fakeOven) Usable(context.Context) error        { return o.cold }
func (o *fakeOven) HostKernel() bool                    { return o.host }
func (o *fakeOven) Clean(context.Context, string) error { return nil }

// fakeGuest is what fakeOven boots.
type fakeGuest struct {
	oven *fakeOven
	srv  *guesttest.Server
	root string
	disk string
	dir  string
	off  sync.Once
}

func (g *fakeGuest) Address() (string, int) { return g.srv.Host(), g.srv.Port() }
func (g *fakeGuest) User() string           { return "root" }
func (g *fakeGuest) Identity() string       { return filepath.Join(g.dir, "id") }
func (g *fakeGuest) KnownHosts() string     { return filepath.Join(g.dir, "known_hosts") }
func (g *fakeGuest) Console() string        { return "login:\n" }
func (g *fakeGuest) Ungrown() string        { return g.oven.stuck }

func (g *fakeGuest) Watch(ctx context.Context) error {
	select {
	case err := <-g.oven.ends:
		return err
	case <-ctx.Done():
		return nil
	}
}

func (g *fakeGuest) PowerOff(context.Context) error {
	var names []string
	err := filepath.WalkDir(g.root, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			names = append(names, strings.TrimPrefix(path, g.root)+"\n")
		}
		return err
	})
	f, ferr := os.OpenFile(g.disk, os.O_APPEND|os.O_WRONLY, 0)
	if err = errors.Join(err, ferr); err != nil {
		return err
	}
	_, err = f.WriteString(strings.Join(names, ""))
	return errors.Join(err, f.Close(), g.Close())
}

func (g *fakeGuest) Close() error {
	g.off.Do(func() {
		g.oven.mu.Lock()
		g.oven.on--
		g.oven.mu.Unlock()
	})
	return nil
}

func (o *fakeOven) Start(_ context.Context, spec oven.Spec) (oven.Guest, error) {
	o.began.Add(1)
	if o.fails != nil {
		return nil, o.fails
	}
	if want := map[bool]string{true: oven.FormatRaw, false: oven.FormatQcow2}[o.host]; spec.Format != want {
		return nil, fmt.Errorf("a disk of format %s, want %s", spec.Format, want)
	}
	t := o.t
	g := &fakeGuest{oven: o, root: t.TempDir(), disk: spec.Disk, dir: spec.Scratch}
	shell := guesttest.NewShell(t)
	shell.Env = append(shell.Env, "GPUGUEST_ROOT="+g.root)
	public, private := key(t)
	for name, text := range map[string]string{
		"etc/os-release":            "ID=debian\nVERSION_ID=\"12\"\n",
		"etc/passwd":                "root:x:0:0:root:/root:/bin/bash\n",
		"etc/machine-id":            "0123456789abcdef0123456789abcdef\n",
		"etc/ssh/ssh_host_rsa_key":  "secret",
		"proc/sys/kernel/osrelease": "6.1.0-1-amd64\n",
		"proc/sys/kernel/arch":      "x86_64\n",
		"proc/sys/kernel/hostname":  "guest\n",
		"packages":                  "bash 5\n",
		"proc/cmdline":              "quiet\n",
		"var/log/syslog":            "a line\n",
		"root/.bash_history":        "ls\n",
		"root/.ssh/authorized_keys": string(ssh.MarshalAuthorizedKey(public)),
		"list":                      "bash\t5.2\tamd64\n",
	} {
		write(t, filepath.Join(g.root, name), text)
	}
	for name, to := range map[string]string{"proc/sys/kernel/random/boot_id": "boot_id", "var/lib/gpuguest": "state"} {
		p := filepath.Join(g.root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.Symlink(filepath.Join(shell.Dir, to), p)); err != nil {
			return nil, err
		}
	}
	shell.Tool("systemctl", `case $1 in
reboot) n=$(sed 's/boot-//' `+sh.Quote(shell.Dir+"/boot_id")+`); echo "boot-$((n + 1))" >`+sh.Quote(shell.Dir+"/boot_id")+` ;;
is-system-running) echo running ;;
*) exit 1 ;;
esac
`)
	shell.Tool("dpkg-query", `sed 's/^/installed	/' `+sh.Quote(g.root+"/list")+"\n")
	shell.Tool("dpkg", "echo amd64\n")
	// A pretend module is the text that modinfo prints of it.
	shell.Tool("modinfo", "case $1 in /*) cat \"$1\" ;; *) exit 1 ;; esac\n")
	signer := guesttest.HostKey(t)
	g.srv = guesttest.New(t, guesttest.Options{Exec: shell.Exec, Keys: []ssh.PublicKey{public}, HostKeys: []ssh.Signer{signer}})
	write(t, g.Identity(), private)
	write(t, g.KnownHosts(), fmt.Sprintf("[%s]:%d %s", g.srv.Host(), g.srv.Port(), ssh.MarshalAuthorizedKey(signer.PublicKey())))
	if err := os.Chmod(g.Identity(), 0o600); err != nil {
		return nil, err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.on++
	o.grow = append(o.grow, spec.Grow)
	if spec.Log != nil {
		fmt.Fprint(spec.Log, "login:\n")
	}
	o.most = max(o.most, o.on)
	return g, nil
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// fakeDisks are text files.
type fakeDisks struct {
	backing string
	virtual int64 // 0: 1 GiB
	copying error
	mu      sync.Mutex
	resized []int64
}

func (d *fakeDisks) Info(_ context.Context, disk bake.Disk) (bake.DiskInfo, error) {
	st, err := os.Stat(disk.Path)
	if err != nil {
		return bake.DiskInfo{}, err
	}
	return bake.DiskInfo{Virtual: cmp.Or(d.virtual, 1<<30), Allocated: st.Size(), Backing: d.backing}, nil
}

func (d *fakeDisks) Overlay(_ context.Context, base bake.Disk, path string) error {
	if !filepath.IsAbs(base.Path) {
		return fmt.Errorf("the base of an overlay is named %s", base.Path)
	}
	return os.WriteFile(path, []byte("over "+base.Path+"\n"), 0o644)
}

func (d *fakeDisks) Resize(_ context.Context, _ bake.Disk, bytes int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.resized = append(d.resized, bytes)
	return nil
}

func (d *fakeDisks) Copy(_ context.Context, from, to bake.Disk, _ bool) error {
	raw, err := os.ReadFile(from.Path)
	return errors.Join(err, os.WriteFile(to.Path, raw, 0o644), d.copying)
}

type filePackages struct {
	distros.Manager
	file string
}

func (filePackages) Snapshot() string { return "" }
func (f filePackages) List() string   { return "sort " + sh.Quote(f.file) }
func (f filePackages) Manual() string { return ":" }

// prepare makes a recipe that installs one package in the fake guest, by appending it to the guest's list. The
// version is what the lock's pins say, else 535.1.
func prepare(im bake.Image, _ bake.Planned) (bake.Recipe, error) {
	makePlan := func(f facts.Facts) (plan.Plan, error) {
		items := []plan.Item{
			{ID: "driver", Title: "install the driver", Check: `grep -q '^nvidia-driver	' "$GPUGUEST_ROOT/list" || { echo missing; exit 1; }`,
				Actions: []action.Action{action.Run{Title: "install", Script: `v=$(sed -n '/^Package: nvidia-driver$/{n;s/Pin: version //p;}' "$GPUGUEST_ROOT/etc/apt/preferences.d/00gpuguest-lock" 2>/dev/null) || v=
printf 'nvidia-driver\t%s\tamd64\n' "${v:-535.1}" >>"$GPUGUEST_ROOT/list"`}}},
			{ID: "verify-cmdline", Title: "prove the command line", Fresh: true, Check: map[bool]string{true: "false", false: "true"}[im.Oven == bake.OvenNspawn]},
		}
		return plan.Plan{
			Distro: distros.Distro{Name: "test", Packages: filePackages{file: "/dev/null"}}, Choice: choice.Choice{Flavor: "open", Source: "distro", Modules: "dkms", Branch: 535},
			Segments: []plan.Segment{{Items: items[:1]}, {Items: items[1:]}},
		}, nil
	}
	return bake.Recipe{
		Engine: engine.Config{Plan: makePlan, Owner: "test", LockWait: time.Minute, MaxReboots: 3, RebootDeadline: time.Minute, Patience: time.Minute},
		Verify: func(f facts.Facts) (plan.Plan, error) {
			return plan.Plan{Distro: distros.Distro{Name: "test", Packages: filePackages{file: "/dev/null"}}, Segments: []plan.Segment{{Items: []plan.Item{{
				ID: "verify-unit", Title: "leave a unit", Check: `[ -e "$GPUGUEST_ROOT/unit" ]`,
				Actions: []action.Action{action.Run{Title: "leave it", Script: `: >"$GPUGUEST_ROOT/unit"`}},
			}}}}}, nil
		},
	}, nil
}

func key(t *testing.T) (ssh.PublicKey, string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "id")
	if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", file).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	public, _, _, _, err := ssh.ParseAuthorizedKey([]byte(read(t, file+".pub")))
	if err != nil {
		t.Fatal(err)
	}
	return public, read(t, file)
}

// kitchen is a folder with a base, and what it takes to bake.
type kitchen struct {
	t     *testing.T
	dir   string
	oven  *fakeOven
	disks *fakeDisks
	baker *bake.Baker
	told  []string
	mu    sync.Mutex
}

func newKitchen(t *testing.T, dir string) *kitchen {
	t.Helper()
	k := &kitchen{t: t, dir: dir, oven: &fakeOven{t: t, name: bake.OvenQEMU, ends: make(chan error)}, disks: &fakeDisks{}}
	write(t, filepath.Join(dir, "base.qcow2"), "base\n")
	k.baker = &bake.Baker{
		Ovens: []oven.Oven{k.oven}, Disks: k.disks, Made: bake.Maker{Version: "test"}, Prepare: prepare,
		Tell: func(e bake.Event) {
			k.mu.Lock()
			defer k.mu.Unlock()
			if e.Phase != "" {
				k.told = append(k.told, e.Phase)
			}
		},
	}
	return k
}

func (k *kitchen) image(name string) bake.Image {
	s := sha256.Sum256([]byte("base\n"))
	return bake.Image{
		Name: name, Base: filepath.Join(k.dir, "base.qcow2"), SHA256: hex.EncodeToString(s[:]), BaseFormat: "qcow2",
		Output: filepath.Join(k.dir, "out", name+".qcow2"), Format: "qcow2", Oven: bake.OvenAuto, Lock: filepath.Join(k.dir, name+".lock"),
	}
}

func (k *kitchen) bake(im bake.Image) (bake.Manifest, bool, error) {
	return k.baker.Bake(k.t.Context(), im)
}

// files are all that is in the output folder.
func (k *kitchen) files() []string {
	entries, err := os.ReadDir(filepath.Join(k.dir, "out"))
	if err != nil {
		return nil
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestImageIsBakedSealedAndDescribed(t *testing.T) {
	t.Parallel()
	k := newKitchen(t, t.TempDir())
	im := k.image("one")
	im.FirstBootVerify = true
	m, baked, err := k.bake(im)
	if err != nil || !baked {
		t.Fatal(baked, err)
	}
	want := []string{bake.PhaseBase, bake.PhaseCopy, bake.PhaseBoot, bake.PhaseInstall, bake.PhaseVerify, bake.PhaseInspect, bake.PhaseSeal, bake.PhaseOff, bake.PhaseCompact, bake.PhaseComplete}
	if !slices.Equal(k.told, want) {
		t.Errorf("phases %q", k.told)
	}
	disk := read(t, im.Output)
	for _, gone := range []string{"ssh_host", "authorized_keys", "bash_history", "00gpuguest-lock"} {
		if strings.Contains(disk, gone) {
			t.Errorf("the image holds %s:\n%s", gone, disk)
		}
	}
	if !strings.Contains(disk, "/unit\n") {
		t.Errorf("the image has no unit for its first boot:\n%s", disk)
	}
	there, err := bake.ReadManifest(im.Output + ".json")
	if err != nil {
		t.Fatal(err)
	}
	s := sha256.Sum256([]byte(disk))
	if there.SHA256 != hex.EncodeToString(s[:]) || there.SHA256 != m.SHA256 || there.Bytes != int64(len(disk)) {
		t.Errorf("the manifest tells of another file: %+v", there)
	}
	if len(there.Packages) != 2 || there.Packages[1] != (bake.Package{Name: "nvidia-driver", Version: "535.1", Arch: "amd64"}) {
		t.Errorf("packages %v", there.Packages)
	}
	if there.Distro != "test" || there.Kernel != "6.1.0-1-amd64" && there.Kernel != "" || there.Flavor != "open" || there.Oven != "qemu" || !there.FirstBootVerify || len(there.Journal) == 0 || there.Report.Result != "done" {
		t.Errorf("manifest %+v", there)
	}
	if got := k.files(); !slices.Equal(got, []string{"one.qcow2", "one.qcow2.json"}) {
		t.Errorf("files %q", got)
	}
	if read(t, im.Base) != "base\n" {
		t.Error("the base was written to")
	}

	// Again: nothing is done.
	if _, baked, err := k.bake(im); err != nil || baked || k.oven.began.Load() != 1 {
		t.Errorf("the second time: baked %v, %v, %d boots", baked, err, k.oven.began.Load())
	}
	// Something else is asked for: it is baked.
	im.Compress = true
	if _, baked, err := k.bake(im); err != nil || !baked {
		t.Errorf("the third time: baked %v, %v", baked, err)
	}
	// The image was changed by somebody.
	write(t, im.Output, "damaged")
	if _, baked, err := k.bake(im); err != nil || !baked {
		t.Errorf("the fourth time: baked %v, %v", baked, err)
	}
}

// TestBothFlavorsAreInTheManifest: the other flavor's run comes first, its modules are kept and its package gives way.
func TestBothFlavorsAreInTheManifest(t *testing.T) {
	t.Parallel()
	k := newKitchen(t, t.TempDir())
	var ran []string
	install := func(flavor, version string) engine.Config {
		r, err := prepare(bake.Image{}, bake.Planned{})
		if err != nil {
			t.Fatal(err)
		}
		r.Engine.Plan = func(f facts.Facts) (plan.Plan, error) {
			ran = append(ran, flavor)
			set := `"$GPUGUEST_ROOT/usr/local/lib/gpuguest/modules/` + f.Kernel.Next + `/` + flavor + `/updates"`
			return plan.Plan{Distro: distros.Distro{Name: "test", Packages: filePackages{file: "/dev/null"}}, Choice: choice.Choice{Flavor: flavor, Branch: 580}, Segments: []plan.Segment{{Items: []plan.Item{{
				ID: "driver", Title: "install the driver", Check: `grep -q '^nvidia-` + flavor + `	' "$GPUGUEST_ROOT/list" || { echo missing; exit 1; }`,
				Actions: []action.Action{action.Run{Title: "install", Script: `l=$GPUGUEST_ROOT/list
grep -v '^nvidia-' "$l" >"$l.tmp" || :
printf 'nvidia-` + flavor + `\t` + version + `\tamd64\n' >>"$l.tmp"
mv "$l.tmp" "$l"
mkdir -p ` + set + `
printf 'version: ` + version + `\nvermagic: here\nlicense: ` + flavor + `\n' >` + set + `/nvidia.ko`}},
			}}}}}, nil
		}
		return r.Engine
	}
	version := "580.1"
	k.baker.Prepare = func(bake.Image, bake.Planned) (bake.Recipe, error) {
		return bake.Recipe{First: []engine.Config{install("proprietary", "580.1")}, Engine: install("open", version)}, nil
	}
	m, _, err := k.bake(k.image("one"))
	if err != nil {
		t.Fatal(err)
	}
	if len(m.Flavors) != 2 || m.Flavors[0].Flavor != "open" || m.Flavors[1].Flavor != "proprietary" || len(m.Flavors[1].Modules) != 1 || m.Flavors[1].Modules[0].License != "proprietary" ||
		!strings.HasSuffix(m.Flavors[1].Modules[0].File, "/proprietary/updates/nvidia.ko") {
		t.Errorf("flavors %+v", m.Flavors)
	}
	if slices.IndexFunc(ran, func(s string) bool { return s == "open" }) < slices.Index(ran, "proprietary") || m.Flavor != "open" {
		t.Errorf("planned %q, flavor %s", ran, m.Flavor)
	}
	var lock bake.Lock
	if err := json.Unmarshal([]byte(read(t, k.image("one").Lock)), &lock); err != nil {
		t.Fatal(err)
	}
	if want := []bake.Package{{Name: "nvidia-proprietary", Version: "580.1", Arch: "amd64"}}; !slices.Equal(lock.Gone, want) || !slices.Equal(lock.Packages, m.Packages) {
		t.Errorf("the lock has %v, and of packages that gave way %v", lock.Packages, lock.Gone)
	}
	// The libraries are of one version, and so must both be.
	version = "580.2"
	if _, _, err := k.bake(k.image("two")); err == nil || !strings.Contains(err.Error(), `the open modules are of version "580.2", and the proprietary ones of version "580.1"`) {
		t.Errorf("two versions: %v", err)
	}
	k.baker.Prepare = func(bake.Image, bake.Planned) (bake.Recipe, error) {
		return bake.Recipe{First: []engine.Config{install("open", "580.1")}, Engine: install("open", "580.1")}, nil
	}
	if _, _, err := k.bake(k.image("three")); err == nil || !strings.Contains(err.Error(), "of 2 flavors of the modules, the image keeps 1") {
		t.Errorf("one flavor: %v", err)
	}
	if got := k.files(); !slices.Equal(got, []string{"one.qcow2", "one.qcow2.json"}) {
		t.Errorf("files %q", got)
	}
}

func TestLockHoldsThePackages(t *testing.T) {
	t.Parallel()
	k := newKitchen(t, t.TempDir())
	one := k.image("one")
	if _, _, err := k.bake(one); err != nil {
		t.Fatal(err)
	}
	var lock bake.Lock
	if err := json.Unmarshal([]byte(read(t, one.Lock)), &lock); err != nil {
		t.Fatal(err)
	}
	var doc plan.Document
	if err := json.Unmarshal(lock.Plan, &doc); err != nil || doc.Branch != 535 || doc.Flavor != "open" || len(doc.Steps) != 2 {
		t.Errorf("the lock's plan: %+v, %v", doc, err)
	}
	for i, p := range lock.Packages {
		if p.Name == "nvidia-driver" {
			lock.Packages[i].Version = "535.0"
		}
	}
	two := k.image("two")
	raw, err := json.Marshal(lock)
	if err != nil {
		t.Fatal(err)
	}
	write(t, two.Lock, string(raw))
	var planned bake.Planned
	k.baker.Prepare = func(im bake.Image, p bake.Planned) (bake.Recipe, error) {
		planned = p
		return prepare(im, p)
	}
	m, _, err := k.bake(two)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(m.Packages, lock.Packages) {
		t.Errorf("packages %v, locked %v", m.Packages, lock.Packages)
	}
	if planned != (bake.Planned{Branch: 535, Flavor: "open", Source: "distro", Modules: "dkms"}) {
		t.Errorf("planned %+v", planned)
	}
	if got := read(t, two.Lock); got != string(raw) {
		t.Errorf("the lock was written: %s", got)
	}

	// What cannot be had is said, and there is no image.
	three := k.image("three")
	lock.Packages = append(lock.Packages, bake.Package{Name: "zz", Version: "1", Arch: "all"})
	if raw, err = json.Marshal(lock); err != nil {
		t.Fatal(err)
	}
	write(t, three.Lock, string(raw))
	_, _, err = k.bake(three)
	if !errors.Is(err, bake.ErrLock) || !strings.Contains(err.Error(), "zz 1 is locked, and not there") {
		t.Errorf("error %v", err)
	}
	if slices.Contains(k.files(), "three.qcow2") {
		t.Error("there is an image all the same")
	}

	other := k.image("four")
	lock.BaseSHA256 = sum
	if raw, err = json.Marshal(lock); err != nil {
		t.Fatal(err)
	}
	write(t, other.Lock, string(raw))
	if _, _, err := k.bake(other); err == nil || !strings.Contains(err.Error(), "was made for the base with SHA-256 "+sum) {
		t.Errorf("error %v", err)
	}
	for text, want := range map[string]string{
		"{}":                        "it is none of gpuguest's; a bake writes one where the file is not there yet",
		"[]":                        "it is none of gpuguest's",
		string(lock.Plan):           "it is a plan, as gpuguest plan --json prints it, and a lock holds besides every package's version and the base that they are of; a bake writes one",
		read(t, two.Output+".json"): "it is the manifest of an image, not the lock that was written beside it",
	} {
		write(t, other.Lock, text)
		if _, _, err := k.bake(other); err == nil || !strings.Contains(err.Error(), other.Lock+": "+want) {
			t.Errorf("error %v, want %s", err, want)
		}
	}
}

func TestWhatCannotBeBakedIsSaidAndLeavesNothing(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		change func(*kitchen, *bake.Image)
		want   string
	}{
		"checksum": {func(_ *kitchen, im *bake.Image) { im.SHA256 = sum }, "its SHA-256 is "},
		"no base":  {func(_ *kitchen, im *bake.Image) { im.Base += ".gone" }, "no such file"},
		"base over another": {func(k *kitchen, _ *bake.Image) { k.disks.backing = "/other.qcow2" },
			"reads from another file too, /other.qcow2"},
		"does not boot": {func(k *kitchen, _ *bake.Image) {
			k.oven.fails = &oven.BootError{Disk: "disk", What: "does not boot: kernel panic"}
		},
			"boot: oven qemu: disk: does not boot: kernel panic"},
		"no oven":   {func(k *kitchen, _ *bake.Image) { k.oven.cold = errors.New("it is cold") }, "oven qemu: it is cold"},
		"not there": {func(_ *kitchen, im *bake.Image) { im.Oven = bake.OvenNspawn }, "there is no oven nspawn"},
		"no space": {func(k *kitchen, _ *bake.Image) {
			k.baker.Free = func(string) (bake.Space, error) { return bake.Space{Free: 1 << 30}, nil }
		},
			"has 1.0 GiB free, and baking may take 6.0 GiB there"},
		"no space later": {func(k *kitchen, _ *bake.Image) { k.disks.copying = syscall.ENOSPC }, "compact: no space left on device"},
		"refused": {func(k *kitchen, _ *bake.Image) {
			k.baker.Prepare = func(bake.Image, bake.Planned) (bake.Recipe, error) { return bake.Recipe{}, errors.New("no such GPU") }
		}, "one: no such GPU"},
		"somebody else's image": {func(k *kitchen, im *bake.Image) { write(k.t, im.Output, "mine") }, "it is not written over without --again"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k := newKitchen(t, t.TempDir())
			im := k.image("one")
			test.change(k, &im)
			_, _, err := k.bake(im)
			var e *bake.Error
			if !errors.As(err, &e) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want %s", err, test.want)
			}
			if got := k.files(); len(got) > 0 && name != "somebody else's image" {
				t.Errorf("left: %q", got)
			}
			if read(t, filepath.Join(k.dir, "base.qcow2")) != "base\n" {
				t.Error("the base was written to")
			}
			if k.oven.on != 0 {
				t.Errorf("%d guests are left running", k.oven.on)
			}
		})
	}
}

func TestAutoTakesTheFirstOvenThatCan(t *testing.T) {
	t.Parallel()
	k := newKitchen(t, t.TempDir())
	host := &fakeOven{t: t, name: bake.OvenNspawn, host: true}
	k.baker.Ovens = []oven.Oven{host, k.oven}
	m, _, err := k.bake(k.image("one"))
	if err != nil || m.Oven != "nspawn" {
		t.Fatalf("oven %s, %v", m.Oven, err)
	}
	host.fails = errors.New("no root file system that it knows")
	if m, _, err = k.bake(k.image("two")); err != nil || m.Oven != "qemu" {
		t.Fatalf("oven %s, %v", m.Oven, err)
	}
	host.cold = errors.New("not here")
	if m, _, err = k.bake(k.image("three")); err != nil || m.Oven != "qemu" {
		t.Fatalf("oven %s, %v", m.Oven, err)
	}
	if host.began.Load() != 2 {
		t.Errorf("the first oven was tried %d times", host.began.Load())
	}
	// The command line of a kernel that is not the image's is not held against it.
	host.cold, host.fails = nil, nil
	four := k.image("four")
	four.Oven = bake.OvenNspawn
	if _, _, err := k.bake(four); err != nil {
		t.Error(err)
	}
}

func TestDiskIsMadeLargerAndNeverSmaller(t *testing.T) {
	t.Parallel()
	const gib = 1 << 30
	for name, test := range map[string]struct {
		virtual int64
		size    int // MiB
		resized []int64
	}{
		"a stock image": {3 * gib, 0, []int64{10 * gib}},
		"a large one":   {20 * gib, 0, nil},
		"as asked for":  {3 * gib, 5 << 10, []int64{5 * gib}},
		"as it is":      {3 * gib, 3 << 10, nil},
	} {
		k := newKitchen(t, t.TempDir())
		k.disks.virtual = test.virtual
		im := k.image("one")
		im.DiskSize = test.size
		if _, _, err := k.bake(im); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if !slices.Equal(k.disks.resized, test.resized) || !slices.Equal(k.oven.grow, []bool{test.resized != nil}) {
			t.Errorf("%s: resized to %v, grown %v", name, k.disks.resized, k.oven.grow)
		}
		if test.size == 0 {
			continue
		}
		im.DiskSize = 30 << 10 // another size is another image
		if _, baked, err := k.bake(im); err != nil || !baked {
			t.Errorf("%s, larger: baked %v, %v", name, baked, err)
		}
	}
	k := newKitchen(t, t.TempDir())
	im := k.image("one")
	im.DiskSize = 1000
	if _, _, err := k.bake(im); err == nil || !strings.Contains(err.Error(), "disk-size: 1000 MiB is less than the 1024 MiB that ") || k.oven.began.Load() != 0 {
		t.Errorf("a smaller one: %v", err)
	}
}

// TestRootThatIsNotGrownIsSaid: it is an error where a size was asked for, in the last oven that there is.
func TestRootThatIsNotGrownIsSaid(t *testing.T) {
	t.Parallel()
	k := newKitchen(t, t.TempDir())
	k.oven.stuck = "partition 1 is not the last on its disk"
	var notices []string
	k.baker.Tell = func(e bake.Event) {
		if e.Text != "" {
			notices = append(notices, e.Text)
		}
	}
	if _, _, err := k.bake(k.image("one")); err != nil {
		t.Error(err)
	}
	if want := []string{"its disk is 9.0 GiB larger, and its root file system is as it was: partition 1 is not the last on its disk"}; !slices.Equal(notices, want) {
		t.Errorf("told %q", notices)
	}
	two := k.image("two")
	two.DiskSize = 5 << 10
	if _, _, err := k.bake(two); err == nil || !strings.Contains(err.Error(), "boot: oven qemu: disk-size: the root file system was not grown: partition 1 is not the last on its disk") || k.oven.on != 0 {
		t.Errorf("%v, %d guests are left", err, k.oven.on)
	}
	host := &fakeOven{t: t, name: bake.OvenNspawn, host: true, stuck: "there is no xfs_growfs"}
	k.oven.stuck = ""
	k.baker.Ovens = []oven.Oven{host, k.oven}
	if m, _, err := k.bake(two); err != nil || m.Oven != bake.OvenQEMU {
		t.Errorf("oven %s, %v", m.Oven, err)
	}
}

// TestGuestWithoutRoomNamesTheKeyThatMakesIt: the refusal is the plan's, which knows nothing of images.
func TestGuestWithoutRoomNamesTheKeyThatMakesIt(t *testing.T) {
	t.Parallel()
	k := newKitchen(t, t.TempDir())
	k.baker.Prepare = func(im bake.Image, p bake.Planned) (bake.Recipe, error) {
		r, err := prepare(im, p)
		r.Engine.Plan = func(facts.Facts) (plan.Plan, error) {
			return plan.Plan{}, &plan.Refusal{Step: "room", Reason: "/usr has 400 MB free, the installation needs 2048 MB"}
		}
		return r, err
	}
	_, _, err := k.bake(k.image("one"))
	var refusal *plan.Refusal
	if !errors.As(err, &refusal) || !strings.Contains(refusal.Hint, "disk-size") {
		t.Errorf("%v, %+v", err, refusal)
	}
}

func TestFiveImagesShareABudgetAndOneFailureIsItsOwn(t *testing.T) {
	t.Parallel()
	k := newKitchen(t, t.TempDir())
	c := bake.Config{Memory: 2 * bake.DefaultMemory, CPUs: 16}
	for i := range 5 {
		im := k.image(fmt.Sprintf("image%d", i))
		if i == 3 {
			im.SHA256 = sum
		}
		c.Images = append(c.Images, im)
	}
	ended := 0
	results := k.baker.All(t.Context(), c, func(bake.Result) { ended++ })
	for i, r := range results {
		if (r.Err != nil) != (i == 3) || r.Image.Name != c.Images[i].Name {
			t.Errorf("image %d: %s, %v", i, r.Image.Name, r.Err)
		}
	}
	if k.oven.most > 2 || ended != 5 {
		t.Errorf("%d guests at once in the memory of two; %d ended", k.oven.most, ended)
	}
	if got := k.files(); len(got) != 8 {
		t.Errorf("files %q", got)
	}
}

// TestBadEndOfAGuestEndsItsBake: what is done in the guest at that moment would go on for minutes. The console is kept.
func TestBadEndOfAGuestEndsItsBake(t *testing.T) {
	t.Parallel()
	k := newKitchen(t, t.TempDir())
	k.baker.Prepare = func(im bake.Image, p bake.Planned) (bake.Recipe, error) {
		r, err := prepare(im, p)
		makePlan := r.Engine.Plan
		r.Engine.Plan = func(f facts.Facts) (plan.Plan, error) {
			p, err := makePlan(f)
			p.Segments[0].Items[0].Actions = []action.Action{action.Run{Title: "install", Script: "sleep 300"}}
			return p, err
		}
		return r, err
	}
	panicked := &oven.BootError{Disk: "disk", What: "came to a bad end: kernel panic: VFS", Tail: "Kernel panic - not syncing: VFS"}
	k.baker.Tell = func(e bake.Event) {
		if e.Engine != nil && e.Engine.Kind == engine.StepBegan {
			k.oven.ends <- panicked
		}
	}
	console := filepath.Join(k.dir, "console")
	k.baker.Console = func(bake.Image) (io.WriteCloser, error) { return os.Create(console) }
	began := time.Now()
	_, _, err := k.bake(k.image("one"))
	var e *bake.Error
	var boot *oven.BootError
	if !errors.As(err, &e) || e.Phase != bake.PhaseInstall || !errors.As(err, &boot) || boot != panicked {
		t.Errorf("%v", err)
	}
	if took := time.Since(began); took > 200*time.Second {
		t.Errorf("after %s", took)
	}
	if got := k.files(); len(got) > 0 || k.oven.on != 0 || read(t, console) != "login:\n" {
		t.Errorf("left: %q, %d guests; console %q", got, k.oven.on, read(t, console))
	}
}

// TestImagesShareTheRoomOfTheirFileSystem: three, side by side in memory and processors, and room for one at a time. One
// that is on a file system of its own waits for nobody, and one that no end of the others would help is refused at once.
func TestImagesShareTheRoomOfTheirFileSystem(t *testing.T) {
	t.Parallel()
	k := newKitchen(t, t.TempDir())
	k.baker.Free = func(dir string) (bake.Space, error) {
		if strings.Contains(dir, "own") {
			return bake.Space{FS: 2, Free: 7 << 30}, nil
		}
		return bake.Space{FS: 1, Free: 10 << 30}, nil
	}
	var mu sync.Mutex
	at, most, waited := 0, 0, 0
	inside, own := make(chan bool), make(chan bool)
	var first, second sync.Once
	k.baker.Tell = func(e bake.Event) {
		mu.Lock()
		switch {
		case e.Phase == bake.PhaseInstall && e.Image != "own":
			at++
			most = max(most, at)
		case e.Phase == bake.PhaseComplete && e.Image != "own":
			at--
		case strings.HasPrefix(e.Text, "waiting for room: it may take 6.0 GiB"):
			waited++
		}
		if waited == 2 {
			first.Do(func() { close(inside) })
		}
		mu.Unlock()
		switch {
		case e.Phase == bake.PhaseInstall && e.Image == "own":
			second.Do(func() { close(own) })
		case e.Phase == bake.PhaseInstall:
			// The first one goes on when the other two wait and their neighbour is at work.
			<-inside
			<-own
		}
	}
	c := bake.Config{Memory: 16 * bake.DefaultMemory, CPUs: 16, Images: []bake.Image{k.image("a"), k.image("b"), k.image("c"), k.image("own")}}
	for _, r := range k.baker.All(t.Context(), c, nil) {
		if r.Err != nil {
			t.Error(r.Err)
		}
	}
	if most != 1 || waited != 2 {
		t.Errorf("%d at once, %d waited", most, waited)
	}

	// The room is given back, and is no more than it was.
	k.baker.Free = func(string) (bake.Space, error) { return bake.Space{FS: 1, Free: 6 << 30}, nil }
	k.baker.Tell = nil
	if _, _, err := k.bake(k.image("d")); !errors.Is(err, guest.ErrNoSpace) {
		t.Error(err)
	}
	k.baker.Free = func(string) (bake.Space, error) { return bake.Space{FS: 1, Free: 7 << 30}, nil }
	if _, _, err := k.bake(k.image("d")); err != nil {
		t.Error(err)
	}
}

func TestFreeSpaceIsOfAFileSystem(t *testing.T) {
	t.Parallel()
	a, err := bake.FreeSpace(t.TempDir())
	b, berr := bake.FreeSpace("/proc")
	if err != nil || berr != nil || a.Free <= 0 || a.FS == b.FS {
		t.Errorf("%+v, %v; /proc %+v, %v", a, err, b, berr)
	}
}

func TestTwoBakersOfOneImageDoNotMeet(t *testing.T) {
	t.Parallel()
	k := newKitchen(t, t.TempDir())
	im := k.image("one")
	inside, leave := make(chan bool), make(chan bool)
	var once sync.Once
	k.baker.Tell = func(e bake.Event) {
		if e.Phase == bake.PhaseInstall {
			once.Do(func() { inside <- true; <-leave })
		}
	}
	var first error
	var ended sync.WaitGroup
	ended.Go(func() { _, _, first = k.bake(im) })
	<-inside
	other := newKitchen(t, k.dir)
	if _, _, err := other.bake(im); !errors.Is(err, bake.ErrHeld) {
		t.Errorf("the second baker: %v", err)
	}
	close(leave)
	ended.Wait()
	if first != nil {
		t.Errorf("the first baker: %v", first)
	}
}

// bakes are the phases at whose beginning a baker is killed, in a process of its own.
const killEnv = "GPUGUEST_TEST_KILL_AT"

// TestKilledBaker is no test by itself: TestKilledBakeLeavesNoHalfImage runs it in a process that kills itself.
func TestKilledBaker(t *testing.T) {
	at, dir, ok := strings.Cut(os.Getenv(killEnv), "@")
	if !ok {
		t.Skip(killEnv + " is not set")
	}
	k := newKitchen(t, dir)
	k.baker.Tell = func(e bake.Event) {
		if e.Phase == at {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		}
	}
	_, _, err := k.bake(k.image("one"))
	t.Fatalf("not killed: %v", err)
}

func TestKilledBakeLeavesNoHalfImage(t *testing.T) {
	t.Parallel()
	for _, at := range []string{bake.PhaseBase, bake.PhaseCopy, bake.PhaseBoot, bake.PhaseInstall, bake.PhaseInspect, bake.PhaseSeal, bake.PhaseOff, bake.PhaseCompact, bake.PhaseComplete} {
		t.Run(at, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			cmd := exec.Command(os.Args[0], "-test.run=^TestKilledBaker$")
			cmd.Env = append(os.Environ(), killEnv+"="+at+"@"+dir)
			var out bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, io.Discard
			var exit *exec.ExitError
			if err := cmd.Run(); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
				t.Fatalf("%v\n%s", err, out.String())
			}
			k := newKitchen(t, dir)
			if got := k.files(); !slices.Equal(got, []string{".one.qcow2.bake"}) {
				t.Errorf("left: %q", got)
			}
			if read(t, filepath.Join(dir, "base.qcow2")) != "base\n" {
				t.Error("the base was written to")
			}
			if _, baked, err := k.bake(k.image("one")); err != nil || !baked {
				t.Errorf("the next run: %v, %v", baked, err)
			}
			if got := k.files(); !slices.Equal(got, []string{"one.qcow2", "one.qcow2.json"}) {
				t.Errorf("after the next run: %q", got)
			}
		})
	}
}

// TestWholeImageIsPutInItsPlaceByTheNextRun: killed when the image is whole and only its name is missing, or only
// the manifest's.
func TestWholeImageIsPutInItsPlaceByTheNextRun(t *testing.T) {
	t.Parallel()
	for _, renamed := range []bool{false, true} {
		k := newKitchen(t, t.TempDir())
		im := k.image("one")
		if _, _, err := k.bake(im); err != nil {
			t.Fatal(err)
		}
		image, manifest := read(t, im.Output), read(t, im.Output+".json")
		work := filepath.Join(filepath.Dir(im.Output), ".one.qcow2.bake")
		write(t, filepath.Join(work, "manifest.json"), manifest)
		if !renamed {
			write(t, filepath.Join(work, "image"), image)
			write(t, im.Output, "an older image")
		} else if err := os.Remove(im.Output + ".json"); err != nil {
			t.Fatal(err)
		}
		if _, baked, err := k.bake(im); err != nil || !baked || k.oven.began.Load() != 1 {
			t.Errorf("renamed %v: baked %v, %v, %d boots", renamed, baked, err, k.oven.began.Load())
		}
		if read(t, im.Output) != image || read(t, im.Output+".json") != manifest {
			t.Errorf("renamed %v: another image, or another manifest", renamed)
		}
		if got := k.files(); !slices.Equal(got, []string{"one.qcow2", "one.qcow2.json"}) {
			t.Errorf("renamed %v: files %q", renamed, got)
		}
	}
}
