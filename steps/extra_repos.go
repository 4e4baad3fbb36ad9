package steps

import (
	"gpuguest/internal/action"
	"gpuguest/internal/sh"
)

func init() {
	register(Step{
		ID:     "extra-repos",
		Title:  "read the repositories that the driver's dependencies come from",
		After:  []ID{"ready", "rescue"},
		Wanted: func(in Input) bool { return len(in.Distro.Reading(in.Choice.Source).Extras) > 0 && !byBundle(in) },
		Check:  func(in Input) string { return in.Distro.Reading(in.Choice.Source).ExtrasCheck() },
		Apply: func(in Input) []action.Action {
			var acts []action.Action
			for _, e := range in.Distro.Reading(in.Choice.Source).ExtrasMissing(in.Facts) {
				acts = append(acts, action.Run{Title: e.Name + ": " + e.How, Packages: e.Packages, Script: e.Enable})
			}
			if len(acts) == 0 {
				acts = append(acts, action.Run{Title: "nothing is missing", Script: ":"})
			}
			return acts
		},
		Hint: "see that the guest is registered with its distribution, or turn these repositories on by hand",
	})
	registerRemoval(Step{
		ID:     "products",
		Title:  "take registered extensions back",
		After:  []ID{"ready", "remove-packages"},
		Wanted: func(in Input) bool { return len(in.Facts.State.Products) > 0 },
		Check: func(in Input) string {
			return lines(stateDir, `[ ! -s "$S/products" ] || { echo "they are registered"; exit 1; }`)
		},
		Apply: func(in Input) []action.Action {
			return []action.Action{action.Run{Title: "take them back", Script: lines(
				`for p in `+sh.Join(in.Facts.State.Products...)+`; do SUSEConnect --de-register --product "$p"; done`,
				`rm -f "$S/products"`)}}
		},
	})
}
