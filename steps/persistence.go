package steps

import (
	"fmt"

	"gpuguest/internal/action"
	"gpuguest/internal/sh"
)

// dropIn is where what the distribution's own unit lacks is added.
func dropIn(in Input) string {
	return "/etc/systemd/system/" + in.Choice.Persistence.Unit + ".d/gpuguest.conf"
}

func init() {
	register(Step{
		ID:     "persistence",
		Title:  "keep the GPU initialised by nvidia-persistenced",
		After:  []ID{"module"},
		Fresh:  true,
		Wanted: func(in Input) bool { return in.Choice.Persistence.Unit != "" && in.Facts.Init.Name == "systemd" },
		Check: func(in Input) string {
			unit := sh.Quote(in.Choice.Persistence.Unit)
			var script []string
			if d := in.Choice.Persistence.DropIn; d != "" {
				script = append(script, `printf %s `+sh.Quote(d)+` | cmp -s - `+sh.Quote(dropIn(in))+` || { echo "the unit does not keep persistence mode on"; exit 1; }`)
			}
			script = append(script,
				`[ "$(systemctl is-enabled `+unit+` 2>/dev/null)" = enabled ] || { echo `+unit+` "is not enabled at boot"; exit 1; }`)
			if hasGPU(in) {
				script = append(script,
					`if [ "$(systemctl is-active `+unit+` 2>/dev/null)" = active ]; then`,
					`	pid=$(systemctl show -p MainPID `+unit+`); pid=${pid#MainPID=}`,
					`	user=$(stat -c %U "/proc/$pid" 2>/dev/null) || user=unknown`,
					`	[ "$user" != root ] || { echo "nvidia-persistenced runs as root"; exit 1; }`,
					`	echo "nvidia-persistenced runs as $user"`,
					`	exit 0`,
					`fi`,
					// The fallback of Apply lasts until the next boot, at which the unit is tried again.
					private,
					limited(),
					`limited 60 nvidia-smi --query-gpu=persistence_mode --format=csv,noheader || :`,
					`on=$(grep -cx ' *Enabled *' "$t/said") || :`,
					fmt.Sprintf(`[ "$on" -eq %s ] || { echo `, gpuCount(in))+unit+` "does not run"; systemctl status --no-pager -n 5 `+unit+` 2>&1 | tail -n 6; exit 1; }`,
					`echo `+sh.Quote(WarningMark+in.Choice.Persistence.Unit+" does not run; persistence mode was turned on by nvidia-smi -pm, until the next boot"))
			}
			return lines(script...)
		},
		Apply: func(in Input) []action.Action {
			unit := sh.Quote(in.Choice.Persistence.Unit)
			script := `systemctl enable ` + unit
			if hasGPU(in) {
				script = lines(script,
					`if ! systemctl start `+unit+` || [ "$(systemctl is-active `+unit+`)" != active ]; then`,
					// The daemon's job by the driver's own, deprecated means: better than a GPU that forgets its
					// state between programs (NVIDIA driver persistence documentation, "legacy persistence mode").
					`	(`,
					private,
					limited(),
					`	limited 60 nvidia-smi -pm 1 || echo "nvidia-smi -pm 1: exit $?"`,
					`	cat "$t/said" "$t/errors"`,
					`	)`,
					`fi`)
			}
			var acts []action.Action
			if d := in.Choice.Persistence.DropIn; d != "" {
				acts = append(acts,
					action.Write{Path: dropIn(in), Data: []byte(d)},
					action.Run{Title: "have systemd read the unit anew", Script: `systemctl daemon-reload`})
			}
			return append(acts, action.Run{Title: "enable and start " + in.Choice.Persistence.Unit, Script: script})
		},
	})
}
