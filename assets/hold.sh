#!/bin/sh
# Take the guest's gpuguest lock, run a script, keep the lock while the client lives.
#
#   hold.sh OWNER WAIT TOKEN SCRIPT [PACK]
#
# OWNER   one line that tells the next one who holds the guest
# WAIT    seconds to wait for a busy lock
# TOKEN   a word that ends the script's output: "TOKEN exit CODE" on a line of its own, on stdout and on stderr
# PACK    anything but nothing: the script's output is sent in one piece and gzipped, for a client that is far away
#
# Lines for the client on stderr before the script runs: "TOKEN busy OWNER" while another holds the lock,
# "TOKEN held OWNER" when the wait is over, "TOKEN error WORDS" when there can be no lock.
#
# The client sends a byte every few seconds; 45 s of silence or the end of the input give the lock back.
owner=$1 wait=$2 token=$3 script=$4 pack=${5:-}
run=${GPUGUEST_RUN:-/run}
[ -d "$run" ] || run=/var/run
silence=${GPUGUEST_SILENCE:-45}

for tool in flock timeout; do
	if ! command -v "$tool" >/dev/null 2>&1; then
		echo "$token error the guest has no $tool" >&2
		exit 95
	fi
done
umask 077
# A failed redirection of exec ends a POSIX shell, so it is tried in a shell of its own first.
if ! why=$( (: >>"$run/gpuguest.lock") 2>&1); then
	echo "$token error $why" >&2
	exit 95
fi
exec 9>>"$run/gpuguest.lock"
holder() { head -n 1 "$run/gpuguest.owner" 2>/dev/null || echo unknown; }
if ! flock -n 9; then
	echo "$token busy $(holder)" >&2
	if ! flock -w "$wait" 9; then
		echo "$token held $(holder)" >&2
		exit 96
	fi
fi
printf '%s\n' "$owner" >"$run/gpuguest.owner" 2>/dev/null
if [ -n "$pack" ]; then
	# The exit code goes past gzip, which has the script's output.
	exec 3>&1
	code=$({ {
		(set -- && eval "$script") 3>&- 4>&- 9>&- </dev/null
		echo $? >&4
	} | gzip -c >&3; } 4>&1)
	exec 3>&-
else
	(set -- && eval "$script") 9>&- </dev/null
	code=$?
fi
printf '\n%s exit %s\n' "$token" "$code" >&2
printf '\n%s exit %s\n' "$token" "$code"
while [ -n "$(timeout "$silence" dd bs=1 count=1 2>/dev/null 9>&-)" ]; do :; done
rm -f "$run/gpuguest.owner"
