package steps

import (
	"slices"
	"strings"

	"gpuguest/assets"
	"gpuguest/internal/action"
	"gpuguest/internal/choice"
	"gpuguest/internal/sh"
)

const (
	migScriptPath = "/usr/local/lib/gpuguest/mig.sh"
	migLayoutPath = "/usr/local/lib/gpuguest/mig.layout"
	migUnit       = "gpuguest-mig.service"
	migUnitPath   = "/etc/systemd/system/" + migUnit
	migWants      = "/etc/systemd/system/multi-user.target.wants/" + migUnit
)

// The unit comes before whoever would hold a GPU: its mode cannot be changed in use (NVIDIA's MIG user guide, "Enable
// MIG Mode"). nvidia-smi does the work, which is in every guest at the driver's own version; nvidia-mig-parted is in
// no repository that is read here, and what it adds are named layouts.
const migService = `# Written by gpuguest.
[Unit]
Description=Divide the GPUs into MIG instances
Before=nvidia-persistenced.service nvidia-cdi-refresh.service gpuguest-cdi.service gpuguest-verify.service nvidia-dcgm.service docker.service containerd.service kubelet.service slurmd.service
After=systemd-modules-load.service systemd-udev-settle.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStartPre=-/sbin/modprobe nvidia
ExecStart=/bin/sh ` + migScriptPath + `

[Install]
WantedBy=multi-user.target
`

func migLayout(in Input) string {
	var b strings.Builder
	for _, p := range in.Choice.MIG {
		profiles := strings.Join(p.Profiles, ",")
		if profiles == "" {
			profiles = choice.MIGOff
		}
		b.WriteString(p.Address + " " + profiles + "\n")
	}
	return b.String()
}

func plansMIG(in Input) bool { return len(in.Choice.MIG) > 0 }

// keepsMIG tells whether an earlier run left a layout in the guest.
func keepsMIG(in Input) bool { return slices.Contains(in.Facts.State.Absent, migLayoutPath) }

// divided tells whether CUDA sees instances, or nothing, in place of a GPU.
func divided(in Input) bool {
	if plansMIG(in) {
		return slices.ContainsFunc(in.Choice.MIG, func(p choice.Partition) bool { return len(p.Profiles) > 0 })
	}
	return keepsMIG(in)
}

func init() {
	register(Step{
		ID:     "mig-unit",
		Title:  "have the GPUs divided at every boot",
		After:  []ID{"ready", "rescue", "driver"},
		Wanted: plansMIG,
		Check: func(in Input) string {
			return lines(
				`printf %s `+sh.Quote(migLayout(in))+` | cmp -s - `+migLayoutPath+` || { echo "`+migLayoutPath+` is not as planned"; exit 1; }`,
				`printf %s `+sh.Quote(assets.MIG)+` | cmp -s - `+migScriptPath+` || { echo "`+migScriptPath+` is not there, or not this one"; exit 1; }`,
				`printf %s `+sh.Quote(migService)+` | cmp -s - `+migUnitPath+` || { echo "`+migUnitPath+` is not there, or not this one"; exit 1; }`,
				`[ "$(systemctl is-enabled `+migUnit+` 2>/dev/null)" = enabled ] || { echo "`+migUnit+` is not enabled at boot"; exit 1; }`)
		},
		Apply: func(in Input) []action.Action {
			return []action.Action{
				action.Write{Path: migLayoutPath, Data: []byte(migLayout(in))},
				action.Write{Path: migScriptPath, Mode: 0o755, Data: []byte(assets.MIG)},
				action.Write{Path: migUnitPath, Data: []byte(migService)},
				action.Run{Title: "enable " + migUnit, Script: lines(`keep `+migWants, `systemctl daemon-reload`, `systemctl enable `+migUnit)},
			}
		},
	})
	register(Step{
		ID:     "mig-mode",
		Title:  "turn MIG mode on or off",
		After:  []ID{"module", "mig-unit", "fabric-manager"},
		Fresh:  true,
		Wanted: plansMIG,
		AtBoot: func(in Input) bool {
			return slices.ContainsFunc(in.Choice.MIG, func(p choice.Partition) bool { return p.Reset })
		},
		Check: func(Input) string { return `sh ` + migScriptPath + ` planned` },
		Apply: func(in Input) []action.Action {
			return []action.Action{action.Run{Title: "set the modes", Script: lines(
				// Once, for the way back: what the modes were.
				`if [ ! -e "$S/before/mig" ]; then`,
				`	mkdir -p "$S/before"`,
				`	(`,
				private,
				limited(),
				`	: >"$t/mig"`,
				`	for a in $(cut -d ' ' -f 1 `+migLayoutPath+`); do`,
				`		limited 60 nvidia-smi -i "$a" --query-gpu=mig.mode.current --format=csv,noheader || :`,
				`		echo "$a $(cat "$t/said")" >>"$t/mig"`,
				`	done`,
				`	cat "$t/mig" >"$S/before/mig.tmp"`,
				`	)`,
				`	flush "$S/before/mig.tmp"`,
				`	mv -f "$S/before/mig.tmp" "$S/before/mig"`,
				`fi`,
				releaseGPUs,
				`code=0`,
				`sh `+migScriptPath+` mode || code=$?`,
				holdGPUs,
				// 3: it waits for the GPU's reset, which the reboot brings.
				`[ "$code" -eq 0 ] || [ "$code" -eq 3 ] || exit "$code"`)}}
		},
		Hint: "the mode changes only while nothing uses the GPU: stop what does, or reboot the guest and run gpuguest again",
	})
	register(Step{
		ID:     "mig-layout",
		Title:  "divide the GPUs",
		After:  []ID{"mig-mode", "persistence", "persistence-start"},
		Fresh:  true,
		Wanted: func(in Input) bool { return hasGPU(in) && (plansMIG(in) || keepsMIG(in)) },
		Check:  func(Input) string { return `sh ` + migScriptPath + ` check` },
		Apply: func(in Input) []action.Action {
			return []action.Action{action.Run{Title: "make the instances", Script: `sh ` + migScriptPath}}
		},
		Hint: "nvidia-smi mig -lgip lists the profiles that a GPU has; a mode that waits for a reset after a reboot too is the host's: the guest's stop and start brings it about",
	})
	registerRemoval(Step{
		ID:     "remove-mig",
		Title:  "make the GPUs whole again",
		After:  []ID{"ready"},
		Wanted: keepsMIG,
		Check: func(Input) string {
			return lines(
				stateDir,
				`[ -e "$S/before/mig" ] && [ -e `+migScriptPath+` ] && command -v nvidia-smi >/dev/null 2>&1 || exit 0`,
				migBefore,
				`GPUGUEST_MIG_LAYOUT=$t/layout sh `+migScriptPath+` planned`)
		},
		Apply: func(Input) []action.Action {
			return []action.Action{action.Run{Title: "take the instances and the mode back", Script: lines(
				migBefore,
				releaseGPUs,
				`code=0`,
				`GPUGUEST_MIG_LAYOUT=$t/layout sh `+migScriptPath+` mode || code=$?`,
				`[ "$code" -eq 0 ] || [ "$code" -eq 3 ] || exit "$code"`)}}
		},
		Hint: "stop what uses the GPU, and run gpuguest uninstall again",
	})
}

// migBefore is sh that leaves the layout of before in $t/layout: GPUs on which MIG was off.
const migBefore = private + `
awk '$2 == "Disabled" { print $1, "off" }' "$S/before/mig" >"$t/layout"`

// The daemon holds every GPU, and so it is stopped while a mode is changed.
const (
	releaseGPUs = `held=
if [ "$(systemctl is-active nvidia-persistenced.service 2>/dev/null)" = active ]; then
	held=1
	systemctl stop nvidia-persistenced.service
fi`
	holdGPUs = `if [ -n "$held" ]; then systemctl start nvidia-persistenced.service || :; fi`
)
