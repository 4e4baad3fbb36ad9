package guest

import (
	"cmp"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"
)

// limits are the time limits of one attempt to connect.
type limits struct {
	tcp       time.Duration
	handshake time.Duration // from TCP's connect to the login, for each hop; the user's typing is not counted
	record    bool          // new host keys are written to known_hosts

	// A server that has said a word is there, and only slow: its handshake may take this long from then on.
	// 0: no more than handshake.
	talking time.Duration
	alive   func() // told when the last hop has said its first word; may be nil

	// A probe knocks at a guest that may not be there, and that is to keep no other out: it comes to Config.Gate when
	// somebody has answered. nil: the gate is passed before anything is dialled.
	late *loginPlace
}

// loginPlace is where one attempt to connect stands with Config.Gate.
type loginPlace struct {
	gate   func(context.Context) (func(time.Duration, error), error) // nil: there is none
	left   func(time.Duration, error)                                // nil: it is not inside
	waited time.Duration
}

// enter waits to be let in, once.
func (p *loginPlace) enter(ctx context.Context) error {
	if p.gate == nil || p.left != nil {
		return nil
	}
	began := time.Now()
	var err error
	p.left, err = p.gate(ctx)
	p.waited = time.Since(began)
	return err
}

func (p *loginPlace) leave(rtt time.Duration, err error) {
	if p.left != nil {
		p.left(rtt, err)
	}
}

func defaultLimits(c Config) limits {
	// A guest on a busy or emulated machine takes seconds for a key exchange and its PAM stack.
	return limits{tcp: c.connectTimeout(), handshake: 2 * c.connectTimeout(), record: true}
}

// agentPatience is for an agent that is on another machine or wakes a token; most answer in a millisecond.
const agentPatience = 5 * time.Second

// ciphers puts AES-GCM first: with Go's assembly it costs the client half of ChaCha20-Poly1305's time.
var ciphers = []string{
	ssh.CipherAES128GCM, ssh.CipherAES256GCM, ssh.CipherChaCha20Poly1305,
	ssh.CipherAES128CTR, ssh.CipherAES192CTR, ssh.CipherAES256CTR,
}

func joinHostPort(host string, port int) string { return net.JoinHostPort(host, strconv.Itoa(port)) }

func dial(ctx context.Context, cfg Config, sec *secrets, lim limits) (*Conn, error) {
	hops, err := resolve(cfg)
	if err != nil {
		return nil, &Error{Kind: ErrUnreachable, Host: cfg.Host, Err: err, hint: "look at --host and the ssh_config file"}
	}
	last := hops[len(hops)-1]
	c := &Conn{cfg: cfg, host: cfg.Host, user: last.user, secrets: sec, dead: make(chan struct{})}
	if last.user == "root" {
		c.priv.mode = privRoot
	}
	place := lim.late
	if place == nil {
		place = &loginPlace{gate: cfg.Gate}
		if err := place.enter(ctx); err != nil {
			return nil, &Error{Kind: ErrUnreachable, Host: cfg.Host, Err: err}
		}
	}
	var clients []*ssh.Client
	fail := func(err error) (*Conn, error) {
		place.leave(0, err)
		for i := len(clients) - 1; i >= 0; i-- {
			_ = clients[i].Close()
		}
		if c.wire != nil {
			_ = c.wire.Close()
		}
		return nil, err
	}
	var met time.Time
	for i, h := range hops {
		var nc net.Conn
		var err error
		if len(clients) == 0 {
			// Called when the name has become an address, so that the name's time is not counted.
			var began atomic.Int64
			d := net.Dialer{Timeout: lim.tcp, KeepAlive: -1, ControlContext: func(context.Context, string, string, syscall.RawConn) error {
				began.Store(time.Now().UnixNano())
				return nil
			}}
			nc, err = d.DialContext(ctx, "tcp", h.addr())
			if err == nil {
				c.connected = time.Since(time.Unix(0, began.Load()))
				c.wire = newWireConn(nc)
				nc = c.wire
			}
		} else {
			nc, err = dialThrough(ctx, clients[len(clients)-1], h.addr(), lim.tcp)
		}
		if err != nil {
			return fail(unreachable(ctx, h, err))
		}
		met = time.Now()
		outside := place.left == nil
		hl := lim
		if i < len(hops)-1 {
			hl = limits{handshake: cfg.connectTimeout(), record: lim.record, late: lim.late}
		}
		client, err := handshake(ctx, nc, h, cfg, sec, hl)
		if err != nil {
			_ = nc.Close()
			return fail(err)
		}
		if outside {
			met = met.Add(place.waited)
		}
		clients = append(clients, client)
	}
	c.client = clients[len(clients)-1]
	c.jumps = clients[:len(clients)-1]
	c.greeted = time.Since(met)
	place.leave(c.connected, nil)
	c.watch(cfg.keepalive())
	return c, nil
}

// dialThrough opens a connection from a jump host. The jump host's own sshd has no time limit of use.
func dialThrough(ctx context.Context, via *ssh.Client, addr string, limit time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return via.DialContext(ctx, "tcp", addr)
}

// handshake speaks SSH until logged in. A forwarded port accepts while the guest behind it is down, and
// ssh.ClientConfig.Timeout covers TCP only: so a clock of its own closes the connection.
func handshake(ctx context.Context, nc net.Conn, h hop, cfg Config, sec *secrets, lim limits) (*ssh.Client, error) {
	var mu sync.Mutex
	expired := false
	loginCtx, giveUp := context.WithCancel(ctx)
	defer giveUp()
	clock := time.AfterFunc(lim.handshake, func() {
		mu.Lock()
		expired = true
		mu.Unlock()
		_ = nc.Close()
		giveUp()
	})
	defer clock.Stop()
	stop := context.AfterFunc(ctx, func() { _ = nc.Close() })
	defer stop()

	talk := nc
	if lim.talking > 0 || lim.late != nil {
		talk = &firstWord{Conn: nc, heard: func() error {
			inTime := clock.Stop()
			if lim.alive != nil {
				lim.alive()
			}
			var err error
			if lim.late != nil {
				err = lim.late.enter(ctx)
			}
			if inTime {
				clock.Reset(cmp.Or(lim.talking, lim.handshake))
			}
			return err
		}}
	}

	keys := hostKeys{hop: h, notice: cfg.notice, record: lim.record, shared: cfg.Known}
	db, err := keys.database()
	if err != nil {
		return nil, &Error{Kind: ErrHostKey, Host: h.name, Msg: "known_hosts", Err: err, hint: "correct or remove the file that is named"}
	}
	l := &login{ctx: loginCtx, hop: h, cfg: cfg, secrets: sec, patience: min(agentPatience, lim.handshake/2), pause: func() func() {
		clock.Stop()
		return func() { clock.Reset(lim.handshake) }
	}}
	methods, agentConn := l.methods()
	if agentConn != nil {
		defer agentConn.Close()
	}
	var keyErr error
	keyOK := false
	cc := &ssh.ClientConfig{
		Config:            ssh.Config{Ciphers: ciphers},
		User:              h.user,
		Auth:              methods,
		HostKeyAlgorithms: keys.algorithms(db),
		ClientVersion:     "SSH-2.0-gpuguest",
		BannerCallback:    func(string) error { return nil },
		HostKeyCallback: func(_ string, remote net.Addr, key ssh.PublicKey) error {
			keyErr = keys.check(db, remote, key)
			keyOK = keyErr == nil
			return keyErr
		},
	}
	conn, chans, reqs, err := ssh.NewClientConn(talk, h.addr(), cc)
	if err == nil {
		return ssh.NewClient(conn, chans, reqs), nil
	}
	mu.Lock()
	late := expired
	mu.Unlock()
	switch {
	case ctx.Err() != nil:
		return nil, &Error{Kind: ErrUnreachable, Host: h.name, Err: context.Cause(ctx)}
	case keyErr != nil:
		return nil, keyErr
	case late && keyOK:
		return nil, &Error{Kind: ErrUnreachable, Host: h.name,
			Msg:  "the login on " + h.addr() + " did not end within " + lim.handshake.String() + " (" + l.said() + ")",
			hint: "is the guest very busy, or does an ssh-agent wait for somebody to confirm? --connect-timeout gives more time"}
	case late:
		return nil, &Error{Kind: ErrUnreachable, Host: h.name,
			Msg:  "no SSH server answered on " + h.addr() + " within " + lim.handshake.String(),
			hint: "a forwarded port accepts while the guest behind it is down: is the guest running, and its sshd?"}
	case keyOK && !isBroken(err):
		hint := "give a key with -i, load one into the agent, or log in as another user"
		if h.user == "root" {
			hint += "; many images refuse root: try the image's own user, gpuguest uses sudo"
		}
		return nil, &Error{Kind: ErrAuth, Host: h.name, Msg: "login as " + h.user + " refused (" + l.said() + ")", Err: shortAuth(err), hint: hint}
	default:
		return nil, &Error{Kind: ErrUnreachable, Host: h.name, Msg: "SSH handshake with " + h.addr(), Err: err,
			hint: "does an SSH server listen there? It may still be starting, or refuse many connections at once (MaxStartups)"}
	}
}

// firstWord tells once that something was received. What that returns is the reader's error.
type firstWord struct {
	net.Conn
	heard func() error
	once  sync.Once
}

func (f *firstWord) Read(p []byte) (int, error) {
	n, err := f.Conn.Read(p)
	if n > 0 {
		f.once.Do(func() {
			if herr := f.heard(); herr != nil {
				err = herr
			}
		})
	}
	return n, err
}

// shortAuth drops the library's list of method names, which said() tells better, and keeps anything else,
// such as a server's "Too many authentication failures" or a failed prompt.
func shortAuth(err error) error {
	for inner := errors.Unwrap(err); inner != nil; inner = errors.Unwrap(inner) {
		err = inner
	}
	if strings.HasPrefix(err.Error(), "ssh: unable to authenticate") {
		return nil
	}
	return err
}

// isBroken reports an error of the connection rather than of what was said over it.
func isBroken(err error) bool {
	var ne net.Error
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.As(err, &ne)
}

func unreachable(ctx context.Context, h hop, err error) error {
	e := &Error{Kind: ErrUnreachable, Host: h.name, Err: err}
	if cause := context.Cause(ctx); cause != nil {
		e.Err = cause
		return e
	}
	var dns *net.DNSError
	var oce *ssh.OpenChannelError
	switch {
	case errors.As(err, &dns):
		e.Msg = "unknown host " + h.host
		e.hint = "check the name, or give it a HostName in ssh_config"
	case errors.Is(err, syscall.ECONNREFUSED):
		e.Msg = "connection to " + h.addr() + " refused"
		e.Err = nil
		e.hint = "is this the right port, and does sshd run in the guest?"
	case errors.As(err, &oce):
		e.Msg = "the jump host cannot connect to " + h.addr()
		e.hint = "is the address right as seen from the jump host, and may it forward (AllowTcpForwarding)?"
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded), isTimeout(err):
		e.Msg = "no answer from " + h.addr()
		e.Err = nil
		e.hint = "is the guest running, and does a firewall let port " + strconv.Itoa(h.port) + " through?"
	default:
		e.Msg = "connect to " + h.addr()
		e.hint = "check the address and the route to it"
	}
	return e
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}
