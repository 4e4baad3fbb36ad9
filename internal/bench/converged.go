//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"gpuguest/assets"
	"gpuguest/internal/choice"
	"gpuguest/internal/engine"
	"gpuguest/internal/facts"
	"gpuguest/internal/guest"
	"gpuguest/internal/plan"
	"gpuguest/internal/sh"
	"gpuguest/steps"
)

// farRTT is how long the far guest's answers take.
const farRTT = 100 * time.Millisecond

// mostExecs is what a converged install may cost.
const mostExecs = 3

// place is where the guest is seen from.
type place struct{ host, name string }

func places() []place { return []place{{"near", "no latency"}, {"far", "100 ms"}} }

// way is one way to do the same thing.
type way struct {
	name string
	run  func() (float64, error)
}

// On a machine that is busy with other things a group of samples takes several times its time. It ends after
// enoughTime once it has leastRuns of each, so that the whole bench stays below its twelve minutes.
const (
	enoughTime = 45 * time.Second
	leastRuns  = 3
)

// inTurn runs each way once, then each again, up to n times: what disturbs the machine disturbs all of them.
func inTurn(n int, ways []way) (map[string][]float64, error) {
	samples := make(map[string][]float64)
	began := time.Now()
	for i := range n {
		if i >= leastRuns && time.Since(began) > enoughTime {
			break
		}
		for _, w := range ways {
			s, err := w.run()
			if err != nil {
				return samples, fmt.Errorf("%s: %w", w.name, err)
			}
			samples[w.name] = append(samples[w.name], s)
		}
	}
	return samples, nil
}

// again runs gpuguest install in the guest in which it has done its work, and sees that it did nothing.
func (b *bench) again(ctx context.Context, host string) (timed, engine.Report, error) {
	var r engine.Report
	t, err := b.time(ctx, nil, b.gpuguest, b.installCommand(host)...)
	if err != nil {
		return t, r, err
	}
	return t, r, didNothing(t.out, &r)
}

// didNothing reads a report and sees that all was met.
func didNothing(report []byte, r *engine.Report) error {
	if err := json.Unmarshal(report, r); err != nil {
		return fmt.Errorf("report: %w", err)
	}
	for _, s := range r.Steps {
		if s.State != engine.Met {
			return fmt.Errorf("step %s is %s (%s): the guest is not converged", s.ID, s.State, s.Detail)
		}
	}
	if len(r.Steps) == 0 || r.Reboots > 0 {
		return fmt.Errorf("%d steps and %d reboots are no converged install", len(r.Steps), r.Reboots)
	}
	return nil
}

// scripts are what a converged install and a verification run in the guest, as command lines for sshd.
type scripts struct {
	Hold   string // takes the lock and runs the facts script
	Checks string // runs every check of an install
	Proofs string // runs every check of a verification
}

// makeScripts asks the guest as gpuguest does and returns what it would have run.
func makeScripts(ctx context.Context, c guest.Config, w choice.Want) (scripts, error) {
	conn, err := guest.Dial(ctx, c)
	if err != nil {
		return scripts{}, err
	}
	defer conn.Close()
	res, err := conn.Run(ctx, guest.Command{Script: assets.Facts})
	if err != nil {
		return scripts{}, err
	}
	f, err := facts.Parse(res.Stdout)
	if err != nil {
		return scripts{}, err
	}
	in, err := plan.Input(f, w)
	if err != nil {
		return scripts{}, err
	}
	p, err := plan.Build(in, steps.Install())
	if err != nil {
		return scripts{}, err
	}
	if in, err = plan.Installed(f, w); err != nil {
		return scripts{}, err
	}
	proofs, err := plan.Proofs(in, steps.Install())
	if err != nil {
		return scripts{}, err
	}
	const path = "export LC_ALL=C PATH=\"$PATH:/usr/local/sbin:/usr/sbin:/sbin\"\n"
	return scripts{
		// The end of the input, which ssh -n gives at once, gives the lock back after the facts.
		Hold:   sh.Join("sh", "-c", path+assets.Hold, "gpuguest", "bench", "0", "--bench", assets.Facts),
		Checks: sh.Join("sh", "-c", path+plan.Checks(p.Distro, p.Items(), "--bench")),
		Proofs: sh.Join("sh", "-c", path+plan.Checks(proofs.Distro, proofs.Items(), "--bench")),
	}, nil
}

// scripts asks the guest what gpuguest would run in it.
func (b *bench) scripts(ctx context.Context) (scripts, error) {
	var s scripts
	want, err := json.Marshal(b.wish.Want)
	if err != nil {
		return s, err
	}
	t, err := b.worker(ctx, "scripts", b.sshConfig(), string(want))
	if err != nil {
		return s, err
	}
	return s, json.Unmarshal(t.out, &s)
}

// sshScripts runs scripts by one ssh and sees that they said something.
func (b *bench) sshScripts(ctx context.Context, host string, script string) (float64, error) {
	t, err := b.time(ctx, nil, "ssh", append([]string{"-n"}, b.ssh(host, script)...)...)
	if err == nil && !strings.Contains(string(t.out), "--bench") {
		err = fmt.Errorf("the scripts said nothing: %q", lastLines(string(t.out), 3))
	}
	return t.seconds, err
}

func converged(ctx context.Context, b *bench) ([]figure, error) {
	s, err := b.scripts(ctx)
	if err != nil {
		return nil, err
	}
	b.net.setRTT(farRTT)
	var figures []figure
	var execs []float64
	for _, p := range places() {
		var inGuest []float64
		ssh := func(script string) (float64, error) { return b.sshScripts(ctx, p.host, script) }
		master := "ControlPath=" + filepath.Join(b.tmp, "master")
		got, err := inTurn(b.runs(map[string]int{"near": 9, "far": 5}[p.host]), []way{
			{"gpuguest", func() (float64, error) {
				t, r, err := b.again(ctx, p.host)
				execs = append(execs, float64(r.Execs))
				inGuest = append(inGuest, r.GuestTime)
				return t.seconds, err
			}},
			{"one", func() (float64, error) { return ssh(s.Hold + "\n" + s.Checks) }},
			{"each", func() (float64, error) {
				first, err := ssh(s.Hold)
				if err != nil {
					return 0, err
				}
				second, err := ssh(s.Checks)
				return first + second, err
			}},
			{"master", func() (float64, error) {
				first, err := b.time(ctx, nil, "ssh", append([]string{"-n", "-o", "ControlMaster=yes", "-o", "ControlPersist=60", "-o", master}, b.ssh(p.host, s.Hold)...)...)
				if err != nil {
					return 0, err
				}
				second, err := b.time(ctx, nil, "ssh", append([]string{"-n", "-o", master}, b.ssh(p.host, s.Checks)...)...)
				_, serr := b.time(ctx, nil, "ssh", append([]string{"-O", "exit", "-o", master}, b.ssh(p.host)...)...)
				return first.seconds + second.seconds, errors.Join(err, serr)
			}},
		})
		if err != nil {
			return figures, err
		}
		limit := map[string]float64{"near": 1.5, "far": 1.1}[p.host]
		for _, peer := range []struct {
			key, words string
			target     target
		}{
			{"one", "ssh, both scripts in one exec", target{timesAtMost, limit}},
			{"each", "ssh once for each script", target{timesAtMost, limit}},
			{"master", "ssh, the second through a ControlMaster", target{timesAtMost, limit}},
		} {
			figures = append(figures, figure{What: "converged install, " + p.name, Unit: "s",
				Ours: got["gpuguest"], Peer: got[peer.key], Beside: peer.words, Target: peer.target})
		}
		figures[len(figures)-1].Note = fmt.Sprintf("of gpuguest's time %.3f s are the two scripts and their answers' way", median(inGuest))
	}
	figures = append(figures, figure{What: "commands of a converged install", Ours: []float64{slices.Max(execs)}, Target: target{atMost, mostExecs},
		Note: "the most of " + fmt.Sprint(len(execs)) + " runs"})
	trips, err := b.roundTrips(ctx, "round trips of a converged install", []way{
		{"gpuguest", func() (float64, error) {
			t, _, err := b.again(ctx, "far")
			return t.seconds, err
		}},
		{"ssh", func() (float64, error) { return b.sshScripts(ctx, "far", s.Hold+"\n"+s.Checks) }},
	})
	return append(figures, trips...), err
}

// roundTrips tells how often gpuguest and its peer, the first and second of the ways, wait for the guest: how much
// longer the fastest of a few runs takes when the way to the guest is longer, in lengths of that way. What the
// machines do meanwhile drops out, and so does what is sent in one go.
func (b *bench) roundTrips(ctx context.Context, what string, ways []way) ([]figure, error) {
	const near, far = 100 * time.Millisecond, 400 * time.Millisecond
	seconds := make(map[string]float64)
	for _, w := range []struct {
		rtt  time.Duration
		sign float64
	}{{near, -1}, {far, 1}} {
		b.net.setRTT(w.rtt)
		got, err := inTurn(b.runs(3), ways)
		if err != nil {
			return nil, err
		}
		for name, samples := range got {
			seconds[name] += w.sign * slices.Min(samples)
		}
	}
	b.net.setRTT(farRTT)
	count := func(w way) []float64 { return []float64{seconds[w.name] / (far - near).Seconds()} }
	return []figure{{What: what, Ours: count(ways[0]), Peer: count(ways[1]), Beside: "ssh, both scripts in one exec", Target: target{timesAtMost, 1},
		Note: fmt.Sprintf("the fastest of the runs at %v less that at %v, over the difference; TCP's and SSH's handshakes and the login are among them", far, near)}}, nil
}

// verifies are the figures of gpuguest verify in a guest that is as it should be, beside the same scripts by ssh.
func verifies(ctx context.Context, b *bench) ([]figure, error) {
	s, err := b.scripts(ctx)
	if err != nil {
		return nil, err
	}
	ways := func(host string) []way {
		return []way{
			{"gpuguest", func() (float64, error) {
				t, err := b.time(ctx, nil, b.gpuguest, b.verifyCommand(host)...)
				var r engine.Report
				return t.seconds, errors.Join(err, didNothing(t.out, &r))
			}},
			{"ssh", func() (float64, error) { return b.sshScripts(ctx, host, s.Hold+"\n"+s.Proofs) }},
		}
	}
	b.net.setRTT(farRTT)
	var figures []figure
	for _, p := range places() {
		got, err := inTurn(b.runs(map[string]int{"near": 9, "far": 5}[p.host]), ways(p.host))
		if err != nil {
			return figures, err
		}
		figures = append(figures, figure{What: "verify of a converged guest, " + p.name, Unit: "s", Ours: got["gpuguest"], Peer: got["ssh"],
			Beside: "ssh, both scripts in one exec", Target: target{timesAtMost, map[string]float64{"near": 1.5, "far": 1.1}[p.host]}})
	}
	trips, err := b.roundTrips(ctx, "round trips of verify", ways("far"))
	return append(figures, trips...), err
}

// besideAnsible holds the converged install against a playbook that does as much by number: a task for each step that
// gpuguest checks, those that prove among them, as its report of this very guest counts them, each a command that does
// nothing, with pipelining. Ansible gathers its facts as gpuguest gathers its own, for both need them to decide, and both
// begin without a connection. gpuguest's lock, its journal and the kernels, packages and files that its facts hold have
// no counterpart and are not counted. The guest of the bench has no GPU, so its steps are fewer than those of a real one,
// each of which costs ansible a process in the guest and gpuguest some lines of a script.
func besideAnsible(ctx context.Context, b *bench) ([]figure, error) {
	_, r, err := b.again(ctx, "near")
	if err != nil {
		return nil, err
	}
	b.net.setRTT(farRTT)
	count := len(r.Steps)
	env, err := b.ansible(map[string]string{"{tasks}": strings.Repeat("    - ansible.builtin.command: /bin/true\n      changed_when: false\n", count)}, "noop.yml")
	if err != nil {
		return nil, err
	}
	var figures []figure
	for _, p := range places() {
		got, err := inTurn(b.runs(3), []way{
			{"gpuguest", func() (float64, error) {
				t, _, err := b.again(ctx, p.host)
				return t.seconds, err
			}},
			{"noop", func() (float64, error) {
				t, err := b.worker(ctx, "noop", b.sshConfig(), p.host, strconv.Itoa(count))
				var r engine.Report
				return t.seconds, errors.Join(err, didNothing(t.out, &r))
			}},
			{"ansible", func() (float64, error) {
				t, err := b.play(ctx, env, p.host, "noop.yml")
				return t.seconds, err
			}},
		})
		if err != nil {
			return figures, err
		}
		peer := fmt.Sprintf("ansible-playbook, facts and %d no-op tasks, pipelining", count)
		figures = append(figures,
			figure{What: "converged install, " + p.name, Unit: "s", Ours: got["gpuguest"], Peer: got["ansible"], Beside: peer,
				Target: target{timesFaster, map[string]float64{"near": 40, "far": 6}[p.host]}},
			figure{What: fmt.Sprintf("facts and %d no-op steps, %s", count, p.name), Unit: "s", Ours: got["noop"], Peer: got["ansible"], Beside: peer})
	}
	figures[0].Note = "gpuguest's steps are its real checks, ansible's tasks do nothing; the rows of no-op steps compare like with like, by gpuguest's engine"
	return figures, nil
}

// workNoop is what ansible is asked to do, done by gpuguest's engine: facts, and steps with nothing to do.
func workNoop(ctx context.Context, c guest.Config, count int) (engine.Report, error) {
	var items []plan.Item
	for i := range count {
		items = append(items, plan.Item{ID: steps.ID("noop-" + strconv.Itoa(i)), Check: "/bin/true"})
	}
	return engine.Run(ctx, engine.Config{
		Host: c.Host, Owner: "bench", LockWait: time.Second, Reboot: choice.RebootNever, Patience: time.Second,
		Dial: func(ctx context.Context) (*guest.Conn, error) { return guest.Dial(ctx, c) },
		Plan: func(facts.Facts) (plan.Plan, error) { return plan.Plan{Segments: []plan.Segment{{Items: items}}}, nil },
	})
}

// ansible writes a playbook from its template, and the configuration that goes with it, and returns the
// environment to run it in.
func (b *bench) ansible(fill map[string]string, playbook string) ([]string, error) {
	fill["{ssh_config}"] = b.sshConfig()
	fill["{tmp}"] = b.tmp
	for _, name := range []string{"ansible.cfg", "inventory.ini", playbook} {
		text, err := os.ReadFile(filepath.Join(b.source, name))
		if err != nil {
			return nil, err
		}
		out := string(text)
		for from, to := range fill {
			out = strings.ReplaceAll(out, from, to)
		}
		if err := os.WriteFile(filepath.Join(b.tmp, name), []byte(out), 0o600); err != nil {
			return nil, err
		}
	}
	return []string{"ANSIBLE_CONFIG=" + filepath.Join(b.tmp, "ansible.cfg"), "LC_ALL=C.UTF-8"}, nil
}

// play runs a playbook cold: no connection of an earlier run is there.
func (b *bench) play(ctx context.Context, env []string, host, playbook string) (timed, error) {
	t, err := b.time(ctx, env, "ansible-playbook", "-i", "inventory.ini", "-l", host, playbook)
	masters, gerr := filepath.Glob(filepath.Join(b.tmp, "cp", "*"))
	for _, m := range masters {
		_, _ = b.time(ctx, nil, "ssh", append([]string{"-O", "exit", "-o", "ControlPath=" + m}, b.ssh(host)...)...)
	}
	return t, errors.Join(err, gerr)
}
