#!/bin/sh
# Written by gpuguest: divides GPUs as the layout beside this file says, a line a GPU: its PCI address, and the
# profiles of its instances with commas between them, or "off". Instances are gone after every boot, and so is MIG
# mode itself from Hopper on (NVIDIA's MIG user guide, "Enable MIG Mode"), so a unit runs this at each.
#
#   mig.sh         modes, then instances
#   mig.sh mode    modes alone
#   mig.sh check   changes nothing; exit 0, the GPUs are divided as planned
#   mig.sh planned changes nothing; exit 0, the modes are as planned, or will be after the next boot
#
# Exit 3: a mode waits for the GPU's reset, which takes a reboot of a guest.
set -u
LC_ALL=C
export LC_ALL
layout=${GPUGUEST_MIG_LAYOUT:-/usr/local/lib/gpuguest/mig.layout}
t=$(mktemp -d) || exit 1
trap 'rm -rf "$t"' EXIT
trap 'exit 143' HUP INT TERM

# limited.sh

# mode ADDRESS: the GPU's mode in $current, and the one after its next reset in $pending.
mode() {
	limited 60 nvidia-smi -i "$1" --query-gpu=mig.mode.current,mig.mode.pending --format=csv,noheader || {
		printf '%s: nvidia-smi: exit %s: %s\n' "$1" "$?" "$(cat "$t/said" "$t/errors")"
		return 1
	}
	out=$(cat "$t/said")
	current=${out%%,*}
	pending=${out##*, }
	case $current in
	Enabled | Disabled) ;;
	*)
		echo "$1 cannot be divided: nvidia-smi says its MIG mode is $current"
		return 1
		;;
	esac
}

# listed WHAT ADDRESS: the profiles of its GPU instances (-lgi) or compute instances (-lci), sorted.
listed() {
	limited 60 nvidia-smi mig "$1" -i "$2"
	awk '{ for (i = 1; i < NF; i++) if ($i == "MIG") print $(i + 1) }' "$t/said" | sort
}

# told COMMAND...: what it says is shown only when it fails.
told() {
	limited 120 "$@" && return 0
	printf '%s: exit %s: %s\n' "$*" "$?" "$(cat "$t/said" "$t/errors")"
	return 1
}

# divide ADDRESS PROFILES
divide() {
	wanted=Enabled
	[ "$2" != off ] || wanted=Disabled
	mode "$1" || return 1
	case $do in
	planned)
		[ "$pending" = "$wanted" ] || { echo "$1: MIG mode is $current and will be $pending"; return 1; }
		return 0
		;;
	check) [ "$current" = "$wanted" ] || { echo "$1: MIG mode is $current"; return 1; } ;;
	*)
		if [ "$current $pending" != "$wanted $wanted" ]; then
			number=1
			if [ "$wanted" = Disabled ]; then
				number=0
				clear_instances "$1" || return 1
			fi
			told nvidia-smi -i "$1" -mig "$number" || return 1
			mode "$1" || return 1
			if [ "$current" != "$wanted" ]; then
				echo "$1: MIG mode is $current and will be $pending after a reboot"
				return 3
			fi
		fi
		[ "$do" != mode ] || return 0
		;;
	esac
	[ "$wanted" = Enabled ] || { echo "$1: whole"; return 0; }
	planned=$(printf '%s\n' "$2" | tr , '\n' | sort)
	if [ "$(listed -lgi "$1")" = "$planned" ] && [ "$(listed -lci "$1" | grep -c .)" -ge "$(printf '%s\n' "$planned" | grep -c .)" ]; then
		echo "$1: $2"
		return 0
	fi
	[ "$do" != check ] || { echo "$1 holds $(listed -lgi "$1" | tr '\n' ' ')and not $2"; return 1; }
	clear_instances "$1" || return 1
	told nvidia-smi mig -cgi "$2" -C -i "$1" || return 1
	echo "$1: $2"
}

clear_instances() {
	[ -z "$(listed -lci "$1")" ] || told nvidia-smi mig -dci -i "$1" || return 1
	[ -z "$(listed -lgi "$1")" ] || told nvidia-smi mig -dgi -i "$1" || return 1
}

do=${1:-all}
worst=0
while read -r address profiles; do
	divide "$address" "$profiles" </dev/null
	code=$?
	[ "$code" -eq 0 ] || [ "$worst" -eq 1 ] || worst=$code
done <"$layout"
exit "$worst"
