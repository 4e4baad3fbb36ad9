package steps

import (
	"gpuguest/internal/sh"
)

// signerTrusted are lines of a check that fails where the kernel trusts no key of the name that the module's signer has.
// A module's signature names who issued the certificate, which for a key of somebody's own is mostly itself. Modules
// that the distribution signed are of a chain that need not be listed whole; whether a key that was given is trusted was
// seen by its key id, and sign-modules sees that it signed.
func signerTrusted(in Input) []string {
	if in.Choice.Signed || in.Want.Signing.Given() {
		return nil
	}
	var issuers []string
	for _, c := range in.Facts.Secure.Certificates {
		if in.Facts.Secure.Trusts(c.KeyID) && c.Issuer != "" {
			issuers = append(issuers, c.Issuer)
		}
	}
	script := []string{`trusted=`}
	if len(issuers) > 0 {
		script = append(script, `for s in `+sh.Join(issuers...)+`; do if [ "$s" = "$signer" ]; then trusted=1; fi; done`)
	}
	return append(script,
		`[ -n "$trusted" ] || [ ! -r /proc/keys ] || grep -qF " asymmetri $signer: " /proc/keys ||`,
		`	{ echo "the $name module is signed by $signer, and the kernel trusts no key of that name: the next one would reject it"; exit 1; }`)
}

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
			if in.Facts.EnforcesSignatures() {
				script = append(script,
					`[ -n "$signer" ] || { echo "modules must be signed (Secure Boot) and the $name module is not: the next kernel would reject it"; exit 1; }`)
				script = append(script, signerTrusted(in)...)
				script = append(script, `echo "signed by $signer"`)
			}
			return lines(script...)
		},
		Hint: "the guest is not rebooted into a kernel without its driver; run the same command again once the cause is gone",
	})
}
