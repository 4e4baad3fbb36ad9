package steps

import (
	"slices"
	"strings"

	"gpuguest/internal/action"
	"gpuguest/internal/sh"
)

func init() {
	register(Step{
		ID:     "hold-kernel",
		Title:  "hold the kernel packages",
		After:  []ID{"ready", "rescue", "headers", "driver"},
		Wanted: func(in Input) bool { return in.Want.HoldKernel && len(kernelPackages(in)) > 0 },
		Check: func(in Input) string {
			return lines(
				`held=$(`+in.Distro.Packages.Held()+`)`,
				`for p in `+sh.Join(kernelPackages(in)...)+`; do`,
				`	printf '%s\n' "$held" | grep -qx -- "$p" || { echo "$p is not on hold"; exit 1; }`,
				`done`)
		},
		Apply: func(in Input) []action.Action {
			var fresh []string
			for _, p := range kernelPackages(in) {
				if !slices.Contains(in.Facts.Held, p) {
					fresh = append(fresh, p)
				}
			}
			if len(fresh) == 0 {
				return []action.Action{action.Run{Title: "hold", Script: ":"}}
			}
			return []action.Action{action.Run{Title: "hold " + strings.Join(fresh, " "), Packages: in.Distro.RepoFiles != "", Script: lines(
				// Which holds are ours is on disk before they are made, so that uninstall lifts those and no other.
				`printf '%s\n' `+sh.Join(fresh...)+` >>"$S/held"`,
				`flush "$S/held"`,
				in.Distro.Packages.Hold(fresh...))}}
		},
	})
}

// kernelPackages are the packages that carry the next kernel, its headers, or bring later ones. Headers that the same run
// installs belong to them: by the packages of before they would be held the next time only.
func kernelPackages(in Input) []string {
	return in.Distro.KernelPackages(in.Facts.Kernel.Next, in.Facts, in.Choice.Headers)
}
