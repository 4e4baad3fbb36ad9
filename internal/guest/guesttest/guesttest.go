// Package guesttest is a guest for tests: an SSH and SFTP server in this process, whose faults can be
// switched on while it runs.
//
// It listens on 127.0.0.1 only. What a command does is up to the Exec handed in: Script answers planned
// commands and fails the test on any other; Shell really runs them, as the user who runs the tests, with
// the guest's directories below a temporary one.
package guesttest

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"
)

// Exec runs one command and returns its exit code. ctx ends when the client sends a signal or the server
// stops. As with a real sshd, a lost connection only closes the command's input and output.
type Exec func(ctx context.Context, cmd string, stdin io.Reader, stdout, stderr io.Writer) int

// Options say how the server is to behave. The zero value refuses every login.
type Options struct {
	Exec       Exec
	User       string          // the only user; "": any
	Keys       []ssh.PublicKey // keys that may log in
	Password   string          // password that may log in; "": none
	Keyboard   string          // answer to the one keyboard-interactive question; "": none
	HostKeys   []ssh.Signer    // none: one ed25519 key, made for the test
	SFTPDir    string          // where sftp starts; "": no sftp
	RTT        time.Duration   // added to each answer
	Rate       int             // bytes a second that a connection takes; 0: all that come
	NoForwards bool            // refuse direct-tcpip
	Login      func()          // called for each key that is offered, and may wait; nil: nothing
}

// Server is a running server. All methods may be called at any time.
type Server struct {
	Addr string // host:port

	t    testing.TB
	mu   sync.Mutex
	opt  Options
	ln   net.Listener
	open map[*faultConn]bool
	cut  int64 // bytes that the next connection may send; negative: no limit
	ice  chan struct{}
	cmds []string
	n    int // connections accepted
	wg   sync.WaitGroup
	done bool
	ctx  context.Context // ends with the server
	end  context.CancelFunc
}

// HostKey makes a host key.
func HostKey(t testing.TB) ssh.Signer {
	t.Helper()
	_, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s, err := ssh.NewSignerFromKey(priv)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// New starts a server that the test's end stops.
func New(t testing.TB, opt Options) *Server {
	t.Helper()
	if len(opt.HostKeys) == 0 {
		opt.HostKeys = []ssh.Signer{HostKey(t)}
	}
	s := &Server{t: t, opt: opt, open: map[*faultConn]bool{}, cut: -1}
	s.ctx, s.end = context.WithCancel(t.Context())
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.Addr = ln.Addr().String()
	s.serve(ln)
	t.Cleanup(s.stop)
	return s
}

func (s *Server) serve(ln net.Listener) {
	s.mu.Lock()
	s.ln = ln
	s.mu.Unlock()
	s.wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			s.accept(c)
		}
	})
}

func (s *Server) accept(c net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.done {
		_ = c.Close()
		return
	}
	s.n++
	f := newFaultConn(c, s.opt, s.cut, s.ice)
	s.cut = -1
	s.open[f] = true
	opt := s.opt
	s.wg.Go(func() {
		s.handle(f, opt)
		_ = f.Close()
		s.mu.Lock()
		delete(s.open, f)
		s.mu.Unlock()
	})
}

func (s *Server) stop() {
	s.mu.Lock()
	s.done = true
	_ = s.ln.Close()
	s.mu.Unlock()
	s.end()
	s.Cut()
	s.wg.Wait()
}

// Host and Port are the two halves of Addr.
func (s *Server) Host() string { h, _, _ := net.SplitHostPort(s.Addr); return h }

// Port is the TCP port.
func (s *Server) Port() int {
	_, p, _ := net.SplitHostPort(s.Addr)
	n := 0
	_, _ = fmt.Sscan(p, &n)
	return n
}

// PublicKey is the first host key.
func (s *Server) PublicKey() ssh.PublicKey {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.opt.HostKeys[0].PublicKey()
}

// Change changes the options for connections made from now on.
func (s *Server) Change(f func(*Options)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(&s.opt)
}

// Commands are the exec requests seen so far, in order.
func (s *Server) Commands() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.cmds...)
}

// Connections is how many connections were accepted so far.
func (s *Server) Connections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.n
}

// CutAfter makes the next connection break once the server has sent n bytes over it.
func (s *Server) CutAfter(n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cut = n
}

// Cut breaks every open connection now.
func (s *Server) Cut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for f := range s.open {
		_ = f.Close()
	}
}

// Freeze makes all connections, open and new, silent: bytes are neither read nor sent.
func (s *Server) Freeze() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ice == nil {
		s.ice = make(chan struct{})
	}
	for f := range s.open {
		f.freeze(s.ice)
	}
}

// Thaw ends Freeze.
func (s *Server) Thaw() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ice != nil {
		close(s.ice)
		s.ice = nil
	}
}

// Refuse closes the port and every connection, as a guest that is down with its own address does.
func (s *Server) Refuse() {
	s.mu.Lock()
	_ = s.ln.Close()
	s.mu.Unlock()
	s.Cut()
}

// Listen opens the port again after Refuse. While it was closed, another test's outgoing connection may
// have been given its number; that one ends soon.
func (s *Server) Listen() {
	ln, err := net.Listen("tcp", s.Addr)
	for end := time.Now().Add(10 * time.Second); err != nil && time.Now().Before(end); ln, err = net.Listen("tcp", s.Addr) {
		time.Sleep(20 * time.Millisecond)
	}
	if err != nil {
		s.t.Errorf("listen again: %v", err)
		return
	}
	s.serve(ln)
}

func (s *Server) handle(c net.Conn, opt Options) {
	cfg := &ssh.ServerConfig{MaxAuthTries: 6}
	user := func(m ssh.ConnMetadata) bool { return opt.User == "" || m.User() == opt.User }
	refused := errors.New("refused")
	if len(opt.Keys) > 0 {
		cfg.PublicKeyCallback = func(m ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
			if opt.Login != nil {
				opt.Login()
			}
			for _, k := range opt.Keys {
				if user(m) && bytes.Equal(k.Marshal(), key.Marshal()) {
					return nil, nil
				}
			}
			return nil, refused
		}
	}
	if opt.Password != "" {
		cfg.PasswordCallback = func(m ssh.ConnMetadata, p []byte) (*ssh.Permissions, error) {
			if user(m) && string(p) == opt.Password {
				return nil, nil
			}
			return nil, refused
		}
	}
	if opt.Keyboard != "" {
		cfg.KeyboardInteractiveCallback = func(m ssh.ConnMetadata, ask ssh.KeyboardInteractiveChallenge) (*ssh.Permissions, error) {
			a, err := ask("", "", []string{"Password: "}, []bool{false})
			if err != nil || !user(m) || len(a) != 1 || a[0] != opt.Keyboard {
				return nil, refused
			}
			return nil, nil
		}
	}
	if cfg.PublicKeyCallback == nil && cfg.PasswordCallback == nil && cfg.KeyboardInteractiveCallback == nil {
		cfg.PasswordCallback = func(ssh.ConnMetadata, []byte) (*ssh.Permissions, error) { return nil, refused }
	}
	for _, k := range opt.HostKeys {
		cfg.AddHostKey(k)
	}
	conn, chans, reqs, err := ssh.NewServerConn(c, cfg)
	if err != nil {
		return
	}
	defer conn.Close()
	var wg sync.WaitGroup
	wg.Go(func() { ssh.DiscardRequests(reqs) })
	for nc := range chans {
		switch nc.ChannelType() {
		case "session":
			ch, reqs, err := nc.Accept()
			if err == nil {
				wg.Go(func() { s.session(ch, reqs, opt) })
			}
		case "direct-tcpip":
			if opt.NoForwards {
				_ = nc.Reject(ssh.Prohibited, "forwarding is off")
				continue
			}
			wg.Go(func() { forward(nc) })
		default:
			_ = nc.Reject(ssh.UnknownChannelType, "no such channel")
		}
	}
	wg.Wait()
}

func forward(nc ssh.NewChannel) {
	var to struct {
		Host     string
		Port     uint32
		From     string
		FromPort uint32
	}
	if err := ssh.Unmarshal(nc.ExtraData(), &to); err != nil {
		_ = nc.Reject(ssh.ConnectionFailed, "bad request")
		return
	}
	c, err := net.Dial("tcp", net.JoinHostPort(to.Host, fmt.Sprint(to.Port)))
	if err != nil {
		_ = nc.Reject(ssh.ConnectionFailed, err.Error())
		return
	}
	ch, reqs, err := nc.Accept()
	if err != nil {
		_ = c.Close()
		return
	}
	var wg sync.WaitGroup
	wg.Go(func() { ssh.DiscardRequests(reqs) })
	wg.Go(func() { _, _ = io.Copy(ch, c); _ = ch.Close(); _ = c.Close() })
	wg.Go(func() { _, _ = io.Copy(c, ch); _ = c.Close(); _ = ch.Close() })
	wg.Wait()
}

func (s *Server) session(ch ssh.Channel, reqs <-chan *ssh.Request, opt Options) {
	ctx, cancel := context.WithCancel(s.ctx)
	var wg sync.WaitGroup
	defer func() {
		_ = ch.Close()
		wg.Wait()
		cancel()
	}()
	for r := range reqs {
		switch r.Type {
		case "exec":
			if len(r.Payload) < 4 || opt.Exec == nil {
				_ = r.Reply(false, nil)
				continue
			}
			cmd := string(r.Payload[4:])
			s.mu.Lock()
			s.cmds = append(s.cmds, cmd)
			s.mu.Unlock()
			_ = r.Reply(true, nil)
			wg.Go(func() {
				code := opt.Exec(ctx, cmd, ch, ch, ch.Stderr())
				_, _ = ch.SendRequest("exit-status", false, binary.BigEndian.AppendUint32(nil, uint32(code)))
				_ = ch.Close()
			})
		case "subsystem":
			ok := opt.SFTPDir != "" && len(r.Payload) >= 4 && string(r.Payload[4:]) == "sftp"
			_ = r.Reply(ok, nil)
			if ok {
				wg.Go(func() {
					srv, err := sftp.NewServer(ch, sftp.WithServerWorkingDirectory(opt.SFTPDir))
					if err == nil {
						_ = srv.Serve()
						_ = srv.Close()
					}
					_ = ch.Close()
				})
			}
		case "signal":
			cancel()
		default:
			_ = r.Reply(false, nil)
		}
	}
}

// Step is one planned command of Script.
type Step struct {
	Match  string // a part of the command that must be there
	Stdout string
	Stderr string
	Exit   int
	Do     func(stdin io.Reader) // may wait, read the input or change the server; may be nil
}

// Plain makes exec a guest that cannot unpack: a command line that was sent packed, which is done when this machine is
// so busy that the guest looks far, is refused as a guest without gzip does, and comes again in plain words.
func Plain(exec Exec) Exec {
	const refused = "gpuguest-pack: no base64 or gzip"
	return func(ctx context.Context, cmd string, stdin io.Reader, stdout, stderr io.Writer) int {
		if strings.Contains(cmd, refused) {
			fmt.Fprintln(stderr, refused)
			return 98
		}
		return exec(ctx, cmd, stdin, stdout, stderr)
	}
}

// Script answers the planned steps in order. A command out of order or beyond the plan fails the test, and
// so does a step that nobody asked for by its end.
func Script(t testing.TB, steps ...Step) Exec {
	t.Helper()
	var mu sync.Mutex
	next := 0
	t.Cleanup(func() {
		mu.Lock()
		defer mu.Unlock()
		if next < len(steps) && !t.Failed() {
			t.Errorf("fake: %d planned commands were not asked for, the first: %q", len(steps)-next, steps[next].Match)
		}
	})
	return Plain(func(_ context.Context, cmd string, stdin io.Reader, stdout, stderr io.Writer) int {
		mu.Lock()
		if next >= len(steps) || !strings.Contains(cmd, steps[next].Match) {
			mu.Unlock()
			t.Errorf("fake: unplanned command: %q", cmd)
			fmt.Fprintf(stderr, "fake: unplanned command: %q\n", cmd)
			return 127
		}
		st := steps[next]
		next++
		mu.Unlock()
		if st.Do != nil {
			st.Do(stdin)
		}
		_, _ = io.WriteString(stdout, st.Stdout)
		_, _ = io.WriteString(stderr, st.Stderr)
		return st.Exit
	})
}

// Shell is a pretend guest on this machine: a directory that stands for the guest's state, run directory and
// boot_id, and an Exec that really runs commands.
type Shell struct {
	Dir string   // holds state/, run/, bin/ (first in PATH), boot_id
	Env []string // added to the commands' environment

	t testing.TB
}

// NewShell makes the directories. What a job still does at the test's end it does in a directory that is gone.
func NewShell(t testing.TB) *Shell {
	t.Helper()
	s := &Shell{Dir: t.TempDir(), t: t}
	for _, d := range []string{"state", "run", "bin", "home"} {
		if err := os.Mkdir(filepath.Join(s.Dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	s.Boot("boot-1")
	return s
}

// Boot sets the boot_id that the guest tells from now on.
func (s *Shell) Boot(id string) {
	s.t.Helper()
	if err := os.WriteFile(filepath.Join(s.Dir, "boot_id"), []byte(id+"\n"), 0o644); err != nil {
		s.t.Fatal(err)
	}
}

// Tool puts a shell script of that name first in the guest's PATH.
func (s *Shell) Tool(name, script string) {
	s.t.Helper()
	// A process forked now by a parallel test would inherit the open file, and running it would fail with
	// "text file busy".
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	if err := os.WriteFile(filepath.Join(s.Dir, "bin", name), []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		s.t.Fatal(err)
	}
}

// Exec runs the command with /bin/sh. The end of ctx kills the command with everything that it started,
// except what left its session (jobs do).
func (s *Shell) Exec(ctx context.Context, cmd string, stdin io.Reader, stdout, stderr io.Writer) int {
	c := exec.Command("/bin/sh", "-c", cmd)
	c.Dir = filepath.Join(s.Dir, "home")
	c.Env = append([]string{
		"PATH=" + filepath.Join(s.Dir, "bin") + ":" + os.Getenv("PATH"),
		"HOME=" + filepath.Join(s.Dir, "home"),
		"GPUGUEST_STATE=" + filepath.Join(s.Dir, "state"),
		"GPUGUEST_RUN=" + filepath.Join(s.Dir, "run"),
		"GPUGUEST_BOOT_ID=" + filepath.Join(s.Dir, "boot_id"),
		"GPUGUEST_SYSTEMD=" + filepath.Join(s.Dir, "no-systemd"),
	}, s.Env...)
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	in, err := c.StdinPipe()
	if err != nil {
		return 126
	}
	// As sshd does, Wait waits for everybody who has the output open: a job's keeper must not.
	c.Stdout, c.Stderr = stdout, stderr
	if err := c.Start(); err != nil {
		fmt.Fprintln(stderr, err)
		return 127
	}
	// It ends when the server closes the channel, which it does when this function has returned.
	go func() { _, _ = io.Copy(in, stdin); _ = in.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = syscall.Kill(-c.Process.Pid, syscall.SIGKILL) })
	defer stop()
	err = c.Wait()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit) && exit.ExitCode() >= 0:
		return exit.ExitCode()
	case errors.As(err, &exit):
		return 137
	default:
		return 126
	}
}

// faultConn is a server's end of a connection with faults: it breaks after a number of bytes sent, freezes,
// and delays what it sends.
type faultConn struct {
	net.Conn
	delay time.Duration
	rate  int

	mu    sync.Mutex
	left  int64 // bytes that may be sent; negative: no limit
	ice   chan struct{}
	queue chan packet
	dead  chan struct{}
	once  sync.Once
}

type packet struct {
	at   time.Time
	data []byte
}

func newFaultConn(c net.Conn, opt Options, cut int64, ice chan struct{}) *faultConn {
	f := &faultConn{Conn: c, delay: opt.RTT, rate: opt.Rate, left: cut, ice: ice, dead: make(chan struct{})}
	if opt.RTT > 0 {
		f.queue = make(chan packet, 4096)
		go f.pump()
	}
	return f
}

// pump sends what is queued when its time has come; it ends with the connection.
func (f *faultConn) pump() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-f.dead:
			return
		case p := <-f.queue:
			timer.Reset(time.Until(p.at))
			select {
			case <-timer.C:
			case <-f.dead:
				return
			}
			if _, err := f.Conn.Write(p.data); err != nil {
				return
			}
		}
	}
}

func (f *faultConn) freeze(ice chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ice = ice
}

// wait blocks while the connection is frozen.
func (f *faultConn) wait() error {
	f.mu.Lock()
	ice := f.ice
	f.mu.Unlock()
	if ice == nil {
		return nil
	}
	select {
	case <-ice:
		return nil
	case <-f.dead:
		return net.ErrClosed
	}
}

func (f *faultConn) Read(p []byte) (int, error) {
	n, err := f.Conn.Read(p)
	if werr := f.wait(); werr != nil {
		return 0, werr
	}
	if f.rate > 0 && n > 0 {
		select {
		case <-time.After(time.Duration(n) * time.Second / time.Duration(f.rate)):
		case <-f.dead:
		}
	}
	return n, err
}

func (f *faultConn) Write(p []byte) (int, error) {
	if err := f.wait(); err != nil {
		return 0, err
	}
	f.mu.Lock()
	short := f.left >= 0 && int64(len(p)) > f.left
	if short {
		p = p[:f.left]
	}
	if f.left >= 0 {
		f.left -= int64(len(p))
	}
	f.mu.Unlock()
	n := len(p)
	var err error
	if f.queue != nil && !short {
		select {
		case f.queue <- packet{time.Now().Add(f.delay), bytes.Clone(p)}:
		case <-f.dead:
			return 0, net.ErrClosed
		}
	} else {
		n, err = f.Conn.Write(p)
	}
	if short {
		_ = f.Close()
		return n, net.ErrClosed
	}
	return n, err
}

// Close does not linger: what was sent arrives, as it would from a guest that stops between two packets.
func (f *faultConn) Close() error {
	f.once.Do(func() { close(f.dead) })
	return f.Conn.Close()
}
