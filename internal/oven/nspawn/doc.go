// Package nspawn is the oven that starts the system in an image as a container of this machine, with
// systemd-nspawn: at native speed, also where there is no KVM.
//
// The guest runs on this machine's kernel, so nothing that it says of the running kernel is about the image, its
// bootloader is never started, and modules are built for the image's kernel and loaded by none. It has a network
// name space with nothing in it but a proxy of gpuguest's own, through which packages are fetched; no address, route
// or rule of the machine is changed.
//
// The one-time key and the host key are never in the image: they are seen in the guest's /run, where a sshd of the
// oven's own has them.
package nspawn
