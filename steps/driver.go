package steps

import (
	"slices"
	"strconv"
	"strings"

	"gpuguest/distros"
	"gpuguest/internal/action"
	"gpuguest/internal/catalog"
	"gpuguest/internal/choice"
	"gpuguest/internal/sh"
)

func init() {
	register(Step{
		ID:     "pin",
		Title:  "pin the driver branch",
		After:  []ID{"ready", "rescue", "repo", "components"},
		Wanted: func(in Input) bool { return len(in.Choice.Pin) > 0 || !in.Choice.Within.None() },
		Check: func(in Input) string {
			var script []string
			if len(in.Choice.Pin) > 0 {
				script = append(script, must(in.Distro.Packages.Installed(in.Choice.Pin...), "the pin is not installed"))
			}
			if !in.Choice.Within.None() {
				script = append(script, in.Distro.Packages.Pinned(in.Choice.Within))
			}
			return lines(script...)
		},
		Apply: func(in Input) []action.Action {
			var acts []action.Action
			if len(in.Choice.Pin) > 0 {
				acts = append(acts, action.Run{
					Title:    "install " + strings.Join(in.Choice.Pin, " "),
					Packages: true,
					Script:   in.Distro.Packages.Quiet(installPackages(in, in.Choice.Pin...)),
				})
			}
			if !in.Choice.Within.None() {
				acts = append(acts, action.Run{
					Title:    pinTitle(in.Choice.Within),
					Packages: true,
					Script:   in.Distro.Packages.Quiet(in.Distro.Packages.Pin(in.Choice.Within)),
				})
			}
			return acts
		},
		Hint: "the repository may not carry this branch or version: --driver names another",
	})
	register(Step{
		ID:     "driver",
		Title:  "install the driver",
		After:  []ID{"ready", "rescue", "extra-repos", "headers", "repo", "components", "pin", "blocklist", "toolkit-pin", "signing-key", "replace"},
		Late:   needsFreeGPU,
		Module: moduleWords,
		Check: func(in Input) string {
			if byRunfile(in) {
				return lines(runfileCheck, moduleCheck(in))
			}
			return lines(
				must(in.Distro.Packages.Installed(in.Choice.Packages...), "the driver packages are not all installed"),
				moduleCheck(in))
		},
		Refuse: func(in Input) string {
			if driverMet(in) {
				return ""
			}
			for _, p := range in.Facts.Held {
				if strings.Contains(p, "nvidia") || strings.Contains(p, "cuda") {
					return "package " + p + " is on hold, and the driver cannot be installed without changing it"
				}
			}
			return ""
		},
		AtBoot: func(in Input) bool {
			// A driver that is loaded now stays the loaded one until the next boot.
			return in.Facts.Driver.Loaded != "" && !driverMet(in)
		},
		Apply: func(in Input) []action.Action {
			if byRunfile(in) {
				return append(runDriverInstaller(in), action.Run{Title: "see that the modules for kernel " + in.Facts.Kernel.Next + " are built", Script: buildModules(in)})
			}
			script := installPackages(in, in.Choice.Packages...)
			if displaces(in) {
				script = lines(freshLists(in), in.Distro.Packages.Exchange(in.Choice.Packages...))
			}
			acts := []action.Action{action.Run{
				Title:    "install " + strings.Join(in.Choice.Packages, " "),
				Packages: true,
				Script:   in.Distro.Packages.Quiet(script),
			}}
			if in.Choice.Modules == choice.ModulesDKMS {
				acts = append(acts, action.Run{Title: "build the modules for kernel " + in.Facts.Kernel.Next, Script: buildModules(in)})
			}
			return acts
		},
		Hint: "the whole log of the step is in the guest below /var/lib/gpuguest/jobs",
	})
}

// displaces tells whether the guest has the same source's driver with modules of another kind, which the planned ones
// conflict with, or of another branch by a package that is named for it: SUSE's metapackages, each of which wants the
// same packages at a version of its own. apt lets go of such by itself, whatever it is told to install.
func displaces(in Input) bool {
	b, err := catalog.BranchOf(in.Facts.Driver.Next.Version)
	if err != nil {
		b = in.Choice.Branch
	}
	for _, o := range in.Distro.Offers {
		if o.Source != in.Choice.Source || in.Distro.RepoFiles == "" && o.Flavor == in.Choice.Flavor && o.Modules == in.Choice.Modules {
			continue
		}
		for _, p := range distros.Expand(o.Packages, distros.Names{Branch: b}) {
			p = distros.PackageName(p)
			if in.Facts.Packages[p] != "" && !slices.ContainsFunc(in.Choice.Packages, func(mine string) bool { return distros.PackageName(mine) == p }) {
				return true
			}
		}
	}
	return false
}

func pinTitle(p distros.Pin) string {
	var what []string
	if p.Stream != "" {
		what = append(what, "enable module stream "+p.Stream)
	}
	if p.Suite != "" {
		what = append(what, "take all of the driver from "+p.Suite)
	} else if len(p.Names) > 0 {
		what = append(what, "lock the driver's packages within "+p.Within)
	}
	return strings.Join(what, " and ")
}

// driverMet tells, from the facts alone, whether the planned driver's module is there for the next kernel.
// It only saves asking for room or a boot; the check decides.
func driverMet(in Input) bool {
	m := in.Facts.Driver.Next
	return m.Version != "" && versionMatches(in, m.Version) && m.License == in.Choice.License
}

func versionMatches(in Input, v string) bool {
	if in.Choice.Version != "" {
		return v == in.Choice.Version
	}
	return strings.HasPrefix(v, strconv.Itoa(in.Choice.Branch)+".")
}

// versionPattern is versionMatches for sh's case.
func versionPattern(in Input) string {
	if in.Choice.Version != "" {
		return in.Choice.Version
	}
	return strconv.Itoa(in.Choice.Branch) + ".*"
}

// moduleCheck asks the module file itself: dkms status has been seen to say "installed" for a module built
// against another kernel (NVIDIA/open-gpu-kernel-modules#791, dkms#17).
//
// What a boot to come will find may be either flavor, where both are kept for it to pick from.
func moduleCheck(in Input) string {
	flavor := `[ "$license" = ` + sh.Quote(in.Choice.License) + ` ] || { echo "the $name module's license is $license, so it is not the ` + in.Choice.Flavor + ` flavor"; exit 1; }`
	if in.Want.BothFlavors && in.Unseen {
		flavor = `case $license in ` + sh.Quote(choice.LicenseOpen) + ` | ` + sh.Quote(choice.LicenseProprietary) + `) ;; *) echo "the $name module's license is $license, so it is of neither flavor"; exit 1 ;; esac`
	}
	return lines(
		`next=`+sh.Quote(in.Facts.Kernel.Next)+` name=`+sh.Quote(in.Choice.Module),
		// One modinfo for all fields, taken apart without a fork: every check of a converged guest costs its time.
		`info=$(modinfo -k "$next" "$name" 2>/dev/null) || { echo "kernel $next has no $name module"; exit 1; }`,
		`version= license= vermagic= signer=`,
		`while read -r field value; do`,
		`	case $field in version:) version=$value ;; license:) license=$value ;; vermagic:) vermagic=$value ;; signer:) signer=$value ;; esac`,
		`done <<INFO`,
		`$info`,
		`INFO`,
		`case $version in`,
		``+versionPattern(in)+`) ;;`,
		`*) echo "the $name module for kernel $next is version $version, planned is `+planned(in)+`"; exit 1 ;;`,
		`esac`,
		flavor,
		`[ "${vermagic%% *}" = "$next" ] || { echo "the $name module was built for kernel ${vermagic%% *}, the next boot starts $next"; exit 1; }`,
		`echo "$name $version ($license) for kernel $next"`)
}

// moduleWords are the words of modinfo's call in moduleCheck.
func moduleWords(in Input) string {
	if in.Facts.Kernel.Next == "" {
		return ""
	}
	return sh.Join("-k", in.Facts.Kernel.Next, in.Choice.Module)
}

func planned(in Input) string {
	if in.Choice.Version != "" {
		return in.Choice.Version
	}
	return "branch " + strconv.Itoa(in.Choice.Branch)
}

// buildModules has DKMS build for the next kernel, which need not be the one that runs and that the
// package's own script built for. Another module's failure is not ours to fail by, so the module file
// decides and not DKMS's exit code; the end of the compiler's log is what names the cause.
func buildModules(in Input) string {
	next := `next=` + sh.Quote(in.Facts.Kernel.Next)
	if _, enable := in.Distro.Toolset(in.Facts); enable != "" {
		// The file reads variables that are not set.
		next = lines(next, `set +u`, `. `+enable, `set -u`)
	}
	return lines(
		next,
		`add_to_dkms`,
		`dkms autoinstall -k "$next" || echo "dkms autoinstall: exit $?"`,
		`depmod "$next"`,
		`if ! modinfo -k "$next" -F version `+sh.Quote(in.Choice.Module)+` >/dev/null 2>&1; then`,
		`	for log in /var/lib/dkms/*nvidia*/*/build/make.log; do`,
		`		if [ -e "$log" ]; then echo "$log:"; tail -n 40 "$log"; fi`,
		`	done`,
		`	exit 11`,
		`fi`)
}
