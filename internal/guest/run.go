package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"gpuguest/internal/sh"
)

// Command is one POSIX sh script, run as root without a terminal and with LC_ALL=C.
type Command struct {
	Script  string
	Stdin   io.Reader     // nil: closed at once; must not wait for ever, it is read until the script ends
	Stdout  io.Writer     // nil: kept in Result.Stdout
	Timeout time.Duration // 0: only ctx ends it
	AsUser  bool          // run as the login user, without sudo
}

// Result is what a script did. A non-zero exit is a Result and no error: only the caller knows what it means.
type Result struct {
	Exit   int // 0 to 255; 128 and more when a signal ended the script
	Stdout []byte
	Stderr []byte
	Signal string // "KILL" and the like when a signal ended the shell itself
}

const (
	maxStdout = 16 << 20
	maxStderr = 1 << 20

	// maxArgument keeps an exec argument below Linux's MAX_ARG_STRLEN, 128 KiB with its NUL (execve(2)).
	// Longer scripts go over standard input, which costs one more round trip.
	maxArgument = 120 << 10

	// stopGrace is how long a file transfer whose context has ended waits for the guest's answer before it
	// gives the whole connection up; while the guest is heard, up to stopGraces times as long.
	stopGrace  = 3 * time.Second
	stopGraces = 5
)

// Run runs a script. The errors are ErrDisconnected (the script may have run, and may run on), ErrSudo,
// ErrTimeout, ErrTooMuch and the context's. A script whose time is over gets SIGTERM where sshd can give it.
func (c *Conn) Run(ctx context.Context, cmd Command) (Result, error) {
	var stdout, stderr capture
	stdout.max, stderr.max = maxStdout, maxStderr
	k := call{script: cmd.Script, stdin: cmd.Stdin, stdout: cmd.Stdout, stderr: &stderr, asUser: cmd.AsUser}
	if k.stdout == nil {
		k.stdout = &stdout
	}
	if cmd.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, cmd.Timeout, c.overtime(cmd.Timeout))
		defer cancel()
	}
	res, err := c.exec(ctx, k)
	res.Stdout, res.Stderr = stdout.bytes(), stderr.bytes()
	return res, err
}

func (c *Conn) overtime(limit time.Duration) error {
	return &Error{Kind: ErrTimeout, Host: c.host, Msg: fmt.Sprintf("the script ran longer than %v", limit),
		hint: "look in the guest for a process that hangs (ps, state D), and for what the kernel says of it (dmesg)"}
}

// capture keeps up to max bytes and then fails.
type capture struct {
	mu     sync.Mutex
	buf    bytes.Buffer
	max    int
	recent bool      // begin anew instead of failing
	tee    io.Writer // also told everything, at once; may be nil
}

func (w *capture) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.tee != nil {
		if _, err := w.tee.Write(p); err != nil {
			return 0, err
		}
	}
	if w.recent && w.buf.Len()+len(p) > w.max {
		w.buf.Reset()
	}
	if w.buf.Len()+len(p) > w.max {
		n := w.max - w.buf.Len()
		w.buf.Write(p[:n])
		return n, fmt.Errorf("%w: over %d bytes", ErrTooMuch, w.max)
	}
	return w.buf.Write(p)
}

func (w *capture) bytes() []byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	return bytes.Clone(w.buf.Bytes())
}

func (w *capture) reset() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.buf.Reset()
}

// call is one exec channel.
type call struct {
	script string
	args   []string // the script's $1, $2, …
	stdin  io.Reader
	stdout io.Writer
	stderr *capture
	asUser bool
	on     *early // the channel to use, if it came; may be nil
}

// Why root can be had, found out once for each connection.
type privMode int

const (
	privUnknown  privMode = iota
	privRoot              // the login user is root
	privPlain             // not known to be root: the command itself finds out and uses sudo -n
	privPassword          // sudo wants a password, and it has been tried
)

type privilege struct {
	mode     privMode
	password []byte
}

func (c *Conn) privilege() privilege {
	c.privMu.Lock()
	defer c.privMu.Unlock()
	return c.priv
}

// needsPassword is the exit code of becomeRoot when sudo does not work without a password.
const needsPassword = 97

const sudoMark = "gpuguest-sudo: "

// becomeRoot runs $1 with the other arguments as root. It asks the guest anew each time, which costs a few
// milliseconds there and no round trip here. `-k` ignores a password remembered from elsewhere: whether
// the script runs must not depend on what somebody typed a minute ago.
const becomeRoot = `s=$1; shift
if [ "$(id -u)" = 0 ]; then exec sh -c "$s" gpuguest "$@"; fi
if ! command -v sudo >/dev/null 2>&1; then echo "` + sudoMark + `sudo is not installed" >&2; exit 97; fi
if w=$(LC_ALL=C sudo -k -n true 2>&1); then exec sudo -n sh -c "$s" gpuguest "$@"; fi
echo "` + sudoMark + `$w" >&2; exit 97`

// preamble goes before every script: a known language, and the directories of root's tools, which a login
// user's PATH may lack.
const preamble = "export LC_ALL=C PATH=\"${PATH:-/usr/bin:/bin}:/usr/local/sbin:/usr/sbin:/sbin\"\n"

// compose makes the command line, and what goes to its standard input before the caller's own.
func compose(k call, p privilege) (line string, first []byte) {
	script := preamble + k.script
	build := func(script string, args []string) string {
		words := []string{"sh", "-c", script, "gpuguest"}
		switch {
		case k.asUser, p.mode == privRoot:
		case p.mode == privPassword:
			words = append([]string{"sudo", "-k", "-S", "-p", ""}, words...)
		default:
			words = []string{"sh", "-c", becomeRoot, "gpuguest", script}
		}
		return sh.Join(append(words, args...)...)
	}
	line = build(script, k.args)
	if len(line) > maxArgument {
		if len(k.args) > 0 {
			script = "set -- " + sh.Join(k.args...) + "\n" + script
		}
		line = build(fmt.Sprintf("s=$(head -c %d) && eval \"$s\"", len(script)), nil)
		first = []byte(script)
	}
	if p.mode == privPassword && !k.asUser {
		first = append(append(bytes.Clone(p.password), '\n'), first...)
	}
	return line, first
}

// exec runs a call as root and settles how that is done when it is not known yet.
func (c *Conn) exec(ctx context.Context, k call) (Result, error) {
	if strings.ContainsRune(k.script, 0) {
		return Result{}, &Error{Kind: ErrBadScript, Host: c.host, Msg: "a script cannot hold a NUL byte"}
	}
	if k.asUser {
		return c.execOnce(ctx, k, privilege{})
	}
	p := c.privilege()
	if p.mode == privUnknown && k.stdin != nil {
		// The caller's input can be sent only once, so the question comes first.
		var quiet capture
		quiet.max = maxStderr
		if _, err := c.exec(ctx, call{script: ":", stdout: io.Discard, stderr: &quiet}); err != nil {
			return Result{}, err
		}
		p = c.privilege()
	}
	res, err := c.execOnce(ctx, k, p)
	if err != nil || p.mode == privRoot || p.mode == privPassword {
		return res, err
	}
	why, asked := sudoRefusal(res, k.stderr)
	if !asked {
		c.privMu.Lock()
		if c.priv.mode == privUnknown {
			c.priv.mode = privPlain
		}
		c.privMu.Unlock()
		return res, nil
	}
	p, err = c.sudoPassword(ctx, why)
	if err != nil {
		return Result{}, err
	}
	k.stderr.reset()
	return c.execOnce(ctx, k, p)
}

// sudoRefusal reports that becomeRoot gave up, and sudo's own words.
func sudoRefusal(res Result, stderr *capture) (why string, asked bool) {
	if res.Exit != needsPassword {
		return "", false
	}
	text := string(stderr.bytes())
	i := strings.LastIndex(text, sudoMark)
	if i < 0 {
		return "", false
	}
	return strings.TrimSpace(text[i+len(sudoMark):]), true
}

// sudoPassword gets the password and tries it once by itself, with nothing behind it on standard input:
// sudo reads again after a wrong one, and would otherwise take the script's input for passwords, or wait.
func (c *Conn) sudoPassword(ctx context.Context, why string) (privilege, error) {
	c.privMu.Lock()
	defer c.privMu.Unlock()
	if c.priv.mode == privPassword {
		return c.priv, nil
	}
	const hint = "log in as root, allow the user sudo without a password, or give the sudo password (prompt or GPUGUEST_SUDO_PASSWORD)"
	if c.cfg.SudoPassword == nil || strings.Contains(why, "is not installed") {
		return privilege{}, &Error{Kind: ErrSudo, Host: c.host, Msg: c.user + " cannot become root", Err: oneLine(why), hint: hint}
	}
	c.secrets.asking.Lock()
	defer c.secrets.asking.Unlock()
	pass, ok := c.secrets.get("sudo")
	if !ok {
		var err error
		if pass, err = c.cfg.SudoPassword(ctx); err != nil {
			return privilege{}, &Error{Kind: ErrSudo, Host: c.host, Msg: "sudo password", Err: err, hint: hint}
		}
	}
	if bytes.ContainsAny(pass, "\n\x00") {
		return privilege{}, &Error{Kind: ErrSudo, Host: c.host, Msg: "the sudo password holds a line break or NUL byte", hint: hint}
	}
	p := privilege{mode: privPassword, password: bytes.Clone(pass)}
	stderr := capture{max: maxStderr}
	res, err := c.execOnce(ctx, call{script: ":", stdout: io.Discard, stderr: &stderr}, p)
	if err != nil {
		return privilege{}, err
	}
	if res.Exit != 0 {
		return privilege{}, &Error{Kind: ErrSudo, Host: c.host, Msg: "sudo refused " + c.user + "'s password", Err: oneLine(string(stderr.bytes())),
			hint: "check the password and that " + c.user + " is in sudoers"}
	}
	c.secrets.put("sudo", pass)
	c.priv = p
	return p, nil
}

// oneLine makes an error of a program's words; nil when there are none.
func oneLine(s string) error {
	s = strings.Join(strings.Fields(s), " ")
	if s == "" {
		return nil
	}
	return errors.New(s)
}

// execOnce runs the call with this privilege, packed where that is faster. The caller's input can be sent only once,
// so with it nothing is packed: where the guest cannot unpack, all is sent again.
func (c *Conn) execOnce(ctx context.Context, k call, p privilege) (Result, error) {
	line, first := compose(k, p)
	if k.stdin == nil && c.packs(line) {
		res, err := c.execLine(ctx, k, pack(line), first)
		if err != nil || !c.refusedPack(res, k.stderr.bytes()) {
			return res, err
		}
		k.stderr.reset()
	}
	return c.execLine(ctx, k, line, first)
}

// execLine opens one channel, runs the line and waits for its end, or for ctx's.
func (c *Conn) execLine(ctx context.Context, k call, line string, first []byte) (Result, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	sess := k.on.take()
	if sess == nil {
		var err error
		if sess, err = c.session(ctx); err != nil {
			return Result{}, err
		}
	}
	stdin, err := sess.StdinPipe()
	if err != nil {
		_ = sess.Close()
		return Result{}, err
	}
	stdout, stderr := &gate{w: k.stdout, fail: cancel}, &gate{w: k.stderr, fail: cancel}
	sess.Stdout, sess.Stderr = stdout, stderr
	defer stderr.shut()
	defer stdout.shut()
	c.execs.Add(1)
	err = c.call(ctx, func() error {
		if err := sess.Start(line); err != nil {
			return err
		}
		c.tasks.Go(func() {
			defer stdin.Close()
			if len(first) > 0 {
				if _, err := stdin.Write(first); err != nil {
					return
				}
			}
			if k.stdin != nil {
				// A script that ends without reading all of it is no error.
				_, _ = io.Copy(stdin, k.stdin)
			}
		})
		return sess.Wait()
	}, func() {
		_ = sess.Signal(ssh.SIGTERM)
		_ = sess.Close()
	})
	if ctx.Err() == nil {
		_ = sess.Close()
	}
	return c.outcome(ctx, err)
}

// outcome turns what Session.Wait said into a Result.
func (c *Conn) outcome(ctx context.Context, err error) (Result, error) {
	var exit *ssh.ExitError
	switch {
	case ctx.Err() != nil:
		return Result{}, context.Cause(ctx)
	case err == nil:
		return Result{}, nil
	case errors.As(err, &exit):
		r := Result{Exit: exit.ExitStatus(), Signal: exit.Signal()}
		if r.Signal != "" && r.Exit == 0 {
			r.Exit = 128
		}
		return r, nil
	default:
		return Result{}, c.explain(ctx, err)
	}
}

// explain says why a channel failed: the context, a guest that refuses channels, or a lost connection.
func (c *Conn) explain(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var refused *ssh.OpenChannelError
	if errors.As(err, &refused) {
		return fmt.Errorf("%s: the guest refuses another channel: %w", c.host, err)
	}
	var missing *ssh.ExitMissingError
	if errors.As(err, &missing) || errors.Is(err, io.EOF) {
		err = nil
	}
	return c.lost(err)
}

// gate passes output on until it is shut: the guest may send more after the call has returned. When the
// writer fails, the call ends; a writer that merely stopped taking would leave the guest's script blocked.
type gate struct {
	w    io.Writer
	fail context.CancelCauseFunc

	mu     sync.Mutex
	closed bool
}

func (g *gate) Write(p []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return len(p), nil
	}
	n, err := g.w.Write(p)
	if err != nil {
		g.fail(err)
	}
	return n, err
}

// ReadFrom is what io.Copy uses in place of a buffer of 32 KiB, of which each guest that is held has two for as long as
// it is: a thousand guests, 64 MB. Most scripts print less than one packet.
func (g *gate) ReadFrom(r io.Reader) (int64, error) {
	return io.CopyBuffer(struct{ io.Writer }{g}, r, make([]byte, 4<<10))
}

func (g *gate) shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
}

func (c *Conn) session(ctx context.Context) (*ssh.Session, error) {
	var sess *ssh.Session
	opened := make(chan struct{})
	err := c.call(ctx, func() (err error) {
		defer close(opened)
		sess, err = c.client.NewSession()
		return err
	}, func() {
		<-opened
		if sess != nil {
			_ = sess.Close()
		}
	})
	if err != nil {
		return nil, c.explain(ctx, err)
	}
	return sess, nil
}

// early is a channel that is opened before there is a command for it, which saves the command a round trip.
type early struct {
	conn *Conn
	sess chan *ssh.Session // closed when none came, or it was taken
}

func (c *Conn) openEarly(ctx context.Context) *early {
	e := &early{conn: c, sess: make(chan *ssh.Session, 1)}
	c.tasks.Go(func() {
		defer close(e.sess)
		// A guest that refuses one more channel now may have room later.
		if s, err := c.session(ctx); err == nil {
			e.sess <- s
		}
	})
	return e
}

// take returns the channel, nil when there is none or it was taken.
func (e *early) take() *ssh.Session {
	if e == nil {
		return nil
	}
	return <-e.sess
}

// drop closes a channel that nobody took.
func (e *early) drop() {
	e.conn.tasks.Go(func() {
		for s := range e.sess {
			_ = s.Close()
		}
	})
}

// call runs f, which waits for the guest. When ctx ends first, call returns at once, and f and abandon run on
// behind its back until they are through or the connection ends: sshd confirms the end of a channel only
// when its command has ended, however long that takes, and others on this connection are not to suffer.
// What a guest that is gone leaves waiting, the watchdog ends.
func (c *Conn) call(ctx context.Context, f func() error, abandon func()) error {
	select {
	case <-c.dead:
		return io.EOF
	default:
	}
	done := make(chan error, 1)
	c.tasks.Go(func() { done <- f() })
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		c.tasks.Go(abandon)
		return context.Cause(ctx)
	}
}

// do runs f, which waits for the guest. When ctx ends first, stop asks f to end; when f still waits after
// the grace, the connection is severed, which ends it surely. f and stop have returned when do does.
func (c *Conn) do(ctx context.Context, f func() error, stop func()) error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		stop()
	}()
	// A guest that is heard is slow and not gone, and others may be using the connection.
	grace := time.NewTimer(stopGrace)
	defer grace.Stop()
	for left := stopGraces; ; left-- {
		select {
		case <-done:
			<-stopped
			return context.Cause(ctx)
		case <-grace.C:
			if left <= 1 || time.Since(c.wire.lastRead()) > stopGrace {
				c.sever()
				<-done
				<-stopped
				return context.Cause(ctx)
			}
			grace.Reset(stopGrace)
		}
	}
}
