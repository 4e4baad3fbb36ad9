package steps

import (
	"strings"

	"gpuguest/internal/action"
	"gpuguest/internal/sh"
)

// maker is how one program makes and lists an initramfs. {kernel} and {image} are quoted words.
type maker struct{ rebuild, list string }

// makers by the name that facts give them. Sources: update-initramfs(8), lsinitramfs(8), dracut(8), lsinitrd(1).
var makers = map[string]maker{
	"initramfs-tools": {
		rebuild: `if [ -e {image} ]; then update-initramfs -u -k {kernel}; else update-initramfs -c -k {kernel}; fi`,
		list:    `lsinitramfs {image}`,
	},
	"dracut": {
		rebuild: `dracut --force {image} {kernel}`,
		list:    `lsinitrd {image}`,
	},
}

func (m maker) fill(s string, in Input) string {
	return strings.NewReplacer("{kernel}", sh.Quote(in.Facts.Kernel.Next), "{image}", sh.Quote(in.Facts.Boot.Image)).Replace(s)
}

func init() {
	register(Step{
		ID:     "initramfs",
		Title:  "put the blocklist into the initramfs",
		After:  []ID{"ready", "rescue", "blocklist", "driver", "sign-modules"},
		Wanted: func(in Input) bool { return in.Facts.Boot.Image != "" },
		Refuse: func(in Input) string {
			if _, ok := makers[in.Facts.Boot.Initramfs]; !ok {
				return "the guest has an initramfs, but not by a program that gpuguest knows"
			}
			return ""
		},
		AtBoot: claimed,
		Check: func(in Input) string {
			m := makers[in.Facts.Boot.Initramfs]
			// The listing is the proof, and it costs a decompression, so it is remembered beside the image's
			// own change time and size: the same image needs no second look.
			return lines(
				`image=`+sh.Quote(in.Facts.Boot.Image)+` S=${GPUGUEST_STATE:-/var/lib/gpuguest}`,
				`[ -s "$image" ] || { echo "$image is missing"; exit 1; }`,
				`[ ! "$image" -ot `+blocklistPath+` ] || { echo "$image is older than the blocklist"; exit 1; }`,
				`seen=$(stat -c '%n %i %s %Y' "$image")`,
				`if [ "$(cat "$S/initramfs.proved" 2>/dev/null)" != "$seen" ]; then`,
				`	`+m.fill(m.list, in)+` | grep -F -q -- `+sh.Quote(strings.TrimPrefix(blocklistPath, "/"))+` || { echo "$image does not hold the blocklist"; exit 1; }`,
				`fi`,
				`echo "$image holds the blocklist"`)
		},
		Apply: func(in Input) []action.Action {
			m := makers[in.Facts.Boot.Initramfs]
			return []action.Action{
				action.Run{Title: "build " + in.Facts.Boot.Image, Script: lines(
					m.fill(m.rebuild, in),
					`flush `+sh.Quote(in.Facts.Boot.Image))},
				action.Run{Title: "list it", Script: lines(
					`if `+m.fill(m.list, in)+` | grep -F -q -- `+sh.Quote(strings.TrimPrefix(blocklistPath, "/"))+`; then`,
					`	stat -c '%n %i %s %Y' `+sh.Quote(in.Facts.Boot.Image)+` >"$S/initramfs.proved.tmp"`,
					`	mv -f "$S/initramfs.proved.tmp" "$S/initramfs.proved"`,
					`fi`)},
			}
		},
		Hint: "the initramfs that booted today is kept in the guest below /var/lib/gpuguest/before/files/boot",
	})
}
