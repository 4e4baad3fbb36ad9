//go:build linux

package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The guest is a Debian of this machine's own release as a system container: its own init, sshd and package
// database at native speed, this machine's kernel. It has no GPU, so gpuguest is told of one.
const (
	guestDevice   = "10de:1c82"             // GeForce GTX 1050 Ti, as in the seed documents
	bootIDFile    = "/var/lib/bench/boot"   // what the guest answers when it is asked for its boot_id
	rebootFile    = "/var/lib/bench/reboot" // made by whatever is to reboot the guest
	stepFile      = "/var/lib/bench/step"   // when the step after a reboot ran
	baseLastsDays = 3                       // a mirror drops the headers of a kernel when it has a newer one
	installPort   = 5024                    // of the guest's sshd while it shares this machine's network
	guestStart    = 60 * time.Second        // systemd in a container is up in a few seconds
)

// machine is one guest's file system, above layers that it never writes to.
type machine struct {
	dir  string // holds root (mounted), upper, work and the console's log
	root string
	tmp  string // keys and client configuration
}

// hostRelease is this machine's os-release.
func hostRelease() (map[string]string, error) {
	text, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return nil, err
	}
	fields := make(map[string]string)
	for line := range strings.Lines(string(text)) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			fields[k] = strings.Trim(v, `"`)
		}
	}
	return fields, nil
}

// makeBase returns the file system that every guest starts from, from the cache when it is there.
func makeBase(ctx context.Context, cache, script string) (string, error) {
	release, err := hostRelease()
	if err != nil {
		return "", err
	}
	how, err := os.ReadFile(script)
	if err != nil {
		return "", err
	}
	codename := release["VERSION_CODENAME"]
	dir := filepath.Join(cache, fmt.Sprintf("base-%s-%.4x", codename, sha256.Sum256(how)))
	stamp := dir + ".made"
	if st, err := os.Stat(stamp); err == nil && time.Since(st.ModTime()) < baseLastsDays*24*time.Hour {
		return dir, nil
	}
	for _, old := range []string{stamp, dir} {
		if err := os.RemoveAll(old); err != nil {
			return "", err
		}
	}
	if err := command(ctx, "sh", script, codename, dir); err != nil {
		return "", errors.Join(err, os.RemoveAll(dir))
	}
	return dir, os.WriteFile(stamp, nil, 0o644)
}

// newMachine puts a file system of its own over the layers, the uppermost first.
func newMachine(dir, tmp string, layers ...string) (*machine, error) {
	m := &machine{dir: dir, root: filepath.Join(dir, "root"), tmp: tmp}
	upper, work := filepath.Join(dir, "upper"), filepath.Join(dir, "work")
	for _, d := range []string{m.root, upper, work} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, err
		}
	}
	options := "lowerdir=" + strings.Join(layers, ":") + ",upperdir=" + upper + ",workdir=" + work
	if err := unix.Mount("overlay", m.root, "overlay", 0, options); err != nil {
		return nil, fmt.Errorf("mount the guest's file system: %w", err)
	}
	return m, nil
}

func (m *machine) upper() string { return filepath.Join(m.dir, "upper") }

func (m *machine) close() error { return unix.Unmount(m.root, unix.MNT_DETACH) }

func (m *machine) write(path, text string, mode os.FileMode) error {
	path = filepath.Join(m.root, path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		return err
	}
	return os.Chmod(path, mode)
}

// prepare gives the guest the bench's key and an sshd that is stock but for where it listens, and gives the
// client a configuration that both gpuguest and OpenSSH read.
func (m *machine) prepare(ctx context.Context) error {
	key := filepath.Join(m.tmp, "key")
	if _, err := os.Stat(key); err != nil {
		if err := command(ctx, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key); err != nil {
			return err
		}
	}
	public, err := os.ReadFile(key + ".pub")
	if err != nil {
		return err
	}
	host, err := os.ReadFile(filepath.Join(m.root, "etc/ssh/ssh_host_ed25519_key.pub"))
	if err != nil {
		return err
	}
	// A pattern without a port stands for port 22 alone where Go reads it.
	known := fmt.Sprintf("*,[*]:%d,[*]:%d %s", installPort, gatePort, host)
	config := "Host near\n\tHostName " + nearAddress + "\nHost far\n\tHostName " + farAddress +
		"\nHost install\n\tHostName 127.0.0.1\n\tPort " + strconv.Itoa(installPort) +
		"\nHost gate\n\tHostName 127.0.0.1\n\tPort " + strconv.Itoa(gatePort) +
		"\nHost fleet-*\n\tHostName " + nearAddress +
		"\nHost *\n\tUser root\n\tIdentityFile " + key + "\n\tIdentitiesOnly yes\n\tIdentityAgent none\n\tUserKnownHostsFile " +
		filepath.Join(m.tmp, "known_hosts") + "\n\tGlobalKnownHostsFile none\n\tStrictHostKeyChecking yes\n\tBatchMode yes\n"
	return errors.Join(
		m.write("/root/.ssh/authorized_keys", string(public), 0o600),
		// The variable is read by nothing but the reboot's probes.
		// Many names of this one guest log in at once, each as if it had an sshd of its own.
		m.write("/etc/ssh/sshd_config.d/bench.conf", "MaxStartups 1000\nSetEnv GPUGUEST_BOOT_ID="+bootIDFile+"\n", 0o644),
		m.write(bootIDFile, "boot-0\n", 0o644),
		os.WriteFile(filepath.Join(m.tmp, "known_hosts"), []byte(known), 0o600),
		os.WriteFile(filepath.Join(m.tmp, "ssh_config"), []byte(config), 0o600),
	)
}

// boot starts the guest in a network namespace, "" for this machine's own, and returns when its sshd answers.
// What it returns stops the guest and waits for its end.
func (m *machine) boot(ctx context.Context, ns, host string) (func() error, error) {
	listen := "Port 22\n"
	if ns == "" {
		listen = fmt.Sprintf("ListenAddress 127.0.0.1:%d\n", installPort)
	}
	if err := m.write("/etc/ssh/sshd_config.d/listen.conf", listen, 0o644); err != nil {
		return nil, err
	}
	console, err := os.OpenFile(filepath.Join(m.dir, "console.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	args := []string{"--quiet", "--directory=" + m.root, "--boot", "--register=no", "--keep-unit", "--capability=all", "--resolv-conf=off"}
	if ns != "" {
		args = append(args, "--network-namespace-path=/run/netns/"+ns)
	}
	cmd := exec.Command("systemd-nspawn", args...)
	cmd.Stdout, cmd.Stderr = console, console
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(err, console.Close())
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	stop := func() error {
		defer console.Close()
		// systemd-nspawn passes it on as an orderly power-off.
		if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
			return err
		}
		select {
		case <-ended:
		case <-time.After(20 * time.Second):
			_ = cmd.Process.Kill()
			<-ended
		}
		return nil
	}
	deadline := time.After(guestStart)
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		var said bytes.Buffer
		ssh := exec.CommandContext(ctx, "ssh", "-F", filepath.Join(m.tmp, "ssh_config"), "-o", "ConnectTimeout=5", host,
			"systemctl is-system-running --wait >/dev/null; true")
		ssh.Stderr = &said
		err := inNamespace(clientOf(ns), ssh.Run)
		if err == nil {
			return stop, nil
		}
		select {
		case <-tick.C:
		case werr := <-ended:
			ended <- werr
			return nil, errors.Join(fmt.Errorf("the guest ended while it started: %w, see %s", werr, console.Name()), console.Close())
		case <-deadline:
			return nil, errors.Join(fmt.Errorf("the guest's sshd does not answer: %w: %s", err, said.String()), stop())
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), stop())
		}
	}
}

// clientOf is the namespace that reaches a guest in ns.
func clientOf(ns string) string {
	if ns == "" {
		return ""
	}
	return "gpuguest-bench-client"
}
