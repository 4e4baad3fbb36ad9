#!/bin/sh
# The main job on a throwaway guest, as a person would do it. guestlab run gives the guest in GUESTLAB_*.
set -eu
gpuguest=bin/gpuguest
guest() {
	command=$1
	shift
	printf '\n$ gpuguest %s --host %s:%s %s\n' "$command" "$GUESTLAB_HOST" "$GUESTLAB_PORT" "$*"
	"$gpuguest" "$command" --host "root@$GUESTLAB_HOST:$GUESTLAB_PORT" -i "$GUESTLAB_KEY" \
		--known-hosts "$GUESTLAB_KNOWN_HOSTS" --ssh-config none "$@"
}

guest facts
guest plan --mirror "$GUESTLAB_MIRROR" --keyring-sha256 "$GUESTLAB_KEYRING_SHA256"
guest install --mirror "$GUESTLAB_MIRROR" --keyring-sha256 "$GUESTLAB_KEYRING_SHA256"
# The same command again: nothing is left to do.
guest install --mirror "$GUESTLAB_MIRROR" --keyring-sha256 "$GUESTLAB_KEYRING_SHA256"
guest verify
