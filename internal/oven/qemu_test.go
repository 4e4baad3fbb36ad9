package oven

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"gpuguest/internal/guest"
)

// The tests' binary stands in for QEMU when this is set, to what that QEMU does.
const fakeEnv = "GPUGUEST_FAKE_QEMU"

func TestMain(m *testing.M) {
	if does := os.Getenv(fakeEnv); does != "" {
		os.Exit(fakeQEMU(does, os.Args[1:]))
	}
	os.Exit(m.Run())
}

// fakeQEMU is a QEMU as far as the oven sees one: it has the options, says things on the console that is file 3, speaks
// the machine protocol, and has an sshd behind its forwarded port.
func fakeQEMU(does string, args []string) int {
	pid, err := os.OpenFile("pid", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return 90
	}
	fmt.Fprintln(pid, os.Getpid())
	pid.Close()
	console := os.NewFile(3, "console")
	switch does {
	case "taken", "taken-once": // once: a second QEMU gets the port
		raw, err := os.ReadFile("pid")
		if does == "taken" || err == nil && bytes.Count(raw, []byte("\n")) == 1 {
			fmt.Fprintln(os.Stderr, "qemu-system-x86_64: -netdev user,id=net: Could not set up host forwarding rule 'tcp:127.0.0.1:1-:22'")
			return 1
		}
		if err := fakeSSHD(does, args); err != nil {
			return 91
		}
		fmt.Fprint(console, "lab login: ")
	case "broken":
		fmt.Fprintln(os.Stderr, "qemu-system-x86_64: -device nonsense: 'nonsense' is not a valid device model name")
		return 1
	case "off":
		fmt.Fprintln(console, "reboot: Power down")
		return 0
	case "starved", "starved-once":
		raw, err := os.ReadFile("pid")
		if does == "starved-once" && (err != nil || bytes.Count(raw, []byte("\n")) > 1) {
			if err := fakeSSHD(does, args); err != nil {
				return 91
			}
			fmt.Fprint(console, "lab login: ")
			break
		}
		fmt.Fprint(console, "Kernel panic - not syncing: IO-APIC + timer doesn't work!  Boot with apic=debug\r\n")
	case "panic":
		fmt.Fprint(console, "Run /init as init process\r\nKernel panic - not syncing: No working init found.\r\n")
		time.Sleep(100 * time.Millisecond)
		fmt.Fprint(console, "---[ end Kernel panic - not syncing: No working init found. ]---\r\n")
	case "resets":
		for range maxResets + 1 {
			fmt.Println(`{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "RESET", "data": {"guest": true, "reason": "guest-reset"}}`)
		}
	case "silent":
	default:
		fmt.Fprint(console, "lab login: ")
		if err := fakeSSHD(does, args); err != nil {
			fmt.Fprintln(os.Stderr, "sshd:", err)
			return 91
		}
	}
	go func() {
		for ; ; time.Sleep(10 * time.Millisecond) {
			if _, err := os.Stat("cue"); err == nil {
				break
			}
		}
		switch does {
		case "panics-later":
			fmt.Fprint(console, "reboot: Restarting system\r\nKernel panic - not syncing: VFS: Unable to mount root fs\r\n")
		case "starved-later":
			fmt.Fprint(console, "Kernel panic - not syncing: IO-APIC + timer doesn't work!  Boot with apic=debug\r\n")
		case "off-later":
			fmt.Fprintln(console, "reboot: Power down")
			os.Exit(0)
		case "dies-later":
			fmt.Fprintln(os.Stderr, "qemu-system-x86_64: out of memory")
			os.Exit(1)
		}
	}()
	presses := 0
	for in := json.NewDecoder(os.Stdin); ; {
		var c struct {
			Execute string `json:"execute"`
		}
		if err := in.Decode(&c); err != nil {
			return 92
		}
		fmt.Println(`{"return": {}}`)
		switch c.Execute {
		case "system_powerdown":
			presses++
		case "system_reset":
			fmt.Fprintln(console, "it came up again")
		}
		if does != "deaf" && presses > 0 {
			fmt.Fprintln(console, "reboot: Power down")
			return 0
		}
	}
}

// fakeSSHD answers with the host key, and lets in with the key, that the SMBIOS credential tells of.
func fakeSSHD(does string, args []string) error {
	credential, port := "", ""
	for i, arg := range args {
		if path, ok := strings.CutPrefix(arg, "type=11,path="); ok && args[i-1] == "-smbios" {
			credential = path
		}
		if m := regexp.MustCompile(`hostfwd=tcp:127\.0\.0\.1:(\d+)-:22`).FindStringSubmatch(arg); m != nil {
			port = m[1]
		}
	}
	raw, err := os.ReadFile(credential)
	if err != nil {
		return err
	}
	_, coded, _ := strings.Cut(string(raw), "=")
	lines, err := base64.StdEncoding.DecodeString(coded)
	if err != nil {
		return err
	}
	text := func(path string) string {
		for line := range strings.Lines(string(lines)) {
			if f := strings.Fields(line); strings.Contains(f[0], "~") && f[1] == path {
				text, _ := base64.StdEncoding.DecodeString(f[len(f)-1])
				return string(text)
			}
		}
		return ""
	}
	host, err := ssh.ParsePrivateKey([]byte(text("/etc/ssh/ssh_host_ed25519_key")))
	if err != nil {
		return err
	}
	if does == "other-key" {
		_, key, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			return err
		}
		if host, err = ssh.NewSignerFromKey(key); err != nil {
			return err
		}
	}
	known, _, _, _, err := ssh.ParseAuthorizedKey([]byte(text("/root/.ssh/authorized_keys")))
	if err != nil {
		return err
	}
	conf := &ssh.ServerConfig{PublicKeyCallback: func(c ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
		if does == "no-login" || c.User() != "root" || !bytes.Equal(key.Marshal(), known.Marshal()) {
			return nil, errors.New("no")
		}
		return nil, nil
	}}
	conf.AddHostKey(host)
	l, err := net.Listen("tcp", "127.0.0.1:"+port)
	if err != nil {
		return err
	}
	go func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer nc.Close()
				if c, channels, requests, err := ssh.NewServerConn(nc, conf); err == nil {
					go ssh.DiscardRequests(requests)
					for ch := range channels {
						_ = ch.Reject(ssh.Prohibited, "")
					}
					_ = c.Close()
				}
			}()
		}
	}()
	return nil
}

// fakeOven is an oven whose QEMU does what it is told, and what it is given to boot.
func fakeOven(t *testing.T, does string) (*QEMU, Spec) {
	t.Helper()
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"qemu-img":  "#!/bin/sh\nexit 1\n",
		qemuProgram: fmt.Sprintf("#!/bin/sh\ncd %q && %s=%s exec %q \"$@\"\n", dir, fakeEnv, does, self),
		"disk.raw":  "",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	t.Cleanup(func() {
		for _, pid := range fakePIDs(t, dir) {
			if err := syscall.Kill(pid, 0); err == nil {
				t.Errorf("%s: process %d is left", does, pid)
			}
		}
	})
	return &QEMU{Accel: TCG, Patience: 30 * time.Second, grace: 100 * time.Millisecond},
		Spec{Disk: filepath.Join(dir, "disk.raw"), Format: FormatRaw, Scratch: t.TempDir(), Firmware: FirmwareBIOS}
}

func fakePIDs(t *testing.T, dir string) []int {
	raw, err := os.ReadFile(filepath.Join(dir, "pid"))
	if err != nil {
		t.Fatal(err)
	}
	var all []int
	for _, f := range strings.Fields(string(raw)) {
		n, err := strconv.Atoi(f)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, n)
	}
	return all
}

func TestABootedImageIsReachedAndTurnedOff(t *testing.T) {
	for does, said := range map[string]string{
		"boots": "", "taken-once": "",
		"starved-once": "Kernel panic - not syncing: IO-APIC + timer doesn't work!  Boot with apic=debug\r\n",
	} {
		q, spec := fakeOven(t, does)
		var log bytes.Buffer
		spec.Log = &log
		g, err := q.Start(t.Context(), spec)
		if err != nil {
			t.Fatal(err)
		}
		host, port := g.Address()
		login := Login{Host: host, Port: port, User: g.User(), Identity: g.Identity(), KnownHosts: g.KnownHosts()}
		conn, err := guest.Dial(t.Context(), login.Config())
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
		if err := g.PowerOff(t.Context()); err != nil {
			t.Error(err)
		}
		for range 2 {
			if err := g.Close(); err != nil {
				t.Error(err)
			}
		}
		if want := said + "lab login: reboot: Power down\n"; g.Console() != want || log.String() != want {
			t.Errorf("console %q, log %q", g.Console(), log.String())
		}
	}
}

func TestAnImageThatDoesNotComeUpIsNamed(t *testing.T) {
	for does, want := range map[string]struct {
		what, tail string
		cause      error
	}{
		"panic":     {"does not boot: kernel panic: No working init found.", "---[ end Kernel panic", nil},
		"starved":   {"does not boot: kernel panic: IO-APIC + timer doesn't work", "apic=debug", nil},
		"off":       {"does not boot: it turned itself off", "reboot: Power down", nil},
		"resets":    {"does not boot: it resets again and again", "", nil},
		"other-key": {"boots, but shows another SSH host key than the one it was given", "lab login:", guest.ErrHostKey},
		"no-login":  {"boots, but does not let root in with the one-time key", "lab login:", guest.ErrAuth},
		"silent":    {"no answer over SSH within 2s", "", context.DeadlineExceeded},
	} {
		q, spec := fakeOven(t, does)
		if does == "silent" {
			q.Patience = 2 * time.Second
		}
		g, err := q.Start(t.Context(), spec)
		if g != nil {
			g.Close()
		}
		var boot *BootError
		if !errors.As(err, &boot) {
			t.Errorf("%s: %v", does, err)
			continue
		}
		if boot.What != want.what || !strings.Contains(boot.Tail, want.tail) || boot.Disk != spec.Disk || boot.Advice == "" {
			t.Errorf("%s: %+v", does, boot)
		}
		if want.cause == nil && boot.Cause != nil || want.cause != nil && !errors.Is(err, want.cause) {
			t.Errorf("%s: cause %v", does, boot.Cause)
		}
	}
}

// TestABadEndAfterTheLoginIsSeen: at the reboot of an installation, say. A guest whose boot starved is started anew, and
// one that is turned off has not come to a bad end.
func TestABadEndAfterTheLoginIsSeen(t *testing.T) {
	for does, want := range map[string]string{
		"panics-later":  "came to a bad end: kernel panic: VFS: Unable to mount root fs",
		"off-later":     "turned itself off",
		"dies-later":    "its QEMU has ended: exit status 1: qemu-system-x86_64: out of memory",
		"starved-later": "",
		"boots":         "",
	} {
		q, spec := fakeOven(t, does)
		g, err := q.Start(t.Context(), spec)
		if err != nil {
			t.Fatal(err)
		}
		ctx, unwatch := Watched(t.Context(), g)
		if err := os.WriteFile(filepath.Join(filepath.Dir(spec.Disk), "cue"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if want == "" {
			for does == "starved-later" && !strings.Contains(g.Console(), "it came up again") && ctx.Err() == nil {
				time.Sleep(10 * time.Millisecond)
			}
			if err := g.PowerOff(ctx); err != nil {
				t.Errorf("%s: %v", does, err)
			}
			if err := unwatch(); err != nil {
				t.Errorf("%s: %v", does, err)
			}
		} else {
			select {
			case <-ctx.Done():
			case <-time.After(20 * time.Second):
				t.Errorf("%s: nobody saw it", does)
			}
			err := unwatch()
			var boot *BootError
			if !errors.As(err, &boot) || !errors.Is(context.Cause(ctx), err) || err.Error() != spec.Disk+": "+want {
				t.Errorf("%s: %v, the cause is %v", does, err, context.Cause(ctx))
			}
			if boot != nil && does == "panics-later" && !strings.Contains(boot.Tail, "Kernel panic - not syncing: VFS") {
				t.Errorf("it quotes %q", boot.Tail)
			}
		}
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestQEMUsOwnComplaintIsTold(t *testing.T) {
	for does, want := range map[string]string{"broken": "not a valid device model name", "taken": errPortTaken.Error()} {
		q, spec := fakeOven(t, does)
		_, err := q.Start(t.Context(), spec)
		var boot *BootError
		if err == nil || !strings.Contains(err.Error(), want) || errors.As(err, &boot) {
			t.Errorf("%s: %v", does, err)
		}
	}
}

// TestNothingIsLeftOfACancelledBoot: fakeOven looks for the process.
func TestNothingIsLeftOfACancelledBoot(t *testing.T) {
	before := runtime.NumGoroutine()
	q, spec := fakeOven(t, "silent")
	cause := errors.New("interrupted")
	ctx, cancel := context.WithCancelCause(t.Context())
	started := filepath.Join(filepath.Dir(spec.Disk), "pid")
	go func() {
		for ctx.Err() == nil {
			if raw, err := os.ReadFile(started); err == nil && bytes.HasSuffix(raw, []byte("\n")) {
				cancel(cause)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}()
	if _, err := q.Start(ctx, spec); !errors.Is(err, cause) {
		t.Error(err)
	}
	deadline := time.Now().Add(5 * time.Second)
	for runtime.NumGoroutine() > before && time.Now().Before(deadline) {
		time.Sleep(10 * time.Millisecond)
	}
	if n := runtime.NumGoroutine(); n > before {
		t.Errorf("%d goroutines are left", n-before)
	}
}

func TestADeafGuestIsNotOff(t *testing.T) {
	q, spec := fakeOven(t, "deaf")
	g, err := q.Start(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := g.PowerOff(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}

// TestNoSecretIsOnTheCommandLine: every user of a machine sees the arguments of its processes.
func TestNoSecretIsOnTheCommandLine(t *testing.T) {
	_, spec := fakeOven(t, "off")
	g := &qemuGuest{spec: spec}
	m, err := g.prepare(t.Context(), TCG)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(filepath.Dir(spec.Disk), "pid"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	all := strings.Join(m.arguments(), " ")
	for _, secret := range []string{g.keys.HostPrivate, base64.StdEncoding.EncodeToString([]byte(g.keys.HostPrivate))[:40], "PRIVATE"} {
		if strings.Contains(all, secret) {
			t.Errorf("%.20s... is in %s", secret, all)
		}
	}
	entries, err := os.ReadDir(spec.Scratch)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
		if info, err := e.Info(); err != nil || info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s may be read by others", e.Name())
		}
	}
	if want := []string{"credential", "id_ed25519", "seed.iso"}; !slices.Equal(names, want) {
		t.Errorf("scratch holds %v, want %v", names, want)
	}
}

func TestWhatCannotBeBootedIsRefused(t *testing.T) {
	q, spec := fakeOven(t, "off")
	if err := os.WriteFile(filepath.Join(filepath.Dir(spec.Disk), "pid"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for what, change := range map[string]func(*Spec){
		`format "vmdk"`:        func(s *Spec) { s.Format = "vmdk" },
		`format ""`:            func(s *Spec) { s.Format = "" },
		`firmware "coreboot"`:  func(s *Spec) { s.Firmware = "coreboot" },
		"no such file":         func(s *Spec) { s.Disk += "x" },
		"qemu-img dd: exit st": func(s *Spec) { s.Firmware = "" },
	} {
		s := spec
		s.Scratch = t.TempDir()
		change(&s)
		if _, err := q.Start(t.Context(), s); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: %v", what, err)
		}
	}
	t.Setenv("PATH", t.TempDir())
	if err := (&QEMU{}).Usable(t.Context()); err == nil || !strings.Contains(err.Error(), "not installed") {
		t.Error(err)
	}
}

// TestAwaitEndsWithItsContext: somebody accepts and says nothing, as QEMU does for a guest that is not up yet.
func TestAwaitEndsWithItsContext(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(io.Discard, c); c.Close() }()
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	start := time.Now()
	err = Login{Host: "127.0.0.1", Port: l.Addr().(*net.TCPAddr).Port}.Await(ctx)
	if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > 5*time.Second {
		t.Errorf("%v after %v", err, time.Since(start))
	}
}
