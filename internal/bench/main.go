//go:build linux

// Command bench measures gpuguest beside its peers in the same run: OpenSSH's client, scp and ansible, against
// one guest, in turn. It prints a table, a row a figure, and says of each whether its target is reached.
//
// It needs root, and a mount and process namespace of its own (testdata/bench/run.sh makes them), so that
// nothing of it outlives it. It is no part of gpuguest and changes nothing of this machine but its cache.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stdout)
	if err != nil {
		fmt.Fprintf(os.Stderr, "bench: error: %v\n", err)
		stop()
		os.Exit(1)
	}
}

// bench is one run.
type bench struct {
	gpuguest string // the binary that is measured
	self     string // this binary, for its workers
	source   string // testdata/bench
	guests   string // testdata/guests
	real     bool   // NVIDIA's real driver in place of the lab's stand-in
	quick    bool   // one sample of everything, to see that it works
	report   string // JSON report of an install elsewhere, "" none
	tmp      string // a tmpfs
	net      *network
	guest    *machine
	wish     wish
	install  installRun
}

// row is one group of figures, chosen by its name.
type row struct {
	name      string
	converged bool // needs a guest in which gpuguest has done its work
	long      bool // is measured only when it is named
	measure   func(context.Context, *bench) ([]figure, error)
}

var rows = []row{
	{name: "resources", converged: true, measure: resources},
	{name: "overhead", converged: true, measure: overhead},
	{name: "converged", converged: true, measure: converged},
	{name: "verify", converged: true, measure: verifies},
	{name: "ansible", converged: true, measure: besideAnsible},
	{name: "reboot", measure: reboots},
	{name: "upload", measure: uploads},
	{name: "fleet", measure: fleets},
	{name: "page", measure: pages},
	{name: "log", measure: logs},
	{name: "bake", long: true, measure: bakes},
}

func run(ctx context.Context, args []string, out io.Writer) error {
	if len(args) > 0 && args[0] == "worker" {
		return work(ctx, args[1:], out)
	}
	b := &bench{}
	var names, asJSON string
	var reuse bool
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.StringVar(&b.gpuguest, "gpuguest", "bin/gpuguest", "binary to measure")
	f.StringVar(&b.source, "source", "testdata/bench", "folder of the bench's own files")
	f.StringVar(&b.guests, "guests", "testdata/guests", "folder of recorded guests")
	f.StringVar(&names, "row", "", "rows to measure, separated by commas; all when empty")
	f.StringVar(&asJSON, "json", "", "file to write the figures and every sample to")
	f.BoolVar(&reuse, "reuse", false, "take the guest that the last run installed, and its install's figures")
	f.BoolVar(&b.quick, "quick", false, "one sample of everything, to see that it works")
	f.BoolVar(&b.real, "real", false, "install NVIDIA's real driver, which takes minutes to build")
	f.StringVar(&b.report, "report", "", "take the install's overhead from this report of gpuguest install --json")
	if err := f.Parse(args); err != nil {
		return err
	}
	chosen, err := choose(names)
	if err != nil {
		return err
	}
	figures, err := b.measure(ctx, chosen, reuse)
	if len(figures) > 0 {
		if perr := printTable(out, figures); perr != nil {
			return perr
		}
		for _, line := range b.conditions(ctx) {
			fmt.Fprintln(out, line)
		}
		if asJSON != "" {
			text, jerr := json.MarshalIndent(summarise(figures), "", "  ")
			err = errors.Join(err, jerr, os.WriteFile(asJSON, append(text, '\n'), 0o644))
		}
	}
	return err
}

// conditions say what was measured and what stood in for what.
func (b *bench) conditions(ctx context.Context) []string {
	version := func(name, arg string) string {
		out, err := exec.CommandContext(ctx, name, arg).CombinedOutput()
		if err != nil {
			return name + " of unknown version"
		}
		first, _, _ := strings.Cut(string(out), "\n")
		return first
	}
	load, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		load = []byte("unknown")
	}
	driver := "none"
	if b.wish.What != "" {
		driver = b.wish.What + ", installed by gpuguest"
	}
	return []string{
		"guest: this machine's Debian in a system container: its own systemd, package database and stock sshd, this machine's kernel; no GPU, gpuguest is told of " + guestDevice,
		"driver: " + driver,
		"way: two network namespaces; no latency: a veth pair; else two TUN devices with a delay line in user space between them, real TCP, no loss",
		"peers: " + version("ssh", "-V") + "; " + version("ansible-playbook", "--version"),
		fmt.Sprintf("machine: %d processors, which client, guest and delay line share; load %s", runtime.NumCPU(), strings.TrimSpace(string(load))),
	}
}

func choose(names string) ([]row, error) {
	if names == "" {
		return slices.DeleteFunc(slices.Clone(rows), func(r row) bool { return r.long }), nil
	}
	var chosen []row
	for name := range strings.SplitSeq(names, ",") {
		i := slices.IndexFunc(rows, func(r row) bool { return r.name == name })
		if i < 0 {
			return nil, fmt.Errorf("no row %q: there are resources, overhead, converged, verify, ansible, reboot, upload, fleet, page, log and bake", name)
		}
		chosen = append(chosen, rows[i])
	}
	return chosen, nil
}

// measured is a figure with what follows from it.
type measured struct {
	figure
	Median     float64 `json:"ours_median"`
	PeerMedian float64 `json:"peer_median,omitempty"`
	Ratio      float64 `json:"ratio,omitempty"`
	Met        *bool   `json:"met,omitempty"`
}

func summarise(figures []figure) []measured {
	var all []measured
	for _, f := range figures {
		m := measured{figure: f, Median: median(f.Ours), PeerMedian: median(f.Peer), Ratio: f.ratio()}
		if met, known := f.met(); known {
			m.Met = &met
		}
		all = append(all, m)
	}
	return all
}

func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, time.Now().UTC().Format("15:04:05 ")+format+"\n", args...)
}

// runs is how many samples are taken, or one in a quick run.
func (b *bench) runs(n int) int {
	if b.quick {
		return 1
	}
	return n
}

// measure makes the guest and the network, takes the rows' figures and takes everything down again. A row
// that fails costs that row; the others are measured and the error is returned with them.
func (b *bench) measure(ctx context.Context, chosen []row, reuse bool) (figures []figure, err error) {
	if os.Getuid() != 0 {
		return nil, errors.New("the bench boots a guest and makes network devices, which takes root")
	}
	if os.Getpid() != 1 {
		return nil, errors.New("the bench mounts file systems, so it runs in namespaces of its own: start it by testdata/bench/run.sh")
	}
	if err := b.absolute(); err != nil {
		return nil, err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return nil, err
	}
	cache = filepath.Join(cache, "gpuguest-bench")
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return nil, err
	}
	scratch, err := os.MkdirTemp(cache, "run-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(scratch)) }()
	b.tmp = filepath.Join(scratch, "tmp")
	for _, dir := range []string{b.tmp, "/run/netns"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
			return nil, fmt.Errorf("mount a tmpfs on %s: %w", dir, err)
		}
		defer unix.Unmount(dir, unix.MNT_DETACH)
	}

	b.say("the guest's base system")
	base, err := makeBase(ctx, cache, filepath.Join(b.source, "base.sh"))
	if err != nil {
		return nil, err
	}
	layers := []string{base}
	if slices.ContainsFunc(chosen, func(r row) bool { return r.converged }) {
		installed, err := b.installed(ctx, installSpec{cache: cache, base: base, scratch: scratch, reuse: reuse})
		if err != nil {
			return nil, fmt.Errorf("install in the guest: %w", err)
		}
		layers = []string{installed, base}
	}
	if b.net, err = newNetwork(ctx); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.net.close(context.WithoutCancel(ctx))) }()
	if b.guest, err = newMachine(filepath.Join(scratch, "guest"), b.tmp, layers...); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.guest.close()) }()
	if err := b.guest.prepare(ctx); err != nil {
		return nil, err
	}
	stop, err := b.guest.boot(ctx, b.net.guest, "near")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, stop()) }()

	var failed []error
	for _, r := range chosen {
		b.say("row %s", r.name)
		got, err := r.measure(ctx, b)
		for i := range got {
			got[i].Row = r.name
		}
		figures = append(figures, got...)
		if err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", r.name, err))
		}
		if ctx.Err() != nil {
			break
		}
	}
	return figures, errors.Join(failed...)
}

// absolute makes the paths independent of the folder that a worker is started in.
func (b *bench) absolute() error {
	var err error
	if b.self, err = os.Executable(); err != nil {
		return err
	}
	for _, p := range []*string{&b.gpuguest, &b.source, &b.guests} {
		if *p, err = filepath.Abs(*p); err != nil {
			return err
		}
	}
	if _, err := os.Stat(b.gpuguest); err != nil {
		return fmt.Errorf("the binary to measure: %w", err)
	}
	return nil
}

// timed is one run of a program on the client's side.
type timed struct {
	seconds float64
	cpu     float64 // seconds of processor time, of the program and those that it waited for
	peak    float64 // resident memory in MB of 10^6 bytes; only of a run by peak
	out     []byte
}

// time runs a program in the client's namespace, from its start to its end.
func (b *bench) time(ctx context.Context, env []string, name string, args ...string) (timed, error) {
	return b.runProgram(ctx, program{env: env, name: name, args: args})
}

// peak does so and watches the program's memory, which would disturb a measurement of time.
func (b *bench) peak(ctx context.Context, name string, args ...string) (timed, error) {
	return b.runProgram(ctx, program{name: name, args: args, watch: true})
}

type program struct {
	env   []string
	name  string
	args  []string
	watch bool
}

func (b *bench) runProgram(ctx context.Context, p program) (timed, error) {
	cmd := exec.CommandContext(ctx, p.name, p.args...)
	cmd.Env = append(os.Environ(), p.env...)
	cmd.Dir = b.tmp
	var out, said strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &said
	var t timed
	err := inNamespace(b.net.client, func() error {
		began := time.Now()
		if err := cmd.Start(); err != nil {
			return err
		}
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		var err error
		if p.watch {
			t.peak, err = watch(cmd.Process.Pid, ended)
		} else {
			err = <-ended
		}
		t.seconds = time.Since(began).Seconds()
		if cmd.ProcessState != nil {
			t.cpu = (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds()
		}
		return err
	})
	t.out = []byte(out.String())
	if err != nil {
		return t, fmt.Errorf("%s: %w: %s", filepath.Base(p.name), err, lastLines(said.String()+out.String(), 15))
	}
	return t, nil
}

// watch reads a process's peak of resident memory until it ends. The figure of wait4(2) would not do: it
// counts what this process held when it forked.
func watch(pid int, ended <-chan error) (peak float64, err error) {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case err := <-ended:
			return peak, err
		case <-tick.C:
		}
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			continue // it ends just now
		}
		for line := range strings.Lines(string(status)) {
			f := strings.Fields(line)
			if len(f) == 3 && f[0] == "VmHWM:" {
				if kb, err := strconv.ParseFloat(f[1], 64); err == nil {
					peak = max(peak, kb*1024/1e6)
				}
			}
		}
	}
}

func (b *bench) sshConfig() string { return filepath.Join(b.tmp, "ssh_config") }

func (b *bench) ssh(host string, args ...string) []string {
	return append([]string{"-F", b.sshConfig(), host}, args...)
}

// worker runs one of this program's own workers in the client's namespace.
func (b *bench) worker(ctx context.Context, args ...string) (timed, error) {
	return b.time(ctx, nil, b.self, append([]string{"worker"}, args...)...)
}
