# The end of gpuguest's verify.sh, which runs a guest's checks in the guest itself and writes the JSON that
# "gpuguest verify --json" prints to /var/lib/gpuguest/verify.json. internal/plan puts before it:
#   NONCE, FIXED  the word that ends a check's output; the result's members that are known beforehand, as JSON
#   table         prints a line a check, in order: id, its members as JSON, its hint as JSON; tabs between
#   checks        runs the checks and prints what each said, then NONCE, its id and its exit code
#   gpu_names     prints a line for each GPU of the result
# What was said goes to standard error too, which is the journal when systemd runs it. It exits 0 when every check
# is met, else 5. POSIX sh and awk; shellcheck reads it as sh.
S=${GPUGUEST_STATE:-/var/lib/gpuguest}
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin${PATH:+:$PATH}
export LC_ALL=C PATH
umask 022
mkdir -p "$S"
read -r BEGAN _ </proc/uptime
GPUS=$(gpu_names)
DRIVER=$(sed -n 's/^NVRM version:.* \([0-9][0-9]*\.[0-9.]*\) .*/\1/p' /proc/driver/nvidia/version 2>/dev/null)
HOST=$(uname -n)
KERNEL=$(uname -r)
NOW=$(date -u +%Y-%m-%dT%H:%M:%SZ)
export NONCE FIXED BEGAN GPUS DRIVER HOST KERNEL NOW

{
	table
	echo "$NONCE"
	checks
} | awk '
# json is s as a JSON string. A byte that is no part of UTF-8 becomes the replacement character, as everywhere else.
function json(s,    out, i, n, o, len) {
	n = length(s)
	for (i = 1; i <= n; i += len) {
		o = code[substr(s, i, 1)]
		len = o < 128 ? 1 : whole(s, i, o)
		if (!len) { out = out "\\ufffd"; len = 1 }
		else if (o == 34 || o == 92) out = out "\\" substr(s, i, 1)
		else if (o == 9) out = out "\\t"
		else if (o == 10) out = out "\\n"
		else if (o < 32) out = out sprintf("\\u%04x", o)
		else out = out substr(s, i, len)
	}
	return "\"" out "\""
}
# whole is the length of the character that begins at i with byte o, 0 when it is none (RFC 3629, section 4).
function whole(s, i, o,    len, k, c, low, high) {
	len = o >= 240 ? 4 : o >= 224 ? 3 : 2
	if (o < 194 || o > 244) return 0
	for (k = 1; k < len; k++) {
		c = code[substr(s, i + k, 1)]
		low = k > 1 ? 128 : o == 224 ? 160 : o == 240 ? 144 : 128
		high = k > 1 ? 191 : o == 237 ? 159 : o == 244 ? 143 : 191
		if (i + k > length(s) || c < low || c > high) return 0
	}
	return len
}
function trim(s) {
	sub(/^[ \t\r\n\v\f]+/, "", s)
	sub(/[ \t\r\n\v\f]+$/, "", s)
	return s
}
function say(word, id, text) {
	print word " " id (text == "" ? "" : ": ") text | "cat 1>&2"
}
# member is one more member of the result, unless its value is empty.
function member(name, value) { return value == "" ? "" : "," json(name) ":" json(value) }
# closed tells whether s is a whole JSON object as far as braces tell: one that was cut off is not.
function closed(s,    i, n, c, depth, quoted) {
	if (substr(s, 1, 1) != "{") return 0
	n = length(s)
	for (i = 1; i <= n; i++) {
		c = substr(s, i, 1)
		if (c == "\\") i++
		else if (c == "\"") quoted = !quoted
		else if (!quoted && c ~ /[{[]/) depth++
		else if (!quoted && c ~ /[]}]/ && !--depth) return i == n
	}
	return 0
}
# ended takes a check that ended: its output is in said, and what it said for programs in data.
function ended(id, status,    text, members) {
	if (failed || !(id in known)) return
	text = trim(said)
	members = known[id] ",\"state\":" (status == 0 ? "\"met\"" : "\"failed\"")
	members = members member("detail", text)
	if (marks == 1 && closed(data)) members = members ",\"data\":" data
	steps = steps (steps == "" ? "" : ",") "{" members "}"
	asked[id] = 1
	if (status == 0) { sub(/\n.*/, "", text); say("ok", id, text); return }
	failed = 1
	say("FAILED", id, text)
	problem = ",\"error\":{\"message\":" json(id ": " text) ",\"step\":" json(id)
	if (hint[id] != "\"\"") problem = problem ",\"hint\":" hint[id]
	problem = problem "}"
}
BEGIN {
	for (i = 1; i < 256; i++) code[sprintf("%c", i)] = i
	nonce = ENVIRON["NONCE"]
	mark = "gpuguest: data: " # steps.DataMark
}
!listed && $0 == nonce { listed = 1; next }
!listed {
	split($0, column, "\t")
	order[++of] = column[1]; known[column[1]] = column[2]; hint[column[1]] = column[3]
	next
}
index($0, nonce " ") == 1 {
	split($0, word, " ")
	ended(word[2], word[3])
	said = ""; lines = 0; data = ""; marks = 0
	next
}
index($0, mark) == 1 { data = substr($0, length(mark) + 1); marks++; next }
{ said = said (lines++ ? "\n" : "") $0 }
END {
	# The checks were cut off: the first that did not end is the one that failed.
	for (i = 1; i <= of; i++) if (!(order[i] in asked)) { said = "the check did not end\n" said; ended(order[i], 1) }
	getline uptime <"/proc/uptime"
	split(uptime, up, " ")
	took = up[1] - ENVIRON["BEGAN"]
	n = split(ENVIRON["GPUS"], name, "\n")
	for (i = 1; i <= n; i++) gpus = gpus (i > 1 ? "," : "") json(name[i])
	print "{\"host\":" json(ENVIRON["HOST"]) ",\"result\":" (failed ? "\"failed\"" : "\"done\"") member("kernel", ENVIRON["KERNEL"]) member("driver", ENVIRON["DRIVER"])
	if (gpus != "") print ",\"gpus\":[" gpus "]"
	print ENVIRON["FIXED"]
	print ",\"steps\":[" steps "]"
	print ",\"reboots\":0,\"connections\":0,\"execs\":0,\"seconds\":" took ",\"guest_seconds\":" took
	if (failed) print problem
	print ",\"time\":" json(ENVIRON["NOW"]) ",\"exit_code\":" (failed ? 5 : 0) "}"
	close("cat 1>&2")
	exit failed ? 5 : 0
}' >"$S/verify.json.gpuguest-tmp"
code=$?
case $code in 0 | 5) ;; *) rm -f "$S/verify.json.gpuguest-tmp"; exit 1 ;; esac
sync "$S/verify.json.gpuguest-tmp" 2>/dev/null || sync
mv -f "$S/verify.json.gpuguest-tmp" "$S/verify.json"
rm -f "$S/verify.due"
exit $code
