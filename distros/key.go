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
		KeyInForce(`"$new/key"`, url),
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
		dearmour+` "$key" | base64 -d >"$key.bin"`,
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

// dearmour is an awk that takes the base64 text of a key in armour out of a file.
const dearmour = `awk '{ sub(/\r$/, "") } /^-----BEGIN/ { on = 1; next } /^-----END/ { on = 0 } on && /^[ \t]*$/ { body = 1; next } on && body && !/^=/'`

// KeyInForce is a script that fails, naming the key, where the first key of the file (a word of sh), which came from
// url, has expired by the guest's clock.
//
// apt refuses such a key; rpm imports it without a word, and only the newest take nothing that it signed. When it
// expires stands in the key's newest signature of itself, as seconds after the key was made (RFC 4880, 5.2.3.6): of
// somebody else's signatures none counts. What is not understood is left to rpm.
func KeyInForce(file, url string) string {
	return lines(
		`key=`+file,
		`if grep -q -e '^-----BEGIN PGP PUBLIC KEY BLOCK-----' "$key"; then `+dearmour+` "$key" | base64 -d >"$key.bin" 2>/dev/null || :; else cat "$key" >"$key.bin"; fi`,
		`packets() { od -An -v -tu1 "$key.bin" | awk -v id="${1-}" '`,
		`	function number(at, size,  i, v) { for (i = 0; i < size; i++) v = v * 256 + b[at + i]; return v + 0 }`,
		`	function hex(at, size,  i, v) { for (i = 0; i < size; i++) v = v sprintf("%02x", b[at + i]); return v }`,
		`	function subpackets(at, end,  l, h, t) {`,
		`		for (; at < end; at += h + l) {`,
		`			l = b[at]; h = 1`,
		`			if (l == 255) { l = number(at + 1, 4); h = 5 } else if (l >= 192) { l = (l - 192) * 256 + b[at + 1] + 192; h = 2 }`,
		`			if (l < 1) return`,
		`			t = b[at + h] % 128`,
		`			if (t == 2) when = number(at + h + 1, 4)`,
		`			if (t == 9) life = number(at + h + 1, 4)`,
		`			if (t == 16) by = hex(at + h + 1, 8)`,
		`			if (t == 33) by = substr(hex(at + h + 2, l - 2), 25)`,
		`		}`,
		`	}`,
		`	{ for (i = 1; i <= NF; i++) b[n++] = $i }`,
		`	END {`,
		`		for (at = 0; at < n; at += head + len) {`,
		`			if (b[at] >= 192) {`,
		`				tag = b[at] - 192; l = b[at + 1]`,
		`				if (l < 192) { head = 2; len = l } else if (l < 224) { head = 3; len = (l - 192) * 256 + b[at + 2] + 192 }`,
		`				else if (l == 255) { head = 6; len = number(at + 2, 4) } else exit`,
		`			} else {`,
		`				tag = int((b[at] - 128) / 4); type = b[at] % 4`,
		`				if (type == 3) exit`,
		`				len = number(at + 1, 2 ^ type); head = 1 + 2 ^ type`,
		`			}`,
		`			body = at + head`,
		`			if (tag == 6 && at > 0 || tag == 14) break`,
		`			if (tag == 6) { if (b[body] != 4) exit; made = number(body + 1, 4); if (id == "") { printf "%d %d %03o %03o\n", body + 1, len, len / 256, len % 256; exit } }`,
		`			type = b[body + 1]`,
		`			if (tag != 2 || b[body] != 4 || !(type >= 16 && type <= 19 || type == 31)) continue`,
		`			when = life = 0; by = ""`,
		`			hashed = body + 6 + number(body + 4, 2)`,
		`			subpackets(body + 6, hashed); subpackets(hashed + 2, hashed + 2 + number(hashed, 2))`,
		`			if (by == id && when >= newest) { newest = when; ends = life ? made + life : 0 }`,
		`		}`,
		`		if (ends) printf "%.0f\n", ends`,
		`	}'; }`,
		// The packet's own header may have a length of another size than what is summed up.
		`first() { printf "\\231\\$3\\$4"; tail -c "+$1" "$key.bin" | head -c "$2"; }`,
		`at=$(packets)`,
		`if [ -n "$at" ]; then`,
		`	whole=$(first $at | sha1sum | cut -d ' ' -f 1)`,
		`	end=$(packets "$(printf %s "$whole" | cut -c 25-40)")`,
		`	if [ -n "$end" ] && [ "$end" -le "$(date +%s)" ]; then`,
		`		echo "the repository's key $whole expired on $(date -u -d "@$end" +%Y-%m-%d):" `+sh.Quote(url)+` >&2`,
		`		exit 1`,
		`	fi`,
		`fi`)
}
