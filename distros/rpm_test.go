package distros

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"gpuguest/internal/facts"
)

// rpmManagers are the package managers on top of rpm.
func rpmManagers(root string) map[string]Manager {
	all := map[string]Manager{}
	for _, tool := range []string{"dnf4", "dnf5", "yum"} {
		d := newDNF(tool)
		d.root = root
		all[tool] = d
	}
	z, t := newZypper(), newTDNF()
	z.root, t.root = root, root
	all["zypper"], all["tdnf"] = z, t
	return all
}

// rpmCommands are all the texts that a manager builds.
func rpmCommands(m Manager) []struct{ name, text string } {
	awkward := "it's $HOME; `x`"
	return []struct{ name, text string }{
		{"install", m.Install("nvidia-driver-cuda", "nvidia-open=580", "nvidia-fabricmanager=580.95.05*", "kernel-default-devel=6.4.0-150600.23.47")},
		{"install awkward", m.Install(awkward)},
		{"exchange", m.Exchange("kmod-nvidia-latest-dkms", "nvidia-driver-cuda")},
		{"install a file", m.InstallFile("/var/lib/gpuguest/epel-release.rpm")},
		{"purge", m.Purge("dkms", "gpg-pubkey-d42d0685-62e36a2e")},
		{"downgrade", m.Downgrade("glibc.i686", "2.34-100.el9")},
		{"hold", m.Hold("kernel-core", awkward)},
		{"unhold", m.Unhold("kernel-core")},
		{"held", m.Held()},
		{"list", m.List()},
		{"manual", m.Manual()},
		{"sound", m.Sound()},
		{"repair", m.Repair()},
		{"installed", m.Installed("dkms", "nvidia-open=580", "a=@b")},
		{"offered", m.Offered("dkms", "nvidia-open=580")},
		{"fetched", m.Fetched("https://developer.download.nvidia.com/compute/cuda/repos/rhel9/x86_64/")},
		{"download", m.Download("https://example.com/a%20b", "/var/tmp/x y.rpm", strings.Repeat("AB", 32))},
		{"wait for the lock", m.WaitLock(600)},
		{"refresh all", m.Refresh(Refresh{})},
		{"refresh what is needed", m.Refresh(Refresh{Need: []string{"https://a/b/", "https://c/d"}})},
		{"pin", m.Pin(Pin{Stream: "nvidia-driver:580-open", Within: "580", Names: []string{"nvidia-driver", "nvidia-open"}})},
		{"pinned", m.Pinned(Pin{Stream: "nvidia-driver:580-open", Within: "580.95.05", Names: []string{"nvidia-driver"}})},
		{"quiet", m.Quiet("echo hello\n")},
	}
}

func TestRPMCommandsMatchTheirGoldens(t *testing.T) {
	for name, m := range rpmManagers("") {
		matchGolden(t, name, rpmCommands(m))
	}
}

func TestRPMCommandsAreShell(t *testing.T) {
	for name, m := range rpmManagers("") {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var script strings.Builder
			script.WriteString("#!/bin/sh\nset -eu\nS=/var/lib/gpuguest\nkeep() { :; }\nput() { cat >\"$1\"; }\nflush() { :; }\n")
			for _, c := range rpmCommands(m) {
				if strings.HasSuffix(c.text, "\n") {
					t.Errorf("%s ends in a newline", c.name)
				}
				fmt.Fprintf(&script, "%s >/dev/null || { echo no; exit 1; }\n", c.text)
				if slices.Contains([]string{"held", "list", "manual"}, c.name) {
					fmt.Fprintf(&script, "out=$(%s)\necho \"$out\"\n", c.text)
				}
			}
			for _, check := range [][]string{{"/bin/sh", "-n"}, {"busybox", "sh", "-n"}, {"shellcheck", "-s", "sh", "-S", "warning", "-e", "SC2043,SC1007,SC2034", "-"}} {
				bin, err := exec.LookPath(check[0])
				if err != nil {
					continue
				}
				cmd := exec.Command(bin, check[1:]...)
				cmd.Stdin = strings.NewReader(script.String())
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Errorf("%s: %v\n%s", check[0], err, out)
				}
			}
		})
	}
}

// rpmMachine is a machine with a fake rpm that knows the packages of a list of "name version-release arch".
func rpmMachine(t *testing.T, packages ...string) machine {
	m := newMachine(t)
	for _, name := range []string{"dnf", "yum", "zypper", "tdnf"} {
		m.fake(name, `echo "unplanned: `+name+` $*" >&2; exit 99`)
	}
	db := filepath.Join(m.root, "rpmdb")
	if err := os.WriteFile(db, []byte(strings.Join(packages, "\n")+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	m.fake("rpm", `
mode=$1; shift
format=
if [ "${1:-}" = --qf ]; then format=$2; shift 2; fi
case $mode in
-qa)
	awk '{ print $1, $3, $2 }' "`+db+`" ;;
-q)
	code=0
	for p in "$@"; do
		awk -v p="$p" -v f="$format" 'BEGIN { code = 1 }
			$1 == p || $1 "-" $2 == p || $1 "-" $2 "." $3 == p { code = 0; v = $2; sub(/-[^-]*$/, "", v)
				if (f ~ /^%.VERSION.\n?$/) printf "%s%s", v, (f ~ /\n$/ ? "\n" : "")
				else if (f ~ /^%.VERSION.-/) print $2
				else if (f ~ /ARCH/) print $1, $2, $3
				else print $1, $2 }
			END { exit code }' "`+db+`" || { echo "package $p is not installed"; code=1; }
	done
	exit $code ;;
*) echo "unplanned: rpm $mode $*" >&2; exit 99 ;;
esac`)
	return m
}

func TestRPMInstalledTellsVersions(t *testing.T) {
	m := rpmMachine(t, "dkms 3.2.2-1.el9 noarch", "kernel-default-devel 6.4.0-150600.23.47.2 x86_64", "nvidia-open 580.95.05-1 noarch",
		"nvidia-open-driver-G06-signed-cuda-kmp-default 580.82.07_k6.4.0_150600.23.65-150600.3.63.1 x86_64", "nvidia-compute-utils-G06 580.82.07-1 x86_64", "other-utils 580.95.05-1 x86_64",
		"kernel-devel 5.14.0-570.12.1.el9_6 x86_64")
	for _, c := range []struct {
		words string
		met   bool
	}{
		{"dkms", true},
		{"dkms gcc", false},
		{"kernel-devel-5.14.0-570.12.1.el9_6.x86_64", true},
		{"kernel-devel-5.14.0-570.49.1.el9_6.x86_64", false},
		{"kernel-default-devel=6.4.0-150600.23.47", true},
		{"kernel-default-devel=6.4.0-150600.23.4", false},
		{"nvidia-open=580", true},
		{"nvidia-open=58", false},
		{"nvidia-open=580.95.05", true},
		{"nvidia-open=595", false},
		{"nvidia-compute-utils-G06=@nvidia-open-driver-G06-signed-cuda-kmp-default", true},
		{"other-utils=@nvidia-open-driver-G06-signed-cuda-kmp-default", false},
	} {
		out, errs, code := m.run(newZypper().Installed(strings.Fields(c.words)...))
		if (code == 0) != c.met {
			t.Errorf("%s: exit %d: %s%s", c.words, code, out, errs)
		}
	}
}

func TestRPMListNamesWhatStandsSideBySide(t *testing.T) {
	m := rpmMachine(t, "kernel-core 5.14.0-570.12.1.el9_6 x86_64", "kernel-core 5.14.0-570.49.1.el9_6 x86_64", "kernel-headers 5.14.0-570.49.1.el9_6 x86_64",
		"kernel-devel-matched 5.14.0-570.49.1.el9_6 x86_64", "gpg-pubkey d42d0685-62e36a2e (none)", "glibc 2.34-1 x86_64", "glibc 2.34-1 i686", "kernel-uek-devel 6.12.0-1.el9uek x86_64")
	want := `glibc 2.34-1
glibc.i686 2.34-1
gpg-pubkey-d42d0685-62e36a2e d42d0685-62e36a2e
kernel-core-5.14.0-570.12.1.el9_6.x86_64 5.14.0-570.12.1.el9_6
kernel-core-5.14.0-570.49.1.el9_6.x86_64 5.14.0-570.49.1.el9_6
kernel-devel-matched 5.14.0-570.49.1.el9_6
kernel-headers 5.14.0-570.49.1.el9_6
kernel-uek-devel-6.12.0-1.el9uek.x86_64 6.12.0-1.el9uek
`
	if out, errs, code := m.run(newDNF("dnf4").List()); out != want || code != 0 {
		t.Errorf("exit %d: %s\n%s", code, errs, out)
	}
}

func (m machine) file(name, text string) {
	m.t.Helper()
	path := filepath.Join(m.root, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		m.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		m.t.Fatal(err)
	}
}

// TestHoldsAreToldFromPins reads what each package manager's own tools write.
func TestHoldsAreToldFromPins(t *testing.T) {
	m := rpmMachine(t)
	m.file("etc/dnf/plugins/versionlock.list", "# Added locks on Sun Nov 22\nkernel-core-0:5.14.0-570.12.1.el9_6.*\n!bad-0:1-1.*\n# gpuguest: begin\nnvidia-driver-3:580.*-*.*\n# gpuguest: end\n")
	m.file("etc/yum/pluginconf.d/versionlock.list", "0:kernel-3.10.0-1160.119.1.el7.*\n")
	m.file("etc/dnf/versionlock.toml", "version = \"1.0\"\n[[packages]]\nname = \"kernel-core\"\n[[packages.conditions]]\nkey = \"evr\"\ncomparator = \"=\"\nvalue = \"6.19.8-300.fc44\"\n[[packages]]\nname = \"nvidia-driver\"\n[[packages.conditions]]\nkey = \"evr\"\ncomparator = \">=\"\nvalue = \"3:580\"\n")
	m.file("etc/zypp/locks", "\ntype: package\nmatch_type: glob\ncase_sensitive: on\nsolvable_name: kernel-default\n")
	m.file("etc/tdnf/locks.d/x.conf", "kernel\n")
	for name, want := range map[string]string{"dnf4": "kernel-core", "dnf5": "kernel-core", "yum": "kernel", "zypper": "kernel-default", "tdnf": "kernel"} {
		out, errs, code := m.run(rpmManagers(m.root)[name].Held())
		if strings.TrimSpace(out) != want || code != 0 {
			t.Errorf("%s: exit %d: %q %s", name, code, out, errs)
		}
	}
}

// TestPinIsInForceOnceItWasSet runs what sets a pin, with the step library's functions played, and then its check.
func TestPinIsInForceOnceItWasSet(t *testing.T) {
	for _, tool := range []string{"dnf4", "dnf5"} {
		m := rpmMachine(t, "python3-dnf-plugin-versionlock 4-1 noarch")
		m.fake("dnf", `case $* in
*"module enable nvidia-driver:580-open") mkdir -p `+m.root+`/etc/dnf/modules.d; printf '[nvidia-driver]\nname=nvidia-driver\nstream=580-open\nprofiles=\nstate=enabled\n' >`+m.root+`/etc/dnf/modules.d/nvidia-driver.module ;;
*"module reset nvidia-driver") ;;
*) echo "unplanned: dnf $*" >&2; exit 99 ;;
esac`)
		m.file("etc/dnf/plugins/versionlock.list", "kernel-core-0:5.14.0-570.12.1.el9_6.*\n")
		d := rpmManagers(m.root)[tool]
		p := Pin{Stream: "nvidia-driver:580-open", Within: "580", Names: []string{"nvidia-driver", "nvidia-open"}}
		if _, _, code := m.run(d.Pinned(p)); code == 0 {
			t.Fatalf("%s: it is in force before it was set", tool)
		}
		library := "keep() { :; }\nput() { mkdir -p \"${1%/*}\"; cat >\"$1\"; }\n"
		for range 2 {
			if out, errs, code := m.run(library + d.Pin(p)); code != 0 {
				t.Fatalf("%s: exit %d: %s%s", tool, code, out, errs)
			}
		}
		if out, _, code := m.run(d.Pinned(p)); code != 0 {
			t.Errorf("%s: not in force: %s", tool, out)
		}
		p.Within = "595"
		if out, _, code := m.run(d.Pinned(p)); code == 0 {
			t.Errorf("%s: in force for another branch: %s", tool, out)
		}
		if out, _, _ := m.run(d.Held()); tool == "dnf4" && strings.TrimSpace(out) != "kernel-core" {
			t.Errorf("the hold of before is %q", out)
		}
		// A stream alone is not in force beside a lock of gpuguest's own: that would keep the stream's packages away.
		p = Pin{Stream: "nvidia-driver:580-open"}
		if out, _, code := m.run(d.Pinned(p)); code == 0 || !strings.Contains(out, "locked") {
			t.Errorf("%s: in force beside a lock: %s", tool, out)
		}
		if out, errs, code := m.run(library + d.Pin(p) + "\n" + d.Pinned(p)); code != 0 {
			t.Errorf("%s: the lock stays: exit %d: %s%s", tool, code, out, errs)
		}
		if out, _, _ := m.run(d.Held()); tool == "dnf4" && strings.TrimSpace(out) != "kernel-core" {
			t.Errorf("the hold of before is %q once the lock is gone", out)
		}
	}
}

func TestNextVersion(t *testing.T) {
	for v, want := range map[string]string{"580": "581", "599": "600", "999": "1000", "580.95.05": "580.95.06", "580.95.09": "580.95.10", "580.119.99": "580.119.100"} {
		if got := next(v); got != want {
			t.Errorf("%s: %s, want %s", v, got, want)
		}
	}
}

func TestKeyIsCheckedWithoutGPG(t *testing.T) {
	gpg, err := exec.LookPath("gpg")
	if err != nil {
		t.Skip("no gpg on this machine to make keys with")
	}
	dir := t.TempDir()
	home := filepath.Join(dir, "home")
	if err := os.Mkdir(home, 0o700); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) string {
		cmd := exec.Command(gpg, append([]string{"--homedir", home, "--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", ""}, args...)...)
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("gpg %v: %v", args, err)
		}
		return string(out)
	}
	t.Cleanup(func() { _ = exec.Command("gpgconf", "--homedir", home, "--kill", "gpg-agent").Run() })
	var fingerprints []string
	for _, name := range []string{"one@example.com", "two@example.com"} {
		run("--quick-gen-key", name, "rsa2048", "sign", "never")
		for _, l := range strings.Split(run("--with-colons", "--fingerprint", name), "\n") {
			if f := strings.Split(l, ":"); f[0] == "fpr" {
				fingerprints = append(fingerprints, strings.ToLower(f[9]))
				break
			}
		}
	}
	m := rpmMachine(t)
	write := func(name, text string) string {
		m.file(name, text)
		return filepath.Join(m.root, name)
	}
	one, two := run("--armor", "--export", "one@example.com"), run("--armor", "--export", "two@example.com")
	key := RepoKey{File: "K.pub", ID: fingerprints[0][32:], Fingerprint: fingerprints[0]}
	for _, c := range []struct {
		name, text string
		key        RepoKey
		ok         bool
	}{
		{"the key", one, key, true},
		{"with carriage returns", strings.ReplaceAll(one, "\n", "\r\n"), key, true},
		{"by its short id", one, RepoKey{ID: key.ID}, true},
		{"another key", two, key, false},
		{"another short id", two, RepoKey{ID: key.ID}, false},
		{"two keys in one block", run("--armor", "--export"), key, false},
		{"two blocks", one + two, key, false},
		{"a page of HTML", "<html>404</html>\n", key, false},
		{"nothing", "", key, false},
		{"cut off", one[:len(one)*2/3], key, false},
	} {
		_, errs, code := m.run(CheckKey(c.key, "'"+write("key", c.text)+"'", ""))
		if (code == 0) != c.ok {
			t.Errorf("%s: exit %d: %s", c.name, code, errs)
		}
	}
}

func TestKeyThatHasExpiredIsRefused(t *testing.T) {
	gpg, err := exec.LookPath("gpg")
	if err != nil {
		t.Skip("no gpg on this machine to make keys with")
	}
	home := filepath.Join(t.TempDir(), "home")
	if err := os.Mkdir(home, 0o700); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) string {
		t.Helper()
		cmd := exec.Command(gpg, append([]string{"--homedir", home, "--batch", "--quiet", "--yes", "--pinentry-mode", "loopback", "--passphrase", ""}, args...)...)
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("gpg %v: %v", args, err)
		}
		return string(out)
	}
	t.Cleanup(func() { _ = exec.Command("gpgconf", "--homedir", home, "--kill", "gpg-agent").Run() })
	fingerprint := func(name string) string {
		for _, l := range strings.Split(run("--with-colons", "--fingerprint", name), "\n") {
			if f := strings.Split(l, ":"); f[0] == "fpr" {
				return f[9]
			}
		}
		t.Fatal("no fingerprint of " + name)
		return ""
	}
	const then = "20200101T000000"
	run("--faked-system-time", then, "--quick-gen-key", "expired@example.com", "rsa2048", "sign", "30d")
	run("--faked-system-time", then, "--quick-gen-key", "renewed@example.com", "ed25519", "sign", "30d")
	run("--faked-system-time", then, "--quick-gen-key", "subkey@example.com", "ed25519", "sign", "never")
	run("--faked-system-time", "20200102T000000", "--quick-add-key", fingerprint("subkey@example.com"), "ed25519", "sign", "30d")
	run("--quick-gen-key", "forever@example.com", "ed25519", "sign", "never")
	run("--quick-gen-key", "years@example.com", "ed25519", "sign", "10y")
	// What somebody else signs later changes nothing about when a key ends.
	run("--default-key", "forever@example.com", "--faked-system-time", "20200110T000000", "--ignore-time-conflict", "--ignore-valid-from", "--quick-sign-key", fingerprint("expired@example.com"))
	expired := run("--armor", "--export", "expired@example.com")
	binary := run("--export", "expired@example.com")
	before := run("--armor", "--export", "renewed@example.com")
	run("--faked-system-time", "20200115T000000", "--quick-set-expire", fingerprint("renewed@example.com"), "0")
	m := rpmMachine(t)
	for _, c := range []struct{ name, text, who string }{
		{"expired", expired, "expired@example.com"},
		{"expired, without armour", binary, "expired@example.com"},
		{"before it was renewed", before, "renewed@example.com"},
		{"renewed", run("--armor", "--export", "renewed@example.com"), ""},
		{"a key below it expired", run("--armor", "--export", "subkey@example.com"), ""},
		{"without an end", run("--armor", "--export", "forever@example.com"), ""},
		{"years ahead", run("--armor", "--export", "years@example.com"), ""},
		{"a page of HTML", "<html>404</html>\n", ""},
		{"nothing", "", ""},
	} {
		m.file("key", c.text)
		_, errs, code := m.run("set -eu\n" + KeyInForce("'"+filepath.Join(m.root, "key")+"'", "http://mirror.example/K.pub"))
		want := ""
		if c.who != "" {
			want = "the repository's key " + strings.ToLower(fingerprint(c.who)) + " expired on 2020-01-31: http://mirror.example/K.pub\n"
		}
		if errs != want || (code == 0) != (want == "") {
			t.Errorf("%s: exit %d: %q, want %q", c.name, code, errs, want)
		}
	}
}

func TestExtrasAreTurnedOnWhereTheyAre(t *testing.T) {
	m := rpmMachine(t)
	m.file("repos/rocky.repo", "[baseos]\nname=b\nenabled=1\n\n[crb]\nname=c\n# a comment\nenabled=0\ngpgcheck=1\n\n[crb-debug]\nenabled=0\n")
	m.file("repos/no-line.repo", "[epel]\nname=e\n")
	d := Distro{RepoFiles: filepath.Join(m.root, "repos"), Extras: []Extra{{Name: "CRB", IDs: "crb"}, {Name: "EPEL", IDs: "epel | ol9_developer_EPEL"}}}
	out, _, code := m.run(d.ExtrasCheck())
	if code == 0 || !strings.Contains(out, "CRB is not read") {
		t.Fatalf("exit %d: %s", code, out)
	}
	library := "put() { cat >\"$1.new\"; mv \"$1.new\" \"$1\"; }\n"
	if out, errs, code := m.run(library + enableSection(d.RepoFiles, "crb | crb-*", "none")); code != 0 {
		t.Fatalf("exit %d: %s%s", code, out, errs)
	}
	if out, _, code := m.run(d.ExtrasCheck()); code != 0 {
		t.Errorf("exit %d: %s", code, out)
	}
	text, err := os.ReadFile(filepath.Join(m.root, "repos/rocky.repo"))
	if err != nil {
		t.Fatal(err)
	}
	if want := "[baseos]\nname=b\nenabled=1\n\n[crb]\nenabled=1\nname=c\n# a comment\ngpgcheck=1\n\n[crb-debug]\nenabled=0\n"; string(text) != want {
		t.Errorf("the file holds %q", text)
	}
	if _, errs, code := m.run(library + enableSection(d.RepoFiles, "powertools", "no such thing")); code == 0 || !strings.Contains(errs, "no such thing") {
		t.Errorf("exit %d: %s", code, errs)
	}
}

// The ids are those of real guests: leapp-repository and PerfKitBenchmarker name them, and what yum repolist says.
func TestCodeReadyBuilderIsTurnedOnInEveryCloud(t *testing.T) {
	rhel, err := For(facts.OS{}, "rhel:9")
	if err != nil {
		t.Fatal(err)
	}
	builder := rhel.Extras[0]
	for name, c := range map[string]struct {
		on, off []string // sections as the guest has them
		want    string   // those that are turned on
	}{
		"subscription-manager": {
			[]string{"rhel-9-for-x86_64-baseos-rpms", "rhel-9-for-x86_64-appstream-rpms"},
			[]string{"codeready-builder-for-rhel-9-x86_64-rpms", "codeready-builder-for-rhel-9-x86_64-eus-rpms", "codeready-builder-for-rhel-9-x86_64-debug-rpms", "codeready-builder-beta-for-rhel-9-x86_64-rpms"},
			"codeready-builder-for-rhel-9-x86_64-rpms"},
		"AWS":           {[]string{"rhel-9-baseos-rhui-rpms"}, []string{"codeready-builder-for-rhel-9-rhui-rpms", "codeready-builder-for-rhel-9-rhui-debug-rpms", "codeready-builder-for-rhel-9-rhui-source-rpms"}, "codeready-builder-for-rhel-9-rhui-rpms"},
		"Azure":         {[]string{"rhel-9-for-x86_64-baseos-rhui-rpms"}, []string{"codeready-builder-for-rhel-9-x86_64-rhui-rpms", "codeready-builder-for-rhel-9-x86_64-rhui-source-rpms"}, "codeready-builder-for-rhel-9-x86_64-rhui-rpms"},
		"Azure's EUS":   {[]string{"rhel-9-for-x86_64-baseos-eus-rhui-rpms"}, []string{"codeready-builder-for-rhel-9-x86_64-rhui-rpms", "codeready-builder-for-rhel-9-x86_64-eus-rhui-rpms"}, "codeready-builder-for-rhel-9-x86_64-eus-rhui-rpms"},
		"Google":        {[]string{"rhui-rhel-9-for-x86_64-baseos-rhui-rpms", "rhui-codeready-builder-for-rhel-9-x86_64-rhui-debug-rpms"}, []string{"rhui-codeready-builder-for-rhel-9-x86_64-rhui-rpms"}, "rhui-codeready-builder-for-rhel-9-x86_64-rhui-rpms"},
		"Google, arm64": {[]string{"rhui-rhel-9-for-aarch64-baseos-rhui-rpms"}, []string{"rhui-codeready-builder-for-rhel-9-aarch64-rhui-rpms"}, "rhui-codeready-builder-for-rhel-9-aarch64-rhui-rpms"},
	} {
		m := newMachine(t)
		text := ""
		for _, id := range c.on {
			text += "[" + id + "]\nbaseurl=https://rhui.example/" + id + "/\nenabled=1\n"
		}
		for _, id := range c.off {
			text += "[" + id + "]\nenabled=0\n"
		}
		m.file("etc/yum.repos.d/rh-cloud.repo", text)
		d := Distro{RepoFiles: "/etc/yum.repos.d", Suites: rhel.Suites, Extras: []Extra{builder}}
		if out, code := m.at(d.ExtrasCheck()); code == 0 {
			t.Errorf("%s: it is read before it is turned on: %s", name, out)
		}
		if out, code := m.at(builder.Enable); code != 0 {
			t.Errorf("%s: exit %d: %s", name, code, out)
			continue
		}
		if out, code := m.at(d.ExtrasCheck()); code != 0 {
			t.Errorf("%s: exit %d: %s", name, code, out)
		}
		out, _ := m.at(sections("/etc/yum.repos.d"))
		got := strings.Fields(out)
		for _, id := range c.on {
			got = slices.DeleteFunc(got, func(s string) bool { return s == id })
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%s: turned on are %q, want %s", name, got, c.want)
		}
		var sources []facts.Source
		for _, id := range append(c.on, c.want) {
			sources = append(sources, facts.Source{URI: "https://rhui.example/" + id + "/", Suite: id})
		}
		f := facts.Facts{Sources: sources}
		if missing := d.ExtrasMissing(f); len(missing) != 0 {
			t.Errorf("%s: still missing: %+v", name, missing)
		}
		if own := d.Archive(f, ""); !slices.Equal(own, []string{"https://rhui.example/" + c.on[0]}) && name != "subscription-manager" {
			t.Errorf("%s: its own repositories are %q", name, own)
		}
	}
}

// A release package of Oracle Linux 10 leaves its repository off, and a person may have turned one off.
func TestReleasePackageIsFollowedByItsRepository(t *testing.T) {
	const file, off = "etc/yum.repos.d/oracle-epel-ol10.repo", "[ol10_u0_developer_EPEL]\nname=EPEL\nenabled=0\n"
	ol, err := For(facts.OS{}, "ol:10")
	if err != nil {
		t.Fatal(err)
	}
	d := Distro{RepoFiles: "/etc/yum.repos.d", Extras: ol.Extras[1:]}
	for name, c := range map[string]struct {
		before string // the package, where the guest had it
		brings string // what its repository file holds
		back   string // what the way back puts in place: "files", "absent", "" nothing was changed
	}{
		"the package leaves it off":     {"", off, "absent"},
		"the package turns it on":       {"", strings.Replace(off, "=0", "=1", 1), ""},
		"somebody turned it off":        {"oracle-epel-release-el10 1.0-4.el10 x86_64", off, "files"},
		"no section of that name in it": {"", "[another]\nenabled=0\n", "fails"},
	} {
		m := rpmMachine(t, c.before)
		m.file("state/before/packages", c.before+"\n")
		if c.before != "" {
			m.file(file, c.brings)
		}
		m.fake("dnf", `case $* in *"install oracle-epel-release-el10") mkdir -p `+m.root+`/etc/yum.repos.d; printf '`+strings.ReplaceAll(c.brings, "\n", `\n`)+`' >`+m.root+`/`+file+` ;; *) echo "unplanned: dnf $*" >&2; exit 99 ;; esac`)
		out, code := m.at(ol.Extras[1].Enable)
		if c.back == "fails" {
			if code == 0 || !strings.Contains(out, "brings no EPEL") {
				t.Errorf("%s: exit %d: %s", name, code, out)
			}
			continue
		}
		if code != 0 {
			t.Errorf("%s: exit %d: %s", name, code, out)
			continue
		}
		if out, code := m.at(d.ExtrasCheck()); code != 0 {
			t.Errorf("%s: exit %d: %s", name, code, out)
		}
		for _, kind := range []string{"files", "absent"} {
			if _, err := os.Stat(filepath.Join(m.root, "state/before", kind, m.root, file)); (err == nil) != (kind == c.back) {
				t.Errorf("%s: kept as %s: %v", name, kind, err == nil)
			}
		}
	}
}

func TestVaultIsReadInPlaceOfMirrorsThatAreGone(t *testing.T) {
	m := rpmMachine(t)
	stock := "[base]\nname=CentOS-$releasever - Base\nmirrorlist=http://mirrorlist.centos.org/?release=$releasever&repo=os\n#baseurl=http://mirror.centos.org/centos/$releasever/os/$basearch/\ngpgcheck=1\n"
	m.file("repos/CentOS-Base.repo", stock)
	m.file("repos/other.repo", "[other]\nbaseurl=http://other.example/\n")
	d := Distro{RepoFiles: filepath.Join(m.root, "repos"), Extras: []Extra{centosVault(), {Name: "other", IDs: "other"}}}
	if out, _, code := m.run(d.ExtrasCheck()); code == 0 || !strings.Contains(out, "mirrorlist.centos.org is read") {
		t.Fatalf("exit %d: %s", code, out)
	}
	library := "put() { cat >\"$1.new\"; mv \"$1.new\" \"$1\"; }\n"
	for range 2 {
		if out, errs, code := m.run(library + strings.ReplaceAll(centosVault().Enable, "/etc/yum.repos.d", d.RepoFiles)); code != 0 {
			t.Fatalf("exit %d: %s%s", code, out, errs)
		}
	}
	text, err := os.ReadFile(filepath.Join(m.root, "repos/CentOS-Base.repo"))
	if err != nil {
		t.Fatal(err)
	}
	want := "[base]\nname=CentOS-$releasever - Base\n#mirrorlist=http://mirrorlist.centos.org/?release=$releasever&repo=os\nbaseurl=https://vault.centos.org/centos/$releasever/os/$basearch/\ngpgcheck=1\n"
	if string(text) != want {
		t.Errorf("the file holds %q", text)
	}
	if out, _, code := m.run(d.ExtrasCheck()); code != 0 {
		t.Errorf("exit %d: %s", code, out)
	}
	f := facts.Facts{Sources: []facts.Source{{URI: "http://mirrorlist.centos.org/?release=7", Suite: "base"}, {URI: "http://other.example/", Suite: "other"}}}
	if got := d.ExtrasMissing(f); len(got) != 1 || got[0].Gone == "" {
		t.Errorf("missing are %+v", got)
	}
	f.Sources[0].URI = "https://vault.centos.org/centos/7/os/"
	if got := d.ExtrasMissing(f); len(got) != 0 {
		t.Errorf("missing are %+v", got)
	}
}

func TestToolsetFollowsTheKernelsCompiler(t *testing.T) {
	d, err := For(facts.OS{}, "ol:9")
	if err != nil {
		t.Fatal(err)
	}
	for compiler, want := range map[string]string{
		"gcc (GCC) 14.2.1 20250110 (Red Hat 14.2.1-7)": "gcc-toolset-14",
		"gcc (GCC) 11.5.0 20240719 (Red Hat 11.5.0-5)": "",
		"":                     "",
		"clang version 19.1.0": "",
	} {
		if pkg, _ := d.Toolset(facts.Facts{Kernel: facts.Kernel{Compiler: compiler}}); pkg != want {
			t.Errorf("%q: %q, want %q", compiler, pkg, want)
		}
	}
}

func TestVaultIsAskedForTheKernelsOwnMinorRelease(t *testing.T) {
	d, err := For(facts.OS{}, "rocky:9")
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"https://dl.rockylinux.org/vault/rocky/9.5/BaseOS/x86_64/os/", "https://dl.rockylinux.org/vault/rocky/9.5/AppStream/x86_64/os/"}
	if got := d.Vault.URLs("5.14.0-503.14.1.el9_5.x86_64", "x86_64"); !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	if got := d.Vault.URLs("5.14.0-620.el9.x86_64", "x86_64"); got != nil {
		t.Errorf("a release that names no minor one: %q", got)
	}
	const devel = "kernel-devel-5.14.0-503.14.1.el9_5.x86_64"
	offered := `case $* in *repoquery*) echo "kernel-devel 5.14.0-503.14.1.el9_5 x86_64" ;; *) echo "unplanned: dnf $*" >&2; exit 99 ;; esac`
	vault := `case $* in *repoquery*) ;; *gpuguest-vault-app*"install ` + devel + `") ;; *) echo "unplanned: dnf $*" >&2; exit 99 ;; esac`
	for name, c := range map[string]struct {
		packages []string
		dnf      string
		log      int // dnf calls
	}{
		"it is there":            {[]string{"kernel-devel 5.14.0-503.14.1.el9_5 x86_64"}, `echo "unplanned: dnf $*" >&2; exit 99`, 0},
		"it is offered":          {nil, offered, 1},
		"the vault alone has it": {nil, vault, 3},
	} {
		m := rpmMachine(t, c.packages...)
		m.fake("dnf", c.dnf)
		out, errs, code := m.run(d.FromVault("5.14.0-503.14.1.el9_5.x86_64", "x86_64", "echo refresh", []string{devel}))
		if n := strings.Count(m.log(), "dnf "); code != 0 || n != c.log || strings.Contains(out, "vault") != (c.log == 3) {
			t.Errorf("%s: exit %d, %d calls of dnf: %s%s", name, code, n, out, errs)
		}
	}
}

// CentOS's kernels do not name their minor release, and yum has to be given the vault by a file.
func TestCentOSsVaultIsAskedForTheKernelsOwnMinorRelease(t *testing.T) {
	for _, c := range []struct{ as, release, first string }{
		{"centos:7", "3.10.0-1062.4.1.el7.x86_64", "https://vault.centos.org/7.7.1908/os/x86_64/"},
		{"centos:7", "3.10.0-957.el7.x86_64", "https://vault.centos.org/7.6.1810/os/x86_64/"},
		{"centos:7", "3.10.0-1234.el7.x86_64", ""},
		{"centos:7", "6.1.0-50.el7.elrepo.x86_64", ""},
		{"centos:8", "4.18.0-193.28.1.el8_2.x86_64", "https://vault.centos.org/8.2.2004/BaseOS/x86_64/os/"},
		{"centos:8", "4.18.0-348.el8.x86_64", "https://vault.centos.org/8.5.2111/BaseOS/x86_64/os/"},
		{"centos:8", "4.18.0-553.6.1.el8.x86_64", ""},
	} {
		d, err := For(facts.OS{}, c.as)
		if err != nil {
			t.Fatal(err)
		}
		urls := d.Vault.URLs(c.release, "x86_64")
		if c.first == "" && urls != nil || c.first != "" && (len(urls) != 2 || urls[0] != c.first) {
			t.Errorf("%s, %s: %q", c.as, c.release, urls)
		}
	}
	d, err := For(facts.OS{}, "centos:7")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, release, says string }{
		{"known", "3.10.0-1062.4.1.el7.x86_64", "look in the vault"},
		{"unknown", "3.10.0-1234.el7.x86_64", "is not known, so that the vault is not looked in"},
	} {
		m := rpmMachine(t)
		m.file("RPM-GPG-KEY-CentOS-7", "a key")
		d.Vault.Keys = filepath.Join(m.root, "RPM-GPG-KEY-CentOS-7")
		devel := "kernel-devel-" + c.release
		m.fake("yum", `case $* in
"-q info "*) exit 1 ;;
"-y -c "*" install `+devel+`") cp "$3" `+m.root+`/conf ;;
*) echo "unplanned: yum $*" >&2; exit 99 ;;
esac`)
		out, errs, code := m.run(d.FromVault(c.release, "x86_64", "echo refresh", []string{devel}))
		if code != 0 || !strings.Contains(out, c.says) || strings.Contains(out, "not either") {
			t.Errorf("%s: exit %d: %s%s", c.name, code, out, errs)
		}
		conf, _ := os.ReadFile(filepath.Join(m.root, "conf"))
		want := "baseurl=https://vault.centos.org/7.7.1908/updates/x86_64/\nenabled=1\ngpgcheck=1\ngpgkey=file://" + d.Vault.Keys + "\n"
		if strings.Contains(string(conf), want) != (c.name == "known") {
			t.Errorf("%s: yum was given %q", c.name, conf)
		}
	}
}
