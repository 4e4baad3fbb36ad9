package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

// realSSHD starts OpenSSH's server on a free port, with the guest's directories below a temporary one. It
// needs root, and is asked for with GPUGUEST_TEST_SSHD, the server's path.
func realSSHD(t *testing.T) (cfg Config, dir string) {
	t.Helper()
	sshd := os.Getenv("GPUGUEST_TEST_SSHD")
	if sshd == "" {
		t.Skip("GPUGUEST_TEST_SSHD is not set")
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir = t.TempDir()
	key, pub := writeKey(t, "id", "")
	host, _ := writeKey(t, "host", "")
	if err := os.WriteFile(filepath.Join(dir, "authorized"), ssh.MarshalAuthorizedKey(pub), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := ln.Addr().(*net.TCPAddr).Port
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	conf := filepath.Join(dir, "sshd_config")
	text := fmt.Sprintf("Port %d\nListenAddress 127.0.0.1\nHostKey %s\nAuthorizedKeysFile %s/authorized\nStrictModes no\nPidFile none\nPermitRootLogin yes\n"+
		"Subsystem sftp internal-sftp\nSetEnv GPUGUEST_STATE=%s/state GPUGUEST_RUN=%s GPUGUEST_SYSTEMD=%s/none\n", port, host, dir, dir, dir, dir)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, sshd, "-D", "-e", "-f", conf)
	var log bytes.Buffer
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("sshd: %s", log.String())
		}
	})
	cfg = Config{Host: "127.0.0.1", Port: port, User: "root", Identities: []string{key}, SSHConfig: "none", Home: dir}
	for range 50 {
		if c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			_ = c.Close()
			return cfg, dir
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatal("sshd does not listen")
	return cfg, dir
}

func TestOpenSSH(t *testing.T) {
	cfg, dir := realSSHD(t)
	c := mustDial(t, cfg)

	res, lease, err := c.Hold(t.Context(), HoldSpec{Owner: "ann", Script: "echo facts; exit 2"})
	if err != nil || res.Exit != 2 || string(res.Stdout) != "facts\n" {
		t.Fatalf("hold: %+v, %v", res, err)
	}
	other := mustDial(t, cfg)
	if _, _, err := other.Hold(t.Context(), HoldSpec{Owner: "bob", Script: "true"}); !errors.Is(err, ErrHeld) {
		t.Errorf("a second holder: %v", err)
	}

	// sshd does not confirm the end of a channel whose command ignores the signal.
	within(t, 50*time.Second, func() {
		if _, err := c.Run(t.Context(), Command{Script: "trap '' TERM; sleep 30; sleep 30", Timeout: time.Second}); !errors.Is(err, ErrTimeout) {
			t.Errorf("got %v", err)
		}
		if res, err := c.Run(t.Context(), Command{Script: "echo alive"}); err != nil || string(res.Stdout) != "alive\n" {
			t.Errorf("afterwards: %+v, %v", res, err)
		}
	})

	f, data := localFile(t, 20<<20, filepath.Join(dir, "up", "file"))
	if res, err := c.Put(t.Context(), f); err != nil || res.Sent != f.Size {
		t.Errorf("put: %+v, %v", res, err)
	}
	mustHold(t, f.Path, data, 0o640)

	// The server's process for this connection is killed under the job.
	script := "i=0; while [ $i -lt 20 ]; do echo line $i; sleep 0.5; i=$((i+1)); done; exit 7"
	var log bytes.Buffer
	killed := make(chan error, 1)
	first := true
	out := writerFunc(func(p []byte) (int, error) {
		if first {
			first = false
			go func() {
				_, err := c.Run(context.Background(), Command{Script: "kill -9 $PPID"})
				killed <- err
			}()
		}
		return log.Write(p)
	})
	_, err = c.RunJob(t.Context(), JobSpec{Name: "cut", Script: script}, out)
	var cut *JobError
	if !errors.As(err, &cut) || !errors.Is(err, ErrDisconnected) {
		t.Fatalf("job: %v", err)
	}
	if err := <-killed; !errors.Is(err, ErrDisconnected) {
		t.Errorf("the killer: %v", err)
	}
	within(t, 5*time.Second, func() { <-lease.Lost() })
	again := mustDial(t, cfg)
	end, err := again.RunJob(t.Context(), JobSpec{Name: "cut", Script: script, At: cut.At}, &log)
	if err != nil || end.State != Exited || end.Exit != 7 || end.Attempt != 1 || strings.Count(log.String(), "\n") != 20 {
		t.Errorf("reattached: %+v, %v, %q", end, err, log.String())
	}
	_, l, err := again.Hold(t.Context(), HoldSpec{Owner: "bob", Wait: 10 * time.Second, Script: "true"})
	if err != nil {
		t.Fatalf("the dead client's hold: %v", err)
	}
	_ = l.Release()
}
