package steps

import (
	"fmt"

	"gpuguest/internal/action"
)

// readySeconds is how long the guest's own first-boot work and package runs may take. An unattended
// upgrade on a fresh cloud guest may hold the lock for minutes; one that holds it for ten is taken to be
// stuck, and a person should know. Ten is an estimate.
const readySeconds = 600

func init() {
	register(Step{
		ID:    "ready",
		Title: "wait for cloud-init and the package manager",
		Check: readyCheck,
		Apply: readyActions,
		Hint:  "let the process that holds the lock finish, or look at what it waits for; gpuguest never kills it",
	})
}

func readyCheck(in Input) string {
	return lines(
		cloudInitDone+` || { echo "cloud-init has not finished its first boot"; exit 1; }`,
		in.Distro.Packages.WaitLock(0),
		in.Distro.Packages.Sound(),
	)
}

func readyActions(in Input) []action.Action {
	return []action.Action{
		action.Run{Title: "wait for cloud-init", Script: lines(
			fmt.Sprintf(`left=%d`, lockSeconds(in)),
			`until `+cloudInitDone+`; do`,
			`	if [ "$left" -le 0 ]; then echo "cloud-init did not finish in time; see /var/log/cloud-init.log" >&2; exit 75; fi`,
			`	if [ $((left % 30)) -eq 0 ]; then echo "gpuguest: cloud-init is still at work, $left s left"; fi`,
			`	sleep 2; left=$((left - 2))`,
			`done`)},
		action.Run{Title: "wait for the package manager's lock", Script: in.Distro.Packages.WaitLock(lockSeconds(in))},
		action.Run{Title: "finish interrupted package work", Script: in.Distro.Packages.Repair(), Packages: true},
	}
}

// cloudInitDone is true where cloud-init is absent, disabled or has ended, well or badly: its own result
// file is the word for that (cloud-init documentation, "boot stages").
const cloudInitDone = `{ [ ! -e /run/cloud-init/enabled ] || [ -e /run/cloud-init/result.json ]; }`

func lockSeconds(in Input) int {
	if in.Want.LockWait > 0 {
		return int(in.Want.LockWait.Seconds())
	}
	return readySeconds
}
