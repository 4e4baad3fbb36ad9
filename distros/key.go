package distros

import (
	"strings"

	"gpuguest/internal/sh"
)

// Checked says in a few words how a key is checked.
func (k RepoKey) Checked(sum string) string {
	switch {
	case sum != "":
		return "its SHA-256"
	case k.Fingerprint != "":
		return "its fingerprint"
	}
	return "its 32-bit id " + k.ID
}

// FetchKey is a script that fetches a key, checks it, and leaves it at path through the step library's put.
// sum, when given, is what the file must be; else it must hold one key, and that must be k.
func FetchKey(k RepoKey, url, path, sum string) string {
	return lines(
		`new=$(mktemp -d)`,
		`trap 'rm -rf "$new"' EXIT`,
		`if command -v curl >/dev/null 2>&1; then curl -fsSL --retry 3 -o "$new/key" `+sh.Quote(url)+`; else wget -q -t 3 -O "$new/key" `+sh.Quote(url)+`; fi ||`,
		`	{ echo "could not be fetched:" `+sh.Quote(url)+` >&2; exit 1; }`,
		CheckKey(k, `"$new/key"`, sum),
		`put `+sh.Quote(path)+` 0644 <"$new/key"`)
}

// CheckKey is a script that fails unless the file (a word of sh) is the key.
//
// The fingerprint of a version 4 key is the SHA-1 of its first packet as it stands there (RFC 4880, 12.2), so no
// gpg is asked for, which minimal guests do not have. The packets are walked for the file to hold one key and
// no other: rpm would import them all.
func CheckKey(k RepoKey, file, sum string) string {
	if sum != "" {
		return `[ "$(sha256sum <` + file + ` | cut -d ' ' -f 1)" = ` + sh.Quote(strings.ToLower(sum)) + ` ] || { echo "the key is not the one whose SHA-256 was given" >&2; exit 1; }`
	}
	want, pattern := k.Fingerprint, sh.Quote(k.Fingerprint)
	if want == "" {
		want, pattern = k.ID, "*"+sh.Quote(k.ID)
	}
	return lines(
		`key=`+file,
		`[ "$(grep -c -e '^-----BEGIN PGP PUBLIC KEY BLOCK-----' "$key")" = 1 ] || { echo "this is not one key: $key" >&2; exit 1; }`,
		`awk '{ sub(/\r$/, "") } /^-----BEGIN/ { on = 1; next } /^-----END/ { on = 0 } on && /^[ \t]*$/ { body = 1; next } on && body && !/^=/' "$key" | base64 -d >"$key.bin"`,
		`size=$(od -An -v -tu1 "$key.bin" | awk '`,
		`	{ for (i = 1; i <= NF; i++) b[n++] = $i }`,
		`	END {`,
		`		for (at = 0; at < n; at += head + len) {`,
		`			if (b[at] >= 192) {`,
		`				tag = b[at] - 192; l = b[at + 1]`,
		`				if (l < 192) { head = 2; len = l } else if (l < 224) { head = 3; len = (l - 192) * 256 + b[at + 2] + 192 } else exit 1`,
		`			} else {`,
		`				tag = int((b[at] - 128) / 4); type = b[at] % 4`,
		`				if (type == 0) { head = 2; len = b[at + 1] } else if (type == 1) { head = 3; len = b[at + 1] * 256 + b[at + 2] } else exit 1`,
		`			}`,
		`			if (tag == 6 && (keys++ || at != 0 || b[0] != 153)) exit 1`,
		`			if (tag == 6) first = head + len`,
		`		}`,
		`		if (keys != 1 || at != n) exit 1`,
		`		print first`,
		`	}') || { echo "this is not one OpenPGP key: $key" >&2; exit 1; }`,
		`found=$(head -c "$size" "$key.bin" | sha1sum | cut -d ' ' -f 1)`,
		`case $found in`,
		pattern+`) ;;`,
		`*) echo "the key is $found, expected is" `+sh.Quote(want)+` >&2; exit 1 ;;`,
		`esac`)
}
