package steps

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"sync"

	"gpuguest/assets"
	"gpuguest/internal/action"
	"gpuguest/internal/sh"
)

// probePath is where the CUDA probe is kept in a guest. The name says which source it was made of, so that a
// probe of another gpuguest is never taken for this one's.
var probePath = sync.OnceValue(func() string {
	sum := sha256.Sum256(probeSource())
	return "/var/lib/gpuguest/cuda-probe-" + hex.EncodeToString(sum[:6])
})

// probeSource is the source as every guest's plan has it: one copy, of a thousand guests too.
var probeSource = sync.OnceValue(func() []byte { return []byte(assets.Probe) })

// provesCUDA tells whether CUDA is to be proved in this guest.
//
// A GPU that is divided is none to CUDA, and its instances are proved by mig-layout.
func provesCUDA(in Input) bool { return hasGPU(in) && !in.Want.WithoutCUDA && !divided(in) }

// keepsProbe tells whether the guest is to have the probe. One that gets its GPU later is to be proved then, and an image
// may have no compiler by that time.
func keepsProbe(in Input) bool {
	return provesCUDA(in) || in.Want.NoGPU && !hasGPU(in) && !in.Want.WithoutCUDA
}

// compileProbe compiles $1 to $2 and leaves what the compiler said in $3. It fails when no compiler does it.
const compileProbe = `compile() {
	for cc in cc gcc clang; do
		if "$cc" -O2 -o "$2" "$1" -ldl -lpthread >"$3" 2>&1; then return 0; fi
	done
	return 1
}`

func init() {
	register(Step{
		ID:     "probe",
		Title:  "build the CUDA probe",
		After:  []ID{"ready", "rescue", "headers", "driver", "hold-kernel", "initramfs"},
		Wanted: keepsProbe,
		Check: func(Input) string {
			return lines(
				`[ -x `+probePath()+` ] || { echo "the CUDA probe is not built"; exit 1; }`,
				`echo "`+probePath()+`"`)
		},
		Apply: func(in Input) []action.Action {
			p := probePath()
			missing := "false"
			if len(in.Distro.Compiler) > 0 {
				missing = lines(
					`echo "gpuguest: install "`+sh.Join(in.Distro.Compiler...),
					in.Distro.Packages.Quiet(installPackages(in, in.Distro.Compiler...)),
					`	compile "$p.c" "$p.gpuguest-tmp" "$log"`)
			}
			return []action.Action{
				action.Write{Path: p + ".c", Data: probeSource()},
				action.Run{Title: "compile the probe", Packages: true, Script: lines(
					compileProbe,
					`p=`+p,
					`log=$S/cuda-probe.log`,
					`keep "$p"`,
					// What compiles is taken as it is: to install a compiler that is there would upgrade it.
					`if ! compile "$p.c" "$p.gpuguest-tmp" "$log"; then`,
					missing+` || { cat "$log"; rm -f "$p.gpuguest-tmp" "$log"; exit 1; }`,
					`fi`,
					`rm -f "$log"`,
					`chmod 0755 "$p.gpuguest-tmp"`,
					`flush "$p.gpuguest-tmp"`,
					`mv -f "$p.gpuguest-tmp" "$p"`,
					// Those of other versions of gpuguest; the ledger knows all of them.
					`for old in "${p%-*}"-*; do`,
					`	case $old in "$p"|"$p.c") ;; *) rm -f "$old" ;; esac`,
					`done`)},
			}
		},
		Hint: "the probe needs a C compiler and the C library's headers in the guest; --without-cuda leaves the proof of CUDA out",
	})
}

// builtProbe tells, from gpuguest's own ledger, whether the guest has this gpuguest's probe.
func builtProbe(in Input) bool {
	for _, f := range in.Facts.State.Absent {
		if f == probePath() {
			return true
		}
	}
	return false
}

// WithProbe is the input of a guest in which the probe will have been built.
func WithProbe(in Input) Input {
	in.Facts.State.Absent = append(slices.Clone(in.Facts.State.Absent), probePath())
	return in
}

// probeFlags are the GPUs that CUDA must see and what is asked of them, as the probe's flags.
func probeFlags(in Input) string {
	var b strings.Builder
	if in.Want.LinkFraction > 0 {
		fmt.Fprintf(&b, " --threshold %g", in.Want.LinkFraction)
	}
	if in.Unseen {
		b.WriteString(` $(gpus | sed 's/^/--pci /')`)
	}
	for _, a := range addresses(in) {
		b.WriteString(" --pci " + sh.Quote(a))
	}
	return b.String()
}
