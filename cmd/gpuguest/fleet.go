package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"gpuguest/internal/engine"
	"gpuguest/internal/fleet"
	"gpuguest/internal/guest"
	"gpuguest/internal/inventory"
	"gpuguest/internal/report"
	"gpuguest/steps"
)

// batch is one invocation for many guests.
type batch struct {
	*app
	make  func(*app) *cobra.Command // the command, for each guest anew
	given *pflag.FlagSet            // the command line

	inventory, limit, shard string
	parallel, canary        int
	maxFailures             int
	serialReboots, shards   int
	askPassword, askSudo    bool

	names  []string // flags of the batch, which no guest has of its own
	shared sharedWork
	known  guest.KnownHosts
}

// forMany makes a command that works on one guest work on many. Each guest has the command to itself, with its own
// flags, in a goroutine that goes as far as converge and waits there until the fleet gives the guest its turn.
func (a *app) forMany(make func(*app) *cobra.Command) *cobra.Command {
	c := make(a)
	b := &batch{app: a, make: make, given: c.Flags(), names: []string{"host", "json", "help", "log-dir", "html", "junit", "prometheus"}}
	f := pflag.NewFlagSet("", pflag.ContinueOnError)
	f.StringVar(&b.inventory, "inventory", "", "guests in a `FILE`: gpuguest's YAML, an Ansible inventory, or names; - is standard input")
	f.StringVar(&b.limit, "limit", "", "of the inventory only these, `PATTERN`: names and groups with *, separated by commas; ! takes away")
	f.IntVar(&b.parallel, "parallel", 0, "`N` guests at once (default: as many as memory and open files allow)")
	f.IntVar(&b.canary, "canary", 0, "the first `N` guests must succeed before the rest start")
	f.IntVar(&b.maxFailures, "max-failures", 0, "start no more guests once `N` have failed (default: all start)")
	f.IntVar(&b.serialReboots, "serial-reboots", 0, "at most `N` guests reboot at once (default: any number)")
	f.StringVar(&b.shard, "shard", "", "only this share of the guests, `I/N` (default: a Slurm job array's task is its share)")
	f.IntVar(&b.shards, "shards", 0, "`N` shares; which one is in JOB_COMPLETION_INDEX, as in a Kubernetes Indexed Job")
	f.BoolVar(&b.askPassword, "ask-password", false, "ask once for the login password of all guests")
	f.BoolVar(&b.askSudo, "ask-sudo-password", false, "ask once for the sudo password of all guests")
	f.VisitAll(func(flag *pflag.Flag) {
		c.Flags().AddFlag(flag)
		b.names = append(b.names, flag.Name)
	})
	c.Flags().Lookup("host").Usage += "; may be given more than once"
	c.Use = strings.Replace(c.Use, "--host GUEST", "{--host GUEST ... | --inventory FILE}", 1)
	c.Example += fmt.Sprintf("\n  gpuguest %s --inventory hosts.yaml --canary 2 --max-failures 5", c.Name())
	one := c.RunE
	c.RunE = func(c *cobra.Command, args []string) error {
		if err := b.check(); err != nil {
			return err
		}
		if len(a.hosts) < 2 && b.inventory == "" {
			return one(c, args)
		}
		if err := noArgs(c, args); err != nil {
			return err
		}
		return b.run(c.Context())
	}
	return c
}

func (b *batch) check() error {
	for name, n := range map[string]int{"parallel": b.parallel, "canary": b.canary, "max-failures": b.maxFailures, "serial-reboots": b.serialReboots, "shards": b.shards} {
		if n < 0 {
			return fmt.Errorf("--%s %d: it is a number of guests", name, n)
		}
	}
	switch {
	case b.inventory != "" && len(b.hosts) > 0:
		return errors.New("--host and --inventory: one of them; --limit picks guests of an inventory")
	case b.inventory == "" && b.limit != "":
		return errors.New("--limit picks guests of an --inventory")
	case b.shard != "" && b.shards > 0:
		return errors.New("--shard and --shards: one of them")
	case b.inventory == "" && (b.shard != "" || b.shards > 0):
		return errors.New("--shard takes a share of an --inventory")
	}
	return nil
}

// guests are those that this invocation is to work on.
func (b *batch) guests() ([]inventory.Guest, error) {
	if b.inventory == "" {
		var all []inventory.Guest
		for i, h := range b.hosts {
			if !slices.Contains(b.hosts[:i], h) {
				all = append(all, inventory.Guest{Name: h})
			}
		}
		return all, nil
	}
	src := inventory.Source{Name: b.inventory, Check: b.checkOption()}
	var err error
	if b.inventory == "-" {
		src.Text, err = io.ReadAll(b.in)
	} else {
		src.Text, err = os.ReadFile(b.inventory)
		src.Vars = os.DirFS(filepath.Dir(b.inventory))
	}
	if err != nil {
		return nil, fmt.Errorf("inventory: %w", err)
	}
	inv, err := inventory.Parse(src)
	if err != nil {
		return nil, err
	}
	for _, n := range inv.Notices {
		fmt.Fprintf(b.err, "gpuguest: %s\n", n)
	}
	if len(inv.Guests) == 0 {
		return nil, fmt.Errorf("%s: an inventory without a guest", b.inventory)
	}
	all := inv.Guests
	if b.limit != "" {
		if all, err = inventory.Limit(all, b.limit); err != nil {
			return nil, err
		}
	}
	return b.share(all)
}

// share leaves this machine's share of the guests.
func (b *batch) share(all []inventory.Guest) ([]inventory.Guest, error) {
	s, from, err := fleet.Shard{}, "", error(nil)
	if b.shard != "" {
		if s, err = fleet.ParseShard(b.shard); err != nil {
			return nil, fmt.Errorf("--shard %w", err)
		}
	} else if s, from, err = fleet.EnvShard(os.Getenv, b.shards); err != nil {
		return nil, err
	}
	mine := slices.DeleteFunc(slices.Clone(all), func(g inventory.Guest) bool { return !s.Has(g.Name) })
	if from != "" {
		fmt.Fprintf(b.err, "gpuguest: share %v by %s: %d of %s\n", s, from, len(mine), report.Count(len(all), "guest"))
	}
	return mine, nil
}

// checkOption returns what judges an inventory's options: by install's flags, whichever command is run, so that one
// inventory does for all of them.
func (b *batch) checkOption() func(string, []string) error {
	flags := newInstall(&app{}).Flags()
	return func(name string, values []string) error {
		flag := flags.Lookup(name)
		if flag == nil || slices.Contains(b.names, name) {
			return fmt.Errorf("unknown option %q: they are the flags of gpuguest install, without their dashes", name)
		}
		list, ok := flag.Value.(pflag.SliceValue)
		if !ok && len(values) != 1 {
			return fmt.Errorf("%s: one value, not %d", name, len(values))
		}
		if ok {
			return list.Replace(values)
		}
		return setFlag(flags, name, values)
	}
}

// setFlag gives a flag its values, in the words of an inventory.
func setFlag(flags *pflag.FlagSet, name string, values []string) error {
	flag := flags.Lookup(name)
	word, _ := pflag.UnquoteUsage(flag)
	for _, v := range values {
		if word == "FILE" {
			// A shell does this on the command line.
			if rest, ok := strings.CutPrefix(v, "~/"); ok {
				if home, err := os.UserHomeDir(); err == nil {
					v = filepath.Join(home, rest)
				}
			}
		}
		is := map[string]string{"bool": "true or false", "int": "a whole number", "duration": "a duration, as in 90s or 10m"}[flag.Value.Type()]
		if flag.Value.Type() == "bool" {
			// YAML's own words of old, which Ansible's users write.
			switch strings.ToLower(v) {
			case "yes", "on":
				v = "true"
			case "no", "off":
				v = "false"
			}
		}
		if err := flags.Set(name, v); err != nil {
			if is != "" {
				return fmt.Errorf("%s %q: it is %s", name, v, is)
			}
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	if n, err := strconv.Atoi(values[0]); name == "port" && (err != nil || n < 1 || n > 65535) {
		return fmt.Errorf("port %q: it is a number from 1 to 65535", values[0])
	}
	return nil
}

// member is one guest of a batch.
type member struct {
	name, address string
	given         *pflag.FlagSet // the command line
	password      []byte         // nil: none
	sudoPassword  []byte         // nil: none
	known         *guest.KnownHosts
	shared        *sharedWork
	gate          *fleet.Gate // of the batch
	work          func(context.Context, engine.Config) (engine.Report, error)

	reached chan struct{} // closed when the command has come to its engine run
	turn    chan bool     // true: run; closed: the guest is left out
	ended   chan error    // what the command returned
	report  engine.Report // once it has ended
}

// errLeftOut ends the command of a guest that is not to run.
var errLeftOut = errors.New("left out")

// run is where the command of one guest waits for its turn, and then runs the engine.
func (m *member) run(ctx context.Context, cfg engine.Config) error {
	close(m.reached)
	if !<-m.turn {
		return errLeftOut
	}
	var err error
	m.report, err = m.work(ctx, cfg)
	return err
}

// begin runs the command up to there. Its error is what was wrong with the guest's flags. After nil the command waits,
// and either run or leave must be called on it once.
func (m *member) begin(ctx context.Context, c *cobra.Command) error {
	m.reached, m.turn, m.ended = make(chan struct{}), make(chan bool, 1), make(chan error, 1)
	c.SetContext(ctx)
	go func() { m.ended <- c.RunE(c, nil) }()
	select {
	case <-m.reached:
		return nil
	case err := <-m.ended:
		return err
	}
}

// goOn has the command run to its end and returns its error.
func (m *member) goOn() error {
	m.turn <- true
	return <-m.ended
}

// leave ends the command without a run, and waits for it.
func (m *member) leave() {
	close(m.turn)
	<-m.ended
}

// complete gives the guest's configuration what its inventory has beside flags. A user or port in the guest's name
// counts more than one that an inventory gives to many.
func (m *member) complete(c *guest.Config, t guest.Target) {
	c.Known = m.known
	if m.gate != nil {
		c.Gate = m.gate.Enter
	}
	if m.address != "" {
		c.Host = m.address
	}
	if t.User != "" && !m.given.Changed("user") {
		c.User = t.User
	}
	if t.Port != 0 && !m.given.Changed("port") {
		c.Port = t.Port
	}
	if m.password != nil {
		c.Password = func(context.Context, string) ([]byte, error) { return m.password, nil }
	}
	if m.sudoPassword != nil {
		c.SudoPassword = func(context.Context) ([]byte, error) { return m.sudoPassword, nil }
	}
}

// sharedWork is what was worked out for one guest of a batch and is the same for all: the checksum of a file of some
// hundred megabytes, say.
type sharedWork struct {
	mu   sync.Mutex
	done map[string]any
}

// once works something out, for the guests of a batch together. The member may be none.
func once[T any](m *member, what string, f func() (T, error)) (T, error) {
	if m == nil {
		return f()
	}
	m.shared.mu.Lock()
	defer m.shared.mu.Unlock()
	if v, ok := m.shared.done[what].(T); ok {
		return v, nil
	}
	v, err := f()
	if err == nil {
		if m.shared.done == nil {
			m.shared.done = make(map[string]any)
		}
		m.shared.done[what] = v
	}
	return v, err
}

// join gives one guest the command to itself and has it come to its run: the inventory's options first, then the
// command line's flags, which count more.
func (b *batch) join(ctx context.Context, g inventory.Guest, ui *fleetUI) (*member, error) {
	m := &member{name: g.Name, address: g.Address, given: b.given, shared: &b.shared, known: &b.known}
	if g.Password != "" {
		m.password = []byte(g.Password)
	}
	if g.SudoPassword != "" {
		m.sudoPassword = []byte(g.SudoPassword)
	}
	sub := &app{console: console{in: strings.NewReader(""), out: io.Discard, err: ui.writer(g.Name), cache: b.cache}, member: m}
	c := b.make(sub)
	sub.logDir = b.logDir // after its flags have got their defaults
	flags := c.Flags()
	if err := flags.Set("host", g.Name); err != nil {
		return nil, err
	}
	for _, o := range g.Options {
		if flags.Lookup(o.Name) == nil || b.given.Changed(o.Name) {
			continue
		}
		if err := setFlag(flags, o.Name, o.Values); err != nil {
			return nil, fmt.Errorf("%v: %w", o.Where, err)
		}
	}
	var errs []error
	b.given.Visit(func(flag *pflag.Flag) {
		if slices.Contains(b.names, flag.Name) {
			return
		}
		values := []string{flag.Value.String()}
		if list, ok := flag.Value.(pflag.SliceValue); ok {
			values = list.GetSlice()
		}
		for _, v := range values {
			errs = append(errs, flags.Set(flag.Name, v))
		}
	})
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if err := m.begin(ctx, c); err != nil {
		return nil, err
	}
	return m, nil
}

// secrets asks for what all guests share, before any is dialled: later nobody may be watching.
func (b *batch) secrets(members []*member) error {
	ask := func(want bool, flag, prompt string, of func(*member) *[]byte) error {
		if !want {
			return nil
		}
		in, ok := b.in.(*os.File)
		if !ok || !term.IsTerminal(int(in.Fd())) {
			return fmt.Errorf("--%s: standard input is no terminal", flag)
		}
		secret, err := b.askSecret(in, prompt)
		if err != nil {
			return err
		}
		for _, m := range members {
			if to := of(m); *to == nil {
				*to = secret
			}
		}
		return nil
	}
	return errors.Join(
		ask(b.askPassword, "ask-password", "login password of all guests: ", func(m *member) *[]byte { return &m.password }),
		ask(b.askSudo, "ask-sudo-password", "sudo password of all guests: ", func(m *member) *[]byte { return &m.sudoPassword }),
	)
}

// outcome is what became of one guest.
type outcome struct {
	report.Guest
	err error
}

// run works on all guests and tells what became of them.
func (b *batch) run(ctx context.Context) error {
	b.host = "" // messages are about all of them
	if err := b.files.check(); err != nil {
		return err
	}
	guests, err := b.guests()
	if err != nil {
		return err
	}
	ui := newFleetUI(b.err, len(guests))
	var members []*member
	var wrong sameErrors
	for _, g := range guests {
		m, err := b.join(ctx, g, ui)
		if err != nil {
			wrong.add(g.Name, err)
			continue
		}
		members = append(members, m)
	}
	if err = wrong.join(); err == nil {
		err = b.secrets(members)
	}
	if err != nil {
		for _, m := range members {
			m.leave()
		}
		return err
	}
	return b.tell(b.converge(ctx, members, ui))
}

// sameErrors are what is wrong with guests' flags. What is wrong with all of them, as a flag of the command line is,
// is said once.
type sameErrors struct {
	errs  []error
	names map[string][]string // of the guests, by the error's words
}

func (s *sameErrors) add(name string, err error) {
	if s.names == nil {
		s.names = make(map[string][]string)
	}
	if s.names[err.Error()] == nil {
		s.errs = append(s.errs, err)
	}
	s.names[err.Error()] = append(s.names[err.Error()], name)
}

func (s *sameErrors) join() error {
	var all []error
	for _, err := range s.errs {
		names := s.names[err.Error()]
		who := names[0]
		if more := len(names) - 1; more > 0 {
			who += fmt.Sprintf(" and %d more", more)
		}
		all = append(all, fmt.Errorf("%s: %w", who, err))
	}
	return errors.Join(all...)
}

// converge runs the members as the fleet has it.
func (b *batch) converge(ctx context.Context, members []*member, ui *fleetUI) []outcome {
	outcomes := make([]outcome, len(members))
	gate := fleet.NewGate()
	sends := fleet.NewTurns(fleet.SendsAtOnce)
	var turns fleet.Turns
	if b.serialReboots > 0 {
		turns = fleet.NewTurns(b.serialReboots)
	}
	parallel := b.parallel
	if parallel == 0 {
		parallel = fleet.Capacity()
	}
	ui.start()
	defer ui.close()
	for _, m := range members {
		m.gate = gate
		m.work = func(ctx context.Context, cfg engine.Config) (engine.Report, error) {
			cfg.SendTurn = sends.Take
			if turns != nil {
				cfg.RebootTurn = turns.Take
			}
			cfg.Tell = ui.begin(m.name)
			return engine.Run(ctx, cfg)
		}
	}
	fleet.Run(ctx, fleet.Config{
		Guests: len(members), Parallel: parallel, Canary: b.canary, MaxFailures: b.maxFailures,
		Run: func(_ context.Context, i int) error {
			m := members[i]
			err := m.goOn()
			if owed := m.report.Owed; err == nil && i < b.canary && len(owed) > 0 {
				err = &unprovedError{owed}
				m.report.Result, m.report.Error = "failed", &engine.Problem{Message: err.Error(), Hint: hint(err)}
			}
			return err
		},
		Ended: func(i int, err error) {
			m := members[i]
			var left *fleet.NotStartedError
			if errors.As(err, &left) {
				m.leave()
				m.report = engine.Report{Host: m.name, Result: "failed", Error: &engine.Problem{Message: err.Error()}}
			}
			outcomes[i] = outcome{report.New(m.report, exitCode(err), time.Now()), err}
			outcomes[i].NotStarted = left != nil
			ui.end(outcomes[i])
			members[i] = nil // with its command and all that belongs to it
		},
	})
	return outcomes
}

// unprovedError is that of a canary which --reboot never kept from the boot that its proof is about.
type unprovedError struct{ owed []steps.ID }

func (e *unprovedError) Error() string {
	names := make([]string, len(e.owed))
	for i, id := range e.owed {
		names[i] = string(id)
	}
	return "not verified: a canary that owes a reboot, by " + strings.Join(names, ", ")
}

// Hint says what to do next.
func (e *unprovedError) Hint() string {
	return "boot it and run the same command again, or leave out --canary or --reboot never"
}

// tell writes the results, and returns an error when a guest failed.
func (b *batch) tell(outcomes []outcome) error {
	guests := make([]report.Guest, len(outcomes))
	for i, o := range outcomes {
		guests[i] = o.Guest
	}
	err, ferr := newFleetError(outcomes), b.files.write(guests)
	if ferr != nil && err != nil {
		fmt.Fprintf(b.err, "gpuguest: %v\n", ferr)
	}
	var perr error
	if b.json {
		perr = b.writeJSON(report.NewDocument(guests, time.Now()))
	} else {
		perr = printFleet(b.out, outcomes)
	}
	return cmp.Or(err, ferr, perr)
}

// severity orders exit codes, the worst first.
var severity = []int{exitInterrupted, exitUsage, exitStep, exitVerify, exitUnsupported, exitUnreachable, exitHeld, exitDone}

// manyError says that some of many guests or images failed.
type manyError struct {
	code int    // of the worst
	text string // what became of how many
	hint string // how to go on
}

func (e *manyError) Error() string { return e.text }

// Hint says how to go on.
func (e *manyError) Hint() string { return e.hint }

// newFleetError is nil when all guests did what was asked for.
func newFleetError(outcomes []outcome) error {
	counts := count(outcomes)
	if counts.done == len(outcomes) {
		return nil
	}
	worst := slices.MinFunc(outcomes, func(a, b outcome) int {
		return cmp.Compare(slices.Index(severity, a.Exit), slices.Index(severity, b.Exit))
	})
	return &manyError{worst.Exit, counts.String(), "the same command again goes on where each guest is and leaves alone what is done"}
}

// counts are guests by what became of them.
type counts struct{ all, done, failed, detached, left int }

func count(outcomes []outcome) counts {
	c := counts{all: len(outcomes)}
	for _, o := range outcomes {
		c.add(o)
	}
	return c
}

func (c *counts) add(o outcome) {
	var left *fleet.NotStartedError
	switch {
	case o.err == nil:
		c.done++
	case errors.As(o.err, &left):
		c.left++
	case o.Exit == exitInterrupted:
		c.detached++
	default:
		c.failed++
	}
}

func (c counts) String() string {
	parts := []string{fmt.Sprintf("%s: %d done", report.Count(c.all, "guest"), c.done)}
	for _, p := range []struct {
		n    int
		what string
	}{{c.failed, "failed"}, {c.detached, "interrupted"}, {c.left, "not started"}} {
		if p.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", p.n, p.what))
		}
	}
	return strings.Join(parts, ", ")
}

// lineWriter gives whole lines on.
type lineWriter struct {
	mu   sync.Mutex
	part []byte
	line func(string)
}

func (w *lineWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.part = append(w.part, p...)
	for {
		line, rest, ok := strings.Cut(string(w.part), "\n")
		if !ok {
			return len(p), nil
		}
		w.line(line)
		w.part = []byte(rest)
	}
}
