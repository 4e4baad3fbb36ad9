package steps

import (
	"slices"
	"strings"

	"gpuguest/internal/action"
	"gpuguest/internal/sh"
)

// grubArgsPath is read by grub-mkconfig after /etc/default/grub and after what cloud images put beside it,
// so that nobody's file is edited and undoing is removing one file.
const grubArgsPath = "/etc/default/grub.d/90-gpuguest.cfg"

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

func grubArgs(in Input) string {
	args := strings.Join(kernelArgs(in), " ")
	return "# Written by gpuguest: arguments for every kernel that GRUB starts.\n" +
		"# arguments: " + args + "\n" +
		"GRUB_CMDLINE_LINUX=\"$GRUB_CMDLINE_LINUX \"" + sh.Quote(args) + "\n"
}

func init() {
	register(Step{
		ID:     "kernel-args",
		Title:  "set kernel arguments",
		After:  []ID{"ready", "rescue", "blocklist"},
		Wanted: func(in Input) bool { return in.Facts.Boot.Loader != "" || len(extraArgs(in)) > 0 },
		Refuse: func(in Input) string {
			switch {
			case in.Facts.Boot.Loader == "grub" || len(in.Want.KernelArgs) == 0:
				return ""
			case in.Facts.Boot.Loader == "":
				return "no bootloader that gpuguest knows was found in the guest, so it cannot set kernel arguments"
			}
			return "the guest boots by " + in.Facts.Boot.Loader + "; gpuguest sets kernel arguments through GRUB only"
		},
		AtBoot: func(in Input) bool {
			runs := func(a string) bool { return slices.Contains(in.Facts.Kernel.Cmdline, a) }
			return claimed(in) || slices.ContainsFunc(in.Want.DropArgs, runs) ||
				slices.ContainsFunc(extraArgs(in), func(a string) bool { return !runs(a) })
		},
		Check: func(in Input) string {
			// Every entry that starts the next kernel must have every argument: the check reads what GRUB
			// will read, not the file it is made from.
			script := []string{
				`[ -e ` + grubArgsPath + ` ] && printf %s ` + sh.Quote(grubArgs(in)) + ` | cmp -s - ` + grubArgsPath + ` || { echo "` + grubArgsPath + ` does not hold them"; exit 1; }`,
				`entries=$(grep -E '^[[:space:]]*linux(16|efi)?[[:space:]]' ` + sh.Quote(in.Facts.Boot.Config) + ` | grep -F -- ` + sh.Quote("vmlinuz-"+in.Facts.Kernel.Next) + `) || { echo "no boot entry starts kernel" ` + sh.Quote(in.Facts.Kernel.Next) + `; exit 1; }`,
			}
			for _, a := range kernelArgs(in) {
				script = append(script, `[ -z "$(printf '%s\n' "$entries" | sed 's/$/ /' | grep -v -F -- `+sh.Quote(" "+a+" ")+`)" ] || { echo "a boot entry lacks" `+sh.Quote(a)+`; exit 1; }`)
			}
			return lines(script...)
		},
		Apply: func(in Input) []action.Action {
			return []action.Action{
				// Kept so that uninstall can prove the command line of before.
				action.Run{Title: "keep the bootloader's configuration", Script: "keep " + sh.Quote(in.Facts.Boot.Config)},
				action.Write{Path: grubArgsPath, Data: []byte(grubArgs(in))},
				action.Run{Title: "write the bootloader's configuration", Script: in.Distro.GRUBUpdate},
			}
		},
		Hint: "look at /etc/default/grub and the files beside it for a line that sets GRUB_CMDLINE_LINUX after gpuguest's",
	})
}
