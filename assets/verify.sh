# The end of gpuguest's verify.sh, which runs a guest's checks in the guest itself and writes the JSON that
# "gpuguest verify --json" prints to /var/lib/gpuguest/verify.json. internal/plan puts before it:
#   NONCE, FIXED  the word that ends a check's output; the result's members that are known beforehand, as JSON
#   table         prints a line a check, in order: id, its members as JSON, its hint as JSON; tabs between
#   checks        runs the checks and prints what each said, then NONCE, its id and its exit code
#   gpu_names     prints a line for each GPU of the result
# What a check prints for programs is carried as it was printed ("raw"): gpuguest reads it when it reads the result.
# What would make a check fail that exited well is judged here too (judged), in the words of gpuguest's own reading.
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
KERNEL=$(cat /proc/sys/kernel/osrelease 2>/dev/null || uname -r)
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
# figure is the number that v begins with, "" for none.
function figure(v) { return match(v, /^[0-9]+/) ? substr(v, 1, RLENGTH) : "" }
# known_value is an element of the document of nvidia-smi, "" for what stands in place of one (internal/smi).
function known_value(path,    v) {
	v = trim(value[path])
	return v == "N/A" || v ~ /^(Requested functionality has been deprecated|Unknown Error|GPU is lost)/ ? "" : v
}
# gpu_faults are what no GPU that works may show: smi.Log.Faults.
function gpu_faults(address, driver,    out, v, i, n, counter, sum, counted) {
	v = known_value("/gsp_firmware_version")
	if (v != "" && driver != "" && v != driver) out = out address ": the firmware on the GPU is " v ", the driver is " driver "\n"
	v = known_value("/gpu_recovery_action")
	if (v != "" && v != "None") out = out address ": the driver asks for a recovery of the GPU: " v "\n"
	if (known_value("/remapped_rows/remapped_row_failure") == "Yes") out = out address ": the GPU ran out of spare memory rows: have it replaced\n"
	n = split("double_bit/total sram_uncorrectable sram_uncorrectable_parity sram_uncorrectable_secded dram_uncorrectable", counter, " ")
	for (i = 1; i <= n; i++) sum += figure(known_value("/ecc_errors/volatile/" counter[i]))
	if (sum > 0) out = out address ": " sum " ECC errors that could not be corrected since the driver was loaded\n"
	return out
}
# address is the bus id of nvidia-smi as sysfs writes it.
function address(id) {
	id = tolower(trim(id))
	while (index(id, ":") > 5 && id ~ /^0/) id = substr(id, 2)
	return id
}
# smi reads the document of nvidia-smi in data, whatever stands on a line of it, and returns its faults.
function smi(    i, k, n, part, at, tag, text, depth, path, of, driver, out, v) {
	for (i = 1; i <= marks; i++) {
		n = split(data[i], part, "<")
		for (k = 2; k <= n; k++) {
			at = index(part[k], ">")
			tag = substr(part[k], 1, at - 1); text = substr(part[k], at + 1)
			if (!at || tag ~ /^[?!]/ || tag ~ /\/$/) continue
			if (tag ~ /^\//) {
				if (depth == 2 && tag == "/gpu") { out = out gpu_faults(of, driver); split("", value) }
				if (depth > 0) depth--
				continue
			}
			v = tag; sub(/[ \t].*/, "", v)
			depth++
			path[depth] = depth < 3 ? "" : path[depth - 1] "/" v
			if (depth == 2 && v == "gpu") { of = tag; sub(/.* id="/, "", of); sub(/".*/, "", of); of = address(of) }
			if (depth == 2 && v == "driver_version" && driver == "") driver = trim(text)
			if (depth == 2 && v == "kmd_version" && trim(text) != "N/A") driver = trim(text)
			if (depth > 2 && !(path[depth] in value)) value[path[depth]] = text
		}
	}
	return out
}
# passed counts the lines of data that a pattern matches.
function passed(pattern,    i, n) {
	for (i = 1; i <= marks; i++) if (data[i] ~ pattern) n++
	return n + 0
}
# judged is why a check that exited well is not met all the same, "" nothing: what Step.Read would find in its data.
function judged(id) {
	if (!marks) return ""
	if (id == "verify-smi") return trim(smi())
	if (id == "verify-devicequery" && !passed("^Result = PASS")) return "deviceQuery did not pass"
	if (id == "verify-bandwidthtest") {
		if (passed("!!!!!No devices found!!!!!")) return "bandwidthTest finds no GPU"
		if (!passed("^Result = PASS")) return "bandwidthTest did not pass"
		if (!passed("^[ \t]+[0-9]+[ \t]+[0-9.]+[ \t]*$")) return "bandwidthTest passed without having measured anything"
	}
	if (id == "verify-nvbandwidth") {
		if (passed("\"status\"[ \t]*:[ \t]*\"(Error|Not Found|Running)|\"error\"[ \t]*:[ \t]*\"[^\"]|^[ \t]*(ERROR|Error|Not Found):")) return "a test of nvbandwidth did not pass"
		if (!passed("\"status\"[ \t]*:[ \t]*\"Passed\"|^[ \t]*[0-9]+([ \t]+([0-9]+[.][0-9]+|N/A))+[ \t]*$")) return "nvbandwidth measured nothing"
	}
	if (id == "verify-dcgm") {
		if (passed("^[|][^|]*[|][ \t]*Fail")) return "a test of DCGM failed"
		if (!passed("^[|][^|]*[|][ \t]*Pass")) return "no test of DCGM passed"
	}
	return ""
}
# ended takes a check that ended: its output is in said, and what it said for programs in data.
function ended(id, status,    text, members, why, i, all) {
	if (!(id in known)) return
	why = status == 0 ? judged(id) : ""
	if (why != "") { status = 1; said = said "\n" why }
	text = trim(said)
	members = known[id] ",\"state\":" (status == 0 ? "\"met\"" : "\"failed\"")
	members = members member("detail", text)
	if (marks == 1 && closed(data[1])) members = members ",\"data\":" data[1]
	else if (marks) {
		for (i = 1; i <= marks; i++) all = all (i > 1 ? "\\n" : "") substr(json(data[i]), 2, length(json(data[i])) - 2)
		members = members ",\"data\":\"" all "\""
	}
	steps = steps (steps == "" ? "" : ",") "{" members "}"
	asked[id] = 1
	if (status == 0) { sub(/\n.*/, "", text); say("ok", id, text); return }
	say("FAILED", id, text)
	if (failed) return
	failed = 1
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
	said = ""; lines = 0; split("", data); marks = 0
	next
}
index($0, mark) == 1 { data[++marks] = substr($0, length(mark) + 1); next }
{ said = said (lines++ ? "\n" : "") $0 }
END {
	# The checks were cut off: the first that did not end is the one that failed, unless one had failed before.
	for (i = 1; i <= of; i++) if (!failed && !(order[i] in asked)) { said = "the check did not end\n" said; ended(order[i], 1) }
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
	print ",\"time\":" json(ENVIRON["NOW"]) ",\"exit_code\":" (failed ? 5 : 0) ",\"raw\":true}"
	close("cat 1>&2")
	exit failed ? 5 : 0
}' >"$S/verify.json.gpuguest-tmp"
code=$?
case $code in 0 | 5) ;; *) rm -f "$S/verify.json.gpuguest-tmp"; exit 1 ;; esac
sync "$S/verify.json.gpuguest-tmp" 2>/dev/null || sync
mv -f "$S/verify.json.gpuguest-tmp" "$S/verify.json"
rm -f "$S/verify.due"
exit $code
