package steps

import (
	"strings"

	"gpuguest/internal/action"
	"gpuguest/internal/sh"
)

// blocked are the kernel's own drivers that claim an NVIDIA GPU: nouveau, the Rust drivers that follow it
// (Linux 6.15 and later) and the framebuffer driver.
var blocked = []string{"nouveau", "nova_core", "nova_drm", "nova", "nvidiafb"}

const blocklistPath = "/etc/modprobe.d/gpuguest-blocklist.conf"

func blocklist() string {
	var b strings.Builder
	b.WriteString("# Written by gpuguest. These drivers claim the GPU before NVIDIA's can.\n")
	for _, m := range blocked {
		b.WriteString("blacklist " + m + "\n")
	}
	b.WriteString("options nouveau modeset=0\n")
	return b.String()
}

func init() {
	register(Step{
		ID:     "blocklist",
		Title:  "block the drivers that would claim the GPU",
		After:  []ID{"ready", "rescue"},
		AtBoot: claimed,
		Check: func(in Input) string {
			script := lines(
				`[ -e `+blocklistPath+` ] || { echo "`+blocklistPath+` is missing"; exit 1; }`,
				`printf %s `+sh.Quote(blocklist())+` | cmp -s - `+blocklistPath+` || { echo "`+blocklistPath+` was changed by somebody else"; exit 1; }`)
			if path, text := makerConf(in); path != "" {
				script = lines(script, `printf %s `+sh.Quote(text)+` | cmp -s - `+path+` || { echo "`+path+` does not keep them out of the initramfs"; exit 1; }`)
			}
			return script
		},
		Apply: func(in Input) []action.Action {
			acts := []action.Action{action.Write{Path: blocklistPath, Data: []byte(blocklist())}}
			if path, text := makerConf(in); path != "" {
				acts = append(acts, action.Write{Path: path, Data: []byte(text)})
			}
			return acts
		},
	})
}
