package oven

import (
	"io"
	"regexp"
	"strings"
	"sync"
)

// maxConsole bounds what is kept of a console, in bytes; of more, the end is kept.
const maxConsole = 4 << 20

// Console keeps what a guest's serial console says. The zero value is ready; it must not be copied.
type Console struct {
	// Log is given a copy of everything, while it is said; nil for nowhere. Its errors are of no consequence.
	Log io.Writer

	mu   sync.Mutex
	text []byte
	said int64 // bytes in all
	old  int64 // of which of an earlier boot
}

// Write adds to the console. It never fails.
func (c *Console) Write(p []byte) (int, error) {
	c.mu.Lock()
	c.text = append(c.text, p...)
	if len(c.text) > 2*maxConsole {
		c.text = append(c.text[:0], c.text[len(c.text)-maxConsole:]...)
	}
	c.said += int64(len(p))
	c.mu.Unlock()
	if c.Log != nil {
		_, _ = c.Log.Write(p)
	}
	return len(p), nil
}

// String is what was said so far.
func (c *Console) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return string(c.text)
}

// Said is how many bytes were said so far.
func (c *Console) Said() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.said
}

// seam is how much of what was looked at before is looked at again, for a line that was cut in two.
const seam = 4 << 10

// boot makes what was said so far an earlier boot's, in which since does not look. It returns how many bytes that are.
func (c *Console) boot() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.old = c.said
	return c.said
}

// since is what was said since read bytes were, with a seam before it, and how many were said now. It is "" when
// nothing new was.
func (c *Console) since(read int64) (string, int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.said == read {
		return "", read
	}
	news := min(int64(len(c.text)), c.said-read+seam, c.said-c.old)
	return string(c.text[int64(len(c.text))-news:]), c.said
}

// Disaster is what a console says of a system that will not come up by itself.
type Disaster struct {
	What string // in a few words, lower case
	Hint string // what to look at
	// Again: it is no fault of the image, and the next boot may well go further.
	Again bool
}

// disasters are what consoles say when a boot has come to a bad end. A group in a pattern is a detail for What.
var disasters = []struct {
	pattern *regexp.Regexp
	Disaster
}{
	// Linux, arch/x86/kernel/apic/io_apic.c, check_timer(): within 10 ms of the guest's counting its timer did not
	// tick. An emulated guest counts on when QEMU's timers have to wait for a processor.
	{regexp.MustCompile(`Kernel panic - not syncing: (IO-APIC \+ timer doesn't work)`),
		Disaster{What: "kernel panic", Hint: "this machine has too much to do for an emulated one's timers: try again when it has less", Again: true}},
	// Linux, kernel/panic.c.
	{regexp.MustCompile(`Kernel panic - not syncing: ([^\r\n]+)`),
		Disaster{What: "kernel panic", Hint: "the console's last lines say which part of the kernel or of its initramfs it was"}},
	// systemd, units/emergency.service and src/shared: sulogin-shell.c.
	{regexp.MustCompile(`You are in (emergency|rescue) mode`),
		Disaster{What: "systemd stopped in", Hint: "a file system of /etc/fstab that is not there is the usual cause; systemctl --failed there would say"}},
	{regexp.MustCompile(`Cannot open access to console, the root account is locked`),
		Disaster{What: "systemd stopped in emergency mode", Hint: "a file system of /etc/fstab that is not there is the usual cause"}},
	// systemd, src/shared/machine-id-setup.c. It stops there without a word more.
	{regexp.MustCompile(`systemd\[1\]: System cannot boot: ([^\r\n]+)`),
		Disaster{What: "systemd cannot boot", Hint: "an image's /etc/machine-id is made empty and not removed when it is sealed"}},
	{regexp.MustCompile(`systemd\[1\]: Freezing execution`),
		Disaster{What: "systemd froze", Hint: "the lines above say what systemd could not do"}},
	// dracut, modules.d/99base or 80base: dracut-emergency.sh.
	{regexp.MustCompile(`Entering emergency mode\. Exit the shell to continue`),
		Disaster{What: "dracut found no root file system", Hint: "the initramfs lacks a driver of the disk, or root= names another"}},
	// initramfs-tools, scripts/functions: panic() and the prompt of busybox' shell.
	{regexp.MustCompile(`ALERT! +([^\r\n]+?) +does not exist\. +Dropping to a shell`),
		Disaster{What: "the initramfs found no root file system", Hint: "the initramfs lacks a driver of the disk, or root= names another"}},
	{regexp.MustCompile(`(?m)^\(initramfs\) `),
		Disaster{What: "the initramfs stopped in its shell", Hint: "the lines above say what it could not do"}},
	// GRUB, grub-core/kern/rescue_reader.c and normal/main.c.
	{regexp.MustCompile(`grub rescue> `),
		Disaster{What: "GRUB found no modules of its own", Hint: "/boot/grub is not where GRUB's boot record says it is"}},
	{regexp.MustCompile(`Minimal BASH-like line editing is supported`),
		Disaster{What: "GRUB found no configuration", Hint: "grub.cfg is missing from /boot or from the EFI system partition"}},
	// SeaBIOS, src/boot.c.
	{regexp.MustCompile(`No bootable device\.`),
		Disaster{What: "the BIOS found nothing to boot", Hint: "the disk has no boot record; --firmware uefi boots one that has an EFI system partition instead"}},
	// edk2, MdeModulePkg: BdsDxe, and the shell that OVMF starts when nothing else is left.
	{regexp.MustCompile(`BdsDxe: No bootable option or device was found|UEFI Interactive Shell`),
		Disaster{What: "the UEFI firmware found nothing to boot", Hint: "the disk has no EFI system partition with \\EFI\\BOOT\\BOOTX64.EFI; --firmware bios boots one that has a boot record instead"}},
}

// FindDisaster looks for the first sign on a console that the boot has come to a bad end.
func FindDisaster(console string) (Disaster, bool) {
	// A boot loader on a terminal moves the cursor in the middle of a word.
	console = escapes.ReplaceAllString(console, "")
	first := len(console) + 1
	var found Disaster
	for _, d := range disasters {
		at := d.pattern.FindStringSubmatchIndex(console)
		if at == nil || at[0] >= first {
			continue
		}
		first, found = at[0], d.Disaster
		if len(at) < 4 {
			continue
		}
		switch detail := console[at[2]:at[3]]; detail {
		case "emergency", "rescue":
			found.What += " " + detail + " mode"
		default:
			found.What += ": " + strings.TrimSpace(detail)
		}
	}
	return found, first <= len(console)
}

// escapes are the sequences that move the cursor or colour text, and the other control characters but the line end.
var escapes = regexp.MustCompile("\x1b\\[[0-9;?]*[ -/]*[@-~]|\x1b[()][A-Z0-9]|\x1b[a-zA-Z=>]|[\x00-\x09\x0b-\x1f\x7f]")

// Tail is the last n lines of a console that say something, without what was meant for a terminal.
func Tail(console string, n int) string {
	var lines []string
	for line := range strings.Lines(escapes.ReplaceAllString(console, "")) {
		if line = strings.TrimSpace(line); line != "" {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
