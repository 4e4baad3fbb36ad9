package steps

import (
	"slices"

	"gpuguest/internal/action"
	"gpuguest/internal/choice"
	"gpuguest/internal/cuda"
	"gpuguest/internal/sh"
)

// bundled are those of NVIDIA's programs that are asked for and that the toolkit's installer brings the sources of.
func bundled(in Input) []string {
	k := in.Choice.CUDA
	if k.Source != choice.SourceRunfile || !k.Samples {
		return nil
	}
	return slices.DeleteFunc([]string{cuda.ToolDeviceQuery, cuda.ToolBandwidthTest}, func(tool string) bool { return !slices.Contains(in.Want.With, tool) })
}

// samplesDir is where their folders are: up to 10.0 the installer makes one of its own below the path that it is
// given, later ones take the path itself (CUDA installation guide, --samplespath).
const samplesDir = `dir=
for d in "$cuda"/NVIDIA_CUDA-*_Samples/1_Utilities "$cuda"/samples/1_Utilities "$cuda"/1_Utilities; do
	if [ -d "$d" ]; then dir=$d; fi
done
[ -n "$dir" ] || { echo "the installer brought no samples to $cuda"; exit 1; }`

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
}
