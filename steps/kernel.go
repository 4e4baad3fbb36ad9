package steps

import (
	"strings"

	"gpuguest/internal/action"
	"gpuguest/internal/choice"
	"gpuguest/internal/sh"
)

func init() {
	register(Step{
		ID:     "kernel",
		Title:  "move to the newest kernel, whose headers can be had",
		After:  []ID{"ready", "rescue"},
		Wanted: headersGone,
		Refuse: func(in Input) string {
			if len(kernelMeta(in)) == 0 {
				return "the archive no longer has the headers of kernel " + in.Facts.Kernel.Next + ", and which package brings this guest newer kernels is unknown"
			}
			return ""
		},
		Check: func(in Input) string {
			return lines(
				`newest=$(for k in /boot/vmlinuz-*; do echo "$k"; done | sort -V | tail -n 1)`,
				`[ "$newest" != /boot/vmlinuz-`+sh.Quote(in.Facts.Kernel.Next)+` ] || { echo "the newest kernel installed is the one whose headers are gone"; exit 1; }`)
		},
		Replan: true,
		Apply: func(in Input) []action.Action {
			return []action.Action{action.Run{
				Title:    "install " + strings.Join(kernelMeta(in), " "),
				Packages: true,
				Script:   in.Distro.Packages.Quiet(installPackages(in, kernelMeta(in)...)),
			}}
		},
		Hint: "the headers of the guest's kernel have left the archive: upgrade its kernel by hand, or point --mirror at an archive that has them",
	})
}

// headersGone tells, where the guest knows what its sources offer, that the exact headers of the next
// kernel are neither there nor to be had. Headers of another kernel are never taken in their place: a
// module that is built with them loads nowhere (field report: NVIDIA/open-gpu-kernel-modules#555).
func headersGone(in Input) bool {
	k := in.Facts.Kernel
	if byBundle(in) || in.Choice.Modules != choice.ModulesDKMS || k.Next == "" || len(in.Facts.Offered) == 0 {
		return false
	}
	anyHeaders := false
	for p := range in.Facts.Offered {
		anyHeaders = anyHeaders || strings.HasPrefix(p, "linux-headers-")
	}
	// Lists that know no headers at all were not fetched yet; what they lack proves nothing.
	if !anyHeaders {
		return false
	}
	for _, r := range k.Headers {
		if r == k.Next {
			return false
		}
	}
	for _, p := range in.Distro.HeadersFor(k.Next) {
		if _, ok := in.Facts.Offered[p]; ok {
			return false
		}
	}
	return true
}

// kernelMeta are the packages that bring the newest kernel of the same flavor.
func kernelMeta(in Input) []string {
	return in.Distro.NewestKernel(in.Facts.Kernel.Next, in.Facts)
}
