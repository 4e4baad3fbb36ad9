package lab

import (
	"context"
	"debug/elf"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"gpuguest/assets"
	labfiles "gpuguest/testdata/lab"
)

func TestSourcesAreTheDistributionsOwn(t *testing.T) {
	got := parseList(`# comment
deb [arch=amd64 signed-by=/usr/share/keyrings/a.gpg] http://mirror.example/debian bookworm main contrib # tail
deb-src http://mirror.example/debian bookworm main
deb http://mirror.example/flat /
`)
	want := []source{{
		uris: []string{"http://mirror.example/debian"}, suites: []string{"bookworm"},
		components: []string{"main", "contrib"}, signedBy: "/usr/share/keyrings/a.gpg",
	}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("one-line sources: got %+v, want %+v", got, want)
	}
	got = parseDeb822(`Types: deb deb-src
URIs: http://mirror.example/debian
# comment
Suites: bookworm bookworm-updates
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .

Types: deb
Enabled: no
URIs: http://off.example
Suites: bookworm
Components: main

Types: deb-src
URIs: http://source.example
Suites: bookworm
Components: main
`)
	want = []source{{
		uris: []string{"http://mirror.example/debian"}, suites: []string{"bookworm", "bookworm-updates"},
		components: []string{"main"}, signedBy: "\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .",
	}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("deb822 sources: got %+v, want %+v", got, want)
	}
}

func TestSourcesTurnToAnotherSuite(t *testing.T) {
	all := []source{
		{uris: []string{"file:/mirror"}, suites: []string{"bookworm", "bookworm-security", "bookwormish"}, components: []string{"main"}},
		{uris: []string{"file:/third"}, suites: []string{"bookworm"}, components: []string{"stable"}},
	}
	entries, err := forSuite(t.Context(), all, "bookworm", "bullseye")
	if err != nil {
		t.Fatal(err)
	}
	a := aptRoot{suite: "bullseye", entries: entries}
	want := "Types: deb\nURIs: file:/mirror\nSuites: bullseye bullseye-security\nComponents: main non-free\n"
	if got := a.withComponents([]string{"main", "non-free", "non-free-firmware"}); got != want {
		t.Errorf("got:\n%swant:\n%s", got, want)
	}
	if _, err := forSuite(t.Context(), all[1:], "bookworm", "trixie"); err == nil {
		t.Error("a host without Debian's own sources was accepted")
	}
}

func TestGuestsReachAProxyOfTheHost(t *testing.T) {
	got := guestAptConf("Acquire::http::Proxy \"http://127.0.0.1:3142\";\nAcquire::Check-Date \"false\";\n")
	want := "Acquire::http::Proxy \"http://10.0.2.2:3142\";\nAcquire::Check-Date \"false\";\n"
	if got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestArtifactIsBuiltOnceAndWhole(t *testing.T) {
	cache := t.TempDir()
	built := 0
	build := func(dir string) error {
		built++
		return os.WriteFile(filepath.Join(dir, "x"), []byte("x"), 0o600)
	}
	if _, err := artifact(t.Context(), cache, "a", func(string) error { return fs.ErrInvalid }); err == nil {
		t.Fatal("a failed build passed")
	}
	if exists(filepath.Join(cache, "a")) || exists(filepath.Join(cache, "tmp-a")) {
		t.Error("a failed build left something behind")
	}
	for range 2 {
		dir, err := artifact(t.Context(), cache, "a", build)
		if err != nil || !exists(filepath.Join(dir, "x")) {
			t.Fatalf("artifact in %q: %v", dir, err)
		}
	}
	if built != 1 {
		t.Errorf("built %d times", built)
	}
}

func TestLockIsGivenUpWithTheContext(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	unlock, err := lock(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := lock(ctx, path); err == nil {
		t.Error("a held lock was taken")
	}
	unlock()
	again, err := lock(t.Context(), path)
	if err != nil {
		t.Fatalf("a released lock: %v", err)
	}
	again()
}

func TestMachineTellsThePretendGPUWhatToBe(t *testing.T) {
	vm := &VM{Dir: "/guest,1", Port: 5022, Accel: "tcg"}
	args := strings.Join(qemuArgs(vm, BootSpec{GPUs: []string{"10de:1c82", "10de:2204"}, Mode: ModeNeedsRealloc}), " ")
	for _, want := range []string{
		"type=11,value=fakegpu: gpus=10de:1c82,,10de:2204 mode=needs-realloc",
		"hostfwd=tcp:127.0.0.1:5022-:22",
		"file=/guest,,1/disk.qcow2,format=qcow2",
		"-vga std",
	} {
		if !strings.Contains(args, want) {
			t.Errorf("no %q in %s", want, args)
		}
	}
}

func TestEveryNVMLFunctionIsDefinedOnce(t *testing.T) {
	src := filepath.Join(t.TempDir(), "src")
	if err := copyTree(labfiles.FS, "packages", src); err != nil {
		t.Fatal(err)
	}
	p := packager{work: filepath.Dir(src), smi: []byte("\x00nvmlInit_v2\x00nvmlUnitGetCount\x00nvmlUnitGetCount\x00nvml_x")}
	if err := p.writeOthers(); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(src, "user/others.h"))
	if err != nil {
		t.Fatal(err)
	}
	if want := "int nvmlUnitGetCount(void) { return NOT_SUPPORTED; }\n"; string(got) != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestStandInLibcudaHasWhatTheProbeCalls builds the package as the repository does and looks inside.
func TestStandInLibcudaHasWhatTheProbeCalls(t *testing.T) {
	for _, tool := range []string{"gcc", "dpkg-deb"} {
		if _, err := exec.LookPath(tool); err != nil {
			if os.Getenv("CI") != "" {
				t.Fatal(err)
			}
			t.Skip(err)
		}
	}
	dir := t.TempDir()
	if err := copyTree(labfiles.FS, "packages", filepath.Join(dir, "src")); err != nil {
		t.Fatal(err)
	}
	p := packager{ctx: t.Context(), log: t.Output(), work: dir, out: dir}
	d, err := p.library("libcuda1", "libcuda.so.1", "cuda.c", "580.95.05")
	if err != nil {
		t.Fatal(err)
	}
	d.version = "580.95.05-1"
	if err := d.build(t.Context(), t.Output(), dir); err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(dir, "root")
	if err := run(t.Context(), t.Output(), dir, "dpkg-deb", "-x", "libcuda1_580.95.05-1_amd64.deb", root); err != nil {
		t.Fatal(err)
	}
	lib, err := elf.Open(filepath.Join(root, libDir, "libcuda.so.1"))
	if err != nil {
		t.Fatal(err)
	}
	defer lib.Close()
	symbols, err := lib.DynamicSymbols()
	if err != nil {
		t.Fatal(err)
	}
	have := map[string]bool{}
	for _, s := range symbols {
		have[s.Name] = s.Section != elf.SHN_UNDEF
	}
	calls := regexp.MustCompile(`(?m)^\tF\((cu\w+), \(`).FindAllStringSubmatch(assets.Probe, -1)
	if len(calls) < 25 {
		t.Fatalf("only %d calls were found in the probe's source", len(calls))
	}
	for _, c := range calls {
		if !have[c[1]] {
			t.Errorf("the stand-in has no %s", c[1])
		}
	}
}

// TestGuestBootsWithNouveauOnThePretendGPU is the lab's own proof, on a real VM.
func TestGuestBootsWithNouveauOnThePretendGPU(t *testing.T) {
	if os.Getenv("GPUGUEST_LAB") != "1" {
		t.Skip("needs root, QEMU and minutes: set GPUGUEST_LAB=1")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	defer cancel()
	image, err := Build(ctx, Spec{})
	if err != nil {
		t.Fatal(err)
	}
	r, err := ServeRepo(ctx, RepoSpec{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	vm, err := Boot(ctx, image, BootSpec{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(vm.Console())
		}
		if err := vm.Close(); err != nil {
			t.Error(err)
		}
	})
	check := func(command, want string) {
		t.Helper()
		out, code, err := vm.Run(ctx, command)
		if err != nil || code != 0 || !strings.Contains(out, want) {
			t.Errorf("%s: %v, status %d, want %q in:\n%s", command, err, code, want, out)
		}
	}
	if err := vm.WaitSSH(ctx); err != nil {
		t.Fatal(err)
	}
	check("udevadm settle; lspci -Dnnk -d 10de:", "Kernel driver in use: nouveau")
	check("uname -r", image.Kernel)
	check("wget -qO- "+r.KeyringURL("debian12")+" | sha256sum", r.KeyringSHA256["debian12"])
	check("touch /kept && sync", "")
	if err := vm.PowerCut(); err != nil {
		t.Fatal(err)
	}
	if err := vm.Start(); err != nil {
		t.Fatal(err)
	}
	if err := vm.WaitSSH(ctx); err != nil {
		t.Fatal(err)
	}
	check("ls /kept", "/kept")
}
