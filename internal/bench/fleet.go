//go:build linux

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"gpuguest/internal/engine"
	"gpuguest/internal/fleet"
	"gpuguest/internal/guest"
)

const (
	fleetPort    = 20000           // of the first pretend guest
	fleetMost    = 1000            // guests
	patienceEach = 5 * time.Minute // for one run of a peer
)

// fleets are the figures of many guests: a converged install of pretend guests, which shows what the client costs,
// and three commands each in guests that share one real sshd, beside those who do the same.
func fleets(ctx context.Context, b *bench) ([]figure, error) {
	figures, err := b.pretendFleet(ctx)
	if err != nil {
		return figures, err
	}
	peers, err := b.fleetPeers(ctx)
	figures = append(figures, peers...)
	if err != nil {
		return figures, err
	}
	sent, err := b.fleetUpload(ctx)
	return append(figures, sent...), err
}

func (b *bench) pretendFleet(ctx context.Context) (figures []figure, err error) {
	b.net.setRTT(farRTT)
	serve := exec.CommandContext(ctx, b.self, "worker", "pretend", b.sshConfig(), b.tmp, filepath.Join(b.guests, fleetRecorded),
		nearAddress+","+farAddress, strconv.Itoa(fleetPort), strconv.Itoa(fleetMost))
	serve.Stderr = os.Stderr
	in, err := serve.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := serve.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := inNamespace(b.net.guest, serve.Start); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, in.Close(), serve.Wait()) }()
	if line, rerr := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		return nil, fmt.Errorf("the pretend guests do not come up: %q, %w", line, rerr)
	}
	for _, p := range []struct{ address, name string }{{nearAddress, "no latency"}, {farAddress, "100 ms"}} {
		for _, n := range []int{1, 20, 200, fleetMost} {
			runs := b.runs(3)
			var wall, cpu, peak, execs []float64
			args, err := b.fleetCommand(p.address, n)
			if err != nil {
				return figures, err
			}
			for range runs {
				t, err := b.time(ctx, nil, b.gpuguest, args...)
				if err != nil {
					return figures, err
				}
				most, err := fleetDidNothing(t.out, n)
				if err != nil {
					return figures, err
				}
				wall, cpu, execs = append(wall, t.seconds), append(cpu, t.cpu), append(execs, most)
			}
			t, err := b.peak(ctx, b.gpuguest, args...)
			if err != nil {
				return figures, err
			}
			peak = append(peak, t.peak)
			what := fmt.Sprintf("converged install of %d, %s", n, p.name)
			limits := [2]target{}
			if n == fleetMost && p.address == nearAddress {
				limits = [2]target{{atMost, 3}, {atMost, 150}}
			}
			figures = append(figures,
				figure{What: what, Unit: "s", Ours: wall, Target: limits[0]},
				figure{What: what + ", processor", Unit: "s", Ours: cpu},
				figure{What: what + ", peak memory", Unit: "MB", Ours: peak, Target: limits[1]})
			if n == fleetMost {
				figures = append(figures, figure{What: "commands a guest, the most", Ours: execs, Target: target{atMost, mostExecs}})
			}
		}
	}
	figures[0].Note = "pretend guests: SSH servers in one other process, which answer with a recording and run nothing; client and servers share the processors"
	return figures, nil
}

// fleetCommand is an install of the first n pretend guests.
func (b *bench) fleetCommand(address string, n int) ([]string, error) {
	whole, err := os.ReadFile(filepath.Join(b.tmp, "fleet-"+address+".yaml"))
	if err != nil {
		return nil, err
	}
	lines := strings.SplitAfter(string(whole), "\n")
	file := filepath.Join(b.tmp, fmt.Sprintf("fleet-%s-%d.yaml", address, n))
	return []string{"install", "--inventory", file, "--json"}, os.WriteFile(file, []byte(strings.Join(lines[:2+n], "")), 0o600)
}

// fleetDidNothing sees that all n guests were found converged, and returns the most commands that one took.
func fleetDidNothing(out []byte, n int) (float64, error) {
	var doc struct{ Guests []json.RawMessage }
	if err := json.Unmarshal(out, &doc); err != nil {
		return 0, fmt.Errorf("report: %w", err)
	}
	if len(doc.Guests) != n {
		return 0, fmt.Errorf("a report of %d guests, wanted %d", len(doc.Guests), n)
	}
	most := 0
	for _, raw := range doc.Guests {
		var r engine.Report
		if err := didNothing(raw, &r); err != nil {
			return 0, fmt.Errorf("%s: %w", r.Host, err)
		}
		most = max(most, r.Execs)
	}
	return float64(most), nil
}

// fleetPeers has the same three commands done in guests that are one real sshd by many names.
func (b *bench) fleetPeers(ctx context.Context) ([]figure, error) {
	env, err := b.ansible(map[string]string{}, "fleet.yml")
	if err != nil {
		return nil, err
	}
	var figures []figure
	ansibleTook := time.Duration(0)
	for _, n := range []int{50, 200} {
		var names strings.Builder
		for i := range n {
			fmt.Fprintf(&names, "fleet-%03d\n", i)
		}
		hosts := filepath.Join(b.tmp, fmt.Sprintf("fleet-%d", n))
		if err := errors.Join(os.WriteFile(hosts, []byte(names.String()), 0o600),
			os.WriteFile(hosts+".ini", []byte("[fleet]\n"+names.String()), 0o600)); err != nil {
			return figures, err
		}
		ours := func() (float64, error) {
			t, err := b.worker(ctx, "fleet", b.sshConfig(), strconv.Itoa(n))
			return t.seconds, err
		}
		limited := func(run func(context.Context) (timed, error)) (float64, error) {
			ctx, cancel := context.WithTimeout(ctx, patienceEach)
			defer cancel()
			t, err := run(ctx)
			return t.seconds, err
		}
		pssh := func() (float64, error) {
			return limited(func(ctx context.Context) (timed, error) {
				return b.time(ctx, nil, "parallel-ssh", "-h", hosts, "-p", strconv.Itoa(n), "-t", "0", "-x", "-F "+b.sshConfig(), "true; true; true")
			})
		}
		got, err := inTurn(b.runs(3), []way{{"gpuguest", ours}, {"pssh", pssh}})
		if err != nil {
			return figures, err
		}
		what := fmt.Sprintf("three commands in %d guests", n)
		figures = append(figures, figure{What: what, Unit: "s", Ours: got["gpuguest"], Peer: got["pssh"],
			Beside: fmt.Sprintf("pssh -p %d, the three in one", n), Target: target{timesFaster, 2}})
		faster := figure{What: what, Unit: "s", Ours: got["gpuguest"], Beside: fmt.Sprintf("ansible -f %d, three tasks, no facts, pipelining", n),
			Target: target{timesFaster, map[int]float64{50: 15, 200: 20}[n]}}
		// Four times the guests take ansible about five times as long.
		if why := notMeasured(ansibleTook, b.quick && n > 50); why != "" {
			faster.Beside, faster.Note = fmt.Sprintf("ansible -f %d, not measured", n), why
			figures = append(figures, faster)
			continue
		}
		began := time.Now()
		seconds, err := limited(func(ctx context.Context) (timed, error) {
			return b.time(ctx, env, "ansible-playbook", "-i", hosts+".ini", "-f", strconv.Itoa(n), "fleet.yml")
		})
		if err != nil {
			return figures, err
		}
		ansibleTook = time.Since(began)
		b.leaveMasters(ctx)
		faster.Peer = []float64{seconds}
		figures = append(figures, faster)
	}
	if len(figures) > 0 {
		figures[0].Note = "the guests are one real sshd by many names, on the client's own processors; gpuguest's own dialling, gate and commands, three one after the other"
	}
	return figures, nil
}

// notMeasured says why ansible is not run with four times as many guests, for which it takes about five times as long;
// "" where it is. before is how long it took, 0 unknown.
func notMeasured(before time.Duration, quick bool) string {
	switch {
	case quick:
		return "ansible was not measured: QUICK leaves it out"
	case 5*before > patienceEach:
		return fmt.Sprintf("ansible was not measured: it took %.0f s for a quarter of the guests, and five times that is more than the %.0f s that a run may take",
			before.Seconds(), patienceEach.Seconds())
	}
	return ""
}

// fleetUploads is how many guests are sent a file. They are one real guest, whose tmpfs must hold it as often.
const fleetUploads = 20

// roomForUploads is how many bytes the file may have, at most uploadBytes. A container's tmpfs has a tenth of the
// machine's memory, and is made larger where three times that is free.
func (b *bench) roomForUploads(ctx context.Context) (int64, error) {
	const all = fleetUploads * uploadBytes
	script := fmt.Sprintf(`if [ "$(awk '$1 == "MemAvailable:" { print $2 }' /proc/meminfo)" -gt %d ]; then mount -o remount,size=%dk %s 2>/dev/null || :; fi
df -Pk %[3]s | awk 'NR == 2 { print $4 }'`, 3*all>>10, (all+all/16)>>10, filepath.Dir(uploadTo))
	t, err := b.time(ctx, nil, "ssh", append([]string{"-n"}, b.ssh("near", script)...)...)
	if err != nil {
		return 0, err
	}
	free, err := strconv.ParseInt(strings.TrimSpace(string(t.out)), 10, 64)
	return min(uploadBytes, (free<<10-free<<6)/fleetUploads>>20<<20), err
}

// fleetUpload has one file sent to many guests, by gpuguest's own code and by as many scp.
func (b *bench) fleetUpload(ctx context.Context) ([]figure, error) {
	whole, _, err := b.payload()
	if err != nil {
		return nil, err
	}
	size, err := b.roomForUploads(ctx)
	if err != nil {
		return nil, err
	}
	if err := os.Truncate(whole, size); err != nil {
		return nil, err
	}
	sum, err := b.time(ctx, nil, "sha256sum", whole)
	if err != nil {
		return nil, err
	}
	sha := string(sum.out[:64])
	arrived := func() error {
		t, err := b.time(ctx, nil, "ssh", append([]string{"-n"}, b.ssh("near", "sha256sum "+uploadTo+"-*; rm -rf "+uploadTo+"-* /var/lib/gpuguest/stamps")...)...)
		if n := strings.Count(string(t.out), sha); err == nil && n != fleetUploads {
			err = fmt.Errorf("%d files are whole of %d", n, fleetUploads)
		}
		return err
	}
	got, err := inTurn(b.runs(3), []way{
		{"gpuguest", func() (float64, error) {
			t, err := b.worker(ctx, "fleet-put", b.sshConfig(), whole, sha)
			return t.seconds, errors.Join(err, arrived())
		}},
		{"scp", func() (float64, error) {
			script := fmt.Sprintf("i=0; while [ $i -lt %d ]; do scp -q -F %s %s fleet-$i:%s-$i & i=$((i + 1)); done; wait", fleetUploads, b.sshConfig(), whole, uploadTo)
			t, err := b.time(ctx, nil, "sh", "-c", script)
			return t.seconds, errors.Join(err, arrived())
		}},
	})
	note := "whole processes; tmpfs to tmpfs; the guests are one real sshd by many names"
	if size < uploadBytes {
		note += fmt.Sprintf("; its tmpfs has no room for %d times %d MiB", fleetUploads, uploadBytes>>20)
	}
	return []figure{{What: fmt.Sprintf("%d MiB to each of %d guests", size>>20, fleetUploads), Unit: "s", Ours: got["gpuguest"], Peer: got["scp"],
		Beside: fmt.Sprintf("%d scp at once", fleetUploads), Note: note}}, err
}

// workFleetPut sends one file to many guests, as many at once as gpuguest does.
func workFleetPut(ctx context.Context, config func(host string) guest.Config, file, sum string) error {
	turns := fleet.NewTurns(fleet.SendsAtOnce)
	return errors.Join(fleet.Run(ctx, fleet.Config{Guests: fleetUploads, Parallel: fleetUploads, Run: func(ctx context.Context, i int) error {
		return workPut(ctx, config(fmt.Sprintf("fleet-%d", i)), upload{file, fmt.Sprintf("%s-%d", uploadTo, i), sum, turns.Take})
	}})...)
}

// leaveMasters ends the connections that ansible leaves open.
func (b *bench) leaveMasters(ctx context.Context) {
	masters, err := filepath.Glob(filepath.Join(b.tmp, "cp", "*"))
	if err != nil {
		return
	}
	for _, m := range masters {
		_, _ = b.time(ctx, nil, "ssh", append([]string{"-O", "exit", "-o", "ControlPath=" + m}, b.ssh("near")...)...)
	}
}

// workFleet runs three commands in each of n guests, all at once as far as the gate lets them.
func workFleet(ctx context.Context, config func(host string) guest.Config, n int) error {
	gate := fleet.NewGate()
	errs := fleet.Run(ctx, fleet.Config{Guests: n, Parallel: n, Run: func(ctx context.Context, i int) error {
		c := config(fmt.Sprintf("fleet-%03d", i))
		c.Gate = gate.Enter
		conn, err := guest.Dial(ctx, c)
		if err != nil {
			return err
		}
		defer conn.Close()
		for range 3 {
			res, err := conn.Run(ctx, guest.Command{Script: "true"})
			if err != nil || res.Exit != 0 {
				return errors.Join(err, fmt.Errorf("exit %d", res.Exit))
			}
		}
		return nil
	}})
	return errors.Join(errs...)
}
