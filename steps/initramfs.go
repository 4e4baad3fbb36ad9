package steps

import (
	"strings"

	"gpuguest/distros"
	"gpuguest/internal/action"
	"gpuguest/internal/sh"
)

// maker returns what makes the guest's initramfs; false when the distribution has no such program.
func maker(in Input) (distros.Maker, bool) {
	m, ok := in.Distro.Boot.Makers[in.Facts.Boot.Initramfs]
	return m, ok
}

func fill(in Input, m distros.Maker, text string) string {
	return m.Fill(text, in.Facts.Kernel.Next, in.Facts.Boot.Image)
}

// makerConf is what the maker's own file must hold; the path is "" when it has none or nothing is made by it.
func makerConf(in Input) (path, text string) {
	m, ok := maker(in)
	if !ok || in.Facts.Boot.Image == "" || m.Conf == "" {
		return "", ""
	}
	return m.Conf, strings.NewReplacer("{modules}", strings.Join(blocked, " "), "{blocklist}", blocklistPath).Replace(m.ConfText)
}

// holdsBlocklist is a command that exits zero when the listing of the image proves the blocklist.
func holdsBlocklist(in Input, m distros.Maker) string {
	file := strings.TrimPrefix(blocklistPath, "/")
	if !m.Omits {
		return fill(in, m, m.List) + ` | grep -F -q -- ` + sh.Quote(file)
	}
	return fill(in, m, m.List) + ` | awk '/` + strings.ReplaceAll(file, "/", `\/`) + `/ { found = 1 } /\/(` + strings.Join(blocked, "|") + `)\.ko/ { bad = 1 } END { exit !(found && !bad) }'`
}

func init() {
	register(Step{
		ID:     "initramfs",
		Title:  "put the blocklist into the initramfs",
		After:  []ID{"ready", "rescue", "blocklist", "driver", "sign-modules"},
		Wanted: func(in Input) bool { return in.Facts.Boot.Image != "" },
		Refuse: func(in Input) string {
			if _, ok := maker(in); !ok {
				return "the guest has an initramfs, but not by a program that gpuguest knows"
			}
			return ""
		},
		AtBoot: claimed,
		Check: func(in Input) string {
			m, _ := maker(in)
			// The listing is the proof, and it costs a decompression, so it is remembered beside the image's
			// own change time and size: the same image needs no second look.
			return lines(
				`image=`+sh.Quote(in.Facts.Boot.Image)+` S=${GPUGUEST_STATE:-/var/lib/gpuguest}`,
				`[ -s "$image" ] || { echo "$image is missing"; exit 1; }`,
				`[ ! "$image" -ot `+blocklistPath+` ] || { echo "$image is older than the blocklist"; exit 1; }`,
				`seen=$(stat -c '%n %i %s %Y' "$image")`,
				`proved=; [ ! -r "$S/initramfs.proved" ] || IFS= read -r proved <"$S/initramfs.proved" || :`,
				`if [ "$proved" != "$seen" ]; then`,
				`	`+holdsBlocklist(in, m)+` || { echo "$image does not hold the blocklist"; exit 1; }`,
				`fi`,
				`echo "$image holds the blocklist"`)
		},
		Apply: func(in Input) []action.Action {
			m, _ := maker(in)
			return []action.Action{
				action.Run{Title: "build " + in.Facts.Boot.Image, Script: lines(
					fill(in, m, m.Rebuild),
					`flush `+sh.Quote(in.Facts.Boot.Image))},
				action.Run{Title: "list it", Script: lines(
					`if `+holdsBlocklist(in, m)+`; then`,
					`	stat -c '%n %i %s %Y' `+sh.Quote(in.Facts.Boot.Image)+` >"$S/initramfs.proved.tmp"`,
					`	mv -f "$S/initramfs.proved.tmp" "$S/initramfs.proved"`,
					`fi`)},
			}
		},
		Hint: "the initramfs that booted today is kept in the guest below /var/lib/gpuguest/before/files/boot",
	})
}
