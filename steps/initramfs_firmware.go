package steps

import (
	"gpuguest/internal/action"
	"gpuguest/internal/sh"
)

// carrier is how a program that makes an initramfs is told to put NVIDIA's GSP firmware into it: a file, and
// the script that prints what it must hold.
type carrier struct {
	path, mode string
	print      string
}

// firmwareFiles prints the GSP firmware that is in the guest, one path a line: the driver packages put it below
// the driver's version (NVIDIA/open-gpu-kernel-modules, nv-firmware.h: "nvidia/" NV_VERSION_STRING "/gsp_*.bin").
const firmwareFiles = `for f in /usr/lib/firmware/nvidia/*/gsp_*.bin /lib/firmware/nvidia/*/gsp_*.bin; do [ ! -e "$f" ] || echo "$f"; done | awk '!seen[substr($0, match($0, "/lib/"))]++'`

var carriers = map[string]carrier{
	"initramfs-tools": {path: "/etc/initramfs-tools/hooks/gpuguest-firmware", mode: "0755", print: `cat <<'HOOK'
#!/bin/sh
# Written by gpuguest: the initramfs carries the firmware that the nvidia module asks for as it is loaded.
case ${1:-} in prereqs) exit 0 ;; esac
. /usr/share/initramfs-tools/hook-functions
for f in /lib/firmware/nvidia/*/gsp_*.bin; do
	[ ! -e "$f" ] || copy_file firmware "$f" || true
done
exit 0
HOOK`},
	"dracut": {path: "/etc/dracut.conf.d/90-gpuguest-firmware.conf", mode: "0644",
		print: `printf '# Written by gpuguest: firmware that the nvidia module asks for as it is loaded.\ninstall_optional_items+=" %s "\n' "$(` + firmwareFiles + ` | tr '\n' ' ')"`},
}

func init() {
	register(Step{
		ID:    "initramfs-firmware",
		Title: "put the GSP firmware into the initramfs",
		After: []ID{"ready", "rescue", "driver", "initramfs"},
		// It makes the initramfs some 70 MB larger, so it is done only where the module is loaded that early.
		Wanted: func(in Input) bool {
			return (in.Want.Firmware || in.Want.DropFirmware) && in.Facts.Boot.Image != ""
		},
		Refuse: func(in Input) string {
			_, known := maker(in)
			if _, ok := carriers[in.Facts.Boot.Initramfs]; !ok || !known {
				return "how the guest's initramfs is given firmware is not known"
			}
			return ""
		},
		AtBoot: func(Input) bool { return true },
		Check: func(in Input) string {
			c := carriers[in.Facts.Boot.Initramfs]
			m, _ := maker(in)
			if !in.Want.Firmware {
				return `[ ! -e ` + c.path + ` ] || { echo "` + c.path + ` is still there"; exit 1; }`
			}
			return lines(
				`[ -e `+c.path+` ] || { echo "`+c.path+` is missing"; exit 1; }`,
				fill(in, m, m.List)+` | grep -q 'firmware/nvidia/.*/gsp_' || { echo "the initramfs holds no GSP firmware"; exit 1; }`)
		},
		Apply: func(in Input) []action.Action {
			c := carriers[in.Facts.Boot.Initramfs]
			m, _ := maker(in)
			rebuild := action.Run{Title: "build " + in.Facts.Boot.Image, Script: lines(fill(in, m, m.Rebuild), `flush `+sh.Quote(in.Facts.Boot.Image))}
			if !in.Want.Firmware {
				return []action.Action{action.Run{Title: "remove " + c.path, Script: "drop " + c.path}, rebuild}
			}
			return []action.Action{
				action.Run{Title: "look for the firmware", Script: `[ -n "$(` + firmwareFiles + `)" ] || { echo "the guest has no GSP firmware: the driver's packages are not whole" >&2; exit 1; }`},
				action.Run{Title: "write " + c.path, Script: lines(`{`, c.print, `} | put `+c.path+` `+c.mode)},
				rebuild,
			}
		},
	})
}
