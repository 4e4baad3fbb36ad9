#!/bin/sh
# make bench: every figure beside its peer in the same run.
#
#   ROW=upload,reboot   only these rows: resources overhead converged verify ansible reboot upload fleet page log,
#                       and bake, which is measured only when it is named: its QEMU, where it has no KVM, takes a
#                       quarter of an hour or more
#   JSON=FILE           the figures and every sample, also as JSON
#   REUSE=1             do not install again: take the guest that the last run installed
#   REAL=1              install NVIDIA's real driver from the distribution's archive in place of the lab's
#                       stand-in: its build takes three minutes more
#   QUICK=1             one sample of everything, to see that it works
#   REPORT=FILE         take the install's overhead from this report of gpuguest install --json
set -eu
cd "$(dirname "$0")/../.."

if [ "$(id -u)" != 0 ]; then
	echo "make bench boots a guest and makes network devices: run it as root" >&2
	exit 1
fi

# What the bench needs, as "program package".
missing=
while read -r program package; do
	command -v "$program" >/dev/null || missing="$missing $package"
done <<DEPS
ssh openssh-client
scp openssh-client
ansible-playbook ansible-core
parallel-ssh pssh
mmdebstrap mmdebstrap
systemd-nspawn systemd-container
ip iproute2
unshare util-linux
dpkg-deb dpkg
apt-ftparchive apt-utils
gpg gnupg
gcc gcc libc6-dev
chromium chromium
DEPS
if [ -n "$missing" ]; then
	apt-get -q update
	# shellcheck disable=SC2086 # package names, one word each
	DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $missing
fi

GO=${GO:-go}
[ -n "${GPUGUEST:-}" ] || {
	CGO_ENABLED=0 "$GO" build -trimpath -ldflags '-s -w' -o bin/gpuguest ./cmd/gpuguest
	GPUGUEST=bin/gpuguest
}
CGO_ENABLED=0 "$GO" build -trimpath -o bin/bench ./internal/bench

set -- -gpuguest "$GPUGUEST" -row "${ROW:-}" -json "${JSON:-}" -report "${REPORT:-}"
if [ -n "${REUSE:-}" ]; then set -- "$@" -reuse; fi
if [ -n "${REAL:-}" ]; then set -- "$@" -real; fi
if [ -n "${QUICK:-}" ]; then set -- "$@" -quick; fi
# Mounts and processes of namespaces of its own end with it, whatever ends it.
exec unshare --mount --pid --fork --kill-child --mount-proc --propagation private bin/bench "$@"
