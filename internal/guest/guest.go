// Package guest reaches a guest over SSH: it dials, runs scripts as root, puts files, holds the guest's
// lock, runs long work as jobs that outlive the connection, and reboots.
//
// It never decides what is to be done to a guest, and it never retries a script: what to do after an error
// is the engine's question. It starts no ssh program; golang.org/x/crypto/ssh and pkg/sftp do the talking.
package guest

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"
)

// HostKeyCheck says what happens when a guest's host key is not in known_hosts. A key that differs from
// the known one is refused whatever it says.
type HostKeyCheck int

const (
	// AcceptNew adds an unknown host's key to known_hosts and says so through Config.Notice.
	AcceptNew HostKeyCheck = iota
	// Strict refuses an unknown host.
	Strict
)

// Config says how to reach one guest. Only Host is necessary.
type Config struct {
	Host string // a name of ssh_config, a DNS name or an address
	Port int    // 0: ssh_config's Port, then 22
	User string // "": ssh_config's User, then the local user's name

	Identities   []string    // private key files; empty: ssh_config's IdentityFile, then the usual names in ~/.ssh
	SSHConfig    string      // "": ~/.ssh/config and /etc/ssh/ssh_config; "none": no file; else only this file
	KnownHosts   string      // "": ssh_config's UserKnownHostsFile, then ~/.ssh/known_hosts
	Known        *KnownHosts // shared by many guests, so that known_hosts is read once; nil: each connection reads it
	HostKeyCheck HostKeyCheck
	Agent        string // path of the agent's socket (SSH_AUTH_SOCK); "": no agent
	Home         string // the local user's home directory; "": taken from the operating system

	Password     func(ctx context.Context, prompt string) ([]byte, error) // asks for a password or passphrase; nil: nobody can be asked
	SudoPassword func(ctx context.Context) ([]byte, error)                // asks for the guest's sudo password; nil: there is none

	ConnectTimeout time.Duration // for TCP, and again for each handshake; 0: 10 s
	Keepalive      time.Duration // between two signs of life asked for; 0: 15 s

	Notice func(string) // one-line notices for the user; nil: dropped

	// Gate keeps the logins of many guests apart, every one of them: the first, those after a lost connection or a
	// reboot, those of an upload's further connections. It returns when one may begin; what it returns is called when
	// that is over, with one round trip and the login's error. nil: none is waited for.
	Gate func(context.Context) (leave func(rtt time.Duration, err error), err error)
}

const (
	defaultConnectTimeout = 10 * time.Second
	defaultKeepalive      = 15 * time.Second
)

func (c Config) notice(s string) {
	if c.Notice != nil {
		c.Notice(s)
	}
}

func (c Config) connectTimeout() time.Duration {
	if c.ConnectTimeout > 0 {
		return c.ConnectTimeout
	}
	return defaultConnectTimeout
}

func (c Config) keepalive() time.Duration {
	if c.Keepalive > 0 {
		return c.Keepalive
	}
	return defaultKeepalive
}

// Conn is one authenticated connection to a guest. Its methods may be used concurrently. When the guest
// stops answering, a watchdog closes it and everything that waits returns ErrDisconnected.
type Conn struct {
	cfg    Config
	host   string // how messages call the guest
	user   string
	client *ssh.Client
	wire   *wireConn     // the TCP connection at the bottom, jump hosts included
	jumps  []*ssh.Client // outermost first
	// connected is how long TCP's connect took, one round trip to whoever answered.
	connected time.Duration
	// greeted is how long everything after that took, to the accepted login: what a handshake costs this guest.
	greeted time.Duration
	secrets *secrets

	execs atomic.Int64
	plain atomic.Bool   // the guest cannot unpack command lines
	dead  chan struct{} // closed when the transport has ended
	tasks sync.WaitGroup

	privMu sync.Mutex
	priv   privilege
}

// Dial resolves the host through ssh_config, connects (through jump hosts when there are any), checks the
// host keys and logs in. Its errors are ErrUnreachable, ErrHostKey and ErrAuth, each with a Hint.
func Dial(ctx context.Context, cfg Config) (*Conn, error) {
	return dial(ctx, cfg, newSecrets(), defaultLimits(cfg))
}

// Redial makes a second connection to the same guest in the same way. Passwords already given are used
// again without asking.
func (c *Conn) Redial(ctx context.Context) (*Conn, error) {
	n, err := dial(ctx, c.cfg, c.secrets, defaultLimits(c.cfg))
	if err != nil {
		return nil, err
	}
	n.priv = c.privilege()
	return n, nil
}

// Host is what messages call the guest: the name that the user gave.
func (c *Conn) Host() string { return c.host }

// User is the name that gpuguest logged in as.
func (c *Conn) User() string { return c.user }

// Execs is the number of exec channels that this connection has opened. File transfer is not counted.
func (c *Conn) Execs() int { return int(c.execs.Load()) }

// RTT is how long TCP's connect took, one round trip to whoever answered first: a jump host where there is one.
func (c *Conn) RTT() time.Duration { return c.connected }

// Dead is closed when the connection has ended, for whatever reason.
func (c *Conn) Dead() <-chan struct{} { return c.dead }

// Close ends the connection and waits for everything that used it. It is safe to call twice.
func (c *Conn) Close() error {
	c.sever()
	c.tasks.Wait()
	return nil
}

// sever cuts the transport at its bottom first, which unblocks every reader and writer above it, even one that
// waits for a peer that no longer takes bytes.
func (c *Conn) sever() {
	_ = c.wire.Close()
	for i := len(c.jumps) - 1; i >= 0; i-- {
		_ = c.jumps[i].Close()
	}
	_ = c.client.Close()
}

// watch closes dead when the transport ends, and asks for a sign of life at every interval. A guest that
// has sent nothing at all for two intervals while a question was open is taken for gone.
func (c *Conn) watch(interval time.Duration) {
	c.tasks.Go(func() {
		_ = c.client.Wait()
		c.sever()
		close(c.dead)
	})
	c.tasks.Go(func() {
		tick := time.NewTicker(interval)
		defer tick.Stop()
		for {
			select {
			case <-c.dead:
				return
			case <-tick.C:
			}
			if !c.ping(interval) {
				c.sever()
				return
			}
		}
	})
}

// ping reports whether the guest is alive. Any byte received counts, so that a link filled by an upload,
// where the answer itself queues for long, is not taken for dead.
func (c *Conn) ping(interval time.Duration) bool {
	asked := time.Now()
	answer := make(chan error, 1)
	c.tasks.Go(func() {
		_, _, err := c.client.SendRequest("keepalive@openssh.com", true, nil)
		answer <- err
	})
	poll := time.NewTicker(interval / 4)
	defer poll.Stop()
	for {
		select {
		case err := <-answer:
			return err == nil
		case <-c.dead:
			return true
		case <-poll.C:
			last := c.wire.lastRead()
			if last.Before(asked) {
				last = asked
			}
			if time.Since(last) >= 2*interval {
				return false
			}
		}
	}
}
