package oven

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// recordedConsole is a console as QEMU's serial port gave it; the command that made it is on the first line.
func recordedConsole(t testing.TB, name string) string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("testdata", "consoles", name+".txt"))
	if err != nil {
		t.Fatal(err)
	}
	command, rest, ok := strings.Cut(string(raw), "\n")
	if !ok || !strings.HasPrefix(command, "# qemu-system-x86_64 ") {
		t.Fatalf("%s does not begin with its command", name)
	}
	return rest
}

func TestBadEndsAreFoundOnRecordedConsoles(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob(filepath.Join("testdata", "consoles", "*.txt"))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"seabios":     "the BIOS found nothing to boot",
		"ovmf":        "the UEFI firmware found nothing to boot",
		"grub-rescue": "GRUB found no modules of its own",
		"grub-shell":  "GRUB found no configuration",
		"initramfs":   "the initramfs found no root file system: UUID=00000000-0000-0000-0000-000000000000",
		"panic":       "kernel panic: VFS: Unable to mount root fs on unknown-block(0,0)",
		"starved":     "kernel panic: IO-APIC + timer doesn't work",
		"machine-id":  "systemd cannot boot: Missing /etc/machine-id and /etc is mounted read-only.",
		"emergency":   "systemd stopped in emergency mode",
		"login":       "", // a Debian 12 that came up
	}
	if len(files) != len(want) {
		t.Errorf("%d recorded consoles, %d expectations", len(files), len(want))
	}
	for name, what := range want {
		d, bad := FindDisaster(recordedConsole(t, name))
		if d.What != what || bad != (what != "") {
			t.Errorf("%s: %q, want %q", name, d.What, what)
		}
		if bad && d.Hint == "" {
			t.Errorf("%s: no hint", name)
		}
	}
}

// TestBadEndsOfOtherSystems holds what was not recorded against the words of the programs' sources.
func TestBadEndsOfOtherSystems(t *testing.T) {
	t.Parallel()
	for text, what := range map[string]string{
		"[  188.1] dracut-initqueue[262]: Warning: /dev/disk/by-uuid/x does not exist\r\nEntering emergency mode. Exit the shell to continue.\r\n": "dracut found no root file system",
		"Cannot open access to console, the root account is locked.\r\nSee sulogin(8) man page for more details.\r\n":                              "systemd stopped in emergency mode",
		"You are in rescue mode. After logging in, type \"journalctl -xb\"":                                                                        "systemd stopped in rescue mode",
		"[    5.1] systemd[1]: Freezing execution.\r\n":                                                                                            "systemd froze",
		"UEFI Interactive Shell v2.2\r\nShell> ":                                                                                                   "the UEFI firmware found nothing to boot",
		"\x1b[1mKernel panic - not sync\x1b[05;22Hing: Attempted to kill init! exitcode=0x00000100\r\nrebooting":                                   "kernel panic: Attempted to kill init! exitcode=0x00000100",
		// The first of two is the cause.
		"ALERT!  /dev/vdb1 does not exist.  Dropping to a shell!\n(initramfs) \nKernel panic - not syncing: Attempted to kill init!\n": "the initramfs found no root file system: /dev/vdb1",
	} {
		if d, bad := FindDisaster(text); !bad || d.What != what {
			t.Errorf("%q: %q, want %q", text, d.What, what)
		}
	}
	for _, text := range []string{
		"", "[ 0.0] Command line: root=/dev/vda1 panic=30 systemd.unit=emergency.target\r\n",
		"         Starting emergency.service\r\n", "grub> is what GRUB says\r\n", "GRUB loading.\r\nWelcome to GRUB!\r\n",
	} {
		if d, bad := FindDisaster(text); bad {
			t.Errorf("%q: %q", text, d.What)
		}
	}
}

func TestTailIsWhatAPersonReads(t *testing.T) {
	t.Parallel()
	got := Tail(recordedConsole(t, "grub-rescue"), 2)
	if want := "error: unknown filesystem.\ngrub rescue>"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got := Tail("", 3); got != "" {
		t.Errorf("of nothing: %q", got)
	}
}

func TestConsoleKeepsItsEnd(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	c := Console{Log: &log}
	chunk := bytes.Repeat([]byte("x"), 1<<20)
	for range 12 {
		if n, err := c.Write(chunk); n != len(chunk) || err != nil {
			t.Fatal(n, err)
		}
	}
	_, _ = c.Write([]byte("the end"))
	if got := c.String(); len(got) > 2*maxConsole || !strings.HasSuffix(got, "xthe end") {
		t.Errorf("%d bytes are kept", len(got))
	}
	if want := int64(12<<20 + 7); c.Said() != want || int64(log.Len()) != want {
		t.Errorf("said %d, logged %d, want %d", c.Said(), log.Len(), want)
	}
}

func TestALineInTwoPartsIsFound(t *testing.T) {
	t.Parallel()
	var c Console
	var news string
	var read int64
	for _, part := range []string{strings.Repeat("x", 3*seam) + "\nKernel panic - not sync", "ing: no init\n"} {
		_, _ = c.Write([]byte(part))
		news, read = c.since(read)
	}
	if d, bad := FindDisaster(news); !bad || d.What != "kernel panic: no init" || len(news) > 2*seam {
		t.Errorf("%q of %d bytes", d.What, len(news))
	}
	if news, read = c.since(read); news != "" || read != c.Said() {
		t.Errorf("%q is told twice", news)
	}
}

func FuzzFindDisaster(f *testing.F) {
	f.Add("Kernel panic - not syncing: x\r\n")
	f.Add("ALERT!  y does not exist.  Dropping to a shell!")
	f.Fuzz(func(t *testing.T, console string) {
		d, bad := FindDisaster(console)
		if bad != (d.What != "") || strings.ContainsAny(d.What, "\n\r\x1b") {
			t.Errorf("%v %q", bad, d.What)
		}
		if tail := Tail(console, 3); strings.Count(tail, "\n") > 2 || strings.ContainsRune(tail, '\x1b') {
			t.Errorf("%q", tail)
		}
	})
}
