package steps

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"gpuguest/internal/choice"
	"gpuguest/internal/cuda"
	"gpuguest/internal/facts"
)

// sampleMakefile stands in for the Makefile of a sample of NVIDIA's: it takes the same variables, looks for the shared
// headers and puts the program down relative to its own folder, and has nvcc do the rest.
const sampleMakefile = `CUDA_PATH ?= /usr/local/cuda
SMS ?= 50 60
all: deviceQuery
deviceQuery: deviceQuery.cpp UP/helper_cuda.h
	"$(CUDA_PATH)/bin/nvcc" -sm "$(SMS)" -o $@ $<
	mkdir -p ../../../bin ../../bin
	cp $@ ../../../bin
	cp $@ ../../bin
`

// buildTools makes programs that stand in for nvcc and CMake, and returns the PATH that has them. What a sample's
// source holds is the program that they make of it.
func buildTools(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	bin := filepath.Join(dir, "cuda", "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"nvcc": `#!/bin/sh
# Stands in for nvcc.
[ "$1 $3" = "-sm -o" ] || exit 2
case $(cat "$5") in *broken*) echo "error: expected a declaration"; exit 1 ;; esac
echo "$2" >"${0%/*}/targets"
cp "$5" "$4"
chmod 755 "$4"
`,
		"cmake": `#!/bin/sh
# Stands in for CMake: one folder that is looked at, one that is built in.
case $1 in
-S)
	[ "$3 $5 $6" = "-B -DCMAKE_BUILD_TYPE=Release -DCMAKE_CUDA_COMPILER=` + bin + `/nvcc" ] || { echo "unplanned: $*"; exit 3; }
	[ -f "$2/CMakeLists.txt" ] || exit 4
	mkdir -p "$4"
	echo "$2" >"$4/CMakeCache.txt"
	;;
--build) cp "$(cat "$2/CMakeCache.txt")/deviceQuery.cpp" "$2/deviceQuery" && chmod 755 "$2/deviceQuery" ;;
*) exit 3 ;;
esac
`,
	} {
		if err := os.WriteFile(filepath.Join(bin, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return bin + ":" + os.Getenv("PATH")
}

// sampleTree unpacks a tree of cuda-samples in which files are, and returns its folder.
func sampleTree(t *testing.T, files map[string]string) string {
	t.Helper()
	tree := t.TempDir()
	for name, text := range files {
		p := filepath.Join(tree, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return tree
}

func filesIn(t *testing.T, dir string) []string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		all = append(all, path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func needMake(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("make"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("no make, and in CI that is a failure")
		}
		t.Skip("no make")
	}
}

// deviceQueryOf is verify's step with deviceQuery, as if a tree of cuda-samples were all that the guest has of it.
func deviceQueryOf(trees ...string) sample {
	s := samples[slices.IndexFunc(samples, func(s sample) bool { return s.tool == cuda.ToolDeviceQuery })]
	s.places = []string{"/nonexistent/" + s.tool}
	s.sources = sourceAt(s.tool, trees...)
	return s
}

// The layouts are those of the toolkit's bundled samples and of the tags of cuda-samples.
func TestSampleIsBuiltFromATreeThatStaysAsItIs(t *testing.T) {
	needMake(t)
	one := Input{Facts: facts.Facts{GPUs: twoGPUs().Facts.GPUs[:1]}, Choice: choice.Choice{GPUs: []choice.GPU{{Capability: "6.1"}}}}
	program := fake(t, "devicequery-gtx1050ti.txt", "0")
	raw, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	source := string(raw)
	makefile := func(up string) string { return strings.ReplaceAll(sampleMakefile, "UP", up) }
	for _, c := range []struct {
		name, folder string
		files        map[string]string
		byMake       bool
	}{
		{"bundled with CUDA up to 11.5", "1_Utilities/deviceQuery", map[string]string{
			"1_Utilities/deviceQuery/Makefile": makefile("../../common/inc"), "common/inc/helper_cuda.h": "",
		}, true},
		{"tags up to 11.5", "Samples/deviceQuery", map[string]string{
			"Samples/deviceQuery/Makefile": makefile("../../Common"), "Common/helper_cuda.h": "",
		}, true},
		{"tags 11.6 to 12.5", "Samples/1_Utilities/deviceQuery", map[string]string{
			"Samples/1_Utilities/deviceQuery/Makefile": makefile("../../../Common"), "Common/helper_cuda.h": "",
		}, true},
		{"tags 12.8 to 13.2", "Samples/1_Utilities/deviceQuery", map[string]string{
			"Samples/1_Utilities/deviceQuery/CMakeLists.txt": "project(deviceQuery LANGUAGES C CXX CUDA)\n",
		}, false},
		{"tags from 13.3 on", "cpp/1_Utilities/deviceQuery", map[string]string{
			"cpp/1_Utilities/deviceQuery/CMakeLists.txt": "project(deviceQuery LANGUAGES C CXX CUDA)\n",
		}, false},
		{"a tree that somebody ran CMake in", "Samples/1_Utilities/deviceQuery", map[string]string{
			"Samples/1_Utilities/deviceQuery/CMakeLists.txt": "project(deviceQuery LANGUAGES C CXX CUDA)\n",
			"Samples/1_Utilities/deviceQuery/Makefile":       "all:\n\t@echo CMake made this one; exit 1\n",
		}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := buildTools(t)
			c.files[c.folder+"/deviceQuery.cpp"] = source
			tree := sampleTree(t, c.files)
			before := filesIn(t, tree)
			code, text, data := ask(t, deviceQueryOf("/nonexistent/*", tree).check(one), "PATH="+path)
			if r := cuda.DeviceQuery(data); code != 0 || r.Result != cuda.Pass || !strings.Contains(text, "built from "+filepath.Join(tree, c.folder)) {
				t.Errorf("exit %d, %s:\n%s", code, r.Result, text)
			}
			if after := filesIn(t, tree); !slices.Equal(before, after) {
				t.Errorf("the tree was written to: %q", after)
			}
			bin, _, _ := strings.Cut(path, ":")
			if got, _ := os.ReadFile(filepath.Join(bin, "targets")); c.byMake && string(got) != "61\n" {
				t.Errorf("built for %q, the GPU is 6.1", got)
			}
		})
	}
}

func TestSampleThatCannotBeBuiltSaysWhy(t *testing.T) {
	needMake(t)
	tree := func(source string) string {
		return sampleTree(t, map[string]string{
			"Samples/1_Utilities/deviceQuery/Makefile":        strings.ReplaceAll(sampleMakefile, "UP", "../../../Common"),
			"Samples/1_Utilities/deviceQuery/deviceQuery.cpp": source, "Common/helper_cuda.h": "",
		})
	}
	code, text, data := ask(t, deviceQueryOf(tree("broken")).check(twoGPUs()), "PATH="+buildTools(t))
	if code != 1 || data != "" || !strings.Contains(text, "deviceQuery could not be built from ") || !strings.Contains(text, "expected a declaration") {
		t.Errorf("exit %d:\n%s", code, text)
	}
	if _, err := exec.LookPath("nvcc"); err == nil {
		t.Skip("this machine has a CUDA toolkit")
	}
	if found, _ := filepath.Glob("/usr/local/cuda*/bin/nvcc"); len(found) > 0 {
		t.Skip("this machine has a CUDA toolkit")
	}
	code, text, data = ask(t, deviceQueryOf(tree("")).check(twoGPUs()))
	if code != 1 || data != "" || !strings.Contains(text, "deviceQuery is not built, and no nvcc is there to build ") {
		t.Errorf("exit %d:\n%s", code, text)
	}
}

func TestWhatTheSamplesAreBuiltFromFollowsTheToolkitUnlessAnArchiveIsNamed(t *testing.T) {
	with := choice.Want{With: []string{cuda.ToolDeviceQuery}}
	named := with
	named.Samples = choice.Archive{Name: "mine.tar.gz", SHA256: strings.Repeat("ab", 32)}
	bundle := with
	bundle.Bundle = choice.Bundle{SHA256: strings.Repeat("cd", 32)}
	for _, c := range []struct {
		name   string
		want   choice.Want
		kit    choice.Toolkit
		is     string
		step   ID
		noStep ID
	}{
		{"no toolkit of ours", with, choice.Toolkit{}, "", "cuda-samples", "samples"},
		{"its own tag", with, choice.Toolkit{Series: "12.8", Source: choice.SourceNVIDIA}, "cuda-samples-12.8.tar.gz", "cuda-samples", "samples"},
		{"a series without a tag", with, choice.Toolkit{Series: "12.6", Source: choice.SourceNVIDIA}, "cuda-samples-12.5.tar.gz", "cuda-samples", "samples"},
		{"one of which no checksum is known", with, choice.Toolkit{Series: "11.8", Source: choice.SourceNVIDIA}, "", "cuda-samples", "samples"},
		{"bundled", with, choice.Toolkit{Series: "9.1", Source: choice.SourceRunfile, Samples: true}, "", "samples", "cuda-samples"},
		{"bundled, and an archive", named, choice.Toolkit{Series: "9.1", Source: choice.SourceRunfile, Samples: true}, "mine.tar.gz", "cuda-samples", "samples"},
		{"an archive", named, choice.Toolkit{Series: "12.8", Source: choice.SourceNVIDIA}, "mine.tar.gz", "cuda-samples", "samples"},
		{"a guest that fetches nothing", bundle, choice.Toolkit{Series: "12.8", Source: choice.SourceNVIDIA}, "", "cuda-samples", "samples"},
		{"nobody asked", choice.Want{}, choice.Toolkit{Series: "12.8"}, "cuda-samples-12.8.tar.gz", "", "cuda-samples"},
	} {
		in := Input{Want: c.want, Choice: choice.Choice{CUDA: c.kit}}
		if got := sampleArchive(in).Name; got != c.is {
			t.Errorf("%s: %q, want %q", c.name, got, c.is)
		}
		if c.step != "" && !find(t, c.step).Wanted(in) || find(t, c.noStep).Wanted(in) {
			t.Errorf("%s: it is not step %s that is in the plan", c.name, c.step)
		}
	}
	in := Input{Want: bundle}
	in.Want.Samples = choice.Archive{Name: "x", URL: "https://mirror.example/x", SHA256: strings.Repeat("ab", 32)}
	if find(t, "cuda-samples").Refuse(in) == "" {
		t.Error("a guest with a bundle is to fetch an archive")
	}
}
