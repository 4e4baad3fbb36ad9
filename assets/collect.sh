#!/bin/sh
# What a support bundle holds of a guest, in one round trip, changing nothing.
#
# Run it as root with nothing on standard input. The framing is facts.sh's: `== name` starts a section, `|text`
# is a line of it, `!reason` says why it is not whole, `== end` proves that nothing was cut off. A section that
# would be empty is left out. Each is bounded, its end is kept, and every command has a time limit, also one that
# hangs in the kernel and answers no signal: it is left behind.
#
# A diagnosis goes by the sections logs/*.log and guest/nvidia-smi.txt, a guest's as a bundle's, and by no others: they
# hold what counts today, of a package manager the last run that was to change something. One that ends in
# -of-the-boot-before.log tells what was. What is only for a person to read has another name.
#
# Nothing is masked here: that is the client's to do, before a byte is written down.
#
# GPUGUEST_ROOT: read files of a recorded tree in place of /.
# GPUGUEST_LIMIT: how many seconds a command may take.
# GPUGUEST_SECTIONS: "now" prints what tells of this boot alone, "logs" all that a diagnosis goes by; else everything.
LC_ALL=C
export LC_ALL
unset CDPATH
R=${GPUGUEST_ROOT:-}
PATH=$PATH:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
LIMIT=${GPUGUEST_LIMIT:-60}
WAIT=$((LIMIT + LIMIT / 12 + 1))
T=
if command -v timeout >/dev/null 2>&1; then T="timeout $LIMIT"; fi
MB=1048576

have() { command -v "$1" >/dev/null 2>&1; }

# within COMMAND ...: what a command prints on standard output, as long as it has come when the time is up. The command
# has nothing of this script's open but the pipe, so that nobody waits for one that cannot be ended.
gave_up="gpuguest: given up after $WAIT seconds"
within() {
	{ "$@" </dev/null 2>/dev/null & } | if [ -n "$T" ]; then timeout $WAIT cat || printf '\n%s\n' "$gave_up"; else cat; fi
}

# take NAME BYTES [COMMAND]: standard input becomes a section, of which the last BYTES are kept. That the COMMAND was
# given up is a finding, which the section tells.
take() {
	tail -c "$2" | awk -v name="$1" -v of="${3:-}" -v gave_up="$gave_up" -v wait="$WAIT" '
		$0 == gave_up { late = 1; next }
		{ if (!n++) print "== " name; print "|" $0 }
		END {
			if (!late) exit
			if (!n) print "== " name
			if (of != "") print "|(" of " did not answer within " wait " seconds)"
			print "!given up after " wait " seconds"
		}'
}

# told COMMAND ...: what a command prints, both streams, and its exit code when it is not 0.
told() {
	$T "$@" 2>&1
	told_code=$?
	case $told_code in
	0) ;;
	124 | 137) echo "($1 did not answer within $LIMIT seconds)" ;;
	*) echo "(exit $told_code)" ;;
	esac
}
# said NAME BYTES COMMAND ...: that as a section.
said() {
	said_name=$1 said_bytes=$2
	shift 2
	have "$1" || return 0
	within told "$@" | take "$said_name" "$said_bytes" "$1"
}

# journal ARGUMENT ...: lines of systemd's journal.
journal() { $T journalctl -q --no-pager -o short-monotonic --no-hostname "$@"; }

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

# last_run NAME BYTES PATH BEGINS DID: of a package manager's log the last run that did something: what an earlier one
# failed at may long be put right, and what only asks, or is run by a timer, says nothing of it. A run begins at a line
# that holds BEGINS; DID is a pattern of awk that a line of one that counts matches, !DID one that it does not.
last_run() {
	[ -s "$3" ] && [ -r "$3" ] || return 0
	tail -c 4000000 "$3" | awk -v begins="$4" -v did="$5" '
		BEGIN { if (not = substr(did, 1, 1) == "!") did = substr(did, 2) }
		index($0, begins) { if (done) { from = began; to = NR - 1 } began = NR; done = 0 }
		{ line[NR] = $0 }
		not ? $0 !~ did : $0 ~ did { done = 1 }
		END { if (done) { from = began + !began; to = NR } for (i = from; from && i <= to; i++) print line[i] }' | take "$1" "$2"
}
# The commands of dnf and zypper of which a failure counts.
changing='[" \047](install|in|reinstall|upgrade|update|up|dup|dist-upgrade|downgrade|distro-sync|remove|rm|erase|swap|module|localinstall|group)[" \047]'

# Every line of fabricmanager.log begins with its time, as "[Nov 22 2026 21:14:02]". What it says of earlier boots is
# left out, as far as the guest's clock tells when it was started.
fabric_manager() {
	f=$R/var/log/fabricmanager.log
	[ -s "$f" ] && [ -r "$f" ] || return 0
	boot=$(sed -n 's/^btime //p' "$R/proc/stat" 2>/dev/null)
	[ -z "$boot" ] || boot=$(date -d "@$boot" +%Y%m%d%H%M%S 2>/dev/null)
	tail -n 200 "$f" | awk -v boot="$boot" '
		/^\[[A-Z][a-z][a-z] [0-9]+ [0-9][0-9][0-9][0-9] [0-9][0-9]:[0-9][0-9]:[0-9][0-9]\]/ {
			split(substr($0, 2), part, /[] :]/)
			month = (index("JanFebMarAprMayJunJulAugSepOctNovDec", part[1]) + 2) / 3
			past = sprintf("%04d%02d%02d%02d%02d%02d", part[3], month, part[2], part[4], part[5], part[6]) "" < boot ""
		}
		!past'
}

# The log of the last job that changed something; one of an earlier boot is past.
L=$R/var/lib/gpuguest
last_job() {
	# shellcheck disable=SC2012 # names of jobs are letters, digits and dashes
	f=$(ls -t "$L"/jobs/*/*/log 2>/dev/null | head -n 1)
	[ -n "$f" ] || return 0
	is=$(cat "${GPUGUEST_BOOT_ID:-/proc/sys/kernel/random/boot_id}")
	was=$(cat "${f%/log}/boot" 2>/dev/null) || was=$is
	if [ "$was" = "$is" ]; then file logs/last-job.log "$MB" "$f"; else file logs/last-job-of-the-boot-before.log "$MB" "$f"; fi
}

kernel() { dmesg 2>/dev/null || { have journalctl && journal -k -b; } || true; }

echo 'gpuguest-collect 1'

within kernel | take logs/kernel.log $((4 * MB))
if have journalctl; then
	for unit in nvidia-persistenced nvidia-fabricmanager nvidia-gridd systemd-modules-load dkms; do
		within journal -u "$unit" -b | take "logs/unit-$unit.log" $((MB / 4))
	done
fi
within fabric_manager | take logs/fabricmanager.log $((MB / 4))
said guest/nvidia-smi.txt $((MB / 4)) nvidia-smi
if [ "${GPUGUEST_SECTIONS:-}" = now ]; then
	echo '== end'
	exit 0
fi

# The last run of apt is what a diagnosis goes by, as of the others.
f=$R/var/log/apt/term.log
apt=
if [ -s "$f" ] && [ -r "$f" ]; then
	apt=$(grep -n '^Log started:' "$f" | tail -n 1 | cut -d : -f 1)
	apt=${apt:-1}
	tail -n "+$apt" "$f" | take logs/apt-term.log $((4 * MB))
fi
# dnf 4 and what rpm told it, which stands in a file of its own; dnf 5. yum 3 keeps no failure in a log.
last_run logs/dnf.log $((4 * MB)) "$R/var/log/dnf.log" '--- logging initialized ---' " Command: .*$changing"
last_run logs/dnf-rpm.log $((4 * MB)) "$R/var/log/dnf.rpm.log" '--- logging initialized ---' '! logging initialized ---'
last_run logs/dnf5.log $((4 * MB)) "$R/var/log/dnf5.log" 'DNF5 launched with arguments: ' "DNF5 launched with arguments: .*$changing"
last_run logs/zypper.log $((4 * MB)) "$R/var/log/zypper.log" '===== Hi, me zypper' "===== .zypper. .*$changing"
last_run logs/zypp-history.log $((4 * MB)) "$R/var/log/zypp/history" '|command|' "[|]command[|].*$changing"
file logs/nvidia-installer.log $((4 * MB)) "$R/var/log/nvidia-installer.log"
file logs/cuda-installer.log $((4 * MB)) "$R/var/log/cuda-installer.log"
# DKMS keeps the log of a build that failed here, and takes it elsewhere when one ends well.
n=0
for f in "$R"/var/lib/dkms/*nvidia*/*/build/make.log; do
	[ -f "$f" ] || continue
	n=$((n + 1))
	if [ $n -le 6 ]; then file "logs/dkms-make-$n.log" "$MB" "$f"; fi
done
last_job
if [ "${GPUGUEST_SECTIONS:-}" = logs ]; then
	echo '== end'
	exit 0
fi

if have journalctl; then within journal -k -b -1 | take logs/kernel-of-the-boot-before.log $((2 * MB)); fi
f=$R/var/log/apt/term.log
if [ -n "$apt" ] && [ "$apt" -gt 1 ]; then head -n $((apt - 1)) "$f" | take logs/apt-term-before.txt "$MB"; fi
file logs/apt-history.txt $((MB / 2)) "$R/var/log/apt/history.log"
file logs/dpkg.txt $((MB / 2)) "$R/var/log/dpkg.log"
file logs/dnf.txt $((2 * MB)) "$R/var/log/dnf.log"
file logs/dnf-rpm.txt $((MB / 2)) "$R/var/log/dnf.rpm.log"
file logs/dnf5.txt $((2 * MB)) "$R/var/log/dnf5.log"
file logs/zypper.txt $((2 * MB)) "$R/var/log/zypper.log"
file logs/zypp-history.txt $((MB / 2)) "$R/var/log/zypp/history"
n=0
for f in "$R"/var/lib/dkms/*nvidia*/*/*/*/log/make.log; do
	[ -f "$f" ] || continue
	n=$((n + 1))
	if [ $n -le 6 ]; then file "logs/dkms-built-$n.txt" "$MB" "$f"; fi
done

# The jobs' own logs, the latest twenty.
if [ -d "$L/jobs" ]; then
	# shellcheck disable=SC2012 # names of jobs are letters, digits and dashes
	( cd "$L/jobs" && ls -td ./*/*/ 2>/dev/null ) | head -n 20 | while IFS= read -r d; do
		d=${d#./}
		d=${d%/}
		name=logs/jobs/$(printf %s "$d" | tr / -)
		file "$name.txt" $((MB / 4)) "$L/jobs/$d/log"
		if [ -s "$L/jobs/$d/exit" ]; then take "$name.exit" 100 <"$L/jobs/$d/exit"; fi
	done
fi
file gpuguest/journal.jsonl "$MB" "$L/journal"
file gpuguest/packages $((MB / 4)) "$L/packages"
files guest/modprobe.conf 65536 "$R"/etc/modprobe.d/*.conf "$R"/etc/modules-load.d/*.conf "$R"/etc/nvidia/*.conf
files guest/boot.conf 65536 "$R/proc/cmdline" "$R/etc/default/grub" "$R"/etc/default/grub.d/*.cfg "$R"/etc/dracut.conf.d/*.conf "$R"/etc/initramfs-tools/initramfs.conf "$R"/etc/kernel/cmdline
files guest/proc-nvidia.txt 65536 "$R"/proc/driver/nvidia/version "$R"/proc/driver/nvidia/params "$R"/proc/driver/nvidia/registry "$R"/proc/driver/nvidia/gpus/*/information

said guest/nvidia-smi-q.txt "$MB" nvidia-smi -q
said guest/lspci.txt "$MB" lspci -vvnn
said guest/lsmod.txt $((MB / 4)) lsmod
said guest/modinfo-nvidia.txt $((MB / 4)) modinfo nvidia
said guest/dkms-status.txt $((MB / 4)) dkms status
said guest/units-failed.txt $((MB / 4)) systemctl --failed --no-pager --no-legend --plain
said guest/units-nvidia.txt $((MB / 4)) systemctl status --no-pager -n 20 'nvidia*'
said guest/disks.txt $((MB / 4)) df -h
said guest/memory.txt $((MB / 4)) free -m
echo '== end'
