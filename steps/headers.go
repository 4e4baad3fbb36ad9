package steps

import (
	"slices"

	"gpuguest/internal/action"
	"gpuguest/internal/choice"
	"gpuguest/internal/sh"
)

func init() {
	register(Step{
		ID:     "headers",
		Title:  "install headers for the next kernel and the build tools",
		After:  []ID{"ready", "rescue", "kernel", "extra-repos"},
		Wanted: func(in Input) bool { return in.Choice.Modules != choice.ModulesPrecompiled },
		Check: func(in Input) string {
			build := "/lib/modules/" + in.Facts.Kernel.Next + "/build/Makefile"
			return lines(
				must(in.Distro.Packages.Installed(headerPackages(in)...), "headers or build tools are not installed"),
				`[ -e `+sh.Quote(build)+` ] || { echo "no build tree for kernel" `+sh.Quote(in.Facts.Kernel.Next)+`; exit 1; }`)
		},
		Apply: func(in Input) []action.Action {
			var acts []action.Action
			if byBundle(in) {
				return []action.Action{action.Run{Title: "install headers and build tools", Packages: true, Script: in.Distro.Packages.Quiet(installPackages(in, headerPackages(in)...))}}
			}
			if script := in.Distro.FromVault(in.Facts.Kernel.Next, in.Facts.Arch, freshLists(in), in.Choice.Headers); script != "" {
				acts = append(acts, action.Run{Title: "see whether the exact headers can still be had, else take them from the vault", Packages: true, Script: in.Distro.Packages.Quiet(script)})
			}
			return append(acts, action.Run{
				Title: "install headers and build tools", Packages: true, Script: in.Distro.Packages.Quiet(installPackages(in, headerPackages(in)...)),
			})
		},
		Hint: "the exact headers of the kernel may have left the archive: upgrade the guest's kernel, reboot and run gpuguest again, or turn on the distribution's archive of old packages (its vault)",
	})
}

// headerPackages are the exact headers, the packages that bring those of later kernels, and the tools.
func headerPackages(in Input) []string {
	all := slices.Concat(in.Choice.Headers, in.Distro.BuildTools)
	if pkg, _ := in.Distro.Toolset(in.Facts); pkg != "" {
		all = append(all, pkg)
	}
	// SUSE's packages build their modules without dkms, and NVIDIA's installer is told to use it.
	if in.Choice.Modules == choice.ModulesDKMS {
		all = append(all, "dkms")
	}
	slices.Sort(all)
	return slices.Compact(all)
}
