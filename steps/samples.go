package steps

import (
	"slices"
	"strings"

	"gpuguest/internal/action"
	"gpuguest/internal/catalog"
	"gpuguest/internal/choice"
	"gpuguest/internal/cuda"
	"gpuguest/internal/sh"
)

// sampled are those of NVIDIA's programs that are asked for and that are made from the source of NVIDIA's samples.
func sampled(in Input) []string {
	return slices.DeleteFunc([]string{cuda.ToolDeviceQuery, cuda.ToolBandwidthTest}, func(tool string) bool { return !slices.Contains(in.Want.With, tool) })
}

// bundled are those of them that the toolkit's installer brings the sources of. An archive that was named is meant
// to be taken instead.
func bundled(in Input) []string {
	k := in.Choice.CUDA
	if k.Source != choice.SourceRunfile || !k.Samples || in.Want.Samples.Given() {
		return nil
	}
	return sampled(in)
}

// unbundledSamples are those that come from a tree of cuda-samples, or from wherever the guest has them.
func unbundledSamples(in Input) []string {
	if len(bundled(in)) > 0 {
		return nil
	}
	return sampled(in)
}

// samplesDir is where their folders are: up to 10.0 the installer makes one of its own below the path that it is
// given, later ones take the path itself (CUDA installation guide, --samplespath).
const samplesDir = `dir=
for d in "$cuda"/NVIDIA_CUDA-*_Samples/1_Utilities "$cuda"/samples/1_Utilities "$cuda"/1_Utilities; do
	if [ -d "$d" ]; then dir=$d; fi
done
[ -n "$dir" ] || { echo "the installer brought no samples to $cuda"; exit 1; }`

// trees are where cuda-samples are found when somebody unpacked them. Folders of users are not among them: what is
// found there is run as root.
var trees = []string{"/root/cuda-samples*", "/opt/cuda-samples*", "/usr/local/share/cuda-samples*", "/usr/local/cuda-samples*", "/usr/local/cuda*/samples", "/usr/local/cuda*/NVIDIA_CUDA-*_Samples"}

// builtSamples is the folder of gpuguest's own that samples are built in; the programs are below bin. It is part of
// gpuguest's state, and goes with it.
const builtSamples = "/var/lib/gpuguest/samples"

// sourceAt are the folders that a sample's source may be in, the better ones later. They moved with the releases:
// bundled with CUDA up to 11.5, then in Samples, from 11.6 in Samples/1_Utilities, and from 13.3 below cpp (the tags
// of NVIDIA/cuda-samples; GoogleCloudPlatform/compute-gpu-installation, config.py).
func sourceAt(tool string, trees ...string) []string {
	var all []string
	for _, tree := range trees {
		for _, below := range []string{"1_Utilities", "Samples", "Samples/1_Utilities", "cpp/1_Utilities"} {
			all = append(all, tree+"/"+below+"/"+tool)
		}
	}
	return all
}

// sampleTargets is what make is told of the GPUs that are to run a sample, "" where one's compute capability is
// unknown: then a sample is built for all that its release names, of which a newer nvcc may refuse one.
func sampleTargets(in Input) string {
	var all []string
	for _, g := range in.Choice.GPUs {
		if g.Capability == "" {
			return ""
		}
		all = append(all, strings.ReplaceAll(g.Capability, ".", ""))
	}
	if len(all) == 0 {
		return ""
	}
	slices.Sort(all)
	return " " + sh.Quote("SMS="+strings.Join(slices.Compact(all), " "))
}

// sampleSeconds is the deadline of each program that builds a sample.
const sampleSeconds = "600"

// buildSample is sh with functions that build a sample of NVIDIA's:
//
//	find_source FOLDER…     leaves in $src the last of them that holds a sample's source; false: none does
//	find_nvcc               leaves its path in $nvcc; false: there is none
//	build_sample NAME OWN   builds $src in the folder OWN, and leaves the program's path in $tool; false: it could not
//
// Up to 12.5 a sample has a Makefile, from 12.8 on it is CMake's alone, which leaves a Makefile too where somebody ran
// it in the tree. A Makefile builds beside itself, and in folders two or three above: it is given a copy of its own
// folder with the shared headers where it looks for them, and the tree stays as it is.
func buildSample(in Input) string {
	return `find_source() {
	src=
	for place do
		if [ -f "$place/CMakeLists.txt" ] || [ -f "$place/Makefile" ]; then src=$place; fi
	done
	[ -n "$src" ]
}
find_nvcc() {
	nvcc=$(command -v nvcc) || nvcc=
	for place in /usr/local/cuda-*/bin/nvcc /usr/local/cuda/bin/nvcc; do if [ -x "$place" ]; then nvcc=$place; fi; done
	[ -n "$nvcc" ]
}
build_sample() {
	rm -rf "$2"
	mkdir -p "$2/a/b"
	if [ -f "$src/CMakeLists.txt" ]; then
		timeout ` + sampleSeconds + ` cmake -S "$src" -B "$2/build" -DCMAKE_BUILD_TYPE=Release -DCMAKE_CUDA_COMPILER="$nvcc" &&
			timeout ` + sampleSeconds + ` cmake --build "$2/build" || return 1
		tool=$(find "$2/build" -type f -name "$1" -perm -u+x | head -n 1)
	else
		for headers in Common common; do
			if [ -d "$src/../../../$headers" ]; then ln -s "$src/../../../$headers" "$2/$headers"; fi
			if [ -d "$src/../../$headers" ]; then ln -s "$src/../../$headers" "$2/a/$headers"; fi
		done
		cp -R "$src" "$2/a/b/$1" &&
			timeout ` + sampleSeconds + ` make -C "$2/a/b/$1" CUDA_PATH="${nvcc%/bin/nvcc}"` + sampleTargets(in) + ` || return 1
		tool=$2/a/b/$1/$1
	fi
	[ -n "$tool" ] && [ -f "$tool" ]
}`
}

// sampleArchive is what the samples are built from where no tree of the guest's is: the archive that was named, else
// the one that goes with the toolkit that gpuguest installs. Zero: none is known, or the guest fetches nothing.
func sampleArchive(in Input) choice.Archive {
	if in.Want.Samples.Given() || byBundle(in) {
		return in.Want.Samples
	}
	k, known := catalog.SamplesFor(in.Choice.CUDA.Series)
	if in.Choice.CUDA.Series == "" || !known {
		return choice.Archive{}
	}
	return choice.Archive{Name: "cuda-samples-" + k.Version + ".tar.gz", URL: k.URL, SHA256: k.SHA256}
}

// sampleSources is sh with the function source_of, which finds the source of the sample $1 as find_source does, and fails
// with what a person can do about it.
func sampleSources(in Input) string {
	script := []string{`source_of() {`, `	case $1 in`}
	for _, tool := range unbundledSamples(in) {
		where := sourceAt(tool, builtSamples+"/src", builtSamples+"/src/*")
		if !in.Want.Samples.Given() {
			where = append(where, sourceAt(tool, trees...)...)
		}
		why := "the source of " + tool + " is not in the guest: --cuda-samples brings it"
		if in.Want.Samples.Given() {
			why = in.Want.Samples.Name + " holds no source of " + tool
		}
		if tool == cuda.ToolBandwidthTest {
			why += "; releases of it from 12.9 on have none, and --with nvbandwidth takes its place"
		}
		script = append(script, `	`+tool+`) find_source `+strings.Join(where, " ")+` || { echo `+sh.Quote(why)+`; return 1; } ;;`)
	}
	return lines(append(script, `	esac`, `}`)...)
}

// getSamples brings the archive of the samples, if there is one that the build may need.
func getSamples(in Input) []action.Action {
	a := sampleArchive(in)
	file := builtSamples + "/" + a.Name
	switch {
	case !a.Given():
		return nil
	case a.URL == "":
		return []action.Action{action.Send{Path: file, SHA256: a.SHA256}}
	}
	script := []string{
		`mkdir -p ` + builtSamples,
		`if ! echo ` + sh.Quote(a.SHA256+"  "+file) + ` | sha256sum -c --status 2>/dev/null; then`,
		in.Distro.Packages.Download(a.URL, file, a.SHA256),
		`fi`,
	}
	if !in.Want.Samples.Given() {
		script = slices.Concat([]string{
			buildSample(in),
			sampleSources(in),
			`missing=`,
			`for name in ` + sh.Join(unbundledSamples(in)...) + `; do source_of "$name" >/dev/null || missing=1; done`,
			`if [ -n "$missing" ]; then`,
		}, script, []string{`fi`})
	}
	return []action.Action{action.Run{Title: "fetch " + a.Name + " and check its SHA-256", Script: lines(script...)}}
}

// toolFor is sh that installs a package where the program that it brings is not there.
func toolFor(in Input, program, pkg string) string {
	return lines(
		`if ! command -v `+program+` >/dev/null 2>&1; then`,
		in.Distro.Packages.Quiet(installPackages(in, pkg)),
		`fi`)
}

// makeSamples builds the samples and puts the programs where verify looks for them.
func makeSamples(in Input) action.Action {
	a := sampleArchive(in)
	script := []string{
		`d=` + builtSamples,
		`rm -rf "$d/src" "$d/build"`,
		`mkdir -p "$d/src" "$d/build" "$d/bin"`,
		buildSample(in),
		sampleSources(in),
	}
	if a.Given() {
		file := sh.Quote(builtSamples + "/" + a.Name)
		script = append(script, `if [ -e `+file+` ]; then tar -C "$d/src" --no-same-owner -xf `+file+`; fi`)
	}
	script = append(script,
		`find_nvcc || { echo "there is no nvcc in the guest to build NVIDIA's samples with: --cuda installs a toolkit"; exit 1; }`,
		`cmake=`,
		`for name in `+sh.Join(unbundledSamples(in)...)+`; do`,
		`	source_of "$name" || exit 1`,
		`	if [ -f "$src/CMakeLists.txt" ]; then cmake=1; fi`,
		`done`)
	if in.Distro.CXX != "" {
		script = append(script, toolFor(in, "g++", in.Distro.CXX))
	}
	script = append(script,
		toolFor(in, "make", "make"),
		`if [ -n "$cmake" ]; then`,
		toolFor(in, "cmake", "cmake"),
		`fi`,
		`for name in `+sh.Join(unbundledSamples(in)...)+`; do`,
		`	source_of "$name"`,
		`	build_sample "$name" "$d/build/$name" || { echo "$name could not be built from $src"; exit 1; }`,
		`	cp "$tool" "$d/bin/$name.tmp"`,
		`	chmod 0755 "$d/bin/$name.tmp"`,
		`	flush "$d/bin/$name.tmp"`,
		`	mv -f "$d/bin/$name.tmp" "$d/bin/$name"`,
		`	echo `+sh.Quote(in.Want.Samples.SHA256)+` >"$d/bin/$name.of"`,
		`done`,
		`rm -rf "$d/src" "$d/build"`)
	if a.Given() {
		script = append(script, `rm -f `+sh.Quote(builtSamples+"/"+a.Name))
	}
	return action.Run{Title: "build " + strings.Join(unbundledSamples(in), " and "), Packages: true, Script: lines(script...)}
}

func init() {
	register(Step{
		ID:     "samples",
		Title:  "build NVIDIA's samples",
		After:  []ID{"toolkit", "cuda-environment", "driver"},
		Wanted: func(in Input) bool { return len(bundled(in)) > 0 },
		Check: func(in Input) string {
			return lines(
				`cuda=`+sh.Quote(in.Choice.CUDA.Dir),
				samplesDir,
				`for tool in `+sh.Join(bundled(in)...)+`; do`,
				`	[ -x "$dir/$tool/$tool" ] || { echo "$tool is not built"; exit 1; }`,
				`done`,
				`echo "$dir"`)
		},
		Apply: func(in Input) []action.Action {
			script := []string{
				`cuda=` + sh.Quote(in.Choice.CUDA.Dir),
				samplesDir,
			}
			if in.Distro.CXX != "" {
				script = append(script,
					`if ! command -v g++ >/dev/null 2>&1; then`,
					in.Distro.Packages.Quiet(installPackages(in, in.Distro.CXX)),
					`fi`)
			}
			// They are built where they lie, in the toolkit's folder, and go with it.
			return []action.Action{action.Run{Title: "make them", Packages: true, Script: lines(append(script,
				`for tool in `+sh.Join(bundled(in)...)+`; do make -C "$dir/$tool" CUDA_PATH="$cuda"; done`)...)}}
		},
		Hint: "nvcc takes compilers up to a release of its own: gcc that is newer must be told apart by HOST_COMPILER, or -ccbin",
	})
	register(Step{
		ID:     "cuda-samples",
		Title:  "build NVIDIA's samples from cuda-samples",
		After:  []ID{"ready", "rescue", "headers", "toolkit", "cuda-environment", "driver"},
		Wanted: func(in Input) bool { return len(unbundledSamples(in)) > 0 },
		Refuse: func(in Input) string {
			if byBundle(in) && in.Want.Samples.URL != "" {
				return "with a bundle the guest fetches nothing: give cuda-samples as a file"
			}
			return ""
		},
		Check: func(in Input) string {
			var script []string
			for _, tool := range unbundledSamples(in) {
				if a := in.Want.Samples; a.Given() {
					p := builtSamples + "/bin/" + tool
					script = append(script,
						`[ -x `+p+` ] && [ "$(cat `+p+`.of)" = `+sh.Quote(a.SHA256)+` ] || { echo `+sh.Quote(tool+" is not built from "+a.Name)+`; exit 1; }`,
						`echo `+p)
					continue
				}
				script = append(script, findTool(sampleAt(tool)),
					`[ -n "$tool" ] || { echo "`+tool+` is not in the guest"; exit 1; }`,
					`echo "$tool"`)
			}
			return lines(script...)
		},
		Apply: func(in Input) []action.Action { return append(getSamples(in), makeSamples(in)) },
		Hint:  "cuda-samples are at github.com/NVIDIA/cuda-samples: --cuda-samples takes an archive of it, and the tag goes with the toolkit; nvcc takes compilers up to a release of its own",
	})
}
