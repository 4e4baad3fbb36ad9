package plan

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"gpuguest/internal/lab"
)

// TestContainerRPMOverSSH runs the real program against guests of RHEL's and of SUSE's family: systems with init and
// sshd in containers, which it reaches over SSH and reboots. Real are rpm, dnf 4.14 and zypper 1.14, dracut and lsinitrd,
// grub-mkconfig, depmod and modinfo, as Debian packages them, and systemd; the kernel is Debian's by another
// release's name. What stands in are the packages, as in TestContainerRPM, and what testdata/lab/rpm-guest.sh tells:
// os-release, grubby, the boot loader. No module is loaded.
func TestContainerRPMOverSSH(t *testing.T) {
	needRPM(t)
	s := newSSHWorld(t)
	t.Run("dnf", func(t *testing.T) { testDNFOverSSH(t, s) })
	t.Run("zypper", func(t *testing.T) { testZypperOverSSH(t, s) })
}

// sshWorld is what guests that are reached over SSH share: the program, and the repositories as they see them.
type sshWorld struct {
	*rpmWorld
	bin  string
	home string
	port int // of the repositories' server
	root lab.ContainerRoot
}

func newSSHWorld(t *testing.T) *sshWorld {
	t.Helper()
	s := &sshWorld{bin: filepath.Join(t.TempDir(), "gpuguest"), home: t.TempDir()}
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-o", s.bin, "gpuguest/cmd/gpuguest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	s.rpmWorld = newRPMWorld(t, func(w *rpmWorld, b *builder) []repository {
		u, err := url.Parse(w.url)
		if err != nil {
			t.Fatal(err)
		}
		if s.port, err = strconv.Atoi(u.Port()); err != nil {
			t.Fatal(err)
		}
		w.url = "http://" + lab.ContainerGateway + ":" + u.Port()
		return w.sshRepositories(t, b)
	})
	gpg(t, "--faked-system-time", "20200101T000000", "--quick-gen-key", "expired@example.com", "rsa2048", "sign", "30d")
	put(t, filepath.Join(s.dir, "expired.pub"), gpg(t, "--armor", "--export", "expired@example.com"))
	gpg(t, "--quick-gen-key", "stranger@example.com", "rsa2048", "sign", "never")
	root, err := lab.BuildContainerRoot(t.Context(), "bookworm")
	if err == nil {
		root, err = lab.BuildContainerLayer(t.Context(), root, "rpm", `set -e
export DEBIAN_FRONTEND=noninteractive
apt-get -q update
apt-get -q -y --no-install-recommends install rpm dnf zypper dracut cpio gcc libc6-dev make
apt-get clean`)
	}
	if err != nil {
		t.Fatal(err)
	}
	s.root = root
	return s
}

func gpg(t *testing.T, args ...string) string {
	t.Helper()
	return tool(t, "gpg", append([]string{"--batch", "--yes", "--quiet", "--pinentry-mode", "loopback", "--passphrase", ""}, args...)...)
}

// sshRepositories are those of repositories that the two guests read. Here packages take away what they or the stand-in
// for dkms made, the daemon's has a service, SUSE has another branch, and there is the make that guests had before.
func (w *rpmWorld) sshRepositories(t *testing.T, b *builder) []repository {
	var all []repository
	for _, r := range w.repositories(t, b) {
		switch r.path {
		case "cuda/rhel10/x86_64":
			continue
		case "cuda/sles15/x86_64":
			r.packages = append(r.packages, w.suseBranch(b)...)
		case "baseos":
			r.packages = append(r.packages, standIn{name: "make", version: "4.3", release: "7.el9", arch: "noarch"})
		case "suse":
			r.packages = append(r.packages, standIn{name: "make", version: "4.1", release: "1", arch: "noarch"})
		}
		for i := range r.packages {
			p := &r.packages[i]
			switch {
			case p.name == "nvidia-persistenced":
				p.files = map[string]string{"/usr/lib/systemd/system/nvidia-persistenced.service": "[Unit]\nDescription=NVIDIA Persistence Daemon\n\n[Service]\nExecStart=/usr/bin/sleep infinity\n\n[Install]\nWantedBy=multi-user.target\n"}
				p.preun = "systemctl --no-reload disable nvidia-persistenced.service"
			case strings.HasPrefix(p.name, "kmod-nvidia-"):
				extra := "/usr/lib/modules/" + rockyKernel + ".x86_64/extra"
				p.postun = "rm -f " + extra + "/nvidia.ko\nrmdir --ignore-fail-on-non-empty " + extra + "\ndepmod " + rockyKernel + ".x86_64"
			case strings.HasSuffix(p.name, "-kmp-default"):
				p.postun = "depmod " + suseKernel + "-default"
			}
		}
		all = append(all, r)
	}
	return all
}

// suseBranch are NVIDIA's packages of branch 595 that sles15 lacks in repositories.
func (w *rpmWorld) suseBranch(b *builder) []standIn {
	const version = "595.71.05"
	p := func(name string, requires ...string) standIn {
		return standIn{name: name, version: version, release: "1", arch: "x86_64", requires: requires}
	}
	kmp := p("nvidia-open-driver-G06-kmp-default")
	kmp.post = "depmod " + suseKernel + "-default"
	kmp.files = map[string]string{"/usr/lib/modules/" + suseKernel + "-default/updates/nvidia.ko": "@" + b.module(version, suseKernel+"-default")}
	return []standIn{kmp, p("nvidia-open-595", kmp.name+" = "+version, "nvidia-compute-utils-G06 = "+version), p("nvidia-persistenced")}
}

// sshGuest is one guest and the machine that the program is run on.
type sshGuest struct {
	*lab.Container
	s      *sshWorld
	known  string
	device string
}

// start boots a guest of a family, which setup has been run in.
func (s *sshWorld) start(t *testing.T, family, kernel, setup string) *sshGuest {
	t.Helper()
	script, err := os.ReadFile("../../testdata/lab/rpm-guest.sh")
	if err != nil {
		t.Fatal(err)
	}
	root, err := lab.BuildContainerLayer(t.Context(), s.root, "rpm-"+family, "cat >/tmp/rpm-guest.sh <<'RPMGUEST'\n"+string(script)+"RPMGUEST\nsh /tmp/rpm-guest.sh "+family+" "+kernel)
	if err != nil {
		t.Fatal(err)
	}
	c, err := lab.StartContainer(t.Context(), root, lab.ContainerSpec{Forward: s.port})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	g := &sshGuest{Container: c, s: s, device: "10de:27b8", known: filepath.Join(t.TempDir(), "known_hosts")}
	if err := os.WriteFile(g.known, []byte(c.KnownHosts()), 0o600); err != nil {
		t.Fatal(err)
	}
	g.in(t, "set -e\n"+setup)
	return g
}

// in runs a script as root in the guest, past sshd.
func (g *sshGuest) in(t *testing.T, script string) string {
	t.Helper()
	out, err := g.Exec(t.Context(), script)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return strings.TrimRight(out, "\n")
}

// sshResult is how one invocation of the program ended.
type sshResult struct {
	code        int
	out, stderr string
}

// report is of what the program prints with --json what these tests look at.
type sshReport struct {
	Reboots     int
	Execs       int
	Connections int
	Steps       []struct{ ID, State, Detail string }
}

func (r sshResult) report(t *testing.T) sshReport {
	t.Helper()
	var report sshReport
	if err := json.Unmarshal([]byte(r.out), &report); err != nil {
		t.Fatalf("%v in\n%s", err, r.out)
	}
	return report
}

// gpuguest runs the program on the guest, and fails the test unless it ends with code.
func (g *sshGuest) gpuguest(t *testing.T, code int, command string, flags ...string) sshResult {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	args := slices.Concat([]string{command}, []string{"--host", "root@" + g.Host, "-i", g.KeyFile, "--known-hosts", g.known, "-F", "none"}, flags)
	cmd := exec.CommandContext(ctx, g.s.bin, args...)
	cmd.Env = []string{"HOME=" + g.s.home, "PATH=" + os.Getenv("PATH")}
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	began := time.Now()
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	r := sshResult{code: cmd.ProcessState.ExitCode(), out: out.String(), stderr: errs.String()}
	if r.code != code {
		t.Fatalf("gpuguest %s: wanted exit %d, got %d\n%s%s", strings.Join(args, " "), code, r.code, r.out, r.stderr)
	}
	t.Logf("gpuguest %s %s: exit %d after %.1f s", command, strings.Join(flags, " "), r.code, time.Since(began).Seconds())
	return r
}

// install installs for a GPU that is named, as there is none in a container.
func (g *sshGuest) install(t *testing.T, code int, flags ...string) sshResult {
	t.Helper()
	return g.gpuguest(t, code, "install", slices.Concat([]string{"--no-gpu", "--device", g.device, "--source", "nvidia",
		"--mirror", g.s.url + "/cuda", "--keyring-sha256", g.s.keySum}, flags)...)
}

// again is the same installation a second time, which has nothing to do and writes nothing.
func (g *sshGuest) again(t *testing.T, flags ...string) {
	t.Helper()
	before := g.snapshot(t)
	r := g.install(t, 0, append(flags, "--json")...).report(t)
	for _, step := range r.Steps {
		if step.State != "met" {
			t.Errorf("the second time, %s is %s: %s", step.ID, step.State, step.Detail)
		}
	}
	if r.Execs > 3 || r.Connections != 1 || r.Reboots != 0 {
		t.Errorf("the second time took %d execs over %d connections and %d reboots", r.Execs, r.Connections, r.Reboots)
	}
	if d := changed(before, g.snapshot(t)); d != "" {
		t.Errorf("the second time changed\n%s", d)
	}
}

// snapshot lists what an installation may touch, asked of the guest by other means than gpuguest's own. The caches
// that depmod, ldconfig and dracut write are listed by name or by what is in them, for they hold times.
func (g *sshGuest) snapshot(t *testing.T) string {
	t.Helper()
	return g.in(t, `set -eu
/usr/local/lib/lab/rpm -qa --qf 'package %{NAME} %{EPOCH}:%{VERSION}-%{RELEASE}.%{ARCH}\n' | sort
cd /
find etc boot usr/lib/modules usr/src usr/lib/modprobe.d usr/lib/dracut usr/local var/lib/dkms var/lib/nvidia -xdev -type f \
	! -path 'etc/ld.so.cache' ! -path 'boot/init*' ! -path 'etc/.pwd.lock' ! -name '*-' ! -name '*.pyc' \
	-print0 2>/dev/null | sort -z | xargs -0 sha256sum | awk '{ print "file", $2, $1 }'
find etc boot usr/lib/modules usr/src usr/local var/lib/dkms -xdev -type l -printf 'link %p %l\n' 2>/dev/null | sort
find etc boot usr/lib/modules usr/src usr/local var/lib/dkms -xdev -type d ! -name __pycache__ -printf 'directory %p %m\n' 2>/dev/null | sort
for f in boot/init*; do lsinitrd "$f" | awk -v f="$f" '$1 ~ /^[-dlbc][rwxst-]+$/ { print "initramfs", f, $1, $9, $10, $11 }' | sort; done
systemctl list-unit-files --no-legend | awk '{ print "unit", $1, $2 }' | sort
sed 's/^/cmdline /' proc/cmdline`)
}

// back uninstalls and holds the guest against what it was.
func (g *sshGuest) back(t *testing.T, before string) sshReport {
	t.Helper()
	r := g.gpuguest(t, 0, "uninstall", "--json").report(t)
	if d := changed(before, g.snapshot(t)); d != "" {
		t.Errorf("after uninstall, the guest is not what it was:\n%s", d)
	}
	return r
}

// had builds the packages that a guest has from the start, and returns a script that installs them.
func (s *sshWorld) had(t *testing.T, name string, packages ...standIn) string {
	t.Helper()
	dir := filepath.Join(s.dir, "had", name)
	b := &builder{t: t, top: t.TempDir()}
	for _, p := range packages {
		b.rpm(p, dir)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.rpm"))
	if err != nil {
		t.Fatal(err)
	}
	script := "mkdir /root/had\n"
	for _, f := range files {
		script += "curl -fsS -o /root/had/" + filepath.Base(f) + " " + s.url + "/had/" + name + "/" + filepath.Base(f) + "\n"
	}
	return script + "rpm -i --nodeps --nosignature /root/had/*.rpm\nrm -r /root/had\n"
}

// driver fails the test unless the guest's module and the packages are of the version.
func (g *sshGuest) driver(t *testing.T, version, kernel string, packages ...string) {
	t.Helper()
	got := g.in(t, `modinfo -k `+kernel+` -F version nvidia; rpm -q --qf '%{VERSION}\n' `+strings.Join(packages, " "))
	if want := strings.TrimSuffix(strings.Repeat(version+"\n", 1+len(packages)), "\n"); got != want {
		t.Errorf("installed is\n%s, want %s", got, version)
	}
}

// badKey is a mirror of NVIDIA's repository with something wrong about its key, whose SHA-256 is given, and what is said
// of it.
type badKey struct {
	name, mirror, sum string
	says              []string
}

// badKeys makes mirrors of one of NVIDIA's folders whose key has expired, is missing, or is not the one that signed.
// said is what is said of the last, with {signer} for the id of the key that signed.
func (s *sshWorld) badKeys(t *testing.T, folder string, said ...string) []badKey {
	t.Helper()
	const file = "D42D0685.pub"
	good := filepath.Join(s.dir, "cuda", folder)
	copied := func(mirror string) string {
		dir := filepath.Join(s.dir, mirror, folder)
		if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
			t.Fatal(err)
		}
		tool(t, "cp", "-r", good, dir)
		return dir
	}
	key, err := os.ReadFile(filepath.Join(s.dir, "expired.pub"))
	if err != nil {
		t.Fatal(err)
	}
	put(t, filepath.Join(copied("expired"), file), string(key))
	sum := sha256.Sum256(key)
	if err := os.Remove(filepath.Join(copied("keyless"), file)); err != nil {
		t.Fatal(err)
	}
	stranger := copied("stranger")
	path, err := exec.LookPath("gpg")
	if err != nil {
		t.Fatal(err)
	}
	rpms, err := filepath.Glob(filepath.Join(stranger, "*.rpm"))
	if err != nil {
		t.Fatal(err)
	}
	tool(t, "rpmsign", append([]string{"--define", "_gpg_name stranger@example.com", "--define", "__gpg " + path, "--resign"}, rpms...)...)
	modules, err := filepath.Glob(filepath.Join(stranger, "repodata", "*modules*"))
	if err != nil {
		t.Fatal(err)
	}
	kept := t.TempDir()
	for _, f := range modules {
		tool(t, "cp", f, filepath.Join(kept, "modules.yaml.gz"))
	}
	tool(t, "createrepo_c", "--quiet", stranger)
	for range modules {
		tool(t, "modifyrepo_c", "--mdtype=modules", filepath.Join(kept, "modules.yaml.gz"), filepath.Join(stranger, "repodata"))
	}
	gpg(t, "--local-user", "stranger@example.com", "--armor", "--detach-sign", filepath.Join(stranger, "repodata", "repomd.xml"))
	who := ""
	for l := range strings.Lines(gpg(t, "--with-colons", "--fingerprint", "stranger@example.com")) {
		if f := strings.Split(l, ":"); f[0] == "fpr" {
			who = f[9]
		}
	}
	return []badKey{
		{"expired", "expired", hex.EncodeToString(sum[:]), []string{"repo: exit", "the repository's key ", " expired on 2020-01-31: " + s.url + "/expired/" + folder + "/" + file}},
		{"missing", "keyless", s.keySum, []string{"repo: exit", "could not be fetched: " + s.url + "/keyless/" + folder + "/" + file}},
		{"not the one that signed", "stranger", s.keySum, strings.Split(strings.ReplaceAll(strings.Join(said, "\n"), "{signer}", who[len(who)-8:]), "\n")},
	}
}

// refuses installs from repositories with bad keys: each is refused with its name.
func (g *sshGuest) refuses(t *testing.T, bad []badKey) {
	t.Helper()
	for _, b := range bad {
		r := g.gpuguest(t, 2, "install", "--no-gpu", "--device", g.device, "--source", "nvidia", "--mirror", g.s.url+"/"+b.mirror, "--keyring-sha256", b.sum)
		for _, word := range b.says {
			if !strings.Contains(strings.ToLower(r.stderr), strings.ToLower(word)) {
				t.Errorf("key %s: the message does not say %q: %s", b.name, word, r.stderr)
			}
		}
		t.Log(strings.TrimSpace(r.stderr))
	}
}

// boots holds what the guest was started with, and will be, against the plan.
func (g *sshGuest) boots(t *testing.T, image string) {
	t.Helper()
	if line := g.in(t, `cat /proc/cmdline`); !slices.Contains(strings.Fields(line), "pci=realloc") || !strings.Contains(line, "modprobe.blacklist=nouveau") {
		t.Errorf("the guest was started with %q", line)
	}
	if list := g.in(t, `lsinitrd `+image); !strings.Contains(list, "gpuguest-blocklist.conf") || strings.Contains(list, "nouveau.ko") {
		t.Error("the initramfs lacks the blocklist or has nouveau")
	}
}

const (
	argument = "--kernel-arg=pci=realloc"
	hold     = "--hold-kernel"
)

// The make that is there from the start is older than the repository's: an installation moves it on, and uninstall back.
func testDNFOverSSH(t *testing.T, s *sshWorld) {
	t.Parallel()
	version, release, _ := strings.Cut(rockyKernel, "-")
	kernel := rockyKernel + ".x86_64"
	g := s.start(t, "rocky", kernel, s.elSetup("9.6")+s.had(t, "rocky",
		standIn{name: "rpm", version: "4.16", release: "1.el9", arch: "noarch", provides: []string{"/bin/sh"}},
		standIn{name: "make", version: "4.3", release: "7.el9", arch: "noarch"},
		standIn{name: "kernel-core", version: version, release: release, arch: "x86_64", provides: []string{"installonlypkg(kernel)"}}))
	before := g.snapshot(t)
	g.refuses(t, s.badKeys(t, "rhel9/x86_64", "driver: exit", "public key for", "RPM-GPG-KEY-D42D0685"))
	g.back(t, before)

	names := []string{"nvidia-driver-cuda", "kmod-nvidia-open-dkms", "nvidia-persistenced"}
	first := g.install(t, 0, "--driver", "580.82.07", argument, hold, "--json").report(t)
	if first.Reboots != 1 || g.Boots() != 2 {
		t.Errorf("gpuguest reports %d reboots, the guest was started %d times", first.Reboots, g.Boots())
	}
	g.driver(t, "580.82.07", kernel, names...)
	g.boots(t, "/boot/initramfs-"+kernel+".img")
	g.again(t, "--driver", "580.82.07", argument, hold)
	if make := g.in(t, `rpm -q --qf '%{VERSION}-%{RELEASE}' make`); make != "4.3-8.el9" {
		t.Errorf("make was not moved on: %s", make)
	}

	// A full version is locked, against what the owner upgrades by hand too, until another is asked for.
	g.in(t, `dnf -y upgrade`)
	g.driver(t, "580.82.07", kernel, names...)
	g.install(t, 0, "--driver", "580.95.05", argument, hold)
	g.driver(t, "580.95.05", kernel, names...)
	if r := g.install(t, 4, "--driver", "580.82.07"); !strings.Contains(r.stderr, "580.95.05") || !strings.Contains(r.stderr, "not downgraded unattended") {
		t.Errorf("a downgrade is refused with %s", r.stderr)
	}
	// A branch is kept by its stream alone.
	g.install(t, 0, "--driver", "595", argument, hold)
	g.driver(t, "595.71.05", kernel, names...)
	g.again(t, "--driver", "595", argument, hold)
	if r := g.back(t, before); r.Reboots != 1 {
		t.Errorf("uninstall took %d reboots", r.Reboots)
	}
}

func testZypperOverSSH(t *testing.T, s *sshWorld) {
	t.Parallel()
	version, release, _ := strings.Cut(suseKernel, "-")
	kernel := suseKernel + "-default"
	g := s.start(t, "sles", kernel, s.suseSetup()+s.had(t, "sles",
		standIn{name: "rpm", version: "4.14", release: "1", arch: "noarch", provides: []string{"/bin/sh"}},
		standIn{name: "make", version: "4.1", release: "1", arch: "noarch"},
		standIn{name: "kernel-default", version: version, release: release + ".2", arch: "x86_64"}))
	before := g.snapshot(t)
	g.refuses(t, s.badKeys(t, "sles15/x86_64", "repo: exit", "{signer}"))

	names := []string{"nvidia-open-580", "nvidia-open-driver-G06-kmp-default", "nvidia-compute-utils-G06", "nvidia-persistenced"}
	first := g.install(t, 0, "--driver", "580", argument, hold, "--json").report(t)
	if first.Reboots != 1 || g.Boots() != 2 {
		t.Errorf("gpuguest reports %d reboots, the guest was started %d times", first.Reboots, g.Boots())
	}
	g.driver(t, "580.95.05", kernel, names...)
	g.boots(t, "/boot/initrd-"+kernel)
	g.again(t, "--driver", "580", argument, hold)
	// The next branch's packages have the same names but for the one that keeps them.
	g.in(t, `zypper --non-interactive update`)
	g.driver(t, "580.95.05", kernel, names[:3]...)
	g.install(t, 0, "--driver", "595", argument, hold)
	names[0] = "nvidia-open-595"
	g.driver(t, "595.71.05", kernel, names...)
	g.again(t, "--driver", "595", argument, hold)
	if r := g.install(t, 4, "--driver", "580"); !strings.Contains(r.stderr, "595.71.05") || !strings.Contains(r.stderr, "not downgraded unattended") {
		t.Errorf("a downgrade is refused with %s", r.stderr)
	}
	if r := g.back(t, before); r.Reboots != 1 {
		t.Errorf("uninstall took %d reboots", r.Reboots)
	}
}
