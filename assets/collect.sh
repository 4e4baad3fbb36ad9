#!/bin/sh
# What a support bundle holds of a guest, in one round trip, changing nothing.
#
# Run it as root with nothing on standard input. The framing is facts.sh's: `== name` starts a section, `|text`
# is a line of it, `!reason` says why it is not whole, `== end` proves that nothing was cut off. A section that
# would be empty is left out. Each is bounded, its end is kept, and every command has a time limit.
#
# Nothing is masked here: that is the client's to do, before a byte is written down.
#
# GPUGUEST_ROOT: read files of a recorded tree in place of /.
LC_ALL=C
export LC_ALL
unset CDPATH
R=${GPUGUEST_ROOT:-}
PATH=$PATH:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
T=
if command -v timeout >/dev/null 2>&1; then T='timeout -k 5 60'; fi
MB=1048576

have() { command -v "$1" >/dev/null 2>&1; }

# take NAME BYTES: standard input becomes a section, of which the last BYTES are kept.
take() {
	tail -c "$2" | awk -v name="$1" 'NR == 1 { print "== " name } { print "|" $0 }'
}

# file NAME BYTES PATH: the end of a file.
file() {
	[ -f "$3" ] && [ -r "$3" ] && [ -s "$3" ] || return 0
	take "$1" "$2" <"$3"
	if [ "$(wc -c <"$3")" -gt "$2" ]; then echo "!the last $2 bytes of the file"; fi
}

# files NAME BYTES PATH ...: several small files as one section, each after its name.
files() {
	files_name=$1 files_bytes=$2
	shift 2
	for f in "$@"; do
		if [ -f "$f" ] && [ -r "$f" ]; then
			printf '# %s\n' "${f#"$R"}"
			tail -c "$files_bytes" "$f"
			echo
		fi
	done | take "$files_name" "$MB"
}

echo 'gpuguest-collect 1'

{ dmesg 2>/dev/null || { have journalctl && $T journalctl -k -b -q --no-pager -o short-monotonic --no-hostname 2>/dev/null; } || true; } | take logs/kernel.log $((4 * MB))
if have journalctl; then
	$T journalctl -k -b -1 -q --no-pager -o short-monotonic --no-hostname 2>/dev/null </dev/null | take logs/kernel-of-the-boot-before.log $((2 * MB))
	for unit in nvidia-persistenced nvidia-fabricmanager nvidia-gridd systemd-modules-load dkms; do
		$T journalctl -u "$unit" -b -q --no-pager -o short-monotonic --no-hostname 2>/dev/null </dev/null | take "logs/unit-$unit.log" $((MB / 4))
	done
fi
# The last run of apt is what a diagnosis goes by: what an earlier one failed at may long be put right.
f=$R/var/log/apt/term.log
if [ -s "$f" ] && [ -r "$f" ]; then
	n=$(grep -n '^Log started:' "$f" | tail -n 1 | cut -d : -f 1)
	n=${n:-1}
	head -n $((n - 1)) "$f" | take logs/apt-term-before.txt "$MB"
	tail -n "+$n" "$f" | take logs/apt-term.log $((2 * MB))
fi
file logs/apt-history.log $((MB / 2)) "$R/var/log/apt/history.log"
file logs/dpkg.log $((MB / 2)) "$R/var/log/dpkg.log"
file logs/dnf.log $((2 * MB)) "$R/var/log/dnf.log"
file logs/dnf-rpm.log $((MB / 2)) "$R/var/log/dnf.rpm.log"
file logs/dnf5.log $((2 * MB)) "$R/var/log/dnf5.log"
file logs/zypper.log $((2 * MB)) "$R/var/log/zypper.log"
file logs/zypp-history.log $((MB / 2)) "$R/var/log/zypp/history"
file logs/fabricmanager.log $((MB / 4)) "$R/var/log/fabricmanager.log"
file logs/nvidia-installer.log $((2 * MB)) "$R/var/log/nvidia-installer.log"
file logs/cuda-installer.log $((2 * MB)) "$R/var/log/cuda-installer.log"
n=0
for f in "$R"/var/lib/dkms/*nvidia*/*/build/make.log "$R"/var/lib/dkms/*nvidia*/*/*/*/log/make.log; do
	[ -f "$f" ] || continue
	n=$((n + 1))
	if [ $n -le 6 ]; then file "logs/dkms-make-$n.log" "$MB" "$f"; fi
done

# The jobs' own logs, the latest twenty.
L=$R/var/lib/gpuguest
if [ -d "$L/jobs" ]; then
	# shellcheck disable=SC2012 # names of jobs are letters, digits and dashes
	( cd "$L/jobs" && ls -td ./*/*/ 2>/dev/null ) | head -n 20 | while IFS= read -r d; do
		d=${d#./}
		d=${d%/}
		name=logs/jobs/$(printf %s "$d" | tr / -)
		file "$name.log" $((MB / 4)) "$L/jobs/$d/log"
		if [ -s "$L/jobs/$d/exit" ]; then take "$name.exit" 100 <"$L/jobs/$d/exit"; fi
	done
fi
file gpuguest/journal.jsonl "$MB" "$L/journal"
file gpuguest/packages $((MB / 4)) "$L/packages"
files guest/modprobe.conf 65536 "$R"/etc/modprobe.d/*.conf "$R"/etc/modules-load.d/*.conf "$R"/etc/nvidia/*.conf
files guest/boot.conf 65536 "$R/proc/cmdline" "$R/etc/default/grub" "$R"/etc/default/grub.d/*.cfg "$R"/etc/dracut.conf.d/*.conf "$R"/etc/initramfs-tools/initramfs.conf "$R"/etc/kernel/cmdline
files guest/proc-nvidia.txt 65536 "$R"/proc/driver/nvidia/version "$R"/proc/driver/nvidia/params "$R"/proc/driver/nvidia/registry "$R"/proc/driver/nvidia/gpus/*/information

# said NAME BYTES COMMAND ...: what a command prints, both streams, and its exit code when it is not 0.
said() {
	said_name=$1 said_bytes=$2
	shift 2
	have "$1" || return 0
	{
		$T "$@" 2>&1 </dev/null
		said_code=$?
		[ $said_code -eq 0 ] || echo "(exit $said_code)"
	} | take "$said_name" "$said_bytes"
}
# What asks a GPU may hang where no signal ends it, and that is when a bundle is wanted.
# limited.sh
asked() {
	asked_name=$1 asked_bytes=$2
	shift 2
	have "$1" || return 0
	limited 60 "$@"
	asked_code=$?
	{
		cat "$t/said" "$t/errors"
		[ $asked_code -eq 0 ] || echo "(exit $asked_code)"
	} | take "$asked_name" "$asked_bytes"
}
if have timeout && t=$(mktemp -d); then
	asked guest/nvidia-smi.txt $((MB / 4)) nvidia-smi
	asked guest/nvidia-smi-q.txt "$MB" nvidia-smi -q
	rm -rf "$t"
fi
said guest/lspci.txt "$MB" lspci -vvnn
said guest/lsmod.txt $((MB / 4)) lsmod
said guest/modinfo-nvidia.txt $((MB / 4)) modinfo nvidia
said guest/dkms-status.txt $((MB / 4)) dkms status
said guest/units-failed.txt $((MB / 4)) systemctl --failed --no-pager --no-legend --plain
said guest/units-nvidia.txt $((MB / 4)) systemctl status --no-pager -n 20 'nvidia*'
said guest/disks.txt $((MB / 4)) df -h
said guest/memory.txt $((MB / 4)) free -m
echo '== end'
