package steps

import (
	"gpuguest/internal/action"
	"gpuguest/internal/sh"
)

func init() {
	register(Step{
		ID:     "rescue",
		Title:  "keep the initramfs that boots today",
		After:  []ID{"ready", "proxy", "bundle"},
		Wanted: func(in Input) bool { return in.Facts.Boot.Image != "" },
		Check: func(in Input) string {
			kept := "$S/before/files" + sh.Quote(in.Facts.Boot.Image)
			gone := "$S/before/absent" + sh.Quote(in.Facts.Boot.Image)
			return lines(
				`S=${GPUGUEST_STATE:-/var/lib/gpuguest}`,
				`[ -e `+kept+` ] || [ -e `+gone+` ] || { echo "no copy is kept yet"; exit 1; }`)
		},
		Apply: func(in Input) []action.Action {
			// Before any package may build it anew: a package's own scripts do so too.
			return []action.Action{action.Run{Title: "copy " + in.Facts.Boot.Image, Script: "keep " + sh.Quote(in.Facts.Boot.Image)}}
		},
	})
}
