package steps

import (
	"slices"
	"strings"

	"gpuguest/internal/action"
)

// kernelArgs are the words that the next kernel must be started with: the blocklist once more, for what
// loads before modprobe.d is read, and the user's own. Those of an earlier run stay until they are
// dropped by name: a plain install must not take away the argument that the GPU works by.
func kernelArgs(in Input) []string {
	args := blockArgs()
	for _, a := range slices.Concat(in.Facts.State.KernelArgs, in.Want.KernelArgs) {
		switch {
		case slices.Contains(args, a):
		case strings.HasPrefix(a, "modprobe.blacklist=nouveau"): // the blocklist of an earlier gpuguest
		case slices.Contains(in.Want.DropArgs, a) && !slices.Contains(in.Want.KernelArgs, a):
		default:
			args = append(args, a)
		}
	}
	return args
}

func blockArgs() []string {
	return []string{"modprobe.blacklist=" + strings.Join(blocked, ","), "nouveau.modeset=0"}
}

// extraArgs are those of kernelArgs that a person asked for, now or in an earlier run.
func extraArgs(in Input) []string { return kernelArgs(in)[len(blockArgs()):] }

// dropped are the arguments of an earlier run that are to go.
func dropped(in Input) []string {
	keep := kernelArgs(in)
	return slices.DeleteFunc(slices.Clone(in.Facts.State.KernelArgs), func(a string) bool { return slices.Contains(keep, a) })
}

func init() {
	register(Step{
		ID:    "kernel-args",
		Title: "set kernel arguments",
		After: []ID{"ready", "rescue", "blocklist"},
		Wanted: func(in Input) bool {
			_, known := in.Distro.Boot.Loader(in.Facts)
			return known || len(extraArgs(in)) > 0
		},
		Refuse: func(in Input) string {
			switch _, known := in.Distro.Boot.Loader(in.Facts); {
			case known:
				return ""
			case in.Facts.Boot.Loader == "":
				return "no bootloader that gpuguest knows was found in the guest, so it cannot set kernel arguments"
			}
			return "the guest boots by " + in.Facts.Boot.Loader + " in a way in which gpuguest cannot set kernel arguments"
		},
		AtBoot: func(in Input) bool {
			runs := func(a string) bool { return slices.Contains(in.Facts.Kernel.Cmdline, a) }
			return claimed(in) || slices.ContainsFunc(in.Want.DropArgs, runs) ||
				slices.ContainsFunc(extraArgs(in), func(a string) bool { return !runs(a) })
		},
		Check: func(in Input) string {
			if l, known := in.Distro.Boot.Loader(in.Facts); known {
				return l.Proof(in.Facts, kernelArgs(in))
			}
			return "false"
		},
		Apply: func(in Input) []action.Action {
			if l, known := in.Distro.Boot.Loader(in.Facts); known {
				return l.Set(in.Facts, kernelArgs(in), dropped(in))
			}
			return nil
		},
		Hint: "look at /etc/default/grub and the files beside it for a line that sets GRUB_CMDLINE_LINUX after gpuguest's",
	})
}
