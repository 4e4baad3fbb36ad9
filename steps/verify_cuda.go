package steps

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"sync"

	"gpuguest/assets"
	"gpuguest/internal/cuda"
	"gpuguest/internal/sh"
)

// packedProbe is the probe's source as base64 of gzip, for a check that has to bring it along.
var packedProbe = sync.OnceValue(func() string {
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err == nil {
		_, err = z.Write([]byte(assets.Probe))
	}
	if err == nil {
		err = z.Close()
	}
	if err != nil {
		panic(err) // a buffer takes everything
	}
	return base64.StdEncoding.EncodeToString(b.Bytes())
})

// probeSeconds is the deadline of the whole probe. Without persistence mode each GPU takes a second or two to
// initialise, and it has been seen to take more than ten on an eight-GPU machine that was just booted; the
// probe itself is at work for a second or two.
const probeSeconds = 60

// haveProbe is sh that leaves the path of a runnable probe in $probe, with $t a private folder.
func haveProbe(in Input) string {
	if builtProbe(in) {
		return lines(
			`probe=`+probePath(),
			`[ -x "$probe" ] || { echo "$probe is gone: run gpuguest install again"; exit 1; }`)
	}
	return lines(
		compileProbe,
		`base64 -d <<'PROBE' | gzip -dc >"$t/probe.c"`,
		packedProbe(),
		`PROBE`,
		`probe=$t/probe`,
		`compile "$t/probe.c" "$probe" "$t/log" || {`,
		`	echo "CUDA is not proved: no C compiler of the guest makes the probe"`,
		`	tail -n 5 "$t/log"`,
		`	exit 1`,
		`}`)
}

// private is sh that makes a folder $t of the check's own and takes it away when the check ends.
const private = `t=$(mktemp -d)
trap 'rm -rf "$t"' EXIT
trap 'exit 143' HUP INT TERM`

// limited is the shell function limited SECONDS COMMAND..., for what may hang in the kernel: assets/limited.sh. It needs
// private before it.
func limited() string { return strings.TrimSuffix(sh.Lean(assets.Limited), "\n") }

func init() {
	register(Step{
		ID:     "verify-cuda",
		Title:  "verify that CUDA works on every GPU",
		After:  []ID{"probe", "verify-smi"},
		Fresh:  true,
		Wanted: provesCUDA,
		Check: func(in Input) string {
			return lines(
				private,
				limited(),
				haveProbe(in),
				// What a person reads is on standard error.
				fmt.Sprintf(`code=0; limited %d "$probe" --timeout %d --expect %s%s || code=$?`,
					probeSeconds+30, probeSeconds, gpuCount(in), probeFlags(in)),
				`cat "$t/errors"`,
				`[ ! -s "$t/said" ] || `+marked(`"$t/said"`),
				`case $code in`,
				`0) exit 0 ;;`,
				`124 | 137) echo "the probe did not end within its time" ;;`,
				`126) echo "programs may not be run from ${probe%/*}" ;;`,
				`esac`,
				`[ -d /sys/module/nvidia_uvm ] || echo "the nvidia-uvm module is not loaded"`,
				`[ -e /dev/nvidia-uvm ] || echo "/dev/nvidia-uvm is missing"`,
				// With MIG on, CUDA lists instances (NVIDIA's MIG user guide, "Device Enumeration").
				`if limited 60 nvidia-smi --query-gpu=mig.mode.current --format=csv,noheader && grep -q Enabled "$t/said"; then echo "MIG is on: CUDA lists instances and not the GPUs"; fi`,
				evidence,
				`exit 1`)
		},
		Read: func(_ Input, data string) (json.RawMessage, string) {
			r, err := cuda.Parse([]byte(data))
			if err != nil {
				return nil, err.Error()
			}
			return marshal(r), r.Advice()
		},
		Hint: "what helps stands beside each failure; a compiler for the probe is brought by gpuguest install; --without-cuda leaves the proof of CUDA out",
	})
}

// marshal is a report as JSON; nil for one that cannot be, which would be a mistake in its types.
func marshal(r any) json.RawMessage {
	raw, err := json.Marshal(r)
	if err != nil {
		return nil
	}
	return raw
}

// marked is sh that prints a file's lines as data.
func marked(file string) string {
	return `sed 's/^/` + DataMark + `/' ` + file
}
