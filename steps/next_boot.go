package steps

import (
	"gpuguest/internal/sh"
)

func init() {
	register(Step{
		ID:     "next-boot",
		Title:  "prove that the next boot has the driver",
		After:  []ID{"ready", "rescue", "headers", "blocklist", "kernel-args", "driver", "sign-modules", "initramfs", "hold-kernel"},
		Late:   needsFreeGPU,
		Module: moduleWords,
		Refuse: func(in Input) string {
			if in.Facts.Kernel.Next == "" {
				return "it is unknown which kernel the guest starts next, so nothing can be built for it"
			}
			return ""
		},
		Check: func(in Input) string {
			if in.Facts.Kernel.Next == "" {
				return `echo "it is unknown which kernel the guest starts next"; exit 1`
			}
			script := []string{
				`image=/boot/vmlinuz-` + sh.Quote(in.Facts.Kernel.Next),
				`set -- /boot/vmlinuz-*`,
				`{ [ ! -e "$1" ] && [ ! -L "$1" ]; } || [ -s "$image" ] || { echo "$image is missing"; exit 1; }`,
				moduleCheck(in),
			}
			if in.Facts.Secure.State == "enabled" {
				script = append(script,
					`[ -n "$signer" ] || { echo "Secure Boot is on and the $name module is not signed: the next kernel would reject it"; exit 1; }`,
					`echo "signed by $signer"`)
			}
			return lines(script...)
		},
		Hint: "the guest is not rebooted into a kernel without its driver; run the same command again once the cause is gone",
	})
}
