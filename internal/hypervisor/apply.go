package hypervisor

import (
	"fmt"
	"strings"

	"gpuguest/internal/sh"
)

// undoDir is where ApplyScript keeps what was there before, below the root: files/PATH is the earlier content,
// absent/PATH says that there was none, args holds what grubby set, a line a run, and pending says that files were written
// and the commands have not all been run since.
const undoDir = "/var/lib/gpuguest/hypervisor-undo"

// preamble is what both scripts begin with. GPUGUEST_ROOT stands for / in tests.
const preamble = `set -eu
umask 022
LC_ALL=C
export LC_ALL
R=${GPUGUEST_ROOT:-}
U=$R` + undoDir + `
# shellcheck disable=SC3067 # dash, bash and busybox know -O
if [ -z "$R" ] && ! [ -O / ]; then
	echo "not run as root" >&2
	exit 1
fi
# back PATH: what was at PATH before is there again, and the record of it is gone.
back() {
	case $1 in /etc/systemd/system/*.service) systemctl disable "${1##*/}" >/dev/null 2>&1 || true ;; esac
	if [ -e "$U/files$1" ] || [ -L "$U/files$1" ]; then
		cp -pP "$U/files$1" "$R$1.gpuguest-tmp"
		mv -f "$R$1.gpuguest-tmp" "$R$1"
		rm -f "$U/files$1"
	else
		rm -f "$R$1" "$U/absent$1"
	fi
	echo "put back $1"
}
recorded() {
	for k in files absent; do
		if [ -d "$U/$k" ]; then ( cd "$U/$k" && find . ! -type d ); fi
	done | sed 's/^\.//'
}
`

// ApplyScript returns the script, POSIX sh for root, that writes a plan's files, each whole or not at all, and
// runs its commands but the reboot. What it replaces is kept for UndoScript; what an earlier plan wrote and
// this one does not want is put back. A second run finds nothing to do; after a run that was cut off, the
// commands are run again.
func ApplyScript(p Plan) string {
	var b strings.Builder
	b.WriteString(preamble)
	b.WriteString(`put() {
	if [ -f "$R$2" ] && ! [ -L "$R$2" ] && [ "$(cat "$R$2" && echo .)" = "$3." ] && [ "0$(stat -c %a "$R$2")" = "$1" ]; then return 0; fi
	: >"$U/pending"
	if ! [ -e "$U/files$2" ] && ! [ -L "$U/files$2" ] && ! [ -e "$U/absent$2" ]; then
		if [ -e "$R$2" ] || [ -L "$R$2" ]; then
			mkdir -p "$U/files${2%/*}"
			cp -pP "$R$2" "$U/keep-tmp"
			mv -f "$U/keep-tmp" "$U/files$2"
		else
			mkdir -p "$U/absent${2%/*}"
			: >"$U/absent$2"
		fi
	fi
	mkdir -p "$R${2%/*}"
	printf %s "$3" >"$R$2.gpuguest-tmp"
	chmod "$1" "$R$2.gpuguest-tmp"
	mv -f "$R$2.gpuguest-tmp" "$R$2"
	echo "wrote $2"
}
mkdir -p "$U"
`)
	wanted := " "
	for _, f := range p.Files {
		wanted += f.Path + " "
	}
	fmt.Fprintf(&b, "wanted=%s\n", sh.Quote(wanted))
	b.WriteString(`for f in $(recorded); do
	case $wanted in
	*" $f "*) ;;
	*)
		: >"$U/pending"
		back "$f"
		;;
	esac
done
`)
	for _, f := range p.Files {
		fmt.Fprintf(&b, "put %s\n", sh.Join(f.Mode, f.Path, f.Content))
	}
	if p.grubby != "" {
		fmt.Fprintf(&b, `a=%s
if ! [ -e "$U/args" ] || ! grep -qxF -e "$a" "$U/args"; then
	: >"$U/pending"
	printf '%%s\n' "$a" >>"$U/args"
fi
`, sh.Quote(p.grubby))
	}
	b.WriteString("if ! [ -e \"$U/pending\" ]; then\n\techo \"nothing to do\"\n\texit 0\nfi\nsync\n")
	for _, c := range p.Commands {
		if c != reboot {
			fmt.Fprintf(&b, "echo %s\n%s\n", sh.Quote("run: "+c), c)
		}
	}
	b.WriteString("rm -f \"$U/pending\"\necho \"reboot the machine to finish\"\n")
	return b.String()
}

// UndoScript returns the script, POSIX sh for root, that takes back what ApplyScript's runs did, and has the
// initramfs and the bootloader's entries made anew. After a run that was cut off, another goes on.
func UndoScript() string {
	return preamble + `if ! [ -d "$U" ]; then
	echo "nothing to undo"
	exit 0
fi
again=
for f in $(recorded); do
	case $f in
	/etc/kernel/cmdline) again="proxmox-boot-tool refresh" ;;
	/etc/default/grub) again="grub2-mkconfig -o /boot/grub2/grub.cfg" ;;
	esac
	back "$f"
done
if [ -s "$U/args" ] && command -v grubby >/dev/null 2>&1; then
	grubby --update-kernel=ALL --remove-args="$(tr '\n' ' ' <"$U/args")"
fi
sync
if command -v systemctl >/dev/null 2>&1; then systemctl daemon-reload || true; fi
if command -v update-initramfs >/dev/null 2>&1; then
	update-initramfs -u -k all
elif command -v dracut >/dev/null 2>&1; then
	dracut --force --regenerate-all
fi
if command -v update-grub >/dev/null 2>&1; then
	update-grub
elif [ "$again" = "grub2-mkconfig -o /boot/grub2/grub.cfg" ]; then
	$again
fi
if [ "$again" = "proxmox-boot-tool refresh" ]; then $again; fi
rm -rf "$U"
echo "reboot the machine to finish"
`
}
