package plan

import (
	"crypto/sha256"
	"encoding/hex"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"gpuguest/distros"
	"gpuguest/internal/choice"
	"gpuguest/internal/facts"
	"gpuguest/steps"
)

// systemPath is a path of a guest in a step's script, at the start of a word.
var systemPath = regexp.MustCompile("(^|[-\\s\"'=:(`<>|;])/(etc|opt|usr/local|usr/share|var/log|var/lib)\\b")

// anyPath is one of those wherever it stands.
var anyPath = regexp.MustCompile("/(etc|opt|usr/local|usr/share|var/log|var/lib)\\b")

// toolkitGuest is a folder that stands for a guest that gets a toolkit by its runfile.
type toolkitGuest struct {
	t    *testing.T
	dir  string
	in   steps.Input
	name string // of the installer
}

// fakeToolkit is an installer that puts down what the real one of CUDA 9.1 does, in short. It wants the flags that
// the plan gives, and fails while there is a file "fail".
const fakeToolkit = `#!/bin/sh
[ "$*" = "--silent --toolkit --samples --samplespath=/usr/local/cuda-9.1 --override" ] || { echo "flags: $*"; exit 2; }
[ -d "$TMPDIR" ] || exit 3
d=/usr/local/cuda-9.1
mkdir -p "$d/bin" /etc/ld.so.conf.d
echo "$d/lib64" >/etc/ld.so.conf.d/cuda-9-1.conf
if [ -e /var/lib/fail ]; then echo "Installation Failed." >/var/log/cuda-installer.log; exit 1; fi
echo "CUDA Version 9.1.85" >"$d/version.txt"
printf '#!/bin/sh\necho "Cuda compilation tools, release 9.1, V9.1.85"\n' >"$d/bin/nvcc"
chmod 755 "$d/bin/nvcc"
[ -e /usr/local/cuda ] || ln -s "$d" /usr/local/cuda
echo "Logfile is" >/var/log/cuda-installer.log
`

func newToolkitGuest(t *testing.T) *toolkitGuest {
	t.Helper()
	if _, err := os.Stat("/proc/sys/kernel/random/boot_id"); err != nil {
		t.Skip("the step library reads Linux's boot_id")
	}
	g := &toolkitGuest{t: t, dir: t.TempDir(), name: "cuda_9.1.85_387.26_linux"}
	for _, d := range []string{"etc/profile.d", "etc/ld.so.conf.d", "opt", "usr/local/lib", "usr/share/applications", "var/log", "var/lib/gpuguest/runfile"} {
		if err := os.MkdirAll(filepath.Join(g.dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	g.write("packages", "bash 5\n")
	g.write("etc/ld.so.conf.d/libc.conf", "/usr/local/lib\n")
	sum := sha256.Sum256([]byte(g.moved(fakeToolkit)))
	w := choice.Want{CUDA: "9.1", CUDARunfile: choice.Runfile{Name: g.name, SHA256: hex.EncodeToString(sum[:]), Version: "9.1.85", Arch: "x86_64"}}
	var err error
	if g.in, err = Input(guestFacts(t, "ubuntu2004-gtx750"), w); err != nil {
		t.Fatal(err)
	}
	return g
}

// moved moves the paths of a script into the folder.
//
// One that was not moved would be the machine's own, so it fails the test before anything runs.
func (g *toolkitGuest) moved(script string) string {
	g.t.Helper()
	script = systemPath.ReplaceAllString(strings.ReplaceAll(script, "ldconfig", ":"), "${1}"+g.dir+"/$2")
	for _, at := range anyPath.FindAllStringIndex(script, -1) {
		if before := script[:at[0]]; !strings.HasSuffix(before, g.dir) && !strings.HasSuffix(before, `"$S/before/absent`) && !strings.HasSuffix(before, "$was") {
			g.t.Fatalf("a path stands where it is not looked for: %.80q", script[max(0, at[0]-30):])
		}
	}
	return script
}

func (g *toolkitGuest) write(name, text string) {
	g.t.Helper()
	if err := os.WriteFile(filepath.Join(g.dir, name), []byte(text), 0o755); err != nil {
		g.t.Fatal(err)
	}
}

// send does what the engine does before the toolkit's step.
func (g *toolkitGuest) send() { g.write("var/lib/gpuguest/runfile/"+g.name, g.moved(fakeToolkit)) }

// run carries out one step's script.
func (g *toolkitGuest) run(all []steps.Step, id steps.ID) (int, string) {
	g.t.Helper()
	p, err := Build(g.in, all)
	if err != nil {
		g.t.Fatal(err)
	}
	p.Distro = distros.Distro{Packages: filePackages{file: filepath.Join(g.dir, "packages")}}
	for _, it := range p.Items() {
		if it.ID != id {
			continue
		}
		cmd := exec.Command("/bin/sh")
		cmd.Stdin = strings.NewReader(g.moved(p.Script(it)))
		cmd.Env = append(os.Environ(), "GPUGUEST_STATE="+filepath.Join(g.dir, "var/lib/gpuguest"))
		out, err := cmd.CombinedOutput()
		if cmd.ProcessState == nil {
			g.t.Fatal(err)
		}
		return cmd.ProcessState.ExitCode(), string(out)
	}
	g.t.Fatalf("the plan has no step %s", id)
	return 0, ""
}

func (g *toolkitGuest) must(all []steps.Step, id steps.ID) {
	g.t.Helper()
	if code, out := g.run(all, id); code != 0 {
		g.t.Fatalf("%s: exit %d: %s", id, code, out)
	}
	if code, out := g.run(all, id); code != 0 || !strings.Contains(out, "already so") {
		g.t.Fatalf("%s, again: exit %d: %s", id, code, out)
	}
}

// tree lists all that is not gpuguest's own.
func (g *toolkitGuest) tree() []string {
	g.t.Helper()
	var all []string
	err := filepath.WalkDir(g.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(path, g.dir)
		if name == "/var/lib/gpuguest" {
			return fs.SkipDir
		}
		if d.Type()&fs.ModeSymlink != 0 {
			to, _ := os.Readlink(path)
			name += " -> " + strings.TrimPrefix(to, g.dir)
		} else if !d.IsDir() {
			data, _ := os.ReadFile(path)
			name += " " + string(data)
		}
		all = append(all, name)
		return nil
	})
	if err != nil {
		g.t.Fatal(err)
	}
	return all
}

// uninstall reads the ledger, as facts do, and takes back what it tells of.
func (g *toolkitGuest) uninstall() {
	g.t.Helper()
	before := filepath.Join(g.dir, "var/lib/gpuguest/before")
	read := func(name string) []string {
		data, err := os.ReadFile(filepath.Join(before, name))
		if err != nil {
			g.t.Fatal(err)
		}
		return strings.Fields(string(data))
	}
	st := facts.State{Before: true, Toolkits: read("toolkit"), CUDALink: strings.TrimPrefix(read("cuda-link")[0], g.dir)}
	err := filepath.WalkDir(filepath.Join(before, "absent"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			st.Absent = append(st.Absent, strings.TrimPrefix(path, filepath.Join(before, "absent")+g.dir))
		}
		return err
	})
	if err != nil {
		g.t.Fatal(err)
	}
	g.in.Facts.State = st
	for _, id := range []steps.ID{"remove-toolkits", "remove-installers", "restore-files", "restore-cuda-link"} {
		if code, out := g.run(steps.Uninstall(), id); code != 0 {
			g.t.Fatalf("%s: exit %d: %s", id, code, out)
		}
	}
}

func (g *toolkitGuest) same(before []string) {
	g.t.Helper()
	if after := g.tree(); !slices.Equal(before, after) {
		g.t.Errorf("before:\n%s\n\nafter:\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
	}
}

func TestToolkitComesByItsRunfileAndGoesWithoutATrace(t *testing.T) {
	g := newToolkitGuest(t)
	before := g.tree()
	g.send()
	g.must(steps.Install(), "toolkit")
	g.must(steps.Install(), "cuda-environment")
	if code, out := g.run(steps.Install(), "verify-nvcc"); code != 0 {
		t.Errorf("verify-nvcc: exit %d: %s", code, out)
	}
	if left, _ := filepath.Glob(filepath.Join(g.dir, "var/lib/gpuguest/runfile/*")); len(left) > 0 {
		t.Errorf("the installer is kept: %q", left)
	}
	g.uninstall()
	g.same(before)
}

func TestToolkitBesideAnotherLeavesTheOtherAndItsLink(t *testing.T) {
	g := newToolkitGuest(t)
	if err := os.MkdirAll(filepath.Join(g.dir, "usr/local/cuda-8.0/bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(g.dir, "usr/local/cuda-8.0"), filepath.Join(g.dir, "usr/local/cuda")); err != nil {
		t.Fatal(err)
	}
	before := g.tree()
	g.send()
	g.must(steps.Install(), "toolkit")
	g.must(steps.Install(), "cuda-environment")
	if to, _ := os.Readlink(filepath.Join(g.dir, "usr/local/cuda")); !strings.HasSuffix(to, "/usr/local/cuda-9.1") {
		t.Errorf("the link leads to %s", to)
	}
	g.uninstall()
	g.same(before)
}

func TestToolkitInstallerThatFailsShowsItsLogAndLeavesNothingForGood(t *testing.T) {
	g := newToolkitGuest(t)
	g.write("var/lib/fail", "")
	before := g.tree()
	g.send()
	code, out := g.run(steps.Install(), "toolkit")
	if code != 1 || !strings.Contains(out, "Installation Failed.") {
		t.Fatalf("exit %d: %s", code, out)
	}
	g.uninstall()
	g.same(before)
}

func TestToolkitIsNotPutOverAFolderOfSomebodyElses(t *testing.T) {
	g := newToolkitGuest(t)
	if err := os.MkdirAll(filepath.Join(g.dir, "usr/local/cuda-9.1"), 0o755); err != nil {
		t.Fatal(err)
	}
	g.write("usr/local/cuda-9.1/theirs", "theirs\n")
	before := g.tree()
	g.send()
	if code, out := g.run(steps.Install(), "toolkit"); code != 1 || !strings.Contains(out, "is there already") {
		t.Errorf("exit %d: %s", code, out)
	}
	g.same(before)
}
