# The library in front of every step's script. It is sourced text, not a program: internal/plan puts it
# first, then the step's check and actions. POSIX sh; shellcheck reads it as sh.
#
# What a step's actions may call:
#   put PATH MODE   write standard input to PATH by a temporary name, keeping what was there before
#   drop PATH       remove PATH, keeping what was there before
#   keep PATH       keep what is at PATH now, so that it can be put back
#   add_to_dkms     tell DKMS of NVIDIA's sources that it was not told of
# What only the frame around them calls: prepare, settle, journal, build_logs.
S=${GPUGUEST_STATE:-/var/lib/gpuguest}
export LC_ALL=C DEBIAN_FRONTEND=noninteractive NEEDRESTART_MODE=a NEEDRESTART_SUSPEND=1
umask 022

# flush makes a file survive a power cut; old coreutils cannot sync one file and sync everything.
flush() { sync "$1" 2>/dev/null || sync; }

keep() {
	[ -e "$S/before/files$1" ] || [ -L "$S/before/files$1" ] || [ -e "$S/before/absent$1" ] && return 0
	if [ -e "$1" ] || [ -L "$1" ]; then
		mkdir -p "$S/before/files${1%/*}"
		cp -a "$1" "$S/before/files$1.gpuguest-tmp"
		mv -f "$S/before/files$1.gpuguest-tmp" "$S/before/files$1"
	else
		mkdir -p "$S/before/absent${1%/*}"
		: >"$S/before/absent$1"
	fi
	flush "$S/before"
}

put() {
	keep "$1"
	mkdir -p "${1%/*}"
	# Always the same name: what a power cut leaves is written over when the step is done again.
	put_tmp=$1.gpuguest-tmp
	cat >"$put_tmp"
	chmod "$2" "$put_tmp"
	flush "$put_tmp"
	mv -f "$put_tmp" "$1"
}

drop() {
	keep "$1"
	rm -f "$1"
}

# journal appends one JSON record. A torn last line, left by a power cut, is ended first, so that it
# costs that one record and not the next.
journal() {
	mkdir -p "$S"
	if [ -s "$S/journal" ] && [ -n "$(tail -c 1 "$S/journal")" ]; then echo >>"$S/journal"; fi
	printf '{"time":"%s","boot":"%s",%s}\n' "$(date -u +%Y-%m-%dT%H:%M:%SZ)" "$(cat "${GPUGUEST_BOOT_ID:-/proc/sys/kernel/random/boot_id}")" "$1" >>"$S/journal"
	flush "$S/journal"
}

# prepare records, once, what the guest was before gpuguest first changed it.
prepare() {
	mkdir -p "$S"
	chmod 700 "$S"
	if [ ! -e "$S/before/packages" ]; then
		mkdir -p "$S/before"
		list_packages >"$S/before/packages.tmp"
		cat /proc/cmdline >"$S/before/cmdline"
		list_manual >"$S/before/manual"
		flush "$S/before/packages.tmp"
		mv -f "$S/before/packages.tmp" "$S/before/packages"
	fi
}

# A package command is bracketed: the package list before it is on disk until the difference after it
# is in the ledger. A power cut in between leaves the bracket, and the next step closes it.
open_bracket() {
	close_bracket
	list_packages >"$S/bracket.tmp"
	flush "$S/bracket.tmp"
	mv -f "$S/bracket.tmp" "$S/bracket"
}

# On a disk that is full the bracket stays: the ledger must not lose what was installed until then.
close_bracket() {
	[ -e "$S/bracket" ] || return 0
	# added and changed packages: "name version"; "-" in place of a version: was not there.
	if [ ! -e "$S/packages" ]; then : >"$S/packages"; fi
	list_packages >"$S/bracket.now" && awk 'NR == FNR { was[$1] = $2; next }
		!($1 in was) { print "added", $1, "-", $2; next }
		was[$1] != $2 { print "changed", $1, was[$1], $2 }
		{ delete was[$1] }
		END { for (p in was) print "removed", p, was[p], "-" }' "$S/bracket" "$S/bracket.now" | sort >"$S/bracket.diff" &&
		cat "$S/packages" "$S/bracket.diff" >"$S/packages.tmp" &&
		flush "$S/packages.tmp" &&
		mv -f "$S/packages.tmp" "$S/packages" &&
		rm -f "$S/bracket" "$S/bracket.now" "$S/bracket.diff"
}

# A package whose script ran out of disk leaves sources that DKMS never heard of, and is done for dpkg the next
# time: nothing else would add them.
add_to_dkms() {
	for src in /usr/src/nvidia*-*/dkms.conf; do
		[ -e "$src" ] || continue
		src=${src%/dkms.conf}
		src=${src##*/}
		[ -e "/var/lib/dkms/${src%-*}/${src##*-}/source" ] || dkms add -m "${src%-*}" -v "${src##*-}" || echo "dkms add: exit $?"
	done
}

# build_logs shows the end of what compilers said since the bracket was opened: package managers tell no more than
# where it is.
build_logs() {
	for log in /var/lib/dkms/*/*/build/make.log; do
		# shellcheck disable=SC3013 # dash, bash and busybox know -nt
		if [ -e "$log" ] && [ "$log" -nt "$S/bracket" ]; then
			echo "$log:"
			tail -n 15 "$log"
		fi
	done
}
