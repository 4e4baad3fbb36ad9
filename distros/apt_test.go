package distros

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write the golden files anew")

// commands are all the texts that apt builds, with awkward arguments among plain ones.
func commands() []struct{ name, text string } {
	a := apt{}
	awkward := "it's $HOME; `x`"
	return []struct{ name, text string }{
		{"install", a.Install("nvidia-open-580", "libfoo=1.2~rc1-1")},
		{"install awkward", a.Install(awkward)},
		{"install a file", a.InstallFile("/var/lib/gpuguest/cuda-keyring.deb")},
		{"purge", a.Purge("nvidia-smi", "libcuda1:amd64")},
		{"purge awkward", a.Purge("dkms", awkward)},
		{"downgrade", a.Downgrade("libc6", "2.36-9")},
		{"pin", a.Pin(Pin{Suite: "bookworm", Names: []string{"*nvidia*"}})},
		{"pinned", a.Pinned(Pin{Suite: "bookworm", Names: []string{"*nvidia*"}})},
		{"hold", a.Hold("linux-image-amd64", awkward)},
		{"unhold", a.Unhold("linux-image-amd64")},
		{"held", a.Held()},
		{"list", a.List()},
		{"manual", a.Manual()},
		{"sound", a.Sound()},
		{"repair", a.Repair()},
		{"installed", a.Installed("dkms", "gcc")},
		{"offered", a.Offered("dkms", "gcc")},
		{"fetched", a.Fetched("https://user:secret@developer.download.nvidia.com/compute/cuda/repos/debian12/x86_64/")},
		{"download", a.Download("https://example.com/a%20b", "/var/tmp/x y.deb", strings.Repeat("AB", 32))},
		{"wait for the lock", a.WaitLock(600)},
		{"refresh all", a.Refresh(Refresh{})},
		{"refresh what is needed", a.Refresh(Refresh{Need: []string{"http://a/debian/", "http://b/x"}})},
		{"refresh one list", a.Refresh(Refresh{Need: []string{"http://a/debian"}, Only: "/etc/apt/sources.list.d/x y.list"})},
		{"quiet", a.Quiet("echo hello\n")},
		{"read a bundle", a.Local("/var/lib/gpuguest/bundle")},
		{"a bundle is complete", a.Complete("dkms", "nvidia-open-580")},
	}
}

func TestAptCommandsMatchTheirGoldens(t *testing.T) { matchGolden(t, "apt", commands()) }

// matchGolden holds every text that a manager builds against testdata/NAME.golden.
func matchGolden(t *testing.T, name string, all []struct{ name, text string }) {
	t.Helper()
	var got bytes.Buffer
	for _, c := range all {
		fmt.Fprintf(&got, "== %s\n%s\n", c.name, c.text)
	}
	golden := "testdata/" + name + ".golden"
	if *update {
		if err := os.WriteFile(golden, got.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Bytes(), want) {
		t.Errorf("%s differs; run go test ./distros -update and look at the difference", golden)
	}
}

func TestAptCommandsAreShellAndTakeARedirection(t *testing.T) { checkCommands(t, commands()) }

// checkCommands has shells and shellcheck read every text, alone, before a redirection and in a substitution.
func checkCommands(t *testing.T, all []struct{ name, text string }) {
	t.Helper()
	for _, c := range all {
		t.Run(c.name, func(t *testing.T) {
			if strings.HasSuffix(c.text, "\n") {
				t.Error("ends in a newline: what a caller puts behind it would be a command of its own")
			}
			script := "#!/bin/sh\nset -eu\n{ " + c.text + "; }\n" + c.text + " >/dev/null || { echo no; exit 1; }\n"
			for _, check := range [][]string{{"/bin/sh", "-n"}, {"busybox", "sh", "-n"}, {"shellcheck", "-s", "sh", "-S", "warning", "-"}} {
				bin, err := exec.LookPath(check[0])
				if err != nil {
					continue
				}
				cmd := exec.Command(bin, check[1:]...)
				cmd.Stdin = strings.NewReader(script)
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Errorf("%s: %v\n%s", check[0], err, out)
				}
			}
		})
	}
}

// machine is a directory that stands before apt's paths, and a PATH of fakes before the real one.
type machine struct {
	t    *testing.T
	root string
}

func newMachine(t *testing.T) machine {
	t.Helper()
	if _, err := exec.LookPath("/bin/sh"); err != nil {
		t.Skip("no /bin/sh")
	}
	m := machine{t, t.TempDir()}
	for _, d := range []string{"bin", "var/lib/dpkg/updates", "var/lib/apt/lists", "var/cache/apt/archives"} {
		if err := os.MkdirAll(filepath.Join(m.root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	// What a test does not fake must not reach the machine that runs it.
	for _, name := range []string{"apt-get", "apt-cache", "apt-mark", "dpkg", "dpkg-query", "systemctl"} {
		m.fake(name, `echo "unplanned: `+name+` $*" >&2; exit 99`)
	}
	return m
}

// fake puts a command into the machine's PATH. Each call is logged as one line.
func (m machine) fake(name, script string) {
	m.t.Helper()
	body := "#!/bin/sh\necho \"" + name + " $*\" >>\"" + m.root + "/log\"\n" + script + "\n"
	if err := os.WriteFile(filepath.Join(m.root, "bin", name), []byte(body), 0o755); err != nil {
		m.t.Fatal(err)
	}
}

// run runs a text as the engine does and returns what it printed, and its exit code.
func (m machine) run(text string) (stdout, stderr string, code int) {
	m.t.Helper()
	cmd := exec.Command("/bin/sh", "-c", "set -eu\n"+text)
	cmd.Env = []string{"LC_ALL=C", "PATH=" + m.root + "/bin:/usr/bin:/bin", "TMPDIR=" + m.root}
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if _, exited := err.(*exec.ExitError); err != nil && !exited {
		m.t.Fatal(err)
	}
	if strings.Contains(errs.String(), "unplanned: ") {
		m.t.Fatalf("it ran something unplanned: %s", errs.String())
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

func (m machine) log() string {
	b, err := os.ReadFile(filepath.Join(m.root, "log"))
	if err != nil && !os.IsNotExist(err) {
		m.t.Fatal(err)
	}
	return string(b)
}

func TestRefreshOutlivesABrokenThirdPartySource(t *testing.T) {
	const good = "Hit:1 http://m/debian bookworm InRelease\nReading package lists...\n"
	for _, c := range []struct {
		name string
		out  string
		exit int
		need []string
		code int
		says string // on standard error
	}{
		{"all well", good, 0, []string{"http://m/debian"}, 0, ""},
		{"a dead host", "Err:1 https://third.example stable InRelease\n  Could not resolve 'third.example'\n" + good +
			"W: Failed to fetch https://third.example/dists/stable/InRelease  Could not resolve 'third.example'\nW: Some index files failed to download. They have been ignored, or old ones used instead.\n",
			0, []string{"http://m/debian/"}, 0, "third.example"},
		{"an unsigned source", good + "W: GPG error: https://third.example stable InRelease: The following signatures couldn't be verified because the public key is not available: NO_PUBKEY 1234\nE: The repository 'https://third.example stable InRelease' is not signed.\n",
			100, []string{"http://m/debian"}, 0, "NO_PUBKEY 1234"},
		{"the needed one is dead", "Err:1 http://m/debian bookworm InRelease\n  Could not connect\nE: Failed to fetch http://m/debian/dists/bookworm/InRelease  Could not connect\nE: Some index files failed to download. They have been ignored, or old ones used instead.\n",
			100, []string{"http://m/debian"}, 100, "Failed to fetch http://m/debian/dists"},
		{"the needed one is dead and apt does not mind", "Err:1 http://m/debian bookworm InRelease\n  Temporary failure\nW: Failed to fetch http://m/debian/dists/bookworm/InRelease  Temporary failure\n",
			0, []string{"http://m/debian"}, 100, "Temporary failure"},
		{"a neighbour with a longer name is another source", "Err:1 http://m/debian-security bookworm-security InRelease\n" + good, 0, []string{"http://m/debian"}, 0, "debian-security"},
		{"an error that names no source is everybody's", "E: Malformed entry 1 in list file /etc/apt/sources.list.d/x.list (Suite)\nE: The list of sources could not be read.\n",
			100, []string{"http://m/debian"}, 100, "Malformed entry"},
		{"two Signed-By for one source", "E: Conflicting values set for option Signed-By regarding source https://developer.download.nvidia.com/compute/cuda/repos/debian12/x86_64/ /: a != b\nE: The list of sources could not be read.\n",
			100, []string{"http://m/debian"}, 100, "The list of sources could not be read"},
		{"with nothing named all must refresh", "Err:1 https://third.example stable InRelease\n" + good, 0, nil, 100, "third.example"},
		{"with nothing named and all well", good, 0, nil, 0, ""},
		{"apt fails without a word", "", 100, []string{"http://m/debian"}, 100, ""},
		{"a source from a file", "Err:1 file:/srv/repo ./ InRelease\n" + good, 0, []string{"http://m/debian"}, 0, "file:/srv/repo"},
		{"the needed source from a file", "Err:1 file:/srv/repo ./ InRelease\n" + good, 0, []string{"file:/srv/repo/"}, 100, "file:/srv/repo"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newMachine(t)
			m.fake("apt-get", "cat <<'EOF'\n"+c.out+"EOF\nexit "+fmt.Sprint(c.exit))
			out, errs, code := m.run(apt{}.Refresh(Refresh{Need: c.need}))
			if code != c.code || !strings.Contains(errs, c.says) || c.says == "" && errs != "" {
				t.Errorf("exit %d, stderr %q; want %d, %q", code, errs, c.code, c.says)
			}
			if out != c.out {
				t.Errorf("apt's own output is lost: %q", out)
			}
			if left, _ := filepath.Glob(m.root + "/tmp.*"); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

func TestPurgeTakesOnlyWhatIsThere(t *testing.T) {
	m := newMachine(t)
	m.fake("dpkg-query", `case $4$3 in *here*) echo installed ;; *conf*) echo config-files ;; *gone*) echo not-installed ;; *) exit 1 ;; esac`)
	m.fake("apt-get", "")
	if _, errs, code := m.run(apt{}.Purge("here", "never", "gone", "conf")); code != 0 {
		t.Fatalf("exit %d: %s", code, errs)
	}
	if log := m.log(); !strings.Contains(log, "apt-get purge ") || !strings.HasSuffix(log, "-- here conf\n") {
		t.Errorf("ran:\n%s", log)
	}
	m = newMachine(t)
	m.fake("dpkg-query", "exit 1")
	if _, errs, code := m.run(apt{}.Purge("never")); code != 0 {
		t.Errorf("nothing to purge: exit %d: %s", code, errs)
	}
}

func TestPurgeLeavesPackagesOfOthersAlone(t *testing.T) {
	m := newMachine(t)
	m.fake("dpkg-query", "echo installed")
	m.fake("apt-get", `case $1 in -s) printf 'Purg here:amd64 [1]\nRemv somebody-elses [2]\n' ;; *) echo "purged anyway" >&2 ;; esac`)
	if _, errs, code := m.run(apt{}.Purge("here")); code != 1 || !strings.Contains(errs, "somebody-elses") || strings.Contains(errs, "anyway") {
		t.Errorf("exit %d: %s", code, errs)
	}
}

func TestInstalledWantsEveryPackageFullyInstalled(t *testing.T) {
	for _, c := range []struct {
		says string
		exit int
		code int
		out  string
	}{
		{"installed dkms 3.0.10\ninstalled gcc 12\n", 0, 0, ""},
		{"installed dkms 3.0.10\nhalf-configured gcc 12\n", 0, 1, "gcc is not installed\n"},
		{"installed dkms 3.0.10\ninstalled dkms 3.0.10\n", 1, 1, "gcc is not installed\n"},
		{"installed dkms 3.0.10\nnot-installed gcc \n", 1, 1, "gcc is not installed\n"},
		{"installed dkms 3.0.10\ninstalled gcc-12 12\n", 1, 1, "gcc is not installed\n"},
		{"", 1, 1, "dkms is not installed\ngcc is not installed\n"},
	} {
		m := newMachine(t)
		m.fake("dpkg-query", "cat <<'EOF'\n"+c.says+"EOF\nexit "+fmt.Sprint(c.exit))
		for how, script := range map[string]string{
			"asked":    apt{}.Installed("dkms", "gcc"),
			"snapshot": apt{}.Snapshot() + " || :\nPATH=/nowhere\n" + apt{}.Installed("dkms", "gcc"),
		} {
			if out, _, code := m.run(script); code != c.code || out != c.out {
				t.Errorf("%q, %s: %q, exit %d; want %q, %d", c.says, how, out, code, c.out, c.code)
			}
		}
		if _, _, code := m.run(apt{}.Installed("dkms", "gcc") + " >/dev/null || { echo not all; exit 7; }"); code != c.code*7 {
			t.Errorf("%q with a redirection behind: exit %d, want %d", c.says, code, c.code*7)
		}
	}
}

func TestOfferedWantsACandidateForEveryPackage(t *testing.T) {
	const policy = "dkms:\n  Installed: (none)\n  Candidate: 3.0.10-8\n  Version table:\n     3.0.10-8 500\n        500 http://m/debian bookworm/main amd64 Packages\n"
	for _, c := range []struct {
		says string
		code int
		out  string
	}{
		{policy + "gcc:\n  Installed: 4:12.2.0-3\n  Candidate: 4:12.2.0-3\n", 0, "dkms 3.0.10-8\ngcc 4:12.2.0-3\n"},
		{policy + "gcc:\n  Installed: (none)\n  Candidate: (none)\n", 1, "dkms 3.0.10-8\n"},
		{policy, 1, "dkms 3.0.10-8\n"},
		{"", 1, ""},
	} {
		m := newMachine(t)
		m.fake("apt-cache", "cat <<'EOF'\n"+c.says+"EOF")
		if out, _, code := m.run(apt{}.Offered("dkms", "gcc")); code != c.code || out != c.out {
			t.Errorf("%q: %q, exit %d; want %q, %d", c.says, out, code, c.out, c.code)
		}
	}
}

func TestQuietStopsTimersAndStartsThemAgainHoweverItEnds(t *testing.T) {
	if _, err := os.Stat("/run/systemd/system"); err == nil {
		t.Skip("this machine runs systemd; the path is not one a test can move")
	}
	m := newMachine(t)
	// The only thing that differs from a guest is the directory that tells systemd is there.
	text := func(script string) string {
		return strings.ReplaceAll(apt{}.Quiet(script), "/run/systemd/system", m.root)
	}
	m.fake("systemctl", `case "$*" in "is-active --quiet apt-daily.timer") exit 0 ;; is-active*) exit 3 ;; esac`)
	for _, c := range []struct {
		script string
		code   int
	}{{"true", 0}, {"exit 7", 7}, {"false\necho not reached", 1}, {"sh -c 'kill -TERM $PPID'; sleep 1", 143}} {
		os.Remove(filepath.Join(m.root, "log"))
		out, errs, code := m.run(text(c.script))
		log := m.log()
		if code != c.code || strings.Contains(out, "not reached") {
			t.Errorf("%q: exit %d, want %d: %s%s", c.script, code, c.code, out, errs)
		}
		if !strings.HasSuffix(log, "systemctl stop apt-daily.timer\nsystemctl start --no-block apt-daily.timer\n") {
			t.Errorf("%q ran:\n%s", c.script, log)
		}
		if strings.Contains(log, "stop apt-daily-upgrade.timer") {
			t.Errorf("a timer that was not active was touched:\n%s", log)
		}
	}
}

func TestQuietRunsWithoutSystemd(t *testing.T) {
	if _, err := os.Stat("/run/systemd/system"); err == nil {
		t.Skip("this machine runs systemd")
	}
	m := newMachine(t)
	out, errs, code := m.run(apt{}.Quiet("echo done\n") + " | cat")
	if out != "done\n" || code != 0 || m.log() != "" {
		t.Errorf("%q %q %d, ran %q", out, errs, code, m.log())
	}
}

func TestWaitLockNamesTheHolderAndGivesUp(t *testing.T) {
	m := newMachine(t)
	path := filepath.Join(m.root, "var/lib/dpkg/lock-frontend")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	wait := apt{root: m.root}.WaitLock
	if out, errs, code := m.run(wait(0)); code != 0 || out+errs != "" {
		t.Errorf("nobody holds it: exit %d, %q", code, out+errs)
	}
	lock := syscall.Flock_t{Type: syscall.F_WRLCK}
	if err := syscall.FcntlFlock(f.Fd(), syscall.F_SETLK, &lock); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile("/proc/locks"); err != nil || !bytes.Contains(b, []byte(fmt.Sprint(" ", os.Getpid(), " "))) {
		t.Skip("this kernel does not show its locks")
	}
	_, errs, code := m.run(wait(0))
	if code != 75 || !strings.Contains(errs, fmt.Sprintf("process %d (", os.Getpid())) || !strings.Contains(errs, "holds "+path) || !strings.Contains(errs, "still held after 0 s") {
		t.Errorf("held: exit %d, %q", code, errs)
	}
	released := make(chan struct{})
	go func() {
		defer close(released)
		time.Sleep(300 * time.Millisecond)
		lock.Type = syscall.F_UNLCK
		if err := syscall.FcntlFlock(f.Fd(), syscall.F_SETLK, &lock); err != nil {
			t.Error(err)
		}
	}()
	_, errs, code = m.run(wait(20))
	<-released
	if code != 0 || strings.Count(errs, "waiting: ") != 1 {
		t.Errorf("released while waiting: exit %d, %q", code, errs)
	}
}

func TestDownloadKeepsOnlyWhatHasTheSum(t *testing.T) {
	const helper = "/usr/lib/apt/apt-helper"
	m := newMachine(t)
	dest := filepath.Join(m.root, "key ring.deb")
	// apt-helper is named by its path, which the fake takes.
	text := func(sum string) string {
		return strings.ReplaceAll(apt{}.Download("http://m/x.deb", dest, sum), helper, m.root+"/bin/apt-helper")
	}
	const sum = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824" // of "hello"
	m.fake("apt-helper", `[ "$3 $4 ${6%%:*}" = "download-file http://m/x.deb SHA256" ] || exit 98; printf hello >"$5"`)
	if _, errs, code := m.run(text(strings.ToUpper(sum))); code != 0 {
		t.Fatalf("exit %d: %s", code, errs)
	}
	if b, err := os.ReadFile(dest); err != nil || string(b) != "hello" {
		t.Fatalf("%q, %v", b, err)
	}
	for name, fake := range map[string]string{"another content": `printf evil >"$5"`, "a failure": `printf half >"$5"; exit 100`, "a wrong sum as apt tells it": `printf evil >"$5.FAILED"; exit 100`} {
		m.fake("apt-helper", fake)
		if _, _, code := m.run(text(sum)); code == 0 {
			t.Errorf("%s: exit 0", name)
		}
		if b, _ := os.ReadFile(dest); string(b) != "hello" {
			t.Errorf("%s: what was there is now %q", name, b)
		}
		if left, _ := filepath.Glob(dest + ".*"); len(left) > 0 {
			t.Errorf("%s: %v is left", name, left)
		}
	}
}

func TestFetchedFindsTheListByAptsOwnName(t *testing.T) {
	m := newMachine(t)
	a := apt{root: m.root}
	for uri, file := range map[string]string{
		// Names that apt 2.6 gave to lists of such sources.
		"file:/srv/gpu/x86_64/":           "_srv_gpu_x86%5f64_Packages.lz4",
		"http://127.0.0.1:18099/x86_64/":  "127.0.0.1:18099_x86%5f64_Packages.lz4",
		"https://u:p@example.com/a~b/c+d": "example.com_a%7eb_c+d_Packages",
		"http://m.example/debian":         "m.example_debian_dists_bookworm_main_binary-amd64_Packages",
	} {
		if _, _, code := m.run(a.Fetched(uri)); code == 0 {
			t.Errorf("%s: found before it was there", uri)
		}
		if err := os.WriteFile(filepath.Join(m.root, "var/lib/apt/lists", file), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if _, errs, code := m.run(a.Fetched(uri) + " || { echo no; exit 1; }"); code != 0 {
			t.Errorf("%s: not found by %s: %s", uri, file, errs)
		}
	}
}

func TestSoundNamesWhatIsHalfInstalled(t *testing.T) {
	m := newMachine(t)
	a := apt{root: m.root}
	m.fake("dpkg-query", "printf 'installed bash 5\\nconfig-files old 1\\n'")
	if out, errs, code := m.run(a.Sound()); code != 0 || out+errs != "" {
		t.Errorf("sound: exit %d, %q", code, out+errs)
	}
	if err := os.WriteFile(filepath.Join(m.root, "var/lib/dpkg/updates/0001"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if out, _, code := m.run(a.Sound()); code == 0 || !strings.Contains(out, "interrupted") {
		t.Errorf("cut off: exit %d, %q", code, out)
	}
	m = newMachine(t)
	m.fake("dpkg-query", "printf 'installed bash 5\\nhalf-configured nvidia-kernel-dkms 1\\n'")
	if out, _, code := m.run(apt{root: m.root}.Sound()); code == 0 || !strings.Contains(out, "nvidia-kernel-dkms is half-configured") {
		t.Errorf("half installed: exit %d, %q", code, out)
	}
}

func TestRepairLooksForBrokenDependenciesOnlyAfterDpkg(t *testing.T) {
	m := newMachine(t)
	m.fake("dpkg", "")
	m.fake("apt-get", `[ "$1" != check ]`)
	if _, errs, code := m.run(apt{}.Repair()); code != 0 {
		t.Fatalf("exit %d: %s", code, errs)
	}
	log := strings.Split(strings.TrimSpace(m.log()), "\n")
	if len(log) != 3 || !strings.HasPrefix(log[0], "dpkg ") || !strings.HasPrefix(log[1], "apt-get check") || !strings.HasSuffix(log[2], "--fix-broken") {
		t.Errorf("ran %q", log)
	}
	m = newMachine(t)
	m.fake("dpkg", "")
	m.fake("apt-get", `[ "$1" = check ]`)
	m.fake("dpkg-query", "echo installed")
	if _, errs, code := m.run(apt{}.Repair()); code != 0 || strings.Contains(m.log(), "--fix-broken") {
		t.Errorf("sound guest: exit %d: %s, ran %q", code, errs, m.log())
	}
	// dpkg killed while it unpacked: "configure -a" passes such a package over and "check" finds no fault
	// in it (seen with dpkg 1.21.23 and apt 2.6.2).
	m = newMachine(t)
	m.fake("dpkg", "")
	m.fake("dpkg-query", "printf 'installed\\nhalf-installed\\n'")
	m.fake("apt-get", "")
	if _, errs, code := m.run(apt{}.Repair()); code != 0 || !strings.Contains(m.log(), "--fix-broken") {
		t.Errorf("half-installed package: exit %d: %s, ran %q", code, errs, m.log())
	}
}
