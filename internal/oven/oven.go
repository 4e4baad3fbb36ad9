// Package oven boots disk images: it gives somebody with a one-time key a way to log in to the system in an
// image, and turns that system off again. What is done in between, and what is left in the image afterwards, is
// the caller's.
//
// An oven never installs or verifies anything, never writes beside the disk it was given and the scratch folder,
// and never takes another host key from the guest than the one that it made itself.
package oven

import (
	"context"
	"io"
	"sync"
)

// Formats of Spec.Disk, by qemu-img's names.
const (
	FormatQcow2 = "qcow2"
	FormatRaw   = "raw"
)

// Firmware of Spec.Firmware.
const (
	FirmwareBIOS = "bios"
	FirmwareUEFI = "uefi"
)

// Spec says what is to be booted.
type Spec struct {
	// Disk is the path of the disk image. It is written in place: whoever wants to keep it as it is gives an
	// overlay or a copy.
	Disk string
	// Format of the disk by qemu-img's name, FormatQcow2 or FormatRaw. It is never probed: what a guest writes to
	// a raw disk could look like another format's header that names files of the host.
	Format string
	// Scratch is an existing empty directory for everything that is made beside the disk: keys, seed, console,
	// sockets. It must not be readable by others, for the one-time key is in it. The caller removes it.
	Scratch string
	// Firmware is FirmwareBIOS, FirmwareUEFI or "" for what the image's partition table shows.
	Firmware string
	// Memory of the guest in MiB, 0 for the oven's default.
	Memory int
	// CPUs of the guest, 0 for the oven's default.
	CPUs int
	// User is the login that the one-time key is given to; "" is root.
	User string
	// Grow has the root's partition and file system fill the disk, which was made larger than what is on it, before
	// Start returns. Where that cannot be, the guest boots all the same, and Ungrown says why.
	Grow bool
	// Args are more arguments for QEMU, such as a device under test. Ovens without a machine refuse them.
	Args []string
	// Log is given what the guest's console says, while it says it; nil for nowhere. It is not written to
	// by two goroutines at once, and no more after Close has returned.
	Log io.Writer
}

// Guest is a booted image. Its methods may be called from several goroutines.
type Guest interface {
	// Address is where the guest's sshd answers.
	Address() (host string, port int)
	// User is the login that the one-time key was given to.
	User() string
	// Identity is the path of the file with the one-time private key, in OpenSSH's format, without a passphrase.
	Identity() string
	// KnownHosts is the path of a known_hosts file with the guest's one host key, which the oven made.
	KnownHosts() string
	// Console is what the serial console said so far.
	Console() string
	// Ungrown is why the root does not fill the disk although Spec.Grow wanted that, "" when it does, or nothing was
	// wanted.
	Ungrown() string
	// Watch returns when the guest has come to a bad end: a *BootError with what its console says of it, at whichever
	// boot, or how it went off without being told to. It is nil when ctx has ended, or the guest was turned off.
	Watch(ctx context.Context) error
	// PowerOff turns the guest off in an orderly way and waits until it is off and its disk is written. It is an
	// error when it is not off by the end of ctx, or the oven's own limit; the guest then still runs, until Close.
	PowerOff(ctx context.Context) error
	// Close ends the guest at once, as pulling the plug does, and waits for everything that was started for it.
	// It is safe to call twice, and after PowerOff.
	Close() error
}

// Oven is a way to boot an image.
type Oven interface {
	// Name is the oven's name on the command line.
	Name() string
	// Usable returns nil or why the oven cannot be used on this machine.
	Usable(ctx context.Context) error
	// Start boots the image and returns when its sshd answers with the oven's host key and takes the one-time key.
	// When it returns an error nothing is left running. An image that does not boot is a *BootError. The end of
	// ctx after Start has returned does not stop the guest.
	Start(ctx context.Context, spec Spec) (Guest, error)
}

// Watched gives a context that ends when a guest comes to a bad end, which is its cause then, and the function that
// ends the watching, waits for that and returns what was seen, nil for nothing.
func Watched(ctx context.Context, g Guest) (context.Context, func() error) {
	watched, end := context.WithCancelCause(ctx)
	seen := make(chan error, 1)
	go func() {
		err := g.Watch(watched)
		if err != nil { // a guest that was told to go off is well, and who told it still waits for the end of that
			end(err)
		}
		seen <- err
	}()
	return watched, sync.OnceValue(func() error {
		end(nil)
		return <-seen
	})
}

// BootError says that an image did not come as far as to answer over SSH, or came to a bad end after it had.
type BootError struct {
	// Disk is the image as Spec named it.
	Disk string
	// What became of it, as in "does not boot: kernel panic" or "no answer over SSH within 10m0s".
	What string
	// Tail is the console's last lines, without a line end; "" when it said nothing.
	Tail string
	// Advice says what to look at, "" for nothing more.
	Advice string
	// Cause is why we could not log in, nil when the guest itself proved that it never comes up.
	Cause error

	again bool // the next boot may well go further
}

// Error names the disk and what became of it in one line.
func (e *BootError) Error() string {
	text := e.Disk + ": " + e.What
	if e.Cause != nil {
		text += ": " + e.Cause.Error()
	}
	return text
}

// Hint is what the user should do next, "" for nothing.
func (e *BootError) Hint() string { return e.Advice }

// Unwrap returns Cause.
func (e *BootError) Unwrap() error { return e.Cause }
