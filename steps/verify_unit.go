package steps

import (
	"encoding/json"
	"slices"
	"strings"

	"gpuguest/internal/action"
	"gpuguest/internal/facts"
	"gpuguest/internal/sh"
)

const (
	verifyScriptPath = ownLibrary + "/verify.sh"
	verifyUnit       = "gpuguest-verify.service"
	verifyUnitPath   = "/etc/systemd/system/" + verifyUnit
	verifyWants      = "/etc/systemd/system/multi-user.target.wants/" + verifyUnit
)

// verifyService is the unit that verifies at the next boot, once: the script takes the file away that the unit's
// condition asks for. A later boot's work is not disturbed by checks that use the GPU.
func verifyService(in Input) string {
	after := []string{"nvidia-fabricmanager.service"}
	if in.Choice.Persistence.Unit != "" {
		after = append(after, in.Choice.Persistence.Unit)
	}
	return `# Written by gpuguest. It runs once, at the first boot after it was installed; for once more:
#   touch /var/lib/gpuguest/verify.due && systemctl start ` + verifyUnit + `
[Unit]
Description=Prove that the NVIDIA driver works
After=` + strings.Join(after, " ") + `
ConditionPathExists=/var/lib/gpuguest/verify.due

[Service]
Type=oneshot
ExecStart=/bin/sh ` + verifyScriptPath + `
TimeoutStartSec=30min

[Install]
WantedBy=multi-user.target
`
}

// Digest is Step.Read of the step with that id, in a guest with so many GPUs: for what a guest's own unit left. It is
// false for a step that prints nothing for programs.
func Digest(id ID, gpus int, data string) (report json.RawMessage, why string, known bool) {
	i := slices.IndexFunc(install, func(s Step) bool { return s.ID == id })
	if i < 0 || install[i].Read == nil {
		return nil, "", false
	}
	report, why = install[i].Read(Input{Facts: facts.Facts{GPUs: make([]facts.PCI, gpus)}}, data)
	return report, why, true
}

func init() {
	register(Step{
		ID:     "verify-unit",
		Title:  "leave a unit that verifies at the next boot",
		Wanted: func(in Input) bool { return in.BootScript != "" },
		Refuse: func(in Input) string {
			switch in.Facts.Init.Name {
			case "systemd":
				return ""
			case "":
				return "it is unknown which init system the guest has, and --install-unit needs systemd"
			}
			return "the guest's init system is " + in.Facts.Init.Name + ", and --install-unit needs systemd"
		},
		Check: func(in Input) string {
			return lines(
				stateDir,
				`printf %s `+sh.Quote(in.BootScript)+` | cmp -s - `+verifyScriptPath+` || { echo "`+verifyScriptPath+` is not there, or not this one"; exit 1; }`,
				`printf %s `+sh.Quote(verifyService(in))+` | cmp -s - `+verifyUnitPath+` || { echo "`+verifyUnitPath+` is not there, or not this one"; exit 1; }`,
				`[ "$(systemctl is-enabled `+verifyUnit+` 2>/dev/null)" = enabled ] || { echo "`+verifyUnit+` is not enabled at boot"; exit 1; }`,
				`[ -e "$S/verify.due" ] || [ -e "$S/verify.json" ] || { echo "neither is a boot to be verified nor was one"; exit 1; }`,
				`if [ -e "$S/verify.due" ]; then echo "the next boot will be verified"; else echo "a boot was verified; see $S/verify.json"; fi`)
		},
		Apply: func(in Input) []action.Action {
			return []action.Action{
				action.Write{Path: verifyScriptPath, Mode: 0o755, Data: []byte(in.BootScript)},
				action.Write{Path: verifyUnitPath, Data: []byte(verifyService(in))},
				action.Run{Title: "enable " + verifyUnit, Script: lines(
					`keep `+verifyWants,
					`systemctl daemon-reload`,
					`systemctl enable `+verifyUnit,
					`: >"$S/verify.due"`,
					`flush "$S/verify.due"`)},
			}
		},
	})
}
