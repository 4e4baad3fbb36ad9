package steps

import (
	"slices"

	"gpuguest/distros"
	"gpuguest/internal/action"
	"gpuguest/internal/choice"
	"gpuguest/internal/sh"
)

const (
	containerPackage = "nvidia-container-toolkit"
	cdiUnit          = "gpuguest-cdi.service"
	cdiUnitPath      = "/etc/systemd/system/" + cdiUnit
	cdiWants         = "/etc/systemd/system/multi-user.target.wants/" + cdiUnit
	// cdiSpec is read by podman before files of the same name in /etc/cdi (CDI specification, "CDI JSON Specification":
	// /etc/cdi and /var/run/cdi, the later wins), and is gone at boot, so that none of an earlier driver stays.
	cdiSpec = "/var/run/cdi/nvidia.yaml"
)

// The toolkit brings a unit of this kind from 1.18 on, which this one comes after: the file says the same then.
const cdiService = `# Written by gpuguest.
[Unit]
Description=Describe the NVIDIA GPUs to container engines
After=nvidia-persistenced.service nvidia-fabricmanager.service nvidia-cdi-refresh.service ` + migUnit + `
ConditionPathExists=/usr/bin/nvidia-ctk

[Service]
Type=oneshot
ExecStart=/usr/bin/nvidia-ctk cdi generate --output=` + cdiSpec + `

[Install]
WantedBy=multi-user.target
`

// engineFiles are what nvidia-ctk changes for an engine, from 1.18 on the last (NVIDIA Container Toolkit, "Configuring
// containerd").
var engineFiles = map[string][]string{
	choice.EngineDocker:     {"/etc/docker/daemon.json"},
	choice.EngineContainerd: {"/etc/containerd/config.toml", "/etc/containerd/conf.d/99-nvidia.toml"},
}

func wantsEngine(in Input) bool { return in.Want.ContainerToolkit != "" }

// usesContainerRepo tells whether the toolkit comes from NVIDIA's repository: one that is there already stays.
func usesContainerRepo(in Input) bool {
	if !wantsEngine(in) || byBundle(in) {
		return false
	}
	r, err := in.Distro.ContainerRepo(in.Facts.Arch)
	return err == nil && (in.Facts.Packages[containerPackage] == "" || slices.Contains(in.Facts.State.Absent, r.ListPath) || slices.Contains(in.Facts.State.Kept, r.ListPath))
}

// otherContainerLists are source lists that name the same repository in another file.
func otherContainerLists(in Input, r distros.ContainerRepo) []string {
	var found []string
	for _, s := range in.Facts.Sources {
		if s.File != r.ListPath && r.Elsewhere(s.URI) && !slices.Contains(found, s.File) {
			found = append(found, s.File)
		}
	}
	return found
}

func init() {
	register(Step{
		ID:     "container-repo",
		Title:  "add NVIDIA's repository of the container toolkit",
		After:  []ID{"ready", "rescue", "old-sources", "repo"},
		Wanted: usesContainerRepo,
		Check: func(in Input) string {
			r, err := in.Distro.ContainerRepo(in.Facts.Arch)
			if err != nil {
				return "false"
			}
			script := []string{
				distros.ContainerKeyThere(r) + ` || { echo ` + sh.Quote(r.Key+" is missing, or another key") + `; exit 1; }`,
				`printf %s ` + sh.Quote(r.List) + ` | cmp -s - ` + sh.Quote(r.ListPath) + ` || { echo ` + sh.Quote(r.ListPath+" does not name the repository") + `; exit 1; }`,
			}
			for _, f := range otherContainerLists(in, r) {
				script = append(script, `[ ! -e `+sh.Quote(f)+` ] || { echo `+sh.Quote(f)+` "names the repository too"; exit 1; }`)
			}
			return lines(script...)
		},
		Apply: func(in Input) []action.Action {
			r, err := in.Distro.ContainerRepo(in.Facts.Arch)
			if err != nil {
				return nil
			}
			m := in.Distro.Packages
			acts := []action.Action{action.Run{Title: "fetch the repository's key and check its SHA-256", Script: distros.FetchContainerKey(r)}}
			if r.Import {
				acts = append(acts, action.Run{Title: "import the key", Packages: true, Script: `rpm --import ` + sh.Quote(r.Key)})
			}
			if others := otherContainerLists(in, r); len(others) > 0 {
				acts = append(acts, action.Run{Title: "drop lists that name it too", Script: `for f in ` + sh.Join(others...) + `; do drop "$f"; done`})
			}
			return append(acts,
				action.Write{Path: r.ListPath, Data: []byte(r.List)},
				action.Run{Title: "fetch its package list", Script: m.Quiet(m.Refresh(distros.Refresh{Need: []string{r.URL}}))})
		},
		Hint: "see that the guest reaches nvidia.github.io",
	})
	register(Step{
		ID:     "container-toolkit",
		Title:  "install NVIDIA's container toolkit",
		After:  []ID{"ready", "rescue", "container-repo", "driver"},
		Wanted: wantsEngine,
		Check: func(in Input) string {
			return must(in.Distro.Packages.Installed(containerPackage), containerPackage+" is not installed")
		},
		Apply: func(in Input) []action.Action {
			m := in.Distro.Packages
			script := m.Install(containerPackage)
			if r, err := in.Distro.ContainerRepo(in.Facts.Arch); err == nil && !byBundle(in) {
				script = lines(
					`if ! ( `+m.Offered(containerPackage)+` ) >/dev/null 2>&1; then`,
					m.Refresh(distros.Refresh{Need: []string{r.URL}}),
					`fi`,
					script)
			}
			return []action.Action{action.Run{Title: "install " + containerPackage, Packages: true, Script: m.Quiet(script)}}
		},
	})
	register(Step{
		ID:     "container-engine",
		Title:  "tell the container engine of the toolkit",
		After:  []ID{"container-toolkit"},
		Wanted: func(in Input) bool { return engineFiles[in.Want.ContainerToolkit] != nil },
		Check: func(in Input) string {
			e := in.Want.ContainerToolkit
			return lines(
				`grep -qs nvidia-container-runtime `+sh.Join(engineFiles[e]...)+` || { echo "`+e+` does not know the runtime"; exit 1; }`,
				`[ "$(systemctl is-active `+e+`.service 2>/dev/null)" = active ] || { echo "`+e+` does not run"; exit 1; }`,
				`echo "`+e+` knows the runtime"`)
		},
		Apply: func(in Input) []action.Action {
			e := in.Want.ContainerToolkit
			return []action.Action{action.Run{Title: "add the runtime to " + e, Script: lines(
				`command -v `+e+` >/dev/null 2>&1 || { echo "the guest has no `+e+`: install it first"; exit 1; }`,
				`for f in `+sh.Join(engineFiles[e]...)+`; do keep "$f"; done`,
				`nvidia-ctk runtime configure --runtime=`+e,
				`systemctl restart `+e+`.service`)}}
		},
		Hint: "the end of journalctl -u of the engine's service says what it makes of its configuration",
	})
	register(Step{
		ID:     "cdi-unit",
		Title:  "have the GPUs described to container engines at every boot",
		After:  []ID{"container-toolkit"},
		Wanted: func(in Input) bool { return in.Want.ContainerToolkit == choice.EnginePodman },
		Check: func(Input) string {
			return lines(
				`printf %s `+sh.Quote(cdiService)+` | cmp -s - `+cdiUnitPath+` || { echo "`+cdiUnitPath+` is not there, or not this one"; exit 1; }`,
				`[ "$(systemctl is-enabled `+cdiUnit+` 2>/dev/null)" = enabled ] || { echo "`+cdiUnit+` is not enabled at boot"; exit 1; }`)
		},
		Apply: func(Input) []action.Action {
			return []action.Action{
				action.Write{Path: cdiUnitPath, Data: []byte(cdiService)},
				action.Run{Title: "enable " + cdiUnit, Script: lines(`keep `+cdiWants, `systemctl daemon-reload`, `systemctl enable `+cdiUnit)},
			}
		},
	})
	register(Step{
		ID:     "cdi",
		Title:  "describe the GPUs to container engines",
		After:  []ID{"module", "cdi-unit", "mig-layout", "fabric-manager"},
		Fresh:  true,
		Wanted: func(in Input) bool { return in.Want.ContainerToolkit == choice.EnginePodman && hasGPU(in) },
		Check: func(in Input) string {
			return lines(
				`loaded=$(sed -n 's/^NVRM version:.* \([0-9][0-9]*\.[0-9.]*\) .*/\1/p' /proc/driver/nvidia/version 2>/dev/null) || loaded=`,
				`grep -qs '^kind: *"*nvidia.com/gpu' `+cdiSpec+` || { echo "`+cdiSpec+` does not describe GPUs"; exit 1; }`,
				`grep -qF "libcuda.so.$loaded" `+cdiSpec+` || { echo "`+cdiSpec+` is not of driver $loaded"; exit 1; }`,
				`echo "`+cdiSpec+` is of driver $loaded"`)
		},
		Apply: func(Input) []action.Action {
			return []action.Action{action.Run{Title: "start " + cdiUnit, Script: `systemctl restart ` + cdiUnit + ` || { journalctl -u ` + cdiUnit + ` -b -q --no-pager -o cat -n 20; exit 1; }`}}
		},
	})
	registerRemoval(Step{
		ID:     "restart-engine",
		Title:  "have container engines forget the toolkit",
		After:  []ID{"ready", "remove-packages", "restore-files"},
		Wanted: func(in Input) bool { return len(enginesTold(in)) > 0 },
		Check: func(in Input) string {
			var script []string
			for _, e := range enginesTold(in) {
				script = append(script,
					`if [ "$(systemctl is-active `+e+`.service 2>/dev/null)" = active ]; then`,
					`	since=$(systemctl show -p ActiveEnterTimestamp `+e+`.service)`,
					// What a file was put back in, or taken from, has that time.
					`	[ "$(date -d "${since#*=}" +%s)" -ge "$(stat -c %Y /etc/`+e+` 2>/dev/null || echo 0)" ] || { echo "`+e+` was not restarted"; exit 1; }`,
					`fi`)
			}
			return lines(script...)
		},
		Apply: func(in Input) []action.Action {
			return []action.Action{action.Run{Title: "restart them", Script: lines(
				`for e in `+sh.Join(enginesTold(in)...)+`; do`,
				`	[ "$(systemctl is-active "$e.service" 2>/dev/null)" != active ] || systemctl restart "$e.service"`,
				`done`)}}
		},
	})
}

// enginesTold are the engines whose configuration gpuguest had changed.
func enginesTold(in Input) []string {
	var found []string
	for _, e := range choice.Engines() {
		for _, f := range engineFiles[e] {
			if !slices.Contains(found, e) && (slices.Contains(in.Facts.State.Absent, f) || slices.Contains(in.Facts.State.Kept, f)) {
				found = append(found, e)
			}
		}
	}
	return found
}
