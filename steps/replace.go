package steps

import (
	"fmt"

	"gpuguest/internal/action"
	"gpuguest/internal/sh"
)

func init() {
	register(Step{
		ID:     "replace",
		Title:  "remove the driver that came another way",
		After:  []ID{"ready", "rescue", "headers", "blocklist", "repo", "components", "pin"},
		Late:   needsFreeGPU,
		Wanted: func(in Input) bool { return in.Choice.Replaces.Any() },
		AtBoot: func(in Input) bool { return in.Facts.Driver.Loaded != "" },
		Check: func(in Input) string {
			if in.Choice.Replaces.Runfile != "" {
				return runfileGone
			}
			return lines(
				`now=$(`+in.Distro.Packages.List()+`)`,
				`for p in `+sh.Join(in.Choice.Replaces.Packages...)+`; do`,
				`	! printf '%s\n' "$now" | cut -d' ' -f1 | grep -qxF -- "$p" || { echo "$p is installed"; exit 1; }`,
				`done`)
		},
		Apply: func(in Input) []action.Action {
			if in.Choice.Replaces.Runfile != "" {
				// A service of gpuguest's own would hide the one that packages bring.
				return []action.Action{
					action.Run{Title: "stop the services that gpuguest made for it", Script: stopServices(in)},
					action.Run{Title: "run nvidia-uninstall", Script: uninstallRunfile(in)},
				}
			}
			m := in.Distro.Packages
			return []action.Action{action.Run{
				Title:    fmt.Sprintf("purge %d packages", len(in.Choice.Replaces.Packages)),
				Packages: true,
				Script:   m.Quiet(m.Purge(in.Choice.Replaces.Packages...)),
			}}
		},
		Hint: "what needs the old driver must be removed first",
	})
}
