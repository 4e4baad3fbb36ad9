package oven

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"

	"gpuguest/internal/guest"
)

// Login says how to log in to a booted image.
type Login struct {
	Host       string
	Port       int
	User       string
	Identity   string // file of the private key
	KnownHosts string // file with the host key; another one is refused
	// Grace is how long the guest may show another host key, or refuse ours, before that is its last word: while it
	// boots, its sshd may answer before what sets the keys has run. 0 is three minutes, in which an emulated guest's
	// cloud-init has come to it.
	Grace time.Duration
}

func address(host string, port int) string { return net.JoinHostPort(host, strconv.Itoa(port)) }

// Config is the login as the package guest wants it: nothing of the user's own ssh configuration counts.
func (l Login) Config() guest.Config {
	return guest.Config{
		Host: l.Host, Port: l.Port, User: l.User, Identities: []string{l.Identity}, SSHConfig: "none",
		KnownHosts: l.KnownHosts, HostKeyCheck: guest.Strict,
		// An emulated guest that still starts its units takes more than five seconds for a handshake.
		ConnectTimeout: 30 * time.Second,
	}
}

// How often it is looked whether sshd is there, and how long it may take to say its first word. A forwarded port
// accepts long before the guest is up.
const (
	knockEvery = 500 * time.Millisecond
	knockLimit = 5 * time.Second
	// refusedEvery is the time between two logins of which the first was refused. OpenSSH 9.8 shuts out for minutes
	// whoever comes again faster than that (sshd_config(5), PerSourcePenalties: 5 s for a refused login, 15 s in sum).
	refusedEvery = 10 * time.Second
)

// Await waits until the guest answers with its known host key and takes our key. Its errors are those of
// guest.Dial, guest.ErrHostKey and guest.ErrAuth when the grace is over, and when ctx ends its error together with
// the last that was seen.
func (l Login) Await(ctx context.Context) error {
	grace := l.Grace
	if grace == 0 {
		grace = 3 * time.Minute
	}
	var refused time.Time // since when, zero: it is not
	for {
		pause := knockEvery
		err := l.knock(ctx)
		if err == nil {
			err = l.once(ctx)
		}
		switch {
		case err == nil:
			return nil
		case !errors.Is(err, guest.ErrHostKey) && !errors.Is(err, guest.ErrAuth):
			refused = time.Time{}
		case refused.IsZero():
			refused, pause = time.Now(), min(refusedEvery, grace)
		case time.Since(refused) > grace:
			return err
		default:
			pause = min(refusedEvery, grace)
		}
		wait := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			wait.Stop()
			return fmt.Errorf("%w (last: %w)", context.Cause(ctx), err)
		case <-wait.C:
		}
	}
}

// knock waits for the first word of an SSH server.
func (l Login) knock(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, knockLimit)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", address(l.Host, l.Port))
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	word := make([]byte, 4)
	if _, err := io.ReadFull(conn, word); err != nil {
		return fmt.Errorf("no SSH server on %s yet: %w", address(l.Host, l.Port), err)
	}
	return nil
}

// once logs in and out again.
func (l Login) once(ctx context.Context) error {
	conn, err := guest.Dial(ctx, l.Config())
	if err != nil {
		return err
	}
	return conn.Close()
}
