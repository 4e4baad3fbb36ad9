package plan

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"gpuguest/internal/choice"
	"gpuguest/steps"
)

// samplesArchive is a .tar.gz as GitHub makes one of a tag of cuda-samples, in which each sample says what it is.
func samplesArchive(t *testing.T, tag string, tools ...string) (data []byte, a choice.Archive) {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	for _, tool := range tools {
		dir := "cuda-samples-" + tag + "/Samples/1_Utilities/" + tool + "/"
		for name, text := range map[string]string{"CMakeLists.txt": "project(" + tool + ")\n", tool + ".cpp": "#!/bin/sh\necho " + tool + " of " + tag + "\n"} {
			if err := w.WriteHeader(&tar.Header{Name: dir + name, Mode: 0o644, Size: int64(len(text)), Typeflag: tar.TypeReg}); err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write([]byte(text)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(b.Bytes())
	return b.Bytes(), choice.Archive{Name: "cuda-samples-" + tag + ".tar.gz", SHA256: hex.EncodeToString(sum[:])}
}

// newSamplesGuest is a folder that stands for a guest with compilers, and with programs that stand in for nvcc and
// CMake: CMake makes a program of a sample's only source file, and fails while there is a file "fail".
func newSamplesGuest(t *testing.T) *toolkitGuest {
	t.Helper()
	if _, err := os.Stat("/proc/sys/kernel/random/boot_id"); err != nil {
		t.Skip("the step library reads Linux's boot_id")
	}
	g := &toolkitGuest{t: t, dir: t.TempDir()}
	for _, d := range []string{"bin", "var/lib/gpuguest"} {
		if err := os.MkdirAll(filepath.Join(g.dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	g.write("packages", "bash 5\n")
	for _, name := range []string{"nvcc", "g++", "make"} {
		g.write("bin/"+name, "#!/bin/sh\nexit 3\n")
	}
	g.write("bin/cmake", `#!/bin/sh
if [ -e `+g.dir+`/fail ]; then echo "CMake 3.20 or higher is required."; exit 1; fi
case $1 in
-S) mkdir -p "$4" && echo "$2" >"$4/CMakeCache.txt" ;;
--build) s=$(cat "$2/CMakeCache.txt") && cp "$s/${s##*/}.cpp" "$2/${s##*/}" && chmod 755 "$2/${s##*/}" ;;
*) exit 3 ;;
esac
`)
	t.Setenv("PATH", filepath.Join(g.dir, "bin")+":"+os.Getenv("PATH"))
	return g
}

// want plans for an archive, and sends it as the engine does.
func (g *toolkitGuest) want(data []byte, a choice.Archive, tools ...string) {
	g.t.Helper()
	var err error
	if g.in, err = Input(guestFacts(g.t, "debian12-gtx1050ti-nouveau"), choice.Want{With: tools, Samples: a}); err != nil {
		g.t.Fatal(err)
	}
	if data == nil {
		return
	}
	if err := os.MkdirAll(filepath.Join(g.dir, "var/lib/gpuguest/samples"), 0o755); err != nil {
		g.t.Fatal(err)
	}
	g.write("var/lib/gpuguest/samples/"+a.Name, string(data))
}

func (g *toolkitGuest) samples() []string {
	g.t.Helper()
	left, err := filepath.Glob(filepath.Join(g.dir, "var/lib/gpuguest/samples/*"))
	if err != nil {
		g.t.Fatal(err)
	}
	for i, p := range left {
		left[i] = filepath.Base(p)
	}
	return left
}

func TestSamplesAreBuiltFromAnArchiveThatIsSentAndGoWithTheRest(t *testing.T) {
	g := newSamplesGuest(t)
	data, a := samplesArchive(t, "12.8", "deviceQuery", "bandwidthTest")
	g.want(data, a, "deviceQuery", "bandwidthTest")

	// What a run that failed left is no hindrance to the next.
	g.write("fail", "")
	if code, out := g.run(steps.Install(), "cuda-samples"); code != 1 || !strings.Contains(out, "CMake 3.20 or higher") || !strings.Contains(out, "deviceQuery could not be built from ") {
		t.Errorf("exit %d: %s", code, out)
	}
	if err := os.Remove(filepath.Join(g.dir, "fail")); err != nil {
		t.Fatal(err)
	}
	g.must(steps.Install(), "cuda-samples")
	bin := filepath.Join(g.dir, "var/lib/gpuguest/samples/bin")
	for tool, want := range map[string]string{"deviceQuery": "deviceQuery of 12.8", "bandwidthTest": "bandwidthTest of 12.8"} {
		if got, err := os.ReadFile(filepath.Join(bin, tool)); err != nil || !strings.Contains(string(got), want) {
			t.Errorf("%s: %v, %s", tool, err, got)
		}
	}
	if left := g.samples(); !slices.Equal(left, []string{"bin"}) {
		t.Errorf("left: %q", left)
	}
	wantEvents(t, guestDir{t: t, state: filepath.Join(g.dir, "var/lib/gpuguest")}.events(), "begin cuda-samples", "failed cuda-samples", "begin cuda-samples", "end cuda-samples")

	// Another archive is another program.
	data, a = samplesArchive(t, "12.9", "deviceQuery")
	g.want(data, a, "deviceQuery")
	g.must(steps.Install(), "cuda-samples")
	if got, err := os.ReadFile(filepath.Join(bin, "deviceQuery")); err != nil || !strings.Contains(string(got), "of 12.9") {
		t.Errorf("%v, %s", err, got)
	}

	g.in.Facts.State.Before = true
	if code, out := g.run(steps.Uninstall(), "forget"); code != 0 {
		t.Fatalf("forget: exit %d: %s", code, out)
	}
	if left := g.samples(); len(left) > 0 {
		t.Errorf("uninstall leaves %q", left)
	}
}

func TestSamplesThatAreNowhereSayWhatBringsThem(t *testing.T) {
	g := newSamplesGuest(t)
	g.want(nil, choice.Archive{}, "bandwidthTest")
	if code, out := g.run(steps.Install(), "cuda-samples"); code != 1 || !strings.Contains(out, "the source of bandwidthTest is not in the guest: --cuda-samples brings it") || !strings.Contains(out, "--with nvbandwidth") {
		t.Errorf("exit %d: %s", code, out)
	}
	data, a := samplesArchive(t, "12.9", "deviceQuery")
	g.want(data, a, "bandwidthTest")
	if code, out := g.run(steps.Install(), "cuda-samples"); code != 1 || !strings.Contains(out, "cuda-samples-12.9.tar.gz holds no source of bandwidthTest") {
		t.Errorf("exit %d: %s", code, out)
	}
}

// A program that the guest has is not built again, and nothing is fetched for it.
func TestTreeOfTheGuestsIsBuiltAndNothingFetched(t *testing.T) {
	g := newSamplesGuest(t)
	var err error
	if g.in, err = Input(guestFacts(t, "ubuntu2404-h100"), choice.Want{With: []string{"deviceQuery"}, CUDA: "12.8"}); err != nil {
		t.Fatal(err)
	}
	tree := filepath.Join(g.dir, "opt/cuda-samples-12.8/Samples/1_Utilities/deviceQuery")
	if err := os.MkdirAll(tree, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"CMakeLists.txt": "", "deviceQuery.cpp": "#!/bin/sh\necho of the tree\n"} {
		if err := os.WriteFile(filepath.Join(tree, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	// apt's way to fetch is not in the folder: a download would fail.
	g.must(steps.Install(), "cuda-samples")
	if got, err := os.ReadFile(filepath.Join(g.dir, "var/lib/gpuguest/samples/bin/deviceQuery")); err != nil || !strings.Contains(string(got), "of the tree") {
		t.Errorf("%v, %s", err, got)
	}
	if entries, err := os.ReadDir(tree); err != nil || len(entries) != 2 {
		t.Errorf("the tree was written to: %v, %v", err, entries)
	}
}

func TestBundleForSamplesHasWhatBuildsThem(t *testing.T) {
	f := guestFacts(t, "debian12-gtx1050ti-nouveau")
	w := choice.Want{With: []string{"deviceQuery"}}
	b := bundleFor(t, f, w)
	for _, p := range []string{"cmake", "g++", "make"} {
		if !slices.Contains(b.Packages, p) {
			t.Errorf("it lacks %s", p)
		}
	}
	w.Bundle = bundleFor(t, f, choice.Want{})
	if _, err := build(f, w); err == nil || !strings.Contains(err.Error(), "it lacks cmake, g++") {
		t.Errorf("a bundle without them: %v", err)
	}
	w.Bundle = b
	w.Samples = choice.Archive{Name: "x.tar.gz", URL: "https://mirror.example/x.tar.gz", SHA256: strings.Repeat("ab", 32)}
	if _, err := build(f, w); err == nil || !strings.Contains(err.Error(), "give cuda-samples as a file") {
		t.Errorf("an archive that the guest is to fetch: %v", err)
	}
}
