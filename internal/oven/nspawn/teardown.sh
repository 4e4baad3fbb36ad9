#!/bin/sh
# Runs in the guest when the oven's sshd has stopped, as the guest goes off: takes away what boot.sh put into the
# image.
while IFS= read -r file; do
	rm -f "$file"
done </run/gpuguest-oven/remove
