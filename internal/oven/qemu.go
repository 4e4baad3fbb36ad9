package oven

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"gpuguest/internal/guest"
)

// QEMU boots images in virtual machines, on KVM where it works and emulated where it does not. The zero value is
// ready; it must not be copied.
type QEMU struct {
	// Accel is KVM or TCG; "" is found out, once, by Accelerator.
	Accel string
	// Patience is how long a guest may take to answer over SSH; 0 is 5 minutes on KVM and 20 emulated.
	Patience time.Duration

	grace time.Duration // Login.Grace

	mu    sync.Mutex
	found string
}

const (
	defaultMemory = 2048 // MiB
	maxCPUs       = 4    // of a guest that does not say how many, on KVM
	// maxResets is how often a guest may reset before it has answered: cloud-init or a firmware does so once or twice.
	maxResets = 6
	// lastWords is how long the console of a guest that came to a bad end is read on, for the rest of its trace.
	lastWords = time.Second
	// pressEvery is the time between two presses of the power button: a guest that boots misses the first.
	pressEvery = 10 * time.Second
	tailLines  = 15
)

// Name is "qemu".
func (*QEMU) Name() string { return "qemu" }

// Usable returns nil or that a program is missing.
func (q *QEMU) Usable(ctx context.Context) error {
	if _, err := exec.LookPath("qemu-img"); err != nil {
		return fmt.Errorf("qemu-img is not installed (Debian's qemu-utils): %w", err)
	}
	_, err := q.accelerator(ctx)
	return err
}

// accelerator is what guests run on. It takes up to five seconds, once.
func (q *QEMU) accelerator(ctx context.Context) (string, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.Accel != "" {
		q.found = q.Accel
	}
	if q.found == "" {
		accel, err := Accelerator(ctx)
		if err != nil {
			return "", err
		}
		q.found = accel
	}
	return q.found, nil
}

// Emulates says whether guests run without KVM, which makes all that they do some ten times slower.
func (q *QEMU) Emulates(ctx context.Context) (bool, error) {
	accel, err := q.accelerator(ctx)
	return accel != KVM, err
}

func (q *QEMU) patience(accel string) time.Duration {
	switch {
	case q.Patience > 0:
		return q.Patience
	case accel == KVM:
		return 5 * time.Minute
	}
	return 20 * time.Minute
}

// Start boots the image. The end of the calling process takes the guest with it.
func (q *QEMU) Start(ctx context.Context, spec Spec) (Guest, error) {
	if err := q.Usable(ctx); err != nil {
		return nil, err
	}
	accel, err := q.accelerator(ctx)
	if err != nil {
		return nil, err
	}
	g := &qemuGuest{spec: spec, patience: q.patience(accel), grace: q.grace}
	g.console.Log = spec.Log
	m, err := g.prepare(ctx, accel)
	if err != nil {
		return nil, err
	}
	// Between finding a free port and QEMU's taking it, somebody else may; and some boots fail for this machine's
	// want of time, before they have touched the disk.
	const attempts = 3
	for i := 1; ; i++ {
		err := g.attempt(ctx, m)
		if err == nil {
			if err = g.grow(ctx); err == nil {
				return g, nil
			}
			return nil, errors.Join(err, g.Close())
		}
		if cerr := g.Close(); cerr != nil {
			return nil, errors.Join(err, cerr)
		}
		var boot *BootError
		again := errors.Is(err, errPortTaken) || errors.As(err, &boot) && boot.again
		if i == attempts || !again {
			return nil, err
		}
	}
}

var errPortTaken = errors.New("the port was taken meanwhile")

// prepare makes everything that the machine is made of, in the scratch folder.
func (g *qemuGuest) prepare(ctx context.Context, accel string) (machine, error) {
	spec := g.spec
	disk, err := filepath.Abs(spec.Disk)
	if err != nil {
		return machine{}, err
	}
	if spec.Format != FormatQcow2 && spec.Format != FormatRaw {
		return machine{}, fmt.Errorf("%s: format %q: it is %s or %s", spec.Disk, spec.Format, FormatQcow2, FormatRaw)
	}
	if _, err := os.Stat(disk); err != nil {
		return machine{}, err
	}
	m := machine{
		accel: accel, cpu: "max", memory: cmp.Or(spec.Memory, defaultMemory), cpus: spec.CPUs,
		disk: disk, format: spec.Format, seed: g.path("seed.iso"), consoleFD: firstExtraFD, extra: spec.Args,
	}
	if m.cpus == 0 {
		m.cpus = 1 // an emulated guest forks a third slower on two, and mostly has one thing to do
		if accel == KVM {
			m.cpus = min(runtime.NumCPU(), maxCPUs)
		}
	}
	if g.keys, err = NewKeys(spec.Scratch); err != nil {
		return machine{}, err
	}
	seed := Seed{Keys: g.keys, User: spec.User, Instance: "gpuguest-" + strings.ToLower(rand.Text())}
	if err := seed.WriteISO(m.seed); err != nil {
		return machine{}, err
	}
	if text := seed.credential(); text != "" {
		m.credential = g.path("credential")
		if err := os.WriteFile(m.credential, []byte(text), 0o600); err != nil {
			return machine{}, err
		}
	}
	firmware := spec.Firmware
	if firmware == "" {
		if firmware, err = firmwareOfDisk(ctx, disk, spec.Format, g.path("head.raw")); err != nil {
			return machine{}, err
		}
	}
	switch firmware {
	case FirmwareBIOS:
	case FirmwareUEFI:
		if m.firmware, err = findOVMF(os.DirFS("/")); err != nil {
			return machine{}, err
		}
		vars, err := os.ReadFile(m.firmware.vars)
		if err != nil {
			return machine{}, err
		}
		m.firmware.vars = g.path("vars.fd")
		if err := os.WriteFile(m.firmware.vars, vars, 0o600); err != nil {
			return machine{}, err
		}
	default:
		return machine{}, fmt.Errorf("firmware %q: it is %s or %s", firmware, FirmwareBIOS, FirmwareUEFI)
	}
	return m, nil
}

// attempt starts QEMU and waits until the guest answers. After an error the guest must be closed.
func (g *qemuGuest) attempt(ctx context.Context, m machine) error {
	port, err := freePort()
	if err != nil {
		return err
	}
	m.port, g.port = port, port
	if err := g.keys.WriteKnownHosts(g.KnownHosts(), localhost, port); err != nil {
		return err
	}
	g.before = g.console.boot()
	g.leaving.Store(false)
	if g.proc, err = startQEMU(m, &g.console); err != nil {
		return err
	}
	return g.wait(ctx)
}

const localhost = "127.0.0.1"

func freePort() (int, error) {
	l, err := net.Listen("tcp", localhost+":0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// qemuGuest is an image in a virtual machine.
type qemuGuest struct {
	spec     Spec
	keys     Keys
	port     int
	patience time.Duration
	grace    time.Duration
	console  Console
	before   int64    // bytes that the console had when this boot began
	proc     *process // nil: never started
	ungrown  string
	leaving  atomic.Bool // it is to go off
}

func (g *qemuGuest) path(name string) string { return filepath.Join(g.spec.Scratch, name) }

func (g *qemuGuest) Address() (string, int) { return localhost, g.port }
func (g *qemuGuest) User() string           { return Seed{User: g.spec.User}.user() }
func (g *qemuGuest) Identity() string       { return g.keys.Identity }
func (g *qemuGuest) KnownHosts() string     { return g.path("known_hosts") }
func (g *qemuGuest) Console() string        { return g.console.String() }
func (g *qemuGuest) Ungrown() string        { return g.ungrown }

// grow does what Spec.Grow asks for, after cloud-init, which does it by itself where it is told nothing else.
func (g *qemuGuest) grow(ctx context.Context) error {
	if !g.spec.Grow {
		return nil
	}
	conn, err := guest.Dial(ctx, g.login().Config())
	if err != nil {
		return err
	}
	defer conn.Close()
	g.ungrown, err = growRoot(ctx, conn)
	return err
}

func (g *qemuGuest) login() Login {
	return Login{Host: localhost, Port: g.port, User: g.User(), Identity: g.Identity(), KnownHosts: g.KnownHosts(), Grace: g.grace}
}

// wait waits until the guest answers over SSH, or its console or QEMU says that it never will.
func (g *qemuGuest) wait(ctx context.Context) error {
	limit, cancel := context.WithTimeout(ctx, g.patience)
	defer cancel()
	answer := make(chan error, 1)
	go func() { answer <- g.login().Await(limit) }()
	err := g.watch(ctx, answer)
	if err != nil {
		cancel()
		<-answer
		return err
	}
	return nil
}

// watch returns when answer has something, or before it does because it never will. answer is left filled or to be
// filled when the error is not nil.
func (g *qemuGuest) watch(ctx context.Context, answer chan error) error {
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	read := g.before
	for {
		select {
		case err := <-answer:
			if err == nil {
				return nil
			}
			answer <- err
			return g.noAnswer(ctx, err)
		case <-g.proc.done:
			return g.ended()
		case <-tick.C:
		}
		if g.proc.resets.Load() > maxResets {
			return g.failed("does not boot: it resets again and again", "the console's last lines say how far it comes", nil)
		}
		var news string
		if news, read = g.console.since(read); news == "" {
			continue
		}
		if d, bad := FindDisaster(news); bad {
			g.listenOn(ctx)
			err := g.failed("does not boot: "+d.What, d.Hint, nil)
			err.again = d.Again
			return err
		}
	}
}

// maxStarvedBoots is how many boots of a guest that answered once may end for this machine's want of time.
const maxStarvedBoots = 3

// Watch implements Guest. A boot that ended for want of time, before the system had its disk, is begun anew.
func (g *qemuGuest) Watch(ctx context.Context) error {
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	read, starved := g.before, 0
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-g.proc.done:
			switch {
			case g.leaving.Load():
				return nil
			case g.proc.err == nil:
				return g.failed("turned itself off", "the console's last lines say why", nil)
			}
			return g.failed("its QEMU has ended", "", fmt.Errorf("%w: %s", g.proc.err, g.proc.complaint()))
		case <-tick.C:
		}
		var news string
		if news, read = g.console.since(read); news == "" {
			continue
		}
		d, bad := FindDisaster(news)
		switch {
		case !bad:
		case d.Again && starved < maxStarvedBoots:
			starved++
			read = g.console.boot()
			g.proc.command("system_reset")
		default:
			g.listenOn(ctx)
			return g.failed("came to a bad end: "+d.What, d.Hint, nil)
		}
	}
}

// listenOn gives the console time for its last words.
func (g *qemuGuest) listenOn(ctx context.Context) {
	t := time.NewTimer(lastWords)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-g.proc.done:
	case <-t.C:
	}
}

func (g *qemuGuest) failed(what, advice string, cause error) *BootError {
	return &BootError{Disk: g.spec.Disk, What: what, Tail: Tail(g.Console(), tailLines), Advice: advice, Cause: cause}
}

// keyless says what an image needs for a login.
const keyless = "an image is told its keys by cloud-init's NoCloud datasource or, for root, by systemd 252 or newer; this one may have neither, or an sshd that does not let in whom it is told to"

// noAnswer says why nobody could log in, after err.
func (g *qemuGuest) noAnswer(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, guest.ErrHostKey):
		return g.failed("boots, but shows another SSH host key than the one it was given", keyless, err)
	case errors.Is(err, guest.ErrAuth):
		return g.failed("boots, but does not let "+g.User()+" in with the one-time key", keyless, err)
	}
	advice := "the console's last lines say how far it came; " + keyless
	if g.console.Said() == 0 {
		advice = "it said nothing on its serial console either: its kernel needs console=ttyS0 for that"
	}
	return g.failed(fmt.Sprintf("no answer over SSH within %v", g.patience), advice, err)
}

// ended says why QEMU has ended before the guest answered.
func (g *qemuGuest) ended() error {
	complaint := g.proc.complaint()
	if g.proc.err == nil {
		return g.failed("does not boot: it turned itself off", "the console's last lines say why", nil)
	}
	if strings.Contains(complaint, "host forwarding rule") {
		return fmt.Errorf("qemu: %w: %s", errPortTaken, complaint)
	}
	return fmt.Errorf("qemu: %w: %s", g.proc.err, complaint)
}

// PowerOff presses the power button until the guest is off.
func (g *qemuGuest) PowerOff(ctx context.Context) error {
	if g.proc == nil {
		return nil
	}
	g.leaving.Store(true)
	limit := time.NewTimer(g.patience)
	defer limit.Stop()
	tick := time.NewTicker(pressEvery)
	defer tick.Stop()
	for {
		g.proc.command("system_powerdown")
		select {
		case <-g.proc.done:
			if g.proc.err != nil {
				return fmt.Errorf("power off: qemu: %w: %s", g.proc.err, g.proc.complaint())
			}
			return nil
		case <-ctx.Done():
			return fmt.Errorf("power off: %w", context.Cause(ctx))
		case <-limit.C:
			return g.failed(fmt.Sprintf("does not turn itself off within %v of its power button", g.patience),
				"the console's last lines say what it waits for; the button needs systemd-logind or acpid in the image", nil)
		case <-tick.C:
		}
	}
}

// Close kills QEMU and waits for its end.
func (g *qemuGuest) Close() error {
	if g.proc == nil {
		return nil
	}
	g.leaving.Store(true)
	return g.proc.kill()
}

// process is a running QEMU; done is closed when it has ended, its console is read to the end and it has been waited
// for. err may be read then.
type process struct {
	cmd    *exec.Cmd
	done   chan struct{}
	err    error
	resets atomic.Int32

	mu     sync.Mutex
	stdin  io.WriteCloser
	stderr bytes.Buffer
}

// firstExtraFD is the number that the first of exec.Cmd's ExtraFiles has.
const firstExtraFD = 3

// startQEMU starts the machine with its console.
func startQEMU(m machine, console io.Writer) (*process, error) {
	p := &process{cmd: exec.Command(qemuProgram, m.arguments()...), done: make(chan struct{})}
	stdin, err := p.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	p.stdin = stdin
	events, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, errors.Join(err, stdin.Close())
	}
	complaints, err := p.cmd.StderrPipe()
	if err != nil {
		return nil, errors.Join(err, stdin.Close(), events.Close())
	}
	serial, theirs, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, stdin.Close(), events.Close(), complaints.Close())
	}
	p.cmd.ExtraFiles = []*os.File{theirs}
	// A killed gpuguest takes its guest with it. The signal comes when the starting *thread* ends, so the goroutine
	// keeps its thread for as long as QEMU runs. A group of its own keeps the terminal's Ctrl-C from the guest.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	started := make(chan error)
	go func() {
		defer close(p.done)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		theirs.Close()
		started <- err
		if err != nil {
			serial.Close()
			return
		}
		p.command("qmp_capabilities")
		var readers sync.WaitGroup
		readers.Go(func() { _, _ = io.Copy(console, serial) })
		readers.Go(func() { p.follow(events) })
		readers.Go(func() { _, _ = io.Copy(complainer{p}, complaints) })
		readers.Wait()
		serial.Close()
		p.err = p.cmd.Wait()
	}()
	if err := <-started; err != nil {
		<-p.done
		return nil, fmt.Errorf("qemu: %w", err)
	}
	return p, nil
}

// command gives QEMU a command of its machine protocol and does not wait for the answer. One that comes when QEMU has
// ended is lost.
func (p *process) command(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, _ = fmt.Fprintf(p.stdin, "{\"execute\": %q}\n", name)
}

// follow reads what QEMU's machine protocol says until its end.
func (p *process) follow(events io.Reader) {
	dec := json.NewDecoder(events)
	for {
		var e struct {
			Event string `json:"event"`
		}
		if err := dec.Decode(&e); err != nil {
			// QEMU stops when nobody reads.
			_, _ = io.Copy(io.Discard, events)
			return
		}
		if e.Event == "RESET" {
			p.resets.Add(1)
		}
	}
}

// complainer keeps the first 16 KiB of QEMU's own messages.
type complainer struct{ p *process }

func (c complainer) Write(b []byte) (int, error) {
	const keep = 16 << 10
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	c.p.stderr.Write(b[:min(len(b), max(0, keep-c.p.stderr.Len()))])
	return len(b), nil
}

func (p *process) complaint() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.TrimSpace(p.stderr.String())
}

// kill ends QEMU and waits for that.
func (p *process) kill() error {
	err := p.cmd.Process.Kill()
	<-p.done
	if err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill qemu: %w", err)
	}
	return nil
}
