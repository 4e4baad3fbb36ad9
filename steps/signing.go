package steps

import (
	"path"

	"gpuguest/internal/action"
	"gpuguest/internal/sh"
)

// The key stays in the guest, for root alone: DKMS signs the modules of every later kernel with it.
const (
	signingKey  = "/var/lib/gpuguest/secure-boot/key.pem"
	signingCert = "/var/lib/gpuguest/secure-boot/cert.der"
	// dkms reads its folder in the order of names, and the last word counts (dkms(8), framework.conf, from 3.0
	// on; older ones sign not at all, or by other means, and are made up for by sign-modules).
	signingConf = "/etc/dkms/framework.conf.d/zz-gpuguest.conf"
)

func signingConfig() string {
	return "# Written by gpuguest: what modules are signed with.\n" +
		"mok_signing_key=" + signingKey + "\nmok_certificate=" + signingCert + "\n"
}

// signs tells whether modules are built in the guest and a key to sign them with was given.
func signs(in Input) bool {
	return in.Want.Signing.Given() && !in.Choice.Signed
}

// ownModules prints the files of NVIDIA's own modules for $next. The kernel's nvidiafb and its like are none, nor is what
// a power cut left of the signing.
const ownModules = `find "/lib/modules/$next" -name 'nvidia*.ko*' ! -name '*.gpuguest-tmp*' \( -path '*/updates/*' -o -path '*/extra/*' -o -path '*/kernel/drivers/video/nvidia*' \)`

func init() {
	register(Step{
		ID:     "signing-key",
		Title:  "give DKMS the key to sign modules with",
		After:  []ID{"ready", "rescue", "headers"},
		Wanted: signs,
		Check: func(in Input) string {
			return lines(
				`for f in `+sh.Join(signingKey, signingCert)+`; do`,
				`	[ "$(stat -c '%a %U' "$f" 2>/dev/null)" = "600 root" ] || { echo "$f is missing, or not root's alone"; exit 1; }`,
				`done`,
				`{ echo `+sh.Quote(in.Want.Signing.KeySHA256+"  "+signingKey)+`; echo `+sh.Quote(in.Want.Signing.CertSHA256+"  "+signingCert)+`; } | sha256sum -c --status || { echo "another key is there"; exit 1; }`,
				`printf %s `+sh.Quote(signingConfig())+` | cmp -s - `+signingConf+` || { echo "`+signingConf+` does not name the key"; exit 1; }`)
		},
		Apply: func(in Input) []action.Action {
			return []action.Action{
				action.Send{Path: signingKey, SHA256: in.Want.Signing.KeySHA256},
				action.Send{Path: signingCert, SHA256: in.Want.Signing.CertSHA256},
				action.Run{Title: "keep the key from everybody but root", Script: lines(
					`chmod 700 `+path.Dir(signingKey),
					`chmod 600 `+sh.Join(signingKey, signingCert),
					// A dkms of before 3.0 has no such folder, and SUSE's packages have no dkms at all.
					`if [ ! -d /etc/dkms ]; then`,
					record("dkms-folder", "/etc/dkms"),
					`fi`,
					`if [ ! -d `+path.Dir(signingConf)+` ]; then`,
					record("dkms-folder", path.Dir(signingConf)),
					`fi`)},
				action.Write{Path: signingConf, Data: []byte(signingConfig())},
			}
		},
	})
	register(Step{
		ID:     "sign-modules",
		Title:  "see that the modules are signed with the key",
		After:  []ID{"ready", "rescue", "signing-key", "driver", "gds"},
		Late:   needsFreeGPU,
		Wanted: signs,
		Check: func(in Input) string {
			return lines(
				`next=`+sh.Quote(in.Facts.Kernel.Next)+` want=`+sh.Quote(in.Want.Signing.Signer),
				`bad=$(`+ownModules+` | while IFS= read -r f; do`,
				`	signer=$(modinfo -F signer "$f" 2>/dev/null) || signer=`,
				`	[ "$signer" = "$want" ] || echo "${f##*/} is signed by ${signer:-nobody}"`,
				`done)`,
				`[ -z "$bad" ] || { printf '%s\n' "$bad"; exit 1; }`,
				`[ -n "$(`+ownModules+`)" ] || { echo "kernel $next has no module of NVIDIA's"; exit 1; }`,
				`echo "signed by $want"`)
		},
		Apply: func(in Input) []action.Action {
			return []action.Action{action.Run{Title: "sign what DKMS did not", Script: lines(
				`next=`+sh.Quote(in.Facts.Kernel.Next)+` want=`+sh.Quote(in.Want.Signing.Signer),
				`tool=`,
				`for t in "/lib/modules/$next/build/scripts/sign-file" "/usr/src/linux-headers-$next/scripts/sign-file" "/usr/src/kernels/$next/scripts/sign-file" /usr/lib/linux-kbuild-*/scripts/sign-file; do`,
				`	if [ -z "$tool" ] && [ -x "$t" ]; then tool=$t; fi`,
				`done`,
				`[ -n "$tool" ] || { echo "the headers of kernel $next bring no sign-file"; exit 1; }`,
				`find "/lib/modules/$next" -name 'nvidia*.gpuguest-tmp*' -exec rm -f {} +`,
				ownModules+` | while IFS= read -r f; do`,
				`	[ "$(modinfo -F signer "$f" 2>/dev/null)" != "$want" ] || continue`,
				`	new=$f.gpuguest-tmp`,
				`	case $f in`,
				`	*.xz) xz -dc "$f" >"$new" ;;`,
				`	*.zst) zstd -dcq "$f" >"$new" ;;`,
				`	*.gz) gzip -dc "$f" >"$new" ;;`,
				`	*) cat "$f" >"$new" ;;`,
				`	esac`,
				`	"$tool" sha256 `+sh.Join(signingKey, signingCert)+` "$new"`,
				// The kernel reads xz with this check alone (Documentation/staging/xz.rst).
				`	case $f in`,
				`	*.xz) xz --check=crc32 --lzma2=dict=1MiB -f "$new"; new=$new.xz ;;`,
				`	*.zst) zstd -q --rm -f "$new"; new=$new.zst ;;`,
				`	*.gz) gzip -nf "$new"; new=$new.gz ;;`,
				`	esac`,
				`	chmod 0644 "$new"`,
				`	flush "$new"`,
				`	mv -f "$new" "$f"`,
				`	echo "signed ${f##*/}"`,
				`done`,
				`depmod "$next"`)}}
		},
		Hint: "the certificate's common name must be what modinfo shows as the signer",
	})
	registerRemoval(Step{
		ID:     "remove-signing-key",
		Title:  "remove the key that modules were signed with",
		After:  []ID{"ready", "remove-packages", "restore-files"},
		Wanted: func(in Input) bool { return in.Facts.State.SigningKey },
		Check: func(Input) string {
			return `[ ! -e ` + path.Dir(signingKey) + ` ] || { echo "the key is in the guest"; exit 1; }`
		},
		Apply: func(Input) []action.Action {
			return []action.Action{action.Run{Title: "remove " + path.Dir(signingKey), Script: lines(
				`if [ -e `+signingKey+` ]; then shred -u `+signingKey+` 2>/dev/null || rm -f `+signingKey+`; fi`,
				`rm -rf `+path.Dir(signingKey),
				`[ ! -e "$S/before/dkms-folder" ] || sort -r "$S/before/dkms-folder" | while IFS= read -r d; do rmdir "$d" 2>/dev/null || :; done`)}}
		},
	})
}
