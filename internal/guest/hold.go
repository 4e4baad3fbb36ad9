package guest

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"gpuguest/assets"
	"gpuguest/internal/sh"
)

// HoldSpec says who takes the guest and what is asked of it in the same round trip.
type HoldSpec struct {
	Owner   string        // one line for whoever comes next: user, machine, process, since when
	Wait    time.Duration // how long a busy guest is waited for; 0: not at all
	Script  string        // run as root once the guest is held, its standard input empty
	Timeout time.Duration // of the script, beside Wait; 0: only ctx ends it
}

// Lease is the hold on a guest. It lives in the guest as a lock of a process whose input is this
// connection: when gpuguest ends in whatever way, the guest is free again, at the latest 45 s later.
type Lease struct {
	sess *ssh.Session
	feed *heartbeat
	lost chan struct{}
}

// heartbeatEvery leaves four beats in hold.sh's 45 s of silence.
const heartbeatEvery = 10 * time.Second

// Hold takes the guest for this client and runs the script, in one exec. A busy guest gives a *HeldError
// (ErrHeld) after the wait, and a script that does not end in its time ErrTimeout. The lease is nil when there is an error.
func (c *Conn) Hold(ctx context.Context, spec HoldSpec) (Result, *Lease, error) {
	p := c.privilege()
	res, lease, err := c.hold(ctx, spec, p)
	if errors.Is(err, errCannotUnpack) {
		res, lease, err = c.hold(ctx, spec, p)
	}
	if refused, ok := errors.AsType[*sudoRefused](err); ok {
		if p, err = c.sudoPassword(ctx, refused.why); err != nil {
			return Result{}, nil, err
		}
		return c.hold(ctx, spec, p)
	}
	if err == nil && p.mode == privUnknown {
		c.privMu.Lock()
		c.priv.mode = privPlain
		c.privMu.Unlock()
	}
	return res, lease, err
}

// errCannotUnpack is a guest that must be asked again in plain words.
var errCannotUnpack = errors.New("the guest has no base64 or gzip")

// sudoRefused carries sudo's words from one attempt to the next.
type sudoRefused struct{ why string }

func (e *sudoRefused) Error() string { return "sudo: " + e.why }

func (c *Conn) hold(ctx context.Context, spec HoldSpec, p privilege) (Result, *Lease, error) {
	token := "gpuguest-hold-" + rand.Text()
	wait := int(math.Ceil(spec.Wait.Seconds()))
	owner := strings.Join(strings.Fields(spec.Owner), " ")
	words := []string{owner, strconv.Itoa(wait), token, spec.Script}
	line, first := compose(call{script: sh.Lean(assets.Hold), args: words}, p)
	packed := c.packs(line)
	if packed {
		line, first = compose(call{script: sh.Lean(assets.Hold), args: append(words, "pack")}, p)
		line = pack(line)
	}

	if spec.Timeout > 0 {
		var stop context.CancelFunc
		ctx, stop = context.WithTimeoutCause(ctx, spec.Wait+spec.Timeout, c.overtime(spec.Timeout))
		defer stop()
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	sess, err := c.session(ctx)
	if err != nil {
		return Result{}, nil, err
	}
	stdin, err := sess.StdinPipe()
	if err != nil {
		_ = sess.Close()
		return Result{}, nil, err
	}
	stdout := &holdOutput{end: []byte("\n" + token + " exit "), capture: capture{max: maxStdout}}
	stderr := &holdOutput{end: stdout.end, capture: capture{max: maxStderr}, line: func(s string) {
		if owner, ok := strings.CutPrefix(s, token+" busy "); ok && wait > 0 {
			c.cfg.notice(fmt.Sprintf("%s: held by %s; waiting up to %v", c.host, owner, spec.Wait))
		}
	}}
	both := make(chan struct{})
	var ended sync.WaitGroup
	ended.Add(2)
	stdout.done, stderr.done = ended.Done, ended.Done
	sess.Stdout, sess.Stderr = &gate{w: stdout, fail: cancel}, &gate{w: stderr, fail: cancel}
	c.execs.Add(1)
	stop := func() { _ = sess.Close() }
	if err := c.call(ctx, func() error { return sess.Start(line) }, stop); err != nil {
		if ctx.Err() == nil {
			stop()
		}
		return Result{}, nil, c.explain(ctx, err)
	}

	l := &Lease{sess: sess, feed: newHeartbeat(stdin, first), lost: make(chan struct{})}
	var exit error
	c.tasks.Go(func() {
		exit = sess.Wait()
		_ = sess.Close()
		l.feed.stop()
		close(l.lost)
		stdout.finish()
		stderr.finish()
	})
	c.tasks.Go(l.feed.run)
	c.tasks.Go(func() { ended.Wait(); close(both) })
	err = c.call(ctx, func() error { <-both; return nil }, l.end)
	if err != nil {
		return Result{}, nil, c.explain(ctx, err)
	}
	out, code, ok := stdout.result()
	said, _, _ := stderr.result()
	if ok && packed {
		if out, err = unzip(out); err != nil {
			l.end()
			return Result{}, nil, fmt.Errorf("%s: the guest's packed answer: %w", c.host, err)
		}
	}
	if ok {
		// The lines about waiting are for the notice, not for the script's reader.
		said = dropLines(said, token+" ")
		return Result{Exit: code, Stdout: out, Stderr: said}, l, nil
	}
	if err := c.call(ctx, func() error { <-l.lost; return nil }, l.end); err != nil {
		return Result{}, nil, c.explain(ctx, err)
	}
	res, err := c.outcome(ctx, exit)
	if err != nil {
		return Result{}, nil, err
	}
	text := string(said)
	if c.refusedPack(res, said) {
		return Result{}, nil, errCannotUnpack
	}
	if why, asked := sudoRefusal(res, &stderr.capture); asked {
		return Result{}, nil, &sudoRefused{why}
	}
	for _, s := range strings.Split(text, "\n") {
		if owner, ok := strings.CutPrefix(s, token+" held "); ok {
			return Result{}, nil, &HeldError{Host: c.host, Owner: owner}
		}
		if why, ok := strings.CutPrefix(s, token+" error "); ok {
			return Result{}, nil, &Error{Kind: ErrLock, Host: c.host, Err: oneLine(why),
				hint: "the lock is a file in the guest's /run; is that writable?"}
		}
	}
	return Result{}, nil, &Error{Kind: ErrLock, Host: c.host, Msg: fmt.Sprintf("cannot take the guest's lock: exit %d", res.Exit), Err: oneLine(text)}
}

func dropLines(text []byte, prefix string) []byte {
	var out []byte
	for line := range bytes.Lines(text) {
		if !bytes.HasPrefix(line, []byte(prefix)) {
			out = append(out, line...)
		}
	}
	return out
}

// Release gives the guest back. It does not wait for the guest's word, which would cost a round trip: the
// end of the input, or of the connection right after, is what the guest's side acts on.
func (l *Lease) Release() error {
	l.end()
	return nil
}

// Lost is closed when the guest is no longer held, by Release or because the connection or the holding
// process in the guest ended.
func (l *Lease) Lost() <-chan struct{} { return l.lost }

func (l *Lease) end() {
	l.feed.stop()
	_ = l.sess.Close()
}

// heartbeat writes a byte at intervals until it is stopped.
type heartbeat struct {
	w     io.WriteCloser
	first []byte
	quit  chan struct{}
	once  sync.Once
}

func newHeartbeat(w io.WriteCloser, first []byte) *heartbeat {
	return &heartbeat{w: w, first: first, quit: make(chan struct{})}
}

func (h *heartbeat) stop() { h.once.Do(func() { close(h.quit) }) }

func (h *heartbeat) run() {
	defer h.w.Close()
	if len(h.first) > 0 {
		if _, err := h.w.Write(h.first); err != nil {
			return
		}
	}
	tick := time.NewTicker(heartbeatEvery)
	defer tick.Stop()
	for {
		select {
		case <-h.quit:
			return
		case <-tick.C:
			if _, err := h.w.Write([]byte(".")); err != nil {
				return
			}
		}
	}
}

// holdOutput collects a stream up to the line that ends the script's output.
type holdOutput struct {
	capture
	end  []byte
	done func()
	line func(string) // told each complete line as it comes; may be nil
	once sync.Once

	split   int // bytes already split into lines
	scanned int // bytes in which end does not begin
}

func (o *holdOutput) Write(p []byte) (int, error) {
	n, err := o.capture.Write(p)
	lines, ended := o.scan()
	for _, s := range lines {
		o.line(s)
	}
	if ended {
		o.finish()
	}
	return n, err
}

// scan looks at what is new.
func (o *holdOutput) scan() (lines []string, ended bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	b := o.buf.Bytes()
	for o.line != nil {
		i := bytes.IndexByte(b[o.split:], '\n')
		if i < 0 {
			break
		}
		lines = append(lines, string(b[o.split:o.split+i]))
		o.split += i + 1
	}
	i := bytes.Index(b[o.scanned:], o.end)
	if i < 0 {
		o.scanned = max(o.scanned, len(b)-len(o.end)+1)
		return lines, false
	}
	o.scanned += i
	return lines, bytes.IndexByte(b[o.scanned+1:], '\n') >= 0
}

func (o *holdOutput) finish() { o.once.Do(o.done) }

// result is the output before the end line and the script's exit code; without an end line, all of it.
func (o *holdOutput) result() (out []byte, code int, ok bool) {
	b := o.bytes()
	i := bytes.Index(b, o.end)
	if i < 0 {
		return b, 0, false
	}
	// A process that the script left behind may print after the end.
	word, _, whole := strings.Cut(string(b[i+len(o.end):]), "\n")
	code, err := strconv.Atoi(word)
	return b[:i], code, whole && err == nil
}
