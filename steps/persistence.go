package steps

import (
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
					`[ "$(systemctl is-active `+unit+` 2>/dev/null)" = active ] || { echo `+unit+` "does not run"; systemctl status --no-pager -n 5 `+unit+` 2>&1 | tail -n 6; exit 1; }`,
					`pid=$(systemctl show -p MainPID `+unit+`); pid=${pid#MainPID=}`,
					`user=$(stat -c %U "/proc/$pid" 2>/dev/null) || user=unknown`,
					`[ "$user" != root ] || { echo "nvidia-persistenced runs as root"; exit 1; }`,
					`echo "nvidia-persistenced runs as $user"`)
			}
			return lines(script...)
		},
		Apply: func(in Input) []action.Action {
			unit := sh.Quote(in.Choice.Persistence.Unit)
			script := `systemctl enable ` + unit
			if hasGPU(in) {
				script = lines(script,
					`if ! systemctl start `+unit+`; then`,
					// The daemon's job by the driver's own, deprecated means: better than a GPU that forgets its
					// state between programs (NVIDIA driver persistence documentation, "legacy persistence mode").
					`	timeout 60 nvidia-smi -pm 1`,
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
