package steps

import (
	"fmt"
	"strings"

	"gpuguest/assets"
	"gpuguest/internal/action"
	"gpuguest/internal/catalog"
	"gpuguest/internal/choice"
	"gpuguest/internal/sh"
)

const (
	ownLibrary    = "/usr/local/lib/gpuguest"
	flavorScript  = ownLibrary + "/flavor.sh"
	flavorTable   = ownLibrary + "/flavors"
	flavorModules = ownLibrary + "/modules" // below it: kernel, flavor, and a path below /lib/modules/KERNEL
	flavorConf    = "/etc/modprobe.d/gpuguest-flavor.conf"
	flavorUnit    = "gpuguest-flavor.service"
	flavorUnitAt  = "/etc/systemd/system/" + flavorUnit
	flavorWants   = "/etc/systemd/system/sysinit.target.wants/" + flavorUnit
)

// flavorTableText says which flavor a GPU needs, as ranges of device ids: assets/flavor.sh takes the first that holds
// an id. Ids between two of one range that the tables do not have are taken for what their neighbours are; for the
// others stands what choice.Make does with a GPU that is unknown to it.
func flavorTableText() string {
	var b strings.Builder
	b.WriteString("# Written by gpuguest: first and last device id of NVIDIA's, and the flavor that drives those GPUs.\n")
	var first, last, flavor string
	end := func() {
		if flavor != "" {
			fmt.Fprintf(&b, "%s %s %s\n", first, last, flavor)
		}
	}
	for g := range catalog.GPUs() {
		needs := "either"
		switch {
		case g.Open == catalog.No:
			needs = choice.FlavorProprietary
		case g.Open == catalog.Required || g.Proprietary == catalog.No:
			needs = choice.FlavorOpen
		}
		if needs != flavor {
			end()
			first, flavor = g.Device, needs
		}
		last = g.Device
	}
	end()
	b.WriteString("1340 1dff " + choice.FlavorProprietary + "\n0000 ffff " + choice.FlavorOpen + "\n")
	return b.String()
}

// flavorBlocklist keeps udev and modules-load.d from loading modules before it is known which.
const flavorBlocklist = `# Written by gpuguest: ` + flavorUnit + ` takes this away when the right modules are in place.
blacklist nvidia
blacklist nvidia_drm
blacklist nvidia_modeset
blacklist nvidia_uvm
blacklist nvidia_peermem
blacklist nvidia_fs
`

// flavorService is the unit that picks. What uses the GPU comes after sysinit.target, as every ordinary unit does.
const flavorService = `# Written by gpuguest. It does its work at the first boot with an NVIDIA GPU; for once more:
#   touch /var/lib/gpuguest/flavor.due && systemctl start ` + flavorUnit + `
[Unit]
Description=Put the NVIDIA modules in place that drive this machine's GPUs
DefaultDependencies=no
After=local-fs.target
Before=sysinit.target shutdown.target
Conflicts=shutdown.target
ConditionPathExists=/var/lib/gpuguest/flavor.due

[Service]
Type=oneshot
ExecStart=/bin/sh ` + flavorScript + ` ` + choice.FlavorOpen + `
TimeoutStartSec=5min

[Install]
WantedBy=sysinit.target
`

func init() {
	files := []struct {
		path, text string
	}{
		{flavorScript, assets.Flavor}, {flavorTable, flavorTableText()}, {flavorConf, flavorBlocklist}, {flavorUnitAt, flavorService},
	}
	register(Step{
		ID:     "both-flavors",
		Title:  "keep the modules for a unit that picks a flavor at the first boot",
		After:  []ID{"ready", "rescue", "driver", "gds", "sign-modules", "initramfs"},
		Wanted: func(in Input) bool { return in.Want.BothFlavors },
		Refuse: func(in Input) string {
			if in.Facts.Init.Name != "systemd" {
				return "the modules of both flavors can be put in only where systemd picks among them"
			}
			if in.Choice.Modules != choice.ModulesDKMS || in.Choice.Module != "nvidia" {
				return "the modules of both flavors can be put in only where DKMS builds both under one name, and here they are " + in.Choice.Modules + ", named " + in.Choice.Module
			}
			return ""
		},
		Check: func(in Input) string {
			script := []string{
				stateDir,
				`next=` + sh.Quote(in.Facts.Kernel.Next) + ` set=` + sh.Quote(flavorModules+"/"+in.Facts.Kernel.Next+"/"+in.Choice.Flavor),
				`[ -n "$(` + ownModules + `)" ] || { echo "kernel $next has no module of NVIDIA's"; exit 1; }`,
				// What is kept must be of the flavor by which it is called.
				`license=$(modinfo -k "$next" -F license ` + sh.Quote(in.Choice.Module) + `)`,
				`[ "$license" = ` + sh.Quote(in.Choice.License) + ` ] || { echo "the modules in place are not the ` + in.Choice.Flavor + ` ones"; exit 1; }`,
				`bad=$(` + ownModules + ` | while IFS= read -r f; do`,
				`	cmp -s "$f" "$set/${f#/lib/modules/"$next"/}" || echo "$set does not hold ${f##*/} as it was built"`,
				`done)`,
				`[ -z "$bad" ] || { printf '%s\n' "$bad"; exit 1; }`,
			}
			for _, f := range files {
				script = append(script, `printf %s `+sh.Quote(f.text)+` | cmp -s - `+f.path+` || { echo "`+f.path+` is not there, or not this one"; exit 1; }`)
			}
			return lines(append(script,
				`[ "$(systemctl is-enabled `+flavorUnit+` 2>/dev/null)" = enabled ] || { echo "`+flavorUnit+` is not enabled at boot"; exit 1; }`,
				`[ -e "$S/flavor.due" ] || { echo "the first boot would pick no flavor"; exit 1; }`,
				`echo "kept: $(ls "${set%/*}" | tr '\n' ' ')for kernel $next"`)...)
		},
		Apply: func(in Input) []action.Action {
			acts := []action.Action{action.Run{Title: "keep the " + in.Choice.Flavor + " modules for kernel " + in.Facts.Kernel.Next, Script: lines(
				`next=`+sh.Quote(in.Facts.Kernel.Next)+` set=`+sh.Quote(flavorModules+"/"+in.Facts.Kernel.Next+"/"+in.Choice.Flavor),
				`rm -rf "$set"`,
				ownModules+` | while IFS= read -r f; do`,
				`	to=$set/${f#/lib/modules/"$next"/}`,
				`	keep "$to"`,
				`	mkdir -p "${to%/*}"`,
				`	cp "$f" "$to"`,
				`	flush "$to"`,
				`done`)}}
			for _, f := range files {
				acts = append(acts, action.Write{Path: f.path, Data: []byte(f.text)})
			}
			return append(acts, action.Run{Title: "enable " + flavorUnit, Script: lines(
				`keep `+flavorWants,
				`systemctl daemon-reload`,
				`systemctl enable `+flavorUnit,
				`: >"$S/flavor.due"`,
				`flush "$S/flavor.due"`)})
		},
	})
}
