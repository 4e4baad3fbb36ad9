//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"gpuguest/internal/guest"
	"gpuguest/internal/sh"
)

// gatePort is where the client finds the gate, in its own namespace.
const gatePort = 5025

// downFor is how long the guest is away at least; each time adds another part of a second, so that no way
// of polling keeps step with it.
const downFor = 2500 * time.Millisecond

// gate stands before the guest as a hypervisor's port forwarding does: while the guest is down it accepts
// and says nothing, and a connection that was accepted then never comes alive. Behind it is the guest's real
// sshd, which could answer all the time, so the moment when "the rebooted guest could answer" is the gate's
// own: the guest has a new boot_id, and what is accepted from then on is passed through.
type gate struct {
	b     *bench
	ln    net.Listener
	boots int

	mu   sync.Mutex
	down bool
	open map[net.Conn]bool
	work sync.WaitGroup
}

func newGate(b *bench) (*gate, error) {
	g := &gate{b: b, open: make(map[net.Conn]bool)}
	err := inNamespace(b.net.client, func() (err error) {
		g.ln, err = net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(gatePort))
		return err
	})
	if err != nil {
		return nil, err
	}
	g.work.Go(g.serve)
	return g, nil
}

func (g *gate) serve() {
	for {
		c, err := g.ln.Accept()
		if err != nil {
			return
		}
		g.mu.Lock()
		g.open[c] = true
		down := g.down
		g.mu.Unlock()
		if !down {
			g.work.Go(func() { g.pass(c) })
		}
	}
}

func (g *gate) pass(c net.Conn) {
	var to net.Conn
	err := inNamespace(g.b.net.client, func() (err error) {
		to, err = net.Dial("tcp", nearAddress+":22")
		return err
	})
	if err != nil {
		_ = c.Close()
		return
	}
	g.mu.Lock()
	g.open[to] = true
	g.mu.Unlock()
	var both sync.WaitGroup
	for _, way := range [][2]net.Conn{{c, to}, {to, c}} {
		both.Go(func() {
			_, _ = io.Copy(way[0], way[1])
			g.drop(way[0], way[1])
		})
	}
	both.Wait()
}

func (g *gate) drop(conns ...net.Conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, c := range conns {
		_ = c.Close()
		delete(g.open, c)
	}
}

func (g *gate) dropAll() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for c := range g.open {
		_ = c.Close()
	}
	clear(g.open)
}

func (g *gate) close() {
	_ = g.ln.Close()
	g.dropAll()
	g.work.Wait()
}

func (g *gate) file(path string) string { return filepath.Join(g.b.guest.root, path) }

// boot waits until somebody asks for a reboot, is down for a while and up again. It returns when that was.
func (g *gate) boot(ctx context.Context) (time.Time, error) {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if err := os.Remove(g.file(rebootFile)); err == nil {
			break
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return time.Time{}, ctx.Err()
		}
	}
	g.mu.Lock()
	g.down = true
	g.mu.Unlock()
	g.dropAll()
	g.boots++
	_, part := math.Modf(float64(g.boots) * math.Phi)
	select {
	case <-time.After(downFor + time.Duration(part*float64(time.Second))):
	case <-ctx.Done():
		return time.Time{}, ctx.Err()
	}
	if err := os.WriteFile(g.file(bootIDFile), []byte(g.bootID()+"\n"), 0o644); err != nil {
		return time.Time{}, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.down = false
	return time.Now(), nil
}

func (g *gate) bootID() string { return fmt.Sprintf("boot-%d", g.boots) }

// step returns when the step after the reboot ran in the guest, whose clock is this machine's.
func (g *gate) step() (time.Time, error) {
	text, err := os.ReadFile(g.file(stepFile))
	if err != nil {
		return time.Time{}, err
	}
	whole, part, _ := strings.Cut(strings.TrimSpace(string(text)), ".")
	s, err := strconv.ParseInt(whole, 10, 64)
	ns, err2 := strconv.ParseInt(part, 10, 64)
	return time.Unix(s, ns), errors.Join(err, err2, os.Remove(g.file(stepFile)))
}

// reboot lets a client reboot the guest and run its next step, and returns the seconds from the guest's being
// able to answer to that step.
func (g *gate) reboot(ctx context.Context, client func() error) (float64, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var up time.Time
	var gateErr error
	var gateDone sync.WaitGroup
	gateDone.Go(func() { up, gateErr = g.boot(ctx) })
	err := client()
	if err != nil {
		cancel()
	}
	gateDone.Wait()
	if err := errors.Join(err, gateErr); err != nil {
		return 0, err
	}
	ran, err := g.step()
	if err != nil {
		return 0, err
	}
	if d := ran.Sub(up).Seconds(); d > 0 {
		return d, nil
	}
	return 0, errors.New("the step ran before the guest was up")
}

const stepCommand = "date +%s.%N >" + stepFile

func reboots(ctx context.Context, b *bench) ([]figure, error) {
	g, err := newGate(b)
	if err != nil {
		return nil, err
	}
	defer g.close()
	env, err := b.ansible(map[string]string{"{reboot_file}": rebootFile, "{boot_file}": bootIDFile, "{step_file}": stepFile}, "reboot.yml")
	if err != nil {
		return nil, err
	}
	ways := []way{
		{"gpuguest", func() (float64, error) {
			old := g.bootID()
			return g.reboot(ctx, func() error {
				_, err := b.worker(ctx, "reboot", b.sshConfig(), old)
				return err
			})
		}},
		{"loop", func() (float64, error) {
			next := fmt.Sprintf("boot-%d", g.boots+1)
			return g.reboot(ctx, func() error {
				ssh := sh.Join(append([]string{"ssh", "-n", "-o", "ConnectTimeout=2"}, b.ssh("gate")...)...)
				line := ssh + " " + sh.Quote("touch "+rebootFile) + "\nsleep 0.1\nuntil " +
					ssh + " " + sh.Quote("grep -q "+next+" "+bootIDFile+" && "+stepCommand) + "; do sleep 1; done"
				_, err := b.time(ctx, nil, "sh", "-c", line)
				return err
			})
		}},
	}
	samples, err := inTurn(b.runs(9), ways)
	if err != nil {
		return nil, err
	}
	playbook, err := inTurn(b.runs(2), []way{ways[0], {"ansible", func() (float64, error) {
		return g.reboot(ctx, func() error {
			_, err := b.play(ctx, env, "gate", "reboot.yml")
			return err
		})
	}}})
	if err != nil {
		return nil, err
	}
	ours := append(samples["gpuguest"], playbook["gpuguest"]...)
	const what = "rebooted guest could answer -> next step runs"
	note := fmt.Sprintf("real sshd behind a port that accepts and is silent for %v to %v; no machine reboots", downFor, downFor+time.Second)
	return []figure{
		{What: what, Unit: "s", Ours: ours, Peer: samples["loop"], Beside: "until ssh -o ConnectTimeout=2 ...; do sleep 1; done", Target: target{atMost, 0.3}, Note: note},
		{What: what, Unit: "s", Ours: ours, Peer: playbook["ansible"], Beside: "ansible.builtin.reboot", Target: target{atMost, 0.3}},
	}, nil
}

// workReboot is gpuguest's side: the connection that the engine reboots by, and the next command.
func workReboot(ctx context.Context, c guest.Config, old string) error {
	conn, err := guest.Dial(ctx, c)
	if err != nil {
		return err
	}
	conn, err = conn.Reboot(ctx, guest.RebootSpec{OldBoot: old, Deadline: time.Minute, Cmd: "touch " + rebootFile})
	if err != nil {
		return err
	}
	defer conn.Close()
	res, err := conn.Run(ctx, guest.Command{Script: stepCommand})
	if err == nil && res.Exit != 0 {
		err = fmt.Errorf("step: exit %d: %s", res.Exit, res.Stderr)
	}
	return err
}
