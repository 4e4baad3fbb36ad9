# limited SECONDS COMMAND...: runs a command, with what it prints in $t/said and $t/errors, and returns its exit code;
# 124 when it was ended because its time was over. What asks a GPU that fell off the bus may hang in the kernel, where
# no signal reaches it and whoever waits for it hangs as well. Such a command is left behind, with nothing of ours
# open but files. The call has no redirection of its own: dash would keep what was redirected open in the command.
# shellcheck disable=SC2154 # $t is a private folder of the script that this stands in
limited() {
	mkfifo "$t/ended" || return
	{
		ended=0
		timeout -k 2 "$@" || ended=$?
		echo "$ended" >"$t/ended"
	} </dev/null >"$t/said" 2>"$t/errors" &
	# A pipe that is open for both does not wait for its other end.
	ended=$(timeout "$(($1 + 5))" head -n 1 <>"$t/ended") || ended=
	rm -f "$t/ended"
	return "${ended:-124}"
}
