#!/bin/sh
# One Slurm job array that installs the driver in all guests of an inventory, each task its share.
#
#   sbatch --array=1-8 docs/slurm-array.sh
#   sbatch --array=1-8 --export=ALL,INVENTORY=/shared/hosts.yaml,FLAGS='--canary 1' docs/slurm-array.sh
#   sbatch --dependency=afterany:JOBID --wrap 'gpuguest report merge $HOME/gpuguest-results/*.json'
#
# The number of tasks is the number of shares, without gaps. A task knows its share from SLURM_ARRAY_TASK_ID, and
# the tasks need nothing of each other: what was done is in the guests, so one that was cancelled, requeued or
# killed is simply run again.
#
#   INVENTORY   gpuguest's YAML, an Ansible inventory or a list of names, readable on every node
#   RESULTS     folder for one JSON result a task, $HOME/gpuguest-results if not given; the merge above reads them
#   FLAGS       more flags of gpuguest install, separated by blanks
#   GPUGUEST    the program
#
#SBATCH --job-name=gpuguest
#SBATCH --array=1-8
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=1
#SBATCH --mem=1G
#SBATCH --time=03:00:00
#SBATCH --output=gpuguest-%A-%a.log
#SBATCH --signal=B:TERM@120
set -eu
: "${INVENTORY:=$HOME/hosts.yaml}"
: "${RESULTS:=$HOME/gpuguest-results}"
: "${FLAGS:=}"
: "${GPUGUEST:=gpuguest}"

mkdir -p "$RESULTS"
result=$RESULTS/share-$SLURM_ARRAY_TASK_ID.json

# Two minutes before its time is over, and when it is cancelled, the task is told to end: gpuguest then lets go of
# its guests, which go on with the step they are at, and the same job takes them up again.
pid=
trap '[ -z "$pid" ] || kill -TERM "$pid" 2>/dev/null || true' TERM INT
# shellcheck disable=SC2086 # FLAGS are words
"$GPUGUEST" install --inventory "$INVENTORY" --json $FLAGS >"$result.new" &
pid=$!
code=0
wait "$pid" || code=$?
# A signal ends the wait and not gpuguest.
while kill -0 "$pid" 2>/dev/null; do
	code=0
	wait "$pid" || code=$?
done
# Only results take the place of an earlier one: a wrong flag or inventory leaves none, and neither does a kill.
if "$GPUGUEST" report merge "$result.new" >/dev/null; then
	mv "$result.new" "$result"
else
	echo "no result of a guest; what there is stays in $result.new" >&2
fi
exit "$code"
