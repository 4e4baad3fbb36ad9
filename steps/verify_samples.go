package steps

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"gpuguest/internal/cuda"
)

// sample is one of NVIDIA's own programs, run where a guest has it.
type sample struct {
	tool, id string
	places   []string // patterns of paths, the better ones later
	sources  []string // the same of folders that it is built from where it is nowhere; nil: it is not built
	args     string
	seconds  int // its deadline
	read     func(string) cuda.Report
	hint     string
}

// sampleAt are the places of a program of cuda-samples: beside its source (sourceAt), or where CMake was told to
// build. The demo suite holds both programs ready-made, up to CUDA 12.9; what gpuguest built is the best.
func sampleAt(tool string) []string {
	all := []string{"/root/NVIDIA_CUDA-*_Samples/bin/*/linux/release/" + tool}
	for _, tree := range trees {
		for _, below := range []string{"1_Utilities", "Samples", "Samples/1_Utilities", "build/Samples/1_Utilities", "cpp/1_Utilities", "build/cpp/1_Utilities"} {
			all = append(all, tree+"/"+below+"/"+tool+"/"+tool)
		}
		all = append(all, tree+"/bin/*/linux/release/"+tool)
	}
	return append(all, "/usr/local/cuda*/extras/demo_suite/"+tool, builtSamples+"/bin/"+tool)
}

var samples = []sample{
	{
		tool: cuda.ToolDeviceQuery, id: "verify-devicequery", places: sampleAt("deviceQuery"), sources: sourceAt("deviceQuery", trees...), seconds: 120, read: cuda.DeviceQuery,
		hint: "CUDA up to 12.9 has it in cuda-demo-suite; gpuguest install --with deviceQuery builds it from cuda-samples, which --cuda-samples brings",
	},
	{
		tool: cuda.ToolBandwidthTest, id: "verify-bandwidthtest", places: sampleAt("bandwidthTest"), sources: sourceAt("bandwidthTest", trees...), args: "--memory=pinned --mode=quick", seconds: 300, read: cuda.BandwidthTest,
		hint: "gpuguest install --with bandwidthTest builds it; CUDA 12.9 dropped it, and --with nvbandwidth takes its place",
	},
	{
		tool: cuda.ToolNVBandwidth, id: "verify-nvbandwidth", args: "-j -t host_to_device_memcpy_ce device_to_host_memcpy_ce", seconds: 600, read: cuda.NVBandwidth,
		places: []string{"/root/nvbandwidth*/nvbandwidth", "/root/nvbandwidth*/build/nvbandwidth", "/opt/nvbandwidth*/nvbandwidth", "/opt/nvbandwidth*/build/nvbandwidth",
			"/usr/local/nvbandwidth*/nvbandwidth", "/usr/local/cuda*/bin/nvbandwidth", "/usr/bin/nvbandwidth", "/usr/local/bin/nvbandwidth"},
		hint: "it is built from github.com/NVIDIA/nvbandwidth with CMake and boost's program_options",
	},
	{
		tool: cuda.ToolDCGM, id: "verify-dcgm", args: "diag -r 1", seconds: 600, read: cuda.DCGM,
		places: []string{"/usr/bin/dcgmi", "/usr/local/bin/dcgmi"},
		hint:   "install DCGM (package datacenter-gpu-manager) and start nvidia-dcgm",
	},
}

// Samples are the names that choice.Want.With may hold.
func Samples() []string {
	var all []string
	for _, s := range samples {
		all = append(all, s.tool)
	}
	return all
}

func init() {
	for _, s := range samples {
		register(Step{
			ID:     ID(s.id),
			Title:  "verify with NVIDIA's " + s.tool,
			After:  []ID{"verify-smi", "verify-cuda"},
			Fresh:  true,
			Wanted: func(in Input) bool { return hasGPU(in) && slices.Contains(in.Want.With, s.tool) },
			Check:  s.check,
			Read: func(in Input, data string) (json.RawMessage, string) {
				r := s.read(data)
				if r.Result == cuda.Pass && s.tool == cuda.ToolDeviceQuery && r.Count != len(in.Facts.GPUs) {
					r.Result = cuda.Fail
					r.Failures = append(r.Failures, cuda.Failure{Kind: "count", What: fmt.Sprintf("deviceQuery sees %d GPUs, the guest has %d", r.Count, len(in.Facts.GPUs))})
				}
				return marshal(r), r.Why()
			},
			Hint: s.hint,
		})
	}
}

// findTool is sh that leaves the last of places at which there is a program in $tool, "" for none.
func findTool(places []string) string {
	return lines(
		`tool=`,
		// A pattern that matches nothing stays as it is, and no such file can be run.
		`for f in `+strings.Join(places, " ")+`; do if [ -f "$f" ] && [ -x "$f" ]; then tool=$f; fi; done`)
}

// check finds the program and runs it; where only its source is in the guest, it is built in a folder that goes with
// the check. Its output goes to read, which judges it; the shell judges only what needs no reading: whether it is
// there, ended in time and with what exit. deviceQuery exits 0 without a GPU, so its count is looked at here too, for
// a plan that is run as a script.
func (s sample) check(in Input) string {
	script := []string{
		private,
		limited(),
		findTool(s.places),
		`from=$tool`,
	}
	if len(s.sources) > 0 {
		script = append(script,
			buildSample(in),
			`if [ -z "$tool" ] && find_source `+strings.Join(s.sources, " ")+`; then`,
			`	find_nvcc || { echo "`+s.tool+` is not built, and no nvcc is there to build $src with"; exit 1; }`,
			`	build_sample `+s.tool+` "$t/sample" >"$t/log" 2>&1 || { echo "`+s.tool+` could not be built from $src:"; tail -n 15 "$t/log"; exit 1; }`,
			`	from="built from $src"`,
			`fi`)
	}
	script = append(script,
		`[ -n "$tool" ] || { echo "`+s.tool+` is not in the guest; looked at: `+strings.Join(s.places, " ")+`"; exit 1; }`,
		`unset CUDA_VISIBLE_DEVICES`,
		`export CUDA_CACHE_DISABLE=1`,
		`cd "$t"`,
		s.run(in))
	if s.tool == cuda.ToolNVBandwidth {
		script = append(script,
			// Releases before 0.5 know no -j.
			fmt.Sprintf(`if [ $code -ne 0 ] && ! grep -q '"nvbandwidth"' "$t/out"; then code=0; limited %d "$tool" %s || code=$?; cat "$t/said" "$t/errors" >"$t/out"; fi`, s.seconds, strings.TrimPrefix(s.args, "-j ")))
	}
	script = append(script,
		`head -c 200000 "$t/out" >"$t/head"`,
		marked(`"$t/head"`),
		`echo "$from"`,
		`case $code in 124 | 137) echo "`+s.tool+fmt.Sprintf(` did not end within %d s" ;; esac`, s.seconds),
		`[ $code -eq 0 ] || { echo "exit $code"; tail -n 15 "$t/out"; exit 1; }`)
	if s.tool == cuda.ToolDeviceQuery {
		script = append(script, fmt.Sprintf(`grep -Eq "NumDevs = %s([^0-9]|$)" "$t/out" || { echo "deviceQuery does not see %s GPUs"; exit 1; }`, gpuCount(in), gpuCount(in)))
	}
	if s.tool == cuda.ToolBandwidthTest {
		script = append(script, `[ ! -s "$t/slow" ] || { cat "$t/slow"; exit 1; }`)
	}
	return lines(script...)
}

// run is sh that runs the program and leaves what it printed in $t/out and its exit code in $code. bandwidthTest measures
// GPU 0 alone, and all together as one sum, so it is run once for each; what is slow for its PCIe link is left in $t/slow.
func (s sample) run(in Input) string {
	once := fmt.Sprintf(`code=0; limited %d "$tool" %s || code=$?; cat "$t/said" "$t/errors" >"$t/out"`, s.seconds, s.args)
	if s.tool != cuda.ToolBandwidthTest {
		return once
	}
	return lines(
		`export CUDA_DEVICE_ORDER=PCI_BUS_ID`,
		`code=0`,
		`i=0`,
		`for a in `+gpuWords(in)+`; do`,
		fmt.Sprintf(`	code=0; limited %d "$tool" --device=$i %s || code=$?; cat "$t/said" "$t/errors" >"$t/one"`, s.seconds, s.args),
		`	cat "$t/one" >>"$t/out"`,
		`	[ $code -eq 0 ] || break`,
		`	i=$((i + 1))`,
		fmt.Sprintf(slowCopies, linkFraction(in)),
		`done`)
}

// linkFraction is the part of its PCIe link's bandwidth that a GPU's pinned copies must reach; the probe's default is the
// same half.
func linkFraction(in Input) float64 {
	if in.Want.LinkFraction > 0 {
		return in.Want.LinkFraction
	}
	return 0.5
}

// slowCopies is sh that holds bandwidthTest's figures in $t/one against the PCIe link of the GPU at $a, as the probe does
// with its own (assets/cuda/probe.c, read_link). A link that sysfs does not show is unknown, and nothing is judged.
const slowCopies = `	d=/sys/bus/pci/devices/$a
	awk -v at="$a" -v speed="$(cat "$d/current_link_speed" 2>/dev/null)" -v width="$(cat "$d/current_link_width" 2>/dev/null)" -v part=%g '
		BEGIN { gts = speed + 0; gbs = gts * width * (gts <= 5 ? 0.8 : gts <= 32 ? 128 / 130 : 242 / 256) / 8 }
		/ to (Device|Host) Bandwidth/ { way = /Host to Device/ ? "to" : /Device to Host/ ? "from" : "" }
		/(PINNED|PAGEABLE) Memory Transfers/ { pinned = /PINNED/ }
		/Bandwidth\([MG]B\/s\)/ { unit = /MB\/s/ ? 1000 : 1 }
		gbs && unit && pinned && way != "" && /^[ \t]+[0-9]+[ \t]+[0-9.]+[ \t]*$/ && $2 / unit < part * gbs {
			printf "%%s: link-bandwidth: pinned copies %%s the GPU reach %%.2f GB/s, which is %%.0f %%%% of the %%.2f GB/s that its PCIe link carries (%%.1f GT/s x%%d); at least %%.0f %%%% is asked for\n", at, way, $2 / unit, 100 * $2 / unit / gbs, gbs, gts, width, 100 * part
		}' "$t/one" >>"$t/slow"`
