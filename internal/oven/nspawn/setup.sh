#!/bin/sh
# Runs in the guest before the oven's sshd starts: the names of its disk that udev would make, and the way out, which
# is a proxy, for whatever runs as a service.
#   setup.sh PROXY
set -eu
while read -r name kind value; do
	mkdir -p "/dev/disk/$kind"
	ln -sf "../../$name" "/dev/disk/$kind/$value"
done </run/gpuguest-oven/links
systemctl set-environment "http_proxy=$1" "https_proxy=$1" "HTTP_PROXY=$1" "HTTPS_PROXY=$1" no_proxy=localhost,127.0.0.1 NO_PROXY=localhost,127.0.0.1
# Where sshd wants a folder for its unprivileged half, by the names of Debian and of Red Hat's family.
mkdir -p /run/sshd
