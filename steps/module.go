package steps

import (
	"gpuguest/internal/action"
	"gpuguest/internal/sh"
)

func addresses(in Input) []string {
	var all []string
	for _, g := range in.Facts.GPUs {
		all = append(all, g.Address)
	}
	return all
}

func hasGPU(in Input) bool { return len(in.Facts.GPUs) > 0 }

func init() {
	register(Step{
		ID:     "module",
		Title:  "bind the driver to every GPU",
		After:  []ID{"next-boot"},
		Fresh:  true,
		Wanted: hasGPU,
		Check: func(in Input) string {
			return lines(
				`bad=`,
				`for a in `+sh.Join(addresses(in)...)+`; do`,
				`	driver=$(readlink "/sys/bus/pci/devices/$a/driver") || driver=`,
				`	driver=${driver##*/}`,
				`	if [ "$driver" = nvidia ]; then echo "$a: nvidia"; else echo "$a: bound to ${driver:-no driver}"; bad=1; fi`,
				`done`,
				`[ -z "$bad" ] || { `+evidence+`; exit 1; }`)
		},
		Apply: func(Input) []action.Action {
			// udev has loaded it where the guest booted with the driver in place; this is for a run that
			// needed no boot. What modprobe says of a failure is less than what the kernel log says, and
			// the check after it quotes that.
			return []action.Action{action.Run{Title: "load the nvidia module", Script: `modprobe nvidia || true`}}
		},
	})
}
