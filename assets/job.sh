#!/bin/sh
# Long work in a guest that outlives the connection.
#
#   job.sh start NAME TOKEN OFFSET SIZE <SCRIPT   start a new attempt, or go on with the running one, and follow it
#   job.sh follow NAME ATTEMPT OFFSET             follow an attempt; ATTEMPT 0 is the last one
#   job.sh list                                   one line a job, its last attempt: NAME ATTEMPT STATE EXIT
#
# SIZE is the script's length in bytes: a script cut short by a lost connection is not started.
#
# An attempt lives in $state/jobs/NAME/ATTEMPT: cmd (the script), token (of the caller that started it), boot
# (boot_id at its start), run (its keeper), pid, log, exit (its code, put there by rename), lock (locked
# while it lives).
#
# stdout is the log from byte OFFSET and nothing else. stderr has lines for the client, each beginning with
# "gpuguest-job ": "attempt N START" before the log (START: the byte that stdout begins with), then one of
# "state exited CODE", "state lost", "state rebooted", "state absent" after it, or "error WORDS".
state=${GPUGUEST_STATE:-/var/lib/gpuguest}
bootid=${GPUGUEST_BOOT_ID:-/proc/sys/kernel/random/boot_id}
systemd=${GPUGUEST_SYSTEMD:-/run/systemd/system}
jobs=$state/jobs
umask 077

say() { printf 'gpuguest-job %s\n' "$*" >&2; }
fail() {
	say "error $*"
	exit 95
}

# give_up WORDS: the attempt did not start and leaves nothing.
give_up() {
	rm -rf "$dir"
	fail "$@"
}

# last_attempt NAME: the highest attempt, 0 when there is none.
last_attempt() {
	n=0
	for a in "$jobs/$1"/*/; do
		a=${a%/}
		a=${a##*/}
		case $a in '' | *[!0-9]*) continue ;; esac
		[ "$a" -gt "$n" ] && n=$a
	done
	echo "$n"
}

# state_of DIR WAIT: sets st and code. WAIT is how many seconds a running job is waited for. The order matters:
# the keeper takes the lock, writes pid, and writes exit before it gives the lock back; so pid is looked at
# before the lock, and exit after it. The unit's own state is not asked: a unit that is gone reports success
# for a job that failed.
state_of() {
	d=$1 st=lost code='' came_up=''
	if [ ! -d "$d" ]; then
		st=absent
		return
	fi
	[ ! -s "$d/pid" ] || came_up=1
	if [ -e "$d/lock" ]; then
		flock -s -w "$2" "$d/lock" true
		if [ $? = 1 ]; then
			st=running
			return
		fi
	fi
	# A power cut may leave an exit file with nothing in it; such a job is lost.
	if [ -s "$d/exit" ]; then
		read -r code <"$d/exit"
		st=exited
	elif [ ! -s "$d/boot" ]; then
		st=lost
	elif [ "$(cat "$d/boot")" != "$(cat "$bootid")" ]; then
		st=rebooted
	elif [ -z "$came_up" ] && [ -n "$(find "$d/boot" -mmin -1 2>/dev/null)" ]; then
		# Made a moment ago; its keeper has not come up yet.
		st=running
		[ "$2" = 0 ] || sleep 0.05 2>/dev/null || sleep 1
	fi
}

# copy DIR: the log from byte off to its present end goes to stdout, and off moves on. A client that is
# gone ends the copying, and so this process.
copy() {
	size=$(wc -c <"$1/log" 2>/dev/null) || return 0
	if [ "$((size))" -gt "$off" ]; then
		tail -c "+$((off + 1))" "$1/log" | head -c "$((size - off))" || exit 94
		off=$((size))
	fi
}

# follow NAME ATTEMPT OFFSET: state first and log second, so that nothing printed before the end is missed. The
# job's end is seen at once, whatever the wait; the log is a second late at most.
follow() {
	dir=$jobs/$1/$2 off=$3
	say "attempt $2 $off"
	while :; do
		state_of "$dir" 1
		[ "$st" = absent ] || copy "$dir"
		case $st in
		running) ;;
		exited)
			say "state exited $code"
			exit 0
			;;
		*)
			say "state $st"
			exit 0
			;;
		esac
		# Every few seconds a word that a client gone for good cannot take: a silent job's follower would
		# otherwise stay until the job ends.
		beat=$((${beat:-0} + 1))
		if [ "$beat" -ge 5 ]; then
			beat=0
			say alive || exit 94
		fi
	done
}

# launch DIR UNIT: start the keeper so that neither sshd nor the session takes it along.
launch() {
	if [ -d "$systemd" ] && command -v systemd-run >/dev/null 2>&1; then
		# KillMode=process: a daemon that the work started stays. The keeper outlives SIGTERM until the work
		# ends, so a shutdown gives a running package manager systemd's 90 s.
		systemd-run --quiet --collect --unit="$2" -p KillMode=process /bin/sh "$1/run" "$1" \
			</dev/null >/dev/null 2>"$1/launch" && return 0
		systemd-run --unit="$2" -p KillMode=process /bin/sh "$1/run" "$1" \
			</dev/null >/dev/null 2>>"$1/launch" && return 0
	fi
	command -v setsid >/dev/null 2>&1 || return 1
	setsid nohup /bin/sh "$1/run" "$1" </dev/null >/dev/null 2>&1 &
}

command -v flock >/dev/null 2>&1 || fail "the guest has no flock"

verb=$1
case $verb in
start)
	name=$2 token=$3 offset=$4 bytes=$5
	why=$(mkdir -p "$jobs/$name" 2>&1 && (: >>"$jobs/.lock") 2>&1) || fail "$why"
	exec 8>>"$jobs/.lock"
	flock -w 30 8 || fail "another gpuguest is starting a job"
	n=$(last_attempt "$name")
	if [ "$n" -gt 0 ]; then
		dir=$jobs/$name/$n
		if [ "$(cat "$dir/token" 2>/dev/null)" = "$token" ] && [ -s "$dir/boot" ]; then
			# The starter of before may have been killed just before it launched the keeper. A second keeper
			# does no harm: it finds the first one's pid.
			if [ ! -s "$dir/pid" ] && [ "$(cat "$dir/boot")" = "$(cat "$bootid")" ]; then
				launch "$dir" "gpuguest-$name-$n" 8>&- || fail "neither systemd-run nor setsid works here"
			fi
			exec 8>&-
			follow "$name" "$n" "$offset"
		fi
		state_of "$dir" 0
		if [ "$st" = running ]; then
			exec 8>&-
			follow "$name" "$n" "$offset"
		fi
	fi
	n=$((n + 1))
	dir=$jobs/$name/$n
	why=$(mkdir "$dir" 2>&1) || fail "$why"
	why=$( (cat >"$dir/cmd") 2>&1) || give_up "$why"
	[ "$(($(wc -c <"$dir/cmd")))" -eq "$bytes" ] || give_up "the script arrived incomplete"
	why=$( (
		set -e
		cat >"$dir/run" <<'KEEPER'
d=$1
exec 9>"$d/lock"
# An observer may hold the lock for a moment, so it is waited for.
flock -w 10 9 || exit 1
[ ! -s "$d/pid" ] || exit 0
echo $$ >"$d/pid"
# How the work ended must be told also when the disk is full then.
head -c 65536 /dev/zero >"$d/reserve" 2>/dev/null
# A signal does not end the keeper before the work: the lock says whether the work runs.
trap : TERM HUP INT
umask 022
cd /
export LC_ALL=C DEBIAN_FRONTEND=noninteractive NEEDRESTART_MODE=a NEEDRESTART_SUSPEND=1 HOME=/root
export PATH="${PATH:-/usr/bin:/bin}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Without the lock's descriptor: a daemon that the work starts must not keep the job running.
sh "$d/cmd" </dev/null >>"$d/log" 2>&1 9>&-
code=$?
umask 077
# The words that tell of a full disk had no room in the log.
if [ "$code" != 0 ] && ! head -c 1048576 /dev/zero >"$d/probe" 2>/dev/null; then full=1; else full=; fi
rm -f "$d/probe" "$d/reserve"
if [ -n "$full" ]; then echo "gpuguest: ${d%/jobs/*}: No space left on device" >>"$d/log"; fi
echo "$code" >"$d/exit.new"
sync "$d/exit.new" 2>/dev/null
mv "$d/exit.new" "$d/exit"
KEEPER
		: >"$dir/log"
		printf '%s\n' "$token" >"$dir/token"
		cat "$bootid" >"$dir/boot"
	) 2>&1) || give_up "$why"
	launch "$dir" "gpuguest-$name-$n" 8>&- ||
		give_up "neither systemd-run nor setsid works here: $(head -n 1 "$dir/launch" 2>/dev/null)"
	exec 8>&-
	follow "$name" "$n" 0
	;;
follow)
	n=$3
	[ "$n" -gt 0 ] || n=$(last_attempt "$2")
	follow "$2" "$n" "$4"
	;;
list)
	for j in "$jobs"/*/; do
		[ -d "$j" ] || continue
		j=${j%/}
		j=${j##*/}
		n=$(last_attempt "$j")
		[ "$n" -gt 0 ] || continue
		state_of "$jobs/$j/$n" 0
		printf '%s %s %s %s\n' "$j" "$n" "$st" "${code:--}"
	done
	;;
*)
	fail "unknown verb $verb"
	;;
esac
