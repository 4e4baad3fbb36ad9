package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	"golang.org/x/crypto/ssh"
)

// probeDeadline and loginDeadline bound one attempt to log in. QEMU accepts TCP
// for a guest that is not there yet, so an attempt without one would hang; a
// guest that is there and still starting its units has taken more than five
// seconds for a handshake.
const (
	probeDeadline = 5 * time.Second
	loginDeadline = time.Minute
)

// WaitSSH waits until root can log in.
func (vm *VM) WaitSSH(ctx context.Context) error {
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		client, err := vm.login(ctx, probeDeadline)
		if err == nil {
			return client.Close()
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("guest does not answer on port %d: %w (last: %w)", vm.Port, ctx.Err(), err)
		case <-vm.Done():
			return fmt.Errorf("qemu has ended, see %s", vm.path("qemu.log"))
		case <-tick.C:
		}
	}
}

// SSH logs in as root, once, with the lab's key, and takes no other host key
// than the one built into the image.
func (vm *VM) SSH(ctx context.Context) (*ssh.Client, error) { return vm.login(ctx, loginDeadline) }

func (vm *VM) login(ctx context.Context, deadline time.Duration) (*ssh.Client, error) {
	key, err := os.ReadFile(vm.Image.Keys.ClientKey)
	if err != nil {
		return nil, err
	}
	signer, err := ssh.ParsePrivateKey(key)
	if err != nil {
		return nil, err
	}
	host, _, _, _, err := ssh.ParseAuthorizedKey([]byte(vm.Image.Keys.HostPublicKey))
	if err != nil {
		return nil, err
	}
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(vm.Port))
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	if err := conn.SetDeadline(time.Now().Add(deadline)); err != nil {
		conn.Close()
		return nil, err
	}
	c, channels, requests, err := ssh.NewClientConn(conn, address, &ssh.ClientConfig{
		User: "root", Auth: []ssh.AuthMethod{ssh.PublicKeys(signer)},
		HostKeyCallback: ssh.FixedHostKey(host), HostKeyAlgorithms: []string{ssh.KeyAlgoED25519},
	})
	if err != nil {
		conn.Close()
		return nil, err
	}
	if err := conn.SetDeadline(time.Time{}); err != nil {
		c.Close()
		return nil, err
	}
	return ssh.NewClient(c, channels, requests), nil
}

// Run runs a command as root on a connection of its own and returns its output,
// both streams together, and its exit status; -1 when a signal ended it.
func (vm *VM) Run(ctx context.Context, command string) (string, int, error) {
	client, err := vm.SSH(ctx)
	if err != nil {
		return "", 0, err
	}
	defer client.Close()
	stop := context.AfterFunc(ctx, func() { client.Close() })
	defer stop()
	session, err := client.NewSession()
	if err != nil {
		return "", 0, err
	}
	out, err := session.CombinedOutput(command)
	var exit *ssh.ExitError
	switch {
	case err == nil:
		return string(out), 0, nil
	case errors.As(err, &exit) && exit.Signal() != "":
		return string(out), -1, nil
	case errors.As(err, &exit):
		return string(out), exit.ExitStatus(), nil
	default:
		return string(out), 0, errors.Join(err, ctx.Err())
	}
}
