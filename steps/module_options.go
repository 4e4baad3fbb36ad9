package steps

import (
	"strings"

	"gpuguest/internal/action"
	"gpuguest/internal/sh"
)

const optionsPath = "/etc/modprobe.d/gpuguest-options.conf"

// moduleOptions are the lines of modprobe.d. A module whose file has another name than NVIDIA's (Debian's
// nvidia-current-uvm) takes its options by that name, so both are given it (modprobe.d(5), "options").
func moduleOptions(in Input) string {
	var b strings.Builder
	b.WriteString("# Written by gpuguest.\n")
	for _, o := range in.Want.ModuleOptions {
		module, option, _ := strings.Cut(o, " ")
		b.WriteString("options " + module + " " + option + "\n")
		if rest, ok := strings.CutPrefix(module, "nvidia"); ok && in.Choice.Module != "" && in.Choice.Module != "nvidia" {
			b.WriteString("options " + in.Choice.Module + strings.ReplaceAll(rest, "_", "-") + " " + option + "\n")
		}
	}
	return b.String()
}

func init() {
	register(Step{
		ID:    "module-options",
		Title: "set options of kernel modules",
		After: []ID{"ready", "rescue"},
		// Those of an earlier run stay where they are until they are dropped by name.
		Wanted: func(in Input) bool { return len(in.Want.ModuleOptions)+len(in.Want.DropOptions) > 0 },
		// A module that is in use cannot be loaded anew, and what it said of its failure stands in the kernel's log
		// until the next boot.
		AtBoot: func(Input) bool { return true },
		Check: func(in Input) string {
			if len(in.Want.ModuleOptions) == 0 {
				return `[ ! -e ` + optionsPath + ` ] || { echo "` + optionsPath + ` is still there"; exit 1; }`
			}
			return `[ -e ` + optionsPath + ` ] && printf %s ` + sh.Quote(moduleOptions(in)) + ` | cmp -s - ` + optionsPath + ` || { echo "` + optionsPath + ` does not hold them"; exit 1; }`
		},
		Apply: func(in Input) []action.Action {
			if len(in.Want.ModuleOptions) == 0 {
				return []action.Action{action.Run{Title: "remove " + optionsPath, Script: "drop " + optionsPath}}
			}
			return []action.Action{action.Write{Path: optionsPath, Data: []byte(moduleOptions(in))}}
		},
	})
}
