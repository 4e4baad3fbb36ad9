package steps

import (
	"strconv"

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

func hasGPU(in Input) bool { return len(in.Facts.GPUs) > 0 || in.Unseen }

// SeeGPUs is the shell function gpus of a script whose input is Unseen: it prints the addresses of the NVIDIA display
// functions that sysfs shows.
const SeeGPUs = `gpus() {
	for d in /sys/bus/pci/devices/*; do
		case $(cat "$d/vendor" 2>/dev/null) in 0x10de) ;; *) continue ;; esac
		case $(cat "$d/class") in 0x03*) echo "${d##*/}" ;; esac
	done
}`

// gpuWords are the addresses of the GPUs as words of a shell command.
func gpuWords(in Input) string {
	if in.Unseen {
		return "$(gpus)"
	}
	return sh.Join(addresses(in)...)
}

// gpuCount is the number of GPUs as part of a shell command's word.
func gpuCount(in Input) string {
	if in.Unseen {
		return "$(gpus | grep -c .)"
	}
	return strconv.Itoa(len(in.Facts.GPUs))
}

func init() {
	register(Step{
		ID:     "module",
		Title:  "bind the driver to every GPU",
		After:  []ID{"next-boot"},
		Fresh:  true,
		Wanted: hasGPU,
		Check: func(in Input) string {
			script := ""
			if in.Unseen {
				script = `[ -n "$(gpus)" ] || { echo "no NVIDIA GPU in the guest"; exit 1; }` + "\n"
			}
			return script + lines(
				`bad=`,
				`for a in `+gpuWords(in)+`; do`,
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
