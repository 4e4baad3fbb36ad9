package guest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// RebootSpec says how a guest is to be rebooted.
type RebootSpec struct {
	OldBoot  string        // boot_id now; "": asked before the reboot, which costs an exec
	Deadline time.Duration // from the request to the new boot's first answer; 0: 10 min
	Settle   time.Duration // how long the new boot may take to finish its start, cloud-init included; 0: 10 min
	AskAgain time.Duration // how long the old boot may go on as if nothing was asked before it is asked once more; 0: 10 s
	Cmd      string        // script that reboots, as root; "": systemctl reboot, else shutdown -r now, else reboot

	Notice func(string) // what is being waited for, one line each; nil: Config.Notice

	// PowerCycle is run once when Deadline has passed with no new boot: a cold start from outside. The guest
	// then gets Deadline once more. nil: there is no such thing.
	PowerCycle func(context.Context) error
}

const (
	defaultDeadline = 10 * time.Minute
	defaultSettle   = 10 * time.Minute
	defaultAskAgain = 10 * time.Second

	probeEvery = 125 * time.Millisecond
	probeMax   = 8 // as many as fall into probeShort; with the long one below sshd's MaxStartups, which begins to refuse at 10

	// A port forwarded by a hypervisor accepts while the guest is down, and such a connection never comes
	// alive: a short deadline finds the guest quickly. A guest that has said a word is given time.
	probeShort   = time.Second
	probeTalking = 20 * time.Second
	// One probe at a time is patient, for a guest that needs longer than the short deadline for its first word.
	probeLong      = 20 * time.Second
	probeLongEvery = 16
	// A handshake is work for a guest that is busy starting, and on an emulated one it takes seconds. While
	// so many talk, a new one is begun only every slowEvery ticks.
	probeCrowd = 2
	slowEvery  = 8

	probeBoot     = 30 * time.Second // from the login to the boot_id: PAM waits for a login manager that starts
	stillUpNotice = time.Minute
)

const rebootScript = "timeout 20 systemctl reboot 2>/dev/null || shutdown -r now 2>/dev/null || reboot"

const bootIDScript = `cat "${GPUGUEST_BOOT_ID:-/proc/sys/kernel/random/boot_id}" || exit
systemctl is-system-running 2>/dev/null || :
if [ -e /run/cloud-init/enabled ]; then echo cloud; fi`

// settleScript waits until systemd has left its start and cloud-init is done; $1 is the limit in seconds. It
// prints systemd's state and cloud-init's last word, and exits 1 when the limit has passed.
const settleScript = `end=$(( $(cut -d. -f1 /proc/uptime) + $1 ))
late() { [ "$(cut -d. -f1 /proc/uptime)" -ge "$end" ]; }
s=
if command -v systemctl >/dev/null 2>&1 && [ -d "${GPUGUEST_SYSTEMD:-/run/systemd/system}" ]; then
	while :; do
		s=$(systemctl is-system-running 2>/dev/null)
		case $s in starting | initializing) ;; *) break ;; esac
		late && break
		sleep 0.2 2>/dev/null || sleep 1
	done
fi
echo "system ${s:-unknown}"
if [ -e /run/cloud-init/enabled ] && command -v cloud-init >/dev/null 2>&1; then
	left=$(( end - $(cut -d. -f1 /proc/uptime) ))
	[ "$left" -gt 0 ] || left=1
	timeout "$left" cloud-init status --wait >/dev/null 2>&1
	echo "cloud-init $(cloud-init status 2>/dev/null | sed -n 's/^status: //p')"
	# systemd counts cloud-init's last unit among its start.
	while :; do
		case $(systemctl is-system-running 2>/dev/null) in starting | initializing) ;; *) break ;; esac
		late && break
		sleep 0.2 2>/dev/null || sleep 1
	done
fi
! late`

// Reboot reboots the guest and returns a new connection to its new boot, once that has finished starting.
// The old connection is closed whatever happens after the request was made. A guest that answers with its
// old boot_id is not back yet. ErrNoReboot names the old boot_id and the last thing that was seen.
func (c *Conn) Reboot(ctx context.Context, spec RebootSpec) (*Conn, error) {
	notice := spec.Notice
	if notice == nil {
		notice = c.cfg.notice
	}
	if spec.Deadline <= 0 {
		spec.Deadline = defaultDeadline
	}
	if spec.AskAgain <= 0 {
		spec.AskAgain = defaultAskAgain
	}
	if spec.Settle <= 0 {
		spec.Settle = defaultSettle
	}
	if spec.Cmd == "" {
		spec.Cmd = rebootScript
	}
	if spec.OldBoot == "" {
		b, err := c.boot(ctx)
		if err != nil {
			return nil, err
		}
		spec.OldBoot = b.id
	}
	if err := c.askReboot(ctx, spec.Cmd); err != nil {
		return nil, err
	}
	_ = c.Close()

	asked := time.Now()
	cycled := false
	for {
		n, b, err := c.await(ctx, spec, notice)
		if errors.Is(err, ErrNoReboot) && ctx.Err() == nil && spec.PowerCycle != nil && !cycled {
			cycled = true
			notice(fmt.Sprintf("%s: not back within %v; power cycle", c.host, spec.Deadline))
			if perr := spec.PowerCycle(ctx); perr != nil {
				return nil, &Error{Kind: ErrNoReboot, Host: c.host, Msg: "power cycle", Err: perr, hint: "run the power cycle command by hand"}
			}
			continue
		}
		if err != nil {
			return nil, err
		}
		err = n.settle(ctx, b, spec.Settle, notice)
		if err == nil {
			return n, nil
		}
		_ = n.Close()
		if !errors.Is(err, ErrDisconnected) || ctx.Err() != nil {
			return nil, err
		}
		// A boot may end in another: cloud-init and filesystem checks reboot by themselves.
		notice(c.host + ": lost again while it started; waiting for it")
		if time.Since(asked) > spec.Deadline+spec.Settle {
			return nil, &Error{Kind: ErrNoReboot, Host: c.host, Msg: "the guest does not stay up (boot_id before: " + spec.OldBoot + ")", Err: err,
				hint: "look at the guest's console"}
		}
	}
}

// askReboot asks. The end of the connection is as good an answer as any: a guest that reboots may not
// manage to say so. Only a guest that stays and says no is an error.
func (c *Conn) askReboot(ctx context.Context, script string) error {
	ctx2, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	res, err := c.Run(ctx2, Command{Script: script})
	switch {
	case errors.Is(err, ErrSudo):
		return err
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err == nil && res.Exit != 0 && res.Signal == "" && res.Exit < 128:
		return &Error{Kind: ErrNoReboot, Host: c.host, Msg: fmt.Sprintf("the guest refused to reboot: exit %d", res.Exit), Err: oneLine(string(res.Stderr)),
			hint: "reboot the guest by hand and run the same command again"}
	}
	return nil
}

// bootState is what one probe learns.
type bootState struct {
	id     string
	system string // systemctl is-system-running, "" unknown
	cloud  bool   // cloud-init takes part in this boot
}

func (c *Conn) boot(ctx context.Context) (bootState, error) {
	res, err := c.Run(ctx, Command{Script: bootIDScript, AsUser: true})
	if err != nil {
		return bootState{}, err
	}
	lines := strings.Fields(string(res.Stdout))
	if res.Exit != 0 || len(lines) == 0 {
		return bootState{}, fmt.Errorf("%s: read boot_id: exit %d: %s", c.host, res.Exit, strings.TrimSpace(string(res.Stderr)))
	}
	b := bootState{id: lines[0]}
	for _, l := range lines[1:] {
		if l == "cloud" {
			b.cloud = true
		} else {
			b.system = l
		}
	}
	return b, nil
}

// probeResult is one probe's end: a connection to the new boot, or why not.
type probeResult struct {
	conn *Conn
	boot bootState
	err  error
	long bool
}

var errOldBoot = errors.New("the old boot still answers")

// await starts a probe at every tick, overlapped, and takes the first that reaches a new boot.
func (c *Conn) await(ctx context.Context, spec RebootSpec, notice func(string)) (*Conn, bootState, error) {
	// Not a context's deadline: that would end the last probes with an error of its own, and hide theirs.
	over := time.NewTimer(spec.Deadline)
	defer over.Stop()
	pctx, cancel := context.WithCancel(ctx)
	results := make(chan probeResult)
	var probes sync.WaitGroup
	defer func() {
		cancel()
		go func() { probes.Wait(); close(results) }()
		for r := range results { // the losers
			if r.conn != nil {
				_ = r.conn.Close()
			}
		}
	}()

	quiet := c.cfg
	quiet.Notice = nil // each probe would say the same again
	if quiet.Password != nil {
		quiet.Password = func(context.Context, string) ([]byte, error) {
			return nil, errors.New("a password is not asked for again during a reboot")
		}
	}
	// A request may have been lost with its connection: a guest that is neither gone nor going is asked again.
	var asked atomic.Int64
	asked.Store(time.Now().UnixNano())
	ask := func(n *Conn, b bootState) {
		last := asked.Load()
		if b.system == "stopping" || time.Since(time.Unix(0, last)) < spec.AskAgain || !asked.CompareAndSwap(last, time.Now().UnixNano()) {
			return
		}
		// What it answers is not waited for longer than the probe itself: the next boot_id is the answer.
		_ = n.askReboot(pctx, spec.Cmd)
	}
	var talking atomic.Int64
	probe := func(long bool, short time.Duration) {
		probes.Go(func() {
			var said atomic.Bool
			lim := limits{tcp: short, handshake: short, talking: probeTalking, late: &loginPlace{gate: quiet.Gate}, alive: func() {
				if said.CompareAndSwap(false, true) {
					talking.Add(1)
				}
			}}
			if long {
				lim.tcp, lim.handshake = probeLong, probeLong
			}
			r := c.probe(pctx, quiet, lim, spec.OldBoot, ask)
			if said.Load() {
				talking.Add(-1)
			}
			r.long = long
			results <- r
		})
	}
	var short int
	var long bool
	start := time.Now()
	told := false
	last := errors.New("nothing was tried")
	pace := c.pace(0)
	tick := time.NewTicker(pace.every)
	defer tick.Stop()
	for n := 0; ; n++ {
		if now := c.pace(time.Since(start)); now != pace {
			pace = now
			tick.Reset(pace.every)
		}
		switch {
		case talking.Load() >= probeCrowd && n%slowEvery != 0:
		case n%probeLongEvery == probeLongEvery-1 && !long:
			long = true
			probe(true, pace.short)
		case short < probeMax:
			short++
			probe(false, pace.short)
		}
		for waiting := true; waiting; {
			select {
			case <-ctx.Done():
				return nil, bootState{}, context.Cause(ctx)
			case <-over.C:
				return nil, bootState{}, &Error{Kind: ErrNoReboot, Host: c.host,
					Msg:  fmt.Sprintf("the guest did not come back within %v (boot_id before: %s)", spec.Deadline, spec.OldBoot),
					Err:  last,
					hint: "look at the guest's console (virsh console, the serial log, the cloud's screenshot): it may wait at GRUB, at a MOK screen or for a disk"}
			case r := <-results:
				if r.long {
					long = false
				} else {
					short--
				}
				if r.err == nil {
					return r.conn, r.boot, nil
				}
				last = r.err
				if errors.Is(r.err, errOldBoot) && !told && time.Since(start) > stillUpNotice {
					told = true
					notice(fmt.Sprintf("%s: still up in its old boot after %v; something holds its shutdown", c.host, stillUpNotice))
				}
			case <-tick.C:
				waiting = false
			}
		}
	}
}

// pace is how often a probe is begun, and how long one waits for a first word.
type pace struct{ every, short time.Duration }

// pace fits the probes to the guest. A handshake costs a guest processor time, and a port that a hypervisor
// forwards lets every probe through at once when the guest's sshd comes up: on an emulated guest, which
// needs seconds for one, probes at a fast guest's pace were seen to keep sshd so busy that none ever
// ended, until it refused them (MaxStartups). The handshake of before the reboot tells what the guest can
// do; one that takes long to come back is starting slowly, and is not hurried either.
func (c *Conn) pace(waited time.Duration) pace {
	cost := min(c.greeted, 5*time.Second) // a password may have been typed in it
	p := pace{every: max(probeEvery, cost), short: max(probeShort, 4*cost)}
	switch {
	case waited > 2*time.Minute:
		p = pace{max(p.every, 2*time.Second), max(p.short, 10*time.Second)}
	case waited > 45*time.Second:
		p = pace{max(p.every, 500*time.Millisecond), max(p.short, 4*time.Second)}
	}
	return p
}

// probe makes one connection and asks for the boot_id. Password prompts are not repeated: what was typed
// for the first connection is used.
func (c *Conn) probe(ctx context.Context, cfg Config, lim limits, old string, ask func(*Conn, bootState)) probeResult {
	n, err := dial(ctx, cfg, c.secrets, lim)
	if err != nil {
		return probeResult{err: err}
	}
	actx, cancel := context.WithTimeout(ctx, probeBoot)
	defer cancel()
	b, err := n.boot(actx)
	if err == nil && b.id == old {
		n.cfg, n.priv = c.cfg, c.privilege()
		ask(n, b)
		err = errOldBoot
	}
	if err != nil {
		_ = n.Close()
		return probeResult{err: err}
	}
	n.cfg = c.cfg
	n.priv = c.privilege()
	return probeResult{conn: n, boot: b}
}

// settle waits until the guest has finished starting. What is not well then is told, and no error: whether
// it matters is for the checks to find out.
func (c *Conn) settle(ctx context.Context, b bootState, limit time.Duration, notice func(string)) error {
	state, cloud := b.system, ""
	if b.cloud || state == "starting" || state == "initializing" {
		var stdout, stderr capture
		stdout.max, stderr.max = maxStdout, maxStderr
		sctx, cancel := context.WithTimeout(ctx, limit+30*time.Second)
		defer cancel()
		res, err := c.exec(sctx, call{script: settleScript, args: []string{fmt.Sprint(int(limit.Seconds()))}, stdout: &stdout, stderr: &stderr, asUser: true})
		if err != nil {
			return err
		}
		for _, line := range strings.Split(string(stdout.bytes()), "\n") {
			if s, ok := strings.CutPrefix(line, "system "); ok {
				state = s
			}
			if s, ok := strings.CutPrefix(line, "cloud-init "); ok {
				cloud = s
			}
		}
		if res.Exit != 0 {
			notice(fmt.Sprintf("%s: still starting after %v (%s); going on", c.host, limit, state))
			return nil
		}
	}
	if state == "degraded" {
		notice(c.host + ": some units did not start (systemctl --failed tells which); going on")
	}
	if strings.HasPrefix(cloud, "error") || strings.HasPrefix(cloud, "degraded") {
		notice(c.host + ": cloud-init reports " + cloud + "; going on")
	}
	return nil
}
