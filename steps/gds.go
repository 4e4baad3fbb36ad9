package steps

import (
	"gpuguest/internal/action"
	"gpuguest/internal/sh"
)

// gdsNames are what the package of nvidia-fs is called: by NVIDIA's guide, and where there is only what DKMS builds
// from (driver installation guide 620, "GPUDirect Storage"; NVIDIA's repositories for Debian and Ubuntu).
var gdsNames = []string{"nvidia-fs", "nvidia-fs-dkms"}

// loadAtBoot is a file that has systemd load one module at every boot (modules-load.d(5)).
func loadAtBoot(module string) string { return "/etc/modules-load.d/gpuguest-" + module + ".conf" }

// loaded is the check of a module that is to be loaded now and at every boot.
func loaded(module string) string {
	return lines(
		`printf '%s\n' `+module+` | cmp -s - `+loadAtBoot(module)+` || { echo "`+loadAtBoot(module)+` does not name it"; exit 1; }`,
		`[ -d /sys/module/`+module+` ] || { echo "`+module+` is not loaded"; dmesg 2>/dev/null | grep -i -e nvidia_fs -e nvidia-fs -e peermem -e peer_memory | tail -n 5; exit 1; }`,
		`echo "`+module+` is loaded"`)
}

func load(module string) []action.Action {
	return []action.Action{
		action.Write{Path: loadAtBoot(module), Data: []byte(module + "\n")},
		action.Run{Title: "load " + module, Script: `modprobe ` + module},
	}
}

func init() {
	register(Step{
		ID:     "gds",
		Title:  "install GPUDirect Storage's kernel module",
		After:  []ID{"ready", "rescue", "headers", "repo", "pin", "driver", "signing-key"},
		Wanted: func(in Input) bool { return in.Want.GDS },
		Check: func(in Input) string {
			return lines(
				`next=`+sh.Quote(in.Facts.Kernel.Next),
				`modinfo -k "$next" -F vermagic nvidia_fs >/dev/null 2>&1 || { echo "kernel $next has no nvidia_fs module"; exit 1; }`)
		},
		Apply: func(in Input) []action.Action {
			m := in.Distro.Packages
			script := []string{freshLists(in), `got=`}
			for _, name := range gdsNames {
				script = append(script, `if [ -z "$got" ] && ( `+m.Offered(name)+` ) >/dev/null 2>&1; then`, m.Install(name), `	got=1`, `fi`)
			}
			script = append(script, `[ -n "$got" ] || { echo "NVIDIA's repository has no nvidia-fs for this distribution" >&2; exit 1; }`)
			return []action.Action{
				action.Run{Title: "install nvidia-fs", Packages: true, Script: m.Quiet(lines(script...))},
				action.Run{Title: "see that the module for kernel " + in.Facts.Kernel.Next + " is built", Script: lines(
					`next=`+sh.Quote(in.Facts.Kernel.Next),
					`dkms autoinstall -k "$next" || echo "dkms autoinstall: exit $?"`,
					`depmod "$next"`)},
			}
		},
		Hint: "the end of /var/lib/dkms/nvidia-fs/*/build/make.log in the guest says what did not build",
	})
	register(Step{
		ID:     "gds-module",
		Title:  "load GPUDirect Storage's kernel module",
		After:  []ID{"module", "gds"},
		Fresh:  true,
		Wanted: func(in Input) bool { return in.Want.GDS && hasGPU(in) },
		Check:  func(Input) string { return loaded("nvidia_fs") },
		Apply:  func(Input) []action.Action { return load("nvidia_fs") },
	})
	register(Step{
		ID:     "peermem",
		Title:  "load nvidia-peermem",
		After:  []ID{"module"},
		Fresh:  true,
		Wanted: func(in Input) bool { return in.Want.Peermem && hasGPU(in) },
		Check:  func(Input) string { return loaded("nvidia_peermem") },
		Apply:  func(Input) []action.Action { return load("nvidia_peermem") },
		Hint: "nvidia-peermem loads where ib_core had peer memory when it was built: install DOCA-OFED first, and then the driver; " +
			"with the open modules and a kernel from 5.12 on programs do without it, by dma-buf",
	})
}
