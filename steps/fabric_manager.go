package steps

import (
	"cmp"
	"slices"
	"strconv"
	"strings"

	"gpuguest/internal/action"
	"gpuguest/internal/facts"
	"gpuguest/internal/sh"
)

const fabricUnit = "nvidia-fabricmanager.service"

// fabricUmad has the module loaded at every boot that the fabric manager talks to switches of NVLink 5 by.
const fabricUmad = "ib_umad"

// nvlink5 tells whether the guest was given the adapters by which switches of NVLink 5 are managed. The switches
// themselves are no PCI functions any more.
func nvlink5(in Input) bool {
	return slices.ContainsFunc(in.Facts.Other, func(p facts.PCI) bool { return p.Vendor == facts.Mellanox })
}

// needsFabric tells whether the guest has NVSwitches (PCI class 0680, or the adapters of NVLink 5) to set up, or a
// fabric manager already, which then must be of the driver's version: it refuses every other
// (NVIDIA/gpu-operator#544).
func needsFabric(in Input) bool {
	if !hasGPU(in) || in.Facts.Init.Name != "systemd" {
		return false
	}
	for _, p := range in.Facts.Other {
		if strings.HasPrefix(p.Class, "0680") || p.Vendor == facts.Mellanox {
			return true
		}
	}
	for p := range in.Facts.Packages {
		if strings.HasPrefix(p, "nvidia-fabricmanager") || strings.HasPrefix(p, "nvidia-fabric-manager") {
			return true
		}
	}
	return false
}

// fabricNames are the names its package has had, the one with the branch first: that is what a source which has
// several branches calls it (NVIDIA driver installation guide, "Fabric Manager").
func fabricNames(in Input) []string {
	return []string{"nvidia-fabricmanager-" + strconv.Itoa(in.Choice.Branch), "nvidia-fabricmanager", "nvidia-fabric-manager"}
}

// fabricDriver is the version that the fabric manager must have. Before the driver is in the guest only its branch
// may be known; the plan is worked out anew before this step's turn comes.
func fabricDriver(in Input) string {
	return cmp.Or(in.Choice.Version, in.Facts.Driver.Next.Version, strconv.Itoa(in.Choice.Branch)+".")
}

// fabricVersion is sh that sets $found to the name of the fabric manager's package that is installed at that
// version, "" none. Package versions carry an epoch before it and a revision behind.
func fabricVersion(in Input) string {
	return lines(
		`found=$( ( `+in.Distro.Packages.List()+` ) | awk -v names=`+sh.Quote(strings.Join(fabricNames(in), " "))+` -v d=`+sh.Quote(fabricDriver(in))+` '`,
		`	BEGIN { n = split(names, w, " "); for (i = 1; i <= n; i++) is[w[i]] = 1 }`,
		`	{ name = $1; sub(/:.*/, "", name); v = $2; sub(/^[0-9]+:/, "", v) }`,
		`	name in is && (v == d || index(v, d "-") == 1 || d ~ /[.]$/ && index(v, d) == 1) { print name; exit }')`)
}

func init() {
	register(Step{
		ID:     "fabric-manager",
		Title:  "run the fabric manager of exactly the driver's version",
		After:  []ID{"module"},
		Fresh:  true,
		Wanted: needsFabric,
		Check: func(in Input) string {
			var subnet []string
			if nvlink5(in) {
				subnet = []string{
					must(in.Distro.Packages.Installed("nvlsm"), "nvlsm, which the fabric manager starts for NVLink 5, is not installed"),
					`printf '%s\n' ` + fabricUmad + ` | cmp -s - ` + loadAtBoot(fabricUmad) + ` || { echo "` + loadAtBoot(fabricUmad) + ` does not name it"; exit 1; }`,
					`[ -d /sys/module/` + fabricUmad + ` ] || { echo "` + fabricUmad + ` is not loaded"; exit 1; }`,
				}
			}
			return lines(append(subnet,
				fabricVersion(in),
				`[ -n "$found" ] || { echo "no fabric manager of version" `+sh.Quote(fabricDriver(in))+` "is installed"; exit 1; }`,
				`[ "$(systemctl is-enabled `+fabricUnit+` 2>/dev/null)" = enabled ] || { echo "`+fabricUnit+` is not enabled at boot"; exit 1; }`,
				`[ "$(systemctl is-active `+fabricUnit+` 2>/dev/null)" = active ] || { echo "`+fabricUnit+` does not run"; journalctl -u `+fabricUnit+` -b -q --no-pager -o cat -n 10 2>/dev/null; exit 1; }`,
				`echo "$found" `+sh.Quote(fabricDriver(in))+` "runs"`)...)
		},
		Apply: func(in Input) []action.Action {
			m := in.Distro.Packages
			script := []string{freshLists(in), `got=`}
			for _, name := range fabricNames(in) {
				// Any revision of exactly this version.
				script = append(script, `if [ -z "$got" ] && ( `+m.Offered(name)+` ) >/dev/null 2>&1; then`, m.Install(name+"="+fabricDriver(in)+"*"), `	got=1`, `fi`)
			}
			script = append(script, `[ -n "$got" ] || { echo "no source of the guest has a fabric manager" >&2; exit 1; }`)
			acts := []action.Action{action.Run{Title: "install the fabric manager", Packages: true, Script: m.Quiet(lines(script...))}}
			if nvlink5(in) {
				acts = append(acts, action.Run{Title: "install NVLink's subnet manager", Packages: true, Script: m.Quiet(m.Install("nvlsm"))})
				acts = append(acts, load(fabricUmad)...)
			}
			return append(acts,
				action.Run{Title: "enable and start " + fabricUnit, Script: lines(`systemctl enable `+fabricUnit, `systemctl restart `+fabricUnit+` || { journalctl -u `+fabricUnit+` -b -q --no-pager -o cat -n 20; exit 1; }`)})
		},
		Hint: "the fabric manager must be of exactly the driver's version: --driver names one that the source has for both",
	})
}
