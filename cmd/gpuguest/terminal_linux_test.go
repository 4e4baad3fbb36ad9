package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gpuguest/internal/guest/guesttest"
)

// openTerminal opens a pseudo terminal: what the user has, and what the program has.
func openTerminal(t *testing.T) (user, program *os.File) {
	t.Helper()
	user, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { user.Close() })
	if err := unix.IoctlSetPointerInt(int(user.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(user.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	program, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { program.Close() })
	return user, program
}

func TestSecondCtrlCAtAPromptLeavesTheTerminalAsItWas(t *testing.T) {
	s := guesttest.New(t, guesttest.Options{Password: "pw", Exec: func(context.Context, string, io.Reader, io.Writer, io.Writer) int { return 99 }})
	user, program := openTerminal(t)
	home := t.TempDir()
	cmd := exec.Command("gpuguest-main", "facts", "--host", s.Host(), "-p", fmt.Sprint(s.Port()), "-l", "root", "-F", "none", "--known-hosts", filepath.Join(home, "known_hosts"))
	cmd.Env = append(os.Environ(), "HOME="+home, "SSH_AUTH_SOCK=")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = program, program, program
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var ended error
	done := make(chan struct{})
	go func() { defer close(done); ended = cmd.Wait() }()
	t.Cleanup(func() { _ = cmd.Process.Kill(); <-done })

	var mu sync.Mutex
	var screen bytes.Buffer
	go func() {
		b := make([]byte, 4096)
		for {
			n, err := user.Read(b)
			mu.Lock()
			screen.Write(b[:n])
			mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	echoes := func() bool {
		state, err := unix.IoctlGetTermios(int(program.Fd()), unix.TCGETS)
		if err != nil {
			t.Fatal(err)
		}
		return state.Lflag&unix.ECHO != 0
	}
	until := func(what string, yes func() bool) {
		t.Helper()
		for range 600 {
			if yes() {
				return
			}
			time.Sleep(50 * time.Millisecond)
		}
		mu.Lock()
		defer mu.Unlock()
		t.Fatalf("never: %s; the screen:\n%s", what, screen.String())
	}
	until("the prompt", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return bytes.Contains(screen.Bytes(), []byte("'s password: ")) && !echoes()
	})
	until("the end", func() bool {
		if _, err := user.Write([]byte{3}); err != nil {
			t.Fatal(err)
		}
		select {
		case <-done:
			return true
		case <-time.After(300 * time.Millisecond):
			return false
		}
	})
	var exit *exec.ExitError
	if !errors.As(ended, &exit) || exit.ExitCode() != exitInterrupted {
		t.Errorf("it ended with %v", ended)
	}
	if !echoes() {
		t.Error("the terminal does not echo any more")
	}
}
