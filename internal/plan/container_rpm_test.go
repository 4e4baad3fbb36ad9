package plan

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"gpuguest/assets"
	"gpuguest/internal/choice"
	"gpuguest/internal/facts"
	"gpuguest/internal/sh"
	"gpuguest/steps"
)

// TestContainerRPM runs steps of plans for constructed guests with the real rpm, dnf 4 and zypper, as Debian
// packages them, on repositories laid out like NVIDIA's and the distribution's: signed packages, module
// streams. What stands in: the packages themselves (names, versions and dependencies are like the real
// ones), dkms, which copies a module file in place of building it, and SUSEConnect. The guest is this machine's root
// with a file system above it that takes every write; steps about kernels, boot loader and initramfs are left out.
func TestContainerRPM(t *testing.T) {
	needRPM(t)
	w := newRPMWorld(t, func(w *rpmWorld, b *builder) []repository { return w.repositories(t, b) })
	t.Run("module streams", func(t *testing.T) { testModuleStreams(t, w) })
	t.Run("version locks", func(t *testing.T) { testVersionLocks(t, w) })
	t.Run("zypper", func(t *testing.T) { testZypper(t, w) })
	t.Run("refused", func(t *testing.T) { testRPMRefused(t, w) })
	t.Run("bundle", func(t *testing.T) { testRPMBundle(t, w) })
}

// needRPM skips a test that was not asked for, and fails one that lacks its tools.
func needRPM(t *testing.T) {
	t.Helper()
	if os.Getenv("GPUGUEST_CONTAINER") == "" {
		t.Skip("GPUGUEST_CONTAINER is not set")
	}
	for _, tool := range []string{"rpm", "rpmbuild", "rpmsign", "createrepo_c", "modifyrepo_c", "dnf", "zypper", "gpg", "gcc", "unshare", "nsenter", "modinfo", "depmod"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("%s is needed: %v", tool, err)
		}
	}
}

// rpmWorld is a server of repositories and the key they are signed with.
type rpmWorld struct {
	dir    string // what the server serves
	url    string
	keySum string // SHA-256 of the key beside NVIDIA's packages
}

// standIn is a package.
type standIn struct {
	name, version, release string
	epoch                  int
	arch                   string // "noarch" or "x86_64"
	requires, provides     []string
	conflicts              []string
	files                  map[string]string // path → content, or the path of a file of this machine behind "@"
	links                  map[string]string
	post                   string // what is run behind the installation
	preun, postun          string // what is run before and behind its removal for good
}

func (p standIn) nevra() string {
	return fmt.Sprintf("%s-%d:%s-%s.%s", p.name, p.epoch, p.version, p.release, p.arch)
}

const (
	rockyKernel = "5.14.0-570.49.1.el9_6"
	suseKernel  = "6.4.0-150600.23.47"
)

func newRPMWorld(t *testing.T, repositories func(*rpmWorld, *builder) []repository) *rpmWorld {
	w := &rpmWorld{dir: t.TempDir()}
	server := httptest.NewServer(http.FileServer(http.Dir(w.dir)))
	t.Cleanup(server.Close)
	w.url = server.URL
	home := filepath.Join(t.TempDir(), "gnupg")
	if err := os.Mkdir(home, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("GNUPGHOME", home)
	t.Cleanup(func() { _ = exec.Command("gpgconf", "--homedir", home, "--kill", "gpg-agent").Run() })
	tool(t, "gpg", "--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", "", "--quick-gen-key", "repository@example.com", "rsa2048", "sign", "never")
	key := tool(t, "gpg", "--batch", "--armor", "--export", "repository@example.com")
	sum := sha256.Sum256([]byte(key))
	w.keySum = hex.EncodeToString(sum[:])
	gpg, err := exec.LookPath("gpg")
	if err != nil {
		t.Fatal(err)
	}
	build := &builder{t: t, top: t.TempDir(), gpg: gpg}
	for _, r := range repositories(w, build) {
		build.repository(filepath.Join(w.dir, r.path), r)
		if r.key != "" {
			put(t, filepath.Join(w.dir, r.path, r.key), key)
		}
	}
	put(t, filepath.Join(w.dir, "RPM-GPG-KEY-test"), key)
	return w
}

func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	var errs bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, out, errs.Bytes())
	}
	return string(out)
}

func put(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// repository is one of packages, and the streams of its module nvidia-driver.
type repository struct {
	path, key string
	packages  []standIn
	streams   map[string][]standIn
}

// driverSet is the compute-only driver of one version as NVIDIA packages it for rpm.
func driverSet(t *testing.T, b *builder, version, dist string) []standIn {
	exact := func(name string) string { return name + " = 3:" + version }
	p := func(name string, requires ...string) standIn {
		return standIn{name: name, version: version, release: "1." + dist, epoch: 3, arch: "x86_64", requires: requires}
	}
	module := p("kmod-nvidia-open-dkms", "dkms", exact("nvidia-kmod-common"))
	module.arch = "noarch"
	module.files = map[string]string{"/usr/src/nvidia-" + version + "/nvidia.ko": "@" + b.module(version, rockyKernel+".x86_64")}
	common := p("nvidia-kmod-common")
	common.arch = "noarch"
	persistenced := p("nvidia-persistenced")
	closed := p("kmod-nvidia-latest-dkms", "dkms", exact("nvidia-kmod-common"))
	closed.arch, closed.conflicts = "noarch", []string{"kmod-nvidia-open-dkms"}
	closed.files = map[string]string{"/usr/src/nvidia-" + version + "/nvidia.ko": "@" + b.closed(version, rockyKernel+".x86_64")}
	return []standIn{
		module, closed, common, persistenced, p("nvidia-driver-cuda-libs"),
		p("nvidia-driver-cuda", exact("nvidia-driver-cuda-libs"), exact("nvidia-kmod-common"), "nvidia-persistenced = 3:"+version),
	}
}

func (w *rpmWorld) repositories(t *testing.T, b *builder) []repository {
	plain := func(name, version, release string, requires ...string) standIn {
		return standIn{name: name, version: version, release: release, arch: "noarch", requires: requires}
	}
	kernel := rockyKernel + ".x86_64"
	version, release, _ := strings.Cut(rockyKernel, "-")
	devel := standIn{name: "kernel-devel", version: version, release: release, arch: "x86_64", provides: []string{"installonlypkg(kernel)"},
		files: map[string]string{"/usr/src/kernels/" + kernel + "/Makefile": "all:\n"}, links: map[string]string{"/usr/lib/modules/" + kernel + "/build": "/usr/src/kernels/" + kernel}}
	newer := devel
	newer.release, newer.files, newer.links = "570.58.1.el9_6", map[string]string{"/usr/src/kernels/newer/Makefile": "all:\n"}, nil
	matched := standIn{name: "kernel-devel-matched", version: version, release: release, arch: "x86_64", requires: []string{"kernel-devel = " + rockyKernel, "kernel-core = " + rockyKernel}}
	matchedNewer := standIn{name: "kernel-devel-matched", version: version, release: newer.release, arch: "x86_64", requires: []string{"kernel-devel = " + version + "-" + newer.release}}
	repoFile := func(id, path string) string {
		return "[" + id + "]\nname=" + id + "\nbaseurl=" + w.url + "/" + path + "/\nenabled=1\ngpgcheck=1\ngpgkey=" + w.url + "/RPM-GPG-KEY-test\n"
	}
	epel := plain("epel-release", "9", "10.el9")
	epel.files = map[string]string{"/etc/yum.repos.d/epel.repo": repoFile("epel", "epel")}
	dkms := plain("dkms", "3.2.2", "1.el9", "crb-only")
	dkms.files = map[string]string{"/usr/sbin/dkms": `#!/bin/sh
# Stands in for dkms: "autoinstall -k KERNEL" puts the newest module there.
[ "$1 $2" = "autoinstall -k" ] || exit 3
src=$(ls /usr/src/nvidia-*/nvidia.ko | sort -V | tail -n 1)
mkdir -p "/usr/lib/modules/$3/extra"
cp "$src" "/usr/lib/modules/$3/extra/nvidia.ko"
`}
	createrepo := plain("createrepo_c", "0.20.1", "2.el9")
	createrepo.arch, createrepo.files = "x86_64", map[string]string{"/usr/sbin/createrepo_c": "@/usr/bin/createrepo_c"}
	plugin := plain("python3-dnf-plugin-versionlock", "4.3.1", "3.el9")
	plugin.files = b.versionlock()
	s582, s595, s589 := driverSet(t, b, "580.82.07", "el9"), driverSet(t, b, "595.71.05", "el9"), driverSet(t, b, "580.95.05", "el9")
	toolkit, older := plain("nvidia-container-toolkit", "1.18.0", "1"), plain("nvidia-container-toolkit", "1.17.0", "1")
	t582, t595, t589 := driverSet(t, b, "580.82.07", "el10"), driverSet(t, b, "595.71.05", "el10"), driverSet(t, b, "580.95.05", "el10")
	// SUSE's package has a number more in its release than the kernel has in its name, and provides the shorter.
	sv, sr, _ := strings.Cut(suseKernel, "-")
	suseDevel := standIn{name: "kernel-default-devel", version: sv, release: sr + ".2", arch: "x86_64", provides: []string{"kernel-default-devel = " + suseKernel, "multiversion(kernel)"},
		files: map[string]string{"/usr/src/linux-obj/Makefile": "all:\n"}, links: map[string]string{"/usr/lib/modules/" + suseKernel + "-default/build": "/usr/src/linux-obj"}}
	kmp := func(name, version, release string, provides ...string) standIn {
		driver, _, _ := strings.Cut(version, "_")
		return standIn{name: name, version: version, release: release, arch: "x86_64", provides: provides, post: "depmod " + suseKernel + "-default",
			files: map[string]string{"/usr/lib/modules/" + suseKernel + "-default/updates/nvidia.ko": "@" + b.module(driver, suseKernel+"-default")}}
	}
	x := func(name, version string, requires ...string) standIn {
		return standIn{name: name, version: version, release: "1", arch: "x86_64", requires: requires}
	}
	gds := plain("nvidia-fs", "2.27.3", "1")
	gds.arch, gds.files = "x86_64", map[string]string{"/usr/lib/modules/" + kernel + "/extra/nvidia_fs.ko": "@" + b.moduleOf("2.27.3", kernel, "GPL v2", filepath.Join(b.top, "nvidia_fs.ko"))}
	gds.post = "depmod " + kernel
	return []repository{
		{path: "baseos", packages: []standIn{plain("gcc", "11.5.0", "5.el9"), plain("make", "4.3", "8.el9"), plain("glibc-devel", "2.34", "168.el9"), createrepo, devel, newer, matched, matchedNewer, epel, plugin}},
		{path: "crb", packages: []standIn{plain("crb-only", "1", "1.el9")}},
		{path: "epel", packages: []standIn{dkms}},
		{path: "cuda/rhel9/x86_64", key: "D42D0685.pub", packages: append(slices.Concat(s582, s589, s595), toolkit, gds),
			streams: map[string][]standIn{"580-open": slices.Concat(s582, s589), "580-dkms": slices.Concat(s582, s589), "595-open": s595}},
		{path: "cuda/rhel10/x86_64", key: "CDF6BA43.pub", packages: append(slices.Concat(t582, t589, t595), toolkit, older)},
		{path: "suse", packages: []standIn{plain("gcc", "7", "1"), plain("make", "4.2", "1"), plain("glibc-devel", "2.38", "1"), suseDevel,
			kmp("nvidia-open-driver-G06-signed-cuda-kmp-default", "580.82.07_k6.4.0_150600.23.47", "150600.3.63.1")}},
		{path: "cuda/sles15/x86_64", key: "D42D0685.pub", packages: []standIn{
			kmp("nvidia-open-driver-G06-kmp-default", "580.95.05", "1"),
			x("nvidia-open-580", "580.95.05", "nvidia-open-driver-G06-kmp-default = 580.95.05", "nvidia-compute-utils-G06 = 580.95.05"),
			x("nvidia-compute-utils-G06", "580.82.07"), x("nvidia-compute-utils-G06", "580.95.05"), x("nvidia-compute-utils-G06", "595.71.05"),
			x("nvidia-persistenced", "580.95.05"), x("nvidia-persistenced", "580.82.07"),
		}},
	}
}

// builder builds packages.
type builder struct {
	gpg string // path of gpg, for rpmsign
	t   *testing.T
	top string
}

// versionlock are the files of dnf's plugin, from Debian's package of all plugins. That package itself cannot be
// installed beside zypper.
func (b *builder) versionlock() map[string]string {
	b.t.Helper()
	dir := filepath.Join(b.top, "plugins")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		b.t.Fatal(err)
	}
	tool(b.t, "sh", "-c", "cd "+sh.Quote(dir)+" && apt-get download -q dnf-plugins-core && dpkg -x dnf-plugins-core_*.deb root")
	files := map[string]string{}
	for _, f := range []string{"/etc/dnf/plugins/versionlock.conf", "/etc/dnf/plugins/versionlock.list", "/usr/lib/python3/dist-packages/dnf-plugins/versionlock.py", "/usr/lib/python3/dist-packages/dnfpluginscore/__init__.py"} {
		files[f] = "@" + filepath.Join(dir, "root", f)
	}
	return files
}

// module makes a file that modinfo takes for a module of the driver.
func (b *builder) module(version, kernel string) string {
	b.t.Helper()
	out := filepath.Join(b.top, "nvidia-"+version+"-"+kernel+".ko")
	return b.moduleOf(version, kernel, "Dual MIT/GPL", out)
}

// closed makes one of the proprietary modules.
func (b *builder) closed(version, kernel string) string {
	return b.moduleOf(version, kernel, "NVIDIA", filepath.Join(b.top, "closed-"+version+"-"+kernel+".ko"))
}

func (b *builder) moduleOf(version, kernel, license, out string) string {
	b.t.Helper()
	text := `const char m[] __attribute__((section(".modinfo"))) = "version=` + version + `\0license=` + license + `\0vermagic=` + kernel + ` SMP preempt mod_unload \0name=nvidia";`
	put(b.t, out+".c", text)
	tool(b.t, "gcc", "-c", "-o", out, out+".c")
	return out
}

func (b *builder) rpm(p standIn, dir string) {
	b.t.Helper()
	root := filepath.Join(b.top, "files", p.nevra())
	var spec strings.Builder
	fmt.Fprintf(&spec, "Name: %s\nVersion: %s\nRelease: %s\nSummary: stands in\nLicense: none\nAutoReqProv: no\n", p.name, p.version, p.release)
	if p.epoch != 0 {
		fmt.Fprintf(&spec, "Epoch: %d\n", p.epoch)
	}
	if p.arch == "noarch" {
		spec.WriteString("BuildArch: noarch\n")
	}
	for _, r := range p.requires {
		spec.WriteString("Requires: " + r + "\n")
	}
	for _, r := range p.provides {
		spec.WriteString("Provides: " + r + "\n")
	}
	for _, r := range p.conflicts {
		spec.WriteString("Conflicts: " + r + "\n")
	}
	spec.WriteString("%description\nstands in\n%install\nmkdir -p %{buildroot}\n")
	var files []string
	for path, text := range p.files {
		from := filepath.Join(root, path)
		if file, ok := strings.CutPrefix(text, "@"); ok {
			from = file
		} else {
			put(b.t, from, text)
		}
		mode := "0644"
		if strings.Contains(path, "/sbin/") {
			mode = "0755"
		}
		fmt.Fprintf(&spec, "install -D -m %s %s %%{buildroot}%s\n", mode, sh.Quote(from), path)
		files = append(files, path)
	}
	for path, to := range p.links {
		fmt.Fprintf(&spec, "mkdir -p %%{buildroot}%s && ln -s %s %%{buildroot}%s\n", filepath.Dir(path), to, path)
		files = append(files, path)
	}
	// Folders of its own go with a package.
	for path := range p.files {
		if dir := filepath.Dir(path); strings.HasPrefix(dir, "/usr/src/") || strings.HasSuffix(dir, "/updates") {
			files = append(files, "%dir "+dir)
		}
	}
	slices.Sort(files)
	for i, f := range files {
		if strings.HasPrefix(f, "/etc/") {
			files[i] = "%config(noreplace) " + f
		}
	}
	if p.post != "" {
		spec.WriteString("%post\n" + p.post + "\n")
	}
	if p.preun != "" {
		spec.WriteString("%preun\n[ \"$1\" = 0 ] || exit 0\n" + p.preun + "\n")
	}
	if p.postun != "" {
		spec.WriteString("%postun\n[ \"$1\" = 0 ] || exit 0\n" + p.postun + "\n")
	}
	spec.WriteString("%files\n" + strings.Join(files, "\n") + "\n")
	name := filepath.Join(b.top, "stand-in.spec")
	put(b.t, name, spec.String())
	tool(b.t, "rpmbuild", "--quiet", "--define", "_topdir "+filepath.Join(b.top, "rpmbuild"), "--define", "_rpmdir "+dir, "--define", "_rpmfilename %{NAME}-%{VERSION}-%{RELEASE}.%{ARCH}.rpm",
		"--define", "_build_id_links none", "--define", "__os_install_post %{nil}", "--define", "debug_package %{nil}", "--target", p.arch, "-bb", name)
}

func (b *builder) repository(dir string, r repository) {
	b.t.Helper()
	for _, p := range r.packages {
		b.rpm(p, dir)
	}
	rpms, err := filepath.Glob(filepath.Join(dir, "*.rpm"))
	if err != nil {
		b.t.Fatal(err)
	}
	tool(b.t, "rpmsign", append([]string{"--define", "_gpg_name repository@example.com", "--define", "__gpg " + b.gpg, "--addsign"}, rpms...)...)
	tool(b.t, "createrepo_c", "--quiet", dir)
	// zypper takes no list of packages that is not signed.
	defer func() {
		tool(b.t, "gpg", "--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", "", "--armor", "--detach-sign", filepath.Join(dir, "repodata", "repomd.xml"))
	}()
	if r.streams == nil {
		return
	}
	var yaml strings.Builder
	for _, stream := range slices.Sorted(func(yield func(string) bool) {
		for s := range r.streams {
			if !yield(s) {
				return
			}
		}
	}) {
		fmt.Fprintf(&yaml, "---\ndocument: modulemd\nversion: 2\ndata:\n  name: nvidia-driver\n  stream: %s\n  version: 20260101000000\n  context: 0000000a\n  arch: x86_64\n  summary: Nvidia driver\n  description: Nvidia driver\n  license:\n    module:\n    - MIT\n  dependencies:\n  - requires:\n      platform: [el9]\n  profiles:\n    default:\n      rpms:\n      - nvidia-driver-cuda\n  artifacts:\n    rpms:\n", stream)
		for _, p := range r.streams[stream] {
			fmt.Fprintf(&yaml, "    - %s\n", p.nevra())
		}
		yaml.WriteString("...\n")
	}
	modules := filepath.Join(b.top, "modules.yaml")
	put(b.t, modules, yaml.String())
	tool(b.t, "modifyrepo_c", "--mdtype=modules", modules, filepath.Join(dir, "repodata"))
}

// rpmGuest is this machine's root with a file system above it, in a mount name space of its own.
type rpmGuest struct {
	t     *testing.T
	pid   int
	facts facts.Facts
	mount string
	alone bool // what is run from now on reaches no network
}

// newRPMGuest makes a guest that is what a constructed recording says, as far as files and packages go. setup is run
// in it first.
func newRPMGuest(t *testing.T, recording, setup string) *rpmGuest {
	t.Helper()
	g := &rpmGuest{t: t, facts: guestFacts(t, recording), mount: t.TempDir()}
	dir := sh.Quote(g.mount)
	cmd := exec.Command("unshare", "--mount", "--net", "--propagation", "private", "sh", "-c", `set -e
mount -t tmpfs none `+dir+`
mkdir `+dir+`/up `+dir+`/work `+dir+`/root
mount -t overlay -o lowerdir=/,upperdir=`+dir+`/up,workdir=`+dir+`/work none `+dir+`/root
mount --rbind /proc `+dir+`/root/proc
mount --rbind /dev `+dir+`/root/dev
mount -t tmpfs none `+dir+`/root/run
echo ready
exec sleep infinity`)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	line := make([]byte, 6)
	if _, err := out.Read(line); err != nil {
		t.Fatalf("the guest's root could not be made: %v", err)
	}
	g.pid = cmd.Process.Pid
	// dpkg's list is put out of sight, so that rpm's is the guest's. Debian's rpm asks to be told that it is meant.
	g.must(`rm -rf /var/lib/dpkg/status /etc/yum.repos.d /etc/zypp/repos.d /var/lib/rpm /var/cache/dnf /var/cache/zypp /etc/dnf/modules.d /var/lib/gpuguest
mkdir -p /etc/yum.repos.d /etc/zypp/repos.d /etc/pki/rpm-gpg /usr/local/sbin /usr/local/bin
real=$(command -v rpm)
printf '#!/bin/sh\ncase $1 in -e | -i | -U) m=$1; shift; exec %s $m --force-debian "$@" ;; *) exec %s "$@" ;; esac\n' "$real" "$real" >/usr/local/bin/rpm
chmod 0755 /usr/local/bin/rpm
rpm --initdb
` + setup)
	return g
}

// run runs a script in the guest.
func (g *rpmGuest) run(script string) (string, int) {
	g.t.Helper()
	var out bytes.Buffer
	code := g.runTo(script, &out, &out)
	return out.String(), code
}

func (g *rpmGuest) runTo(script string, stdout, stderr io.Writer) int {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(g.t.Context(), 5*time.Minute)
	defer cancel()
	spaces := []string{"-t", fmt.Sprint(g.pid), "-m"}
	if g.alone {
		spaces = append(spaces, "-n")
	}
	cmd := exec.CommandContext(ctx, "nsenter", append(spaces, "--", "chroot", filepath.Join(g.mount, "root"), "/bin/sh")...)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C"}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(script), stdout, stderr
	err := cmd.Run()
	if _, exited := err.(*exec.ExitError); err != nil && !exited {
		g.t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode()
}

func (g *rpmGuest) must(script string) string {
	g.t.Helper()
	out, code := g.run("set -e\n" + script)
	if code != 0 {
		g.t.Fatalf("exit %d: %s", code, out)
	}
	return out
}

// items are those of a plan's that are about packages, by id.
func items(p Plan, ids ...steps.ID) []Item {
	var found []Item
	for _, it := range p.Items() {
		if slices.Contains(ids, it.ID) {
			found = append(found, it)
		}
	}
	return found
}

var packageSteps = []steps.ID{"ready", "extra-repos", "headers", "repo", "pin", "driver", "hold-kernel"}

// install runs the package steps of a plan and returns what each printed.
func (g *rpmGuest) install(w choice.Want) Plan {
	g.t.Helper()
	p, err := build(g.facts, w)
	if err != nil {
		g.t.Fatal(err)
	}
	for _, it := range items(p, packageSteps...) {
		if out, code := g.run(p.Script(it)); code != 0 {
			g.t.Fatalf("%s: exit %d: %s", it.ID, code, out)
		}
	}
	return p
}

// converged fails unless every package step is met.
func (g *rpmGuest) converged(p Plan) {
	g.t.Helper()
	all := items(p, packageSteps...)
	out, _ := g.run(Checks(p.Distro, all, "--nonce"))
	got := ParseChecks(out, "--nonce")
	for _, it := range all {
		if !got[it.ID].Met {
			g.t.Errorf("%s is not met: %s\n%s", it.ID, got[it.ID].Why, out)
		}
	}
}

// look asks the guest's own facts, and takes over what gpuguest's work changed.
func (g *rpmGuest) look() {
	g.t.Helper()
	out, code := g.run(assets.Facts)
	if code != 0 {
		g.t.Fatalf("facts: exit %d: %s", code, out)
	}
	f, err := facts.Parse([]byte(out))
	if err != nil {
		g.t.Fatalf("%v\n%s", err, out)
	}
	g.facts.Packages, g.facts.State, g.facts.Held, g.facts.Sources = f.Packages, f.State, f.Held, f.Sources
}

// uninstall runs the removal steps that are about packages and files.
func (g *rpmGuest) uninstall() {
	g.t.Helper()
	g.look()
	in, err := Bare(g.facts, choice.Want{})
	if err != nil {
		g.t.Fatal(err)
	}
	p, err := Build(in, steps.Uninstall())
	if err != nil {
		g.t.Fatal(err)
	}
	for _, it := range items(p, "ready", "unhold", "remove-packages", "products", "restore-files", "remove-ways") {
		if out, code := g.run(p.Script(it)); code != 0 {
			g.t.Fatalf("%s: exit %d: %s", it.ID, code, out)
		}
	}
}

// state is everything that uninstall has to bring back.
func (g *rpmGuest) state() string {
	g.t.Helper()
	return g.must(`rpm -qa | sort
for d in /etc/yum.repos.d /etc/zypp/repos.d /etc/pki/rpm-gpg /etc/dnf /etc/zypp/locks; do
	[ ! -e "$d" ] || find "$d" -type f | sort | while read -r f; do echo "$f $(sha256sum <"$f")"; done
done`)
}

func (w *rpmWorld) want() choice.Want {
	return choice.Want{Mirror: w.url + "/cuda", KeyringSHA256: w.keySum}
}

// elSetup makes a guest of RHEL's family out of the machine's root.
func (w *rpmWorld) elSetup(release string) string {
	return `printf 'NAME="Rocky Linux"\nID="rocky"\nVERSION_ID="` + release + `"\nPLATFORM_ID="platform:el9"\n' >/etc/os-release
cat >/etc/yum.repos.d/rocky.repo <<'REPO'
[baseos]
name=base
baseurl=` + w.url + `/baseos/
gpgcheck=1
gpgkey=` + w.url + `/RPM-GPG-KEY-test

[extras]
name=unreachable
baseurl=http://127.0.0.1:9/none/
enabled=0

[crb]
name=crb
baseurl=` + w.url + `/crb/
enabled=0
gpgcheck=1
gpgkey=` + w.url + `/RPM-GPG-KEY-test
REPO
mkdir -p /usr/lib/modules/` + rockyKernel + `.x86_64
`
}

// base builds the packages that a guest has from the start, and returns a script that installs them.
func base(t *testing.T, b *builder, packages ...standIn) string {
	t.Helper()
	dir := filepath.Join(b.top, "base")
	for _, p := range packages {
		b.rpm(p, dir)
	}
	return "rpm -i --nodeps --nosignature " + sh.Quote(dir) + "/*.rpm\n"
}

func elBase(t *testing.T) string {
	version, release, _ := strings.Cut(rockyKernel, "-")
	return base(t, &builder{t: t, top: t.TempDir()},
		standIn{name: "rpm", version: "4.16", release: "1.el9", arch: "noarch", provides: []string{"/bin/sh"}},
		standIn{name: "kernel-core", version: version, release: release, arch: "x86_64", provides: []string{"installonlypkg(kernel)"}})
}

func testModuleStreams(t *testing.T, w *rpmWorld) {
	g := newRPMGuest(t, "rocky9-l4", w.elSetup("9.6")+elBase(t))
	before := g.state()
	p := g.install(w.want())
	g.converged(p)
	if got := g.must("rpm -q --qf '%{VERSION}\n' nvidia-driver-cuda kmod-nvidia-open-dkms nvidia-persistenced"); got != "580.95.05\n580.95.05\n580.95.05\n" {
		t.Errorf("installed are %s", got)
	}
	if got := g.must("rpm -qa 'kernel-devel*' | sort"); got != "kernel-devel-"+rockyKernel+".x86_64\nkernel-devel-matched-"+rockyKernel+".x86_64\n" {
		t.Errorf("headers are %s", got)
	}
	g.must("dnf -y install nvidia-container-toolkit && dnf -y remove nvidia-container-toolkit")

	// To the other flavor and back: the packages of the two conflict.
	for _, flavor := range []string{choice.FlavorProprietary, choice.FlavorOpen} {
		g.look()
		other := w.want()
		other.Flavor = flavor
		g.converged(g.install(other))
		name := map[string]string{choice.FlavorProprietary: "kmod-nvidia-latest-dkms", choice.FlavorOpen: "kmod-nvidia-open-dkms"}[flavor]
		if got := g.must("rpm -qa 'kmod-nvidia-*dkms' --qf '%{NAME} %{VERSION}\n'"); got != name+" 580.95.05\n" {
			t.Errorf("after the change of flavor there is %s", got)
		}
	}

	// To another branch: the stream is changed and the packages follow; and not back by itself.
	g.look()
	w595 := w.want()
	w595.Driver = "595"
	p = g.install(w595)
	g.converged(p)
	if got := g.must("rpm -q --qf '%{VERSION}\n' nvidia-driver-cuda"); got != "595.71.05\n" {
		t.Errorf("after the change of branch it is %s", got)
	}
	g.look()
	back := w.want()
	back.Driver = "580"
	if _, err := build(g.facts, back); err == nil || !strings.Contains(err.Error(), "not downgraded unattended") {
		t.Errorf("back to 580: %v", err)
	}
	g.uninstall()
	if after := g.state(); after != before {
		t.Errorf("uninstall leaves\n%s\nbefore it was\n%s", after, before)
	}
}

func testVersionLocks(t *testing.T, w *rpmWorld) {
	g := newRPMGuest(t, "rocky10-b200", strings.ReplaceAll(w.elSetup("10.0"), "el9", "el10")+elBase(t))
	// The kernel of the constructed guest is RHEL 10's; its stand-in is the one of 9.
	g.facts.Kernel.Next, g.facts.Kernel.Running = rockyKernel+".x86_64", rockyKernel+".x86_64"
	g.must("mkdir -p /usr/lib/modules/" + rockyKernel + ".x86_64")
	before := g.state()
	want := w.want()
	want.HoldKernel = true
	g.look()
	p := g.install(want)
	g.converged(p)
	if got := g.must("rpm -q --qf '%{VERSION}\n' nvidia-driver-cuda nvidia-persistenced"); got != "580.95.05\n580.95.05\n" {
		t.Errorf("installed are %s", got)
	}
	// The lock keeps an upgrade within the branch, and hides nothing else of NVIDIA's.
	g.must("dnf -y upgrade 'nvidia*' 'kmod-*'")
	if got := g.must("rpm -q --qf '%{VERSION}\n' nvidia-driver-cuda"); got != "580.95.05\n" {
		t.Errorf("after an upgrade it is %s", got)
	}
	g.must("dnf -y install nvidia-container-toolkit && dnf -y remove nvidia-container-toolkit")
	g.look()
	if !slices.Contains(g.facts.Held, "kernel-core") || slices.Contains(g.facts.Held, "nvidia-driver-cuda") {
		t.Errorf("held are %v", g.facts.Held)
	}
	// An exact version of the same branch.
	g.uninstall()
	if after := g.state(); after != before {
		t.Errorf("uninstall leaves\n%s\nbefore it was\n%s", after, before)
	}
	g.must("rm -rf /var/lib/gpuguest")
	g.look()
	want.Driver = "580.82.07"
	p = g.install(want)
	g.converged(p)
	g.must("dnf -y upgrade 'nvidia*' 'kmod-*'")
	if got := g.must("rpm -q --qf '%{VERSION}\n' nvidia-driver-cuda"); got != "580.82.07\n" {
		t.Errorf("the exact version is %s", got)
	}
	g.takesBack(p, "nvidia-container-toolkit", "1.18.0", "1.17.0-1")
}

// takesBack has a package brought to an older version, as uninstall does with those that gpuguest's work moved on.
func (g *rpmGuest) takesBack(p Plan, name, newest, older string) {
	g.t.Helper()
	m := p.Distro.Packages
	g.must("( set -eu\n" + m.Install(name) + "\n)")
	if got := g.must("rpm -q --qf '%{VERSION}' " + name); got != newest {
		g.t.Errorf("installed is %s", got)
	}
	g.must("( set -eu\n" + m.Downgrade(name, older) + "\n)")
	if got := g.must("rpm -q --qf '%{VERSION}-%{RELEASE}' " + name); got != older {
		g.t.Errorf("brought back to %s, want %s", got, older)
	}
}

func (w *rpmWorld) suseSetup() string {
	return `printf 'NAME="SLES"\nID="sles"\nVERSION_ID="15.6"\n' >/etc/os-release
rm -rf /var/lib/zypp /etc/zypp/locks
cat >/etc/zypp/repos.d/base.repo <<'REPO'
[SLE-Pool]
name=base
baseurl=` + w.url + `/suse/
enabled=1
gpgcheck=1
gpgkey=` + w.url + `/RPM-GPG-KEY-test
REPO
cat >/usr/local/sbin/SUSEConnect <<'CONNECT'
#!/bin/sh
case $* in
"--product PackageHub/15.6/x86_64") printf '[SUSE-PackageHub]\nname=hub\nbaseurl=` + w.url + `/crb/\nenabled=1\n' >/etc/zypp/repos.d/hub.repo ;;
"--de-register --product PackageHub/15.6/x86_64") rm -f /etc/zypp/repos.d/hub.repo ;;
*) exit 9 ;;
esac
CONNECT
chmod 0755 /usr/local/sbin/SUSEConnect
mkdir -p /usr/lib/modules/` + suseKernel + `-default
curl -fsS -o /tmp/key ` + w.url + `/RPM-GPG-KEY-test && rpm --import /tmp/key
`
}

func suseBase(t *testing.T) string {
	version, release, _ := strings.Cut(suseKernel, "-")
	return base(t, &builder{t: t, top: t.TempDir()},
		standIn{name: "rpm", version: "4.14", release: "1", arch: "noarch", provides: []string{"/bin/sh"}},
		standIn{name: "kernel-default", version: version, release: release + ".2", arch: "x86_64"})
}

func testZypper(t *testing.T, w *rpmWorld) {
	g := newRPMGuest(t, "sles15-t4", w.suseSetup()+suseBase(t))
	before := g.state()
	want := w.want()
	want.HoldKernel = true
	g.look()
	p := g.install(want)
	g.converged(p)
	if got := g.must("rpm -q --qf '%{VERSION}\n' nvidia-open-580 nvidia-compute-utils-G06 kernel-default-devel"); got != "580.95.05\n580.95.05\n6.4.0\n" {
		t.Errorf("installed are %s", got)
	}
	g.uninstall()
	if after := g.state(); after != before {
		t.Errorf("uninstall leaves\n%s\nbefore it was\n%s", after, before)
	}

	if out, code := g.run(p.Script(items(p, "repo")[0])); code != 0 {
		t.Fatalf("repo: exit %d: %s", code, out)
	}
	g.takesBack(p, "nvidia-persistenced", "580.95.05", "580.82.07-1")

	// Modules that SUSE signed: what goes with them has their version.
	g = newRPMGuest(t, "sles15-t4-secureboot", w.suseSetup()+suseBase(t))
	p, err := build(g.facts, w.want())
	if err != nil {
		t.Fatal(err)
	}
	for _, it := range items(p, "ready", "extra-repos", "repo") {
		if out, code := g.run(p.Script(it)); code != 0 {
			t.Fatalf("%s: exit %d: %s", it.ID, code, out)
		}
	}
	out, code := g.run(p.Script(items(p, "driver")[0]))
	if got := g.must("rpm -q --qf '%{NAME} %{VERSION}\n' nvidia-open-driver-G06-signed-cuda-kmp-default nvidia-compute-utils-G06"); got != "nvidia-open-driver-G06-signed-cuda-kmp-default 580.82.07_k6.4.0_150600.23.47\nnvidia-compute-utils-G06 580.82.07\n" {
		t.Errorf("exit %d, installed are %s\n%s", code, got, out)
	}
	g.converged(Plan{Distro: p.Distro, Choice: p.Choice, Segments: []Segment{{Items: items(p, "ready", "repo", "driver")}}})
}

// testRPMRefused holds what must not get into a guest against the real tools.
func testRPMRefused(t *testing.T, w *rpmWorld) {
	g := newRPMGuest(t, "rocky9-l4", w.elSetup("9.6")+elBase(t))
	wrong := w.want()
	wrong.KeyringSHA256 = strings.Repeat("ab", 32)
	p, err := build(g.facts, wrong)
	if err != nil {
		t.Fatal(err)
	}
	if out, code := g.run(p.Script(items(p, "repo")[0])); code == 0 || !strings.Contains(out, "not the one whose SHA-256 was given") {
		t.Errorf("another key: exit %d: %s", code, out)
	}
	if got := g.must("ls /etc/yum.repos.d; rpm -qa 'gpg-pubkey*'"); strings.Contains(got, "cuda") || strings.Contains(got, "gpg-pubkey") {
		t.Errorf("left are %s", got)
	}
	// The key of the mirror is none of NVIDIA's.
	p, err = build(g.facts, choice.Want{Mirror: w.url + "/cuda"})
	if err != nil {
		t.Fatal(err)
	}
	if out, code := g.run(p.Script(items(p, "repo")[0])); code == 0 || !strings.Contains(out, "expected is 610c7b14e068a878070da4e99cd0a493d42d0685") {
		t.Errorf("a key that is not NVIDIA's: exit %d: %s", code, out)
	}
	// A mirror that has nothing, and one that sends a login page whatever it is asked for, or but for the key.
	const page = "<!DOCTYPE html>\n<html><body>Please log in to use this network.</body></html>\n"
	key, err := os.ReadFile(filepath.Join(w.dir, "RPM-GPG-KEY-test"))
	if err != nil {
		t.Fatal(err)
	}
	put(t, filepath.Join(w.dir, "portal/rhel9/x86_64/D42D0685.pub"), page)
	put(t, filepath.Join(w.dir, "portal-later/rhel9/x86_64/D42D0685.pub"), string(key))
	put(t, filepath.Join(w.dir, "portal-later/rhel9/x86_64/repodata/repomd.xml"), page)
	for mirror, says := range map[string]string{"/nothing": "could not be fetched", "/portal": "not the one whose SHA-256 was given", "/portal-later": "repomd.xml"} {
		other := w.want()
		other.Mirror = w.url + mirror
		if p, err = build(g.facts, other); err != nil {
			t.Fatal(err)
		}
		if out, code := g.run(p.Script(items(p, "repo")[0])); code == 0 || !strings.Contains(out, says) {
			t.Errorf("%s: exit %d: %s", mirror, code, out)
		}
	}
	// Without its stream a package is filtered out.
	p, err = build(g.facts, w.want())
	if err != nil {
		t.Fatal(err)
	}
	for _, it := range items(p, "extra-repos", "headers", "repo") {
		if out, code := g.run(p.Script(it)); code != 0 {
			t.Fatalf("%s: exit %d: %s", it.ID, code, out)
		}
	}
	if out, code := g.run(p.Script(items(p, "driver")[0])); code == 0 || !strings.Contains(out, "filtered out by modular filtering") {
		t.Errorf("without its stream: exit %d: %s", code, out)
	}
	// A package that somebody else's needs stays, and so does that.
	in := items(p, "pin", "driver")
	for _, it := range in {
		if out, code := g.run(p.Script(it)); code != 0 {
			t.Fatalf("%s: exit %d: %s", it.ID, code, out)
		}
	}
	g.must(base(t, &builder{t: t, top: t.TempDir()}, standIn{name: "mine", version: "1", release: "1", arch: "noarch", requires: []string{"nvidia-driver-cuda"}}))
	out, code := g.run("( set -eu\n" + p.Distro.Packages.Purge("nvidia-driver-cuda") + "\n)")
	if code == 0 || !strings.Contains(out, "would break other packages") || !strings.Contains(g.must("rpm -qa"), "nvidia-driver-cuda") {
		t.Errorf("purge: exit %d: %s", code, out)
	}
}
