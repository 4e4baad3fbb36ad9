package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"gpuguest/assets"
	"gpuguest/internal/bundle"
	"gpuguest/internal/choice"
	"gpuguest/internal/diagnosis"
	"gpuguest/internal/engine"
	"gpuguest/internal/facts"
	"gpuguest/internal/guest"
	"gpuguest/internal/plan"
	"gpuguest/internal/remedy"
	"gpuguest/steps"
)

const smiSection = "guest/nvidia-smi.txt"

// sources are the sections of assets.Collect that a diagnosis goes by, where a verdict calls them something else than
// their names.
var sources = map[string]string{
	"logs/kernel.log":                      "kernel log",
	smiSection:                             "nvidia-smi",
	"logs/unit-nvidia-persistenced.log":    "persistence daemon",
	"logs/unit-nvidia-fabricmanager.log":   "fabric manager",
	"logs/apt-term.log":                    "apt's log",
	"logs/zypp-history.log":                "zypp's history",
	"logs/last-job.log":                    "gpuguest's last job",
	"logs/last-job-of-the-boot-before.log": "gpuguest's last job, before the boot",
}

// sourceName is what the verdicts of a section of a guest's answer call it.
func sourceName(section string) string {
	switch name := sources[section]; {
	case name != "":
		return name
	case strings.HasPrefix(section, "logs/dkms-make-"):
		return "dkms make.log"
	}
	return strings.TrimPrefix(section, "logs/")
}

// How much of assets.Collect a diagnosis asks for.
const (
	sectionsNow  = "now"  // what tells of this boot and of nothing before
	sectionsLogs = "logs" // that, and what goes further back
)

func newDiagnose(a *app) *cobra.Command {
	var logs []string
	var fix bool
	var w choice.Want
	var b bootFlags
	var keyring string
	c := &cobra.Command{
		Use:   "diagnose {--host GUEST [--fix] | --log FILE ...}",
		Short: "Say what is wrong, where, and what to do",
		Long: `Say what is wrong with a guest's driver, where it can be put right (in the guest, on its host, in the hardware)
and what to do, from the logs of a guest or from files. Of a guest it also looks at what it is (is there a GPU,
is there a driver, and which has the GPU?) and runs the CUDA probe once where the driver is loaded. Causes come
before their symptoms. Nothing is changed. It exits 5 when something fatal is found.

With --fix, what can be put right in the guest is: install runs with every remedy that gpuguest has for what was
found. One remedy is tried at a time; what helped is kept, what did not is taken back, and the guest's journal
remembers both. Nothing is done about causes at the host or in the hardware. The other flags are those of
install and count with --fix only; give those that the guest was installed with.`,
		Example: `  gpuguest diagnose --host vm:5022
  gpuguest diagnose --host vm:5022 --fix
  gpuguest diagnose --log dmesg.txt --log nvidia-installer.log
  gpuguest diagnose --log nvidia-bug-report.log.gz --json
  gpuguest diagnose --log bundle.tar.gz`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			switch {
			case len(logs) > 0 && a.host != "":
				return errors.New("--log and --host: one of them")
			case len(logs) > 0 && fix:
				return errors.New("--fix goes with --host: a file cannot be mended")
			case len(logs) > 0:
				all, err := readLogs(logs)
				if err != nil {
					return err
				}
				return a.printVerdicts(verdicts{all: diagnosis.Rank(all)})
			}
			if err := checkWant(w); err != nil {
				return err
			}
			g, err := a.guestVerdicts(c.Context())
			if err != nil {
				return err
			}
			d := verdicts{all: diagnosis.Rank(slices.Concat(g.now, g.before)), unread: g.unread}
			for i := range d.all {
				d.all[i] = remedy.After(d.all[i], g.facts)
				if d.advice == nil && !d.all[i].Past {
					d.advice = advice(d.all[i], g.facts)
				}
			}
			if !fix || !mendable(d.all) {
				return a.printVerdicts(d)
			}
			if !a.json {
				// What is fatal now may not be in a minute: the run's own result counts.
				_ = a.printVerdicts(d)
			}
			w = settle(w)
			w.Reboot = b.reboot
			files, err := a.keyringFile(keyring, &w)
			if err != nil {
				return err
			}
			return a.converge(c.Context(), b, files, func(f facts.Facts) (plan.Plan, error) { return mendPlan(f, w) },
				mending(engine.AllRemedies, &w), func(cfg *engine.Config) { cfg.First, cfg.Look = diagnosis.Rank(g.now), lookNow })
		},
	}
	a.addReach(c)
	c.Flags().StringArrayVar(&logs, "log", nil, "log to read, `FILE`, plain or gzip, or a bundle of collect; may be given more than once")
	c.Flags().BoolVar(&fix, "fix", false, "put right what can be put right in the guest")
	addWant(c, &w)
	b.add(c)
	addKeyring(c, &keyring)
	return c
}

// mendable tells whether there is anything among the verdicts that gpuguest can do something about. What follows from a
// cause that it can do nothing about is not.
func mendable(all []diagnosis.Verdict) bool {
	counts := func(v diagnosis.Verdict) bool { return !v.Past && v.Severity != diagnosis.Info }
	return slices.ContainsFunc(all, func(v diagnosis.Verdict) bool {
		if v.Fix == "" || !counts(v) || v.Where == diagnosis.Host || v.Where == diagnosis.Hardware {
			return false
		}
		return !slices.ContainsFunc(all, func(o diagnosis.Verdict) bool { return o.Fix == "" && counts(o) && o.Explains(v) })
	})
}

// mendPlan is install's plan for the driver that the guest's journal tells of, with what is being tried.
func mendPlan(f facts.Facts, w choice.Want) (plan.Plan, error) {
	w = asPlanned(f, remedy.Want(w, f.State.Journal))
	in, err := plan.Input(f, w)
	if err != nil {
		return plan.Plan{}, err
	}
	return plan.Build(in, steps.Install())
}

func readLogs(names []string) ([]diagnosis.Verdict, error) {
	var found []diagnosis.Verdict
	for _, name := range names {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		v, err := readLog(name, f)
		f.Close()
		if err != nil {
			return nil, err
		}
		found = append(found, v...)
	}
	return found, nil
}

// readLog reads a log, or the logs of a bundle of collect. What cannot be read twice, as a pipe, is a log.
func readLog(name string, f *os.File) ([]diagnosis.Verdict, error) {
	if info, err := f.Stat(); err == nil && info.Mode().IsRegular() {
		v, bundled, err := readBundle(name, f)
		if bundled || err != nil {
			return v, err
		}
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return nil, err
		}
	}
	return diagnosis.Read(name, f)
}

// found is what a diagnosis finds in a guest.
type found struct {
	facts       facts.Facts
	now, before []diagnosis.Verdict // in what tells of this boot alone; in what goes further back
	unread      []string            // sources that did not answer, and why
}

// guestVerdicts looks at what the guest is, reads its logs and puts CUDA to the proof. What was tried there is in its
// facts.
func (a *app) guestVerdicts(ctx context.Context) (found, error) {
	conn, err := a.dial(ctx)
	if err != nil {
		return found{}, err
	}
	defer conn.Close()
	_, f, err := ask(ctx, conn)
	if err != nil {
		return found{}, err
	}
	all, err := readGuest(ctx, conn, sectionsLogs)
	if err != nil {
		return found{}, err
	}
	all.facts = f
	v, err := diagnosis.Read("facts", strings.NewReader(findings(f)))
	if err != nil {
		return found{}, err
	}
	all.now = append(all.now, v...)
	if f.Driver.Loaded == "" || len(f.GPUs) == 0 {
		return all, nil
	}
	if slices.ContainsFunc(all.unread, func(why string) bool { return strings.HasPrefix(why, sources[smiSection]+": ") }) {
		// What hangs one program of the driver hangs the other.
		all.unread = append(all.unread, "CUDA: not asked, as nvidia-smi does not answer")
		return all, nil
	}
	v, why, err := proveCUDA(ctx, conn, f)
	if why != "" {
		all.unread = append(all.unread, "CUDA: "+why)
	}
	all.now = append(all.now, v...)
	return all, err
}

// readGuest reads the logs of a guest.
func readGuest(ctx context.Context, conn *guest.Conn, sections string) (found, error) {
	var all found
	said, err := askAll(ctx, conn, "GPUGUEST_SECTIONS="+sections+"\n"+assets.Collect)
	if err != nil {
		return all, err
	}
	for _, name := range slices.Sorted(maps.Keys(said)) {
		for _, why := range said[name].Reasons {
			// A log of which only the end counts is read all the same.
			if !strings.HasPrefix(why, "the last ") {
				all.unread = append(all.unread, sourceName(name)+": "+why)
			}
		}
		if !bundle.IsLog(name) {
			continue
		}
		v, err := readSection(name, sourceName(name), bytes.NewReader(text(said[name])))
		if err != nil {
			return all, err
		}
		if isNow(name) {
			all.now = append(all.now, v...)
		} else {
			all.before = append(all.before, v...)
		}
	}
	return all, nil
}

// isNow tells which sections tell of this boot and of nothing before.
func isNow(section string) bool {
	return section == "logs/kernel.log" || section == smiSection || strings.HasPrefix(section, "logs/unit-")
}

// readSection reads a log of a guest or of a bundle.
func readSection(section, source string, text io.Reader) ([]diagnosis.Verdict, error) {
	all, err := diagnosis.Read(source, text)
	for i, v := range all {
		if bundle.IsPast(section) && !v.Past {
			all[i] = v.Before()
		}
	}
	return all, err
}

// lookNow is a diagnosis of the boot at hand alone: what an old log tells of stays there for ever.
func lookNow(ctx context.Context, conn *guest.Conn) ([]diagnosis.Verdict, error) {
	all, err := readGuest(ctx, conn, sectionsNow)
	return all.now, err
}

// errFatalVerdict makes the exit code of a diagnosis that found something fatal.
var errFatalVerdict = errors.New("something fatal was found")

// verdicts are what a diagnosis says.
type verdicts struct {
	all    []diagnosis.Verdict // ranked
	advice []string            // the lines that say exactly what to change where gpuguest does not reach
	unread []string            // sources of which nothing is known, and why
}

// printVerdicts prints a diagnosis.
func (a *app) printVerdicts(d verdicts) error {
	var fatal error
	for _, v := range d.all {
		if v.Severity == diagnosis.Fatal && !v.Past {
			fatal = errFatalVerdict
		}
	}
	if a.json {
		said := map[string]any{"verdicts": append([]diagnosis.Verdict{}, d.all...)}
		if d.advice != nil {
			said["advice"] = d.advice
		}
		if d.unread != nil {
			said["unread"] = d.unread
		}
		return errors.Join(a.writeJSON(said), fatal)
	}
	shown := printCauses(a.out, d.all)
	switch {
	case shown == 0 && d.unread == nil:
		fmt.Fprintln(a.out, "nothing known is wrong")
	case shown == 0:
		fmt.Fprintln(a.out, "nothing known is wrong in what could be read")
	}
	for _, what := range d.unread {
		fmt.Fprintln(a.out, "not read:", what)
	}
	for _, l := range d.advice {
		fmt.Fprintln(a.out, l)
	}
	return fatal
}

// printCauses prints each cause with what to do, and below it, in a line each, what only follows from it. It returns
// how many causes there are.
func printCauses(w io.Writer, all []diagnosis.Verdict) int {
	all = slices.DeleteFunc(slices.Clone(all), func(v diagnosis.Verdict) bool { return v.Severity == diagnosis.Info })
	told := make([]bool, len(all))
	shown := 0
	for i, v := range all {
		if told[i] {
			continue
		}
		shown++
		fmt.Fprintf(w, "%d. %s, %s: %s\n   %s:%d: %s\n   do: %s\n", shown, v.Severity, place(v.Where), v.Cause, v.Source, v.Line, v.Evidence, v.Remedy)
		head := "   what follows from it:\n"
		for j := i + 1; j < len(all); j++ {
			s := all[j]
			if told[j] || !v.Explains(s) {
				continue
			}
			told[j] = true
			if s.Source != v.Source || s.Line != v.Line {
				fmt.Fprintf(w, "%s     %s:%d: %s\n", head, s.Source, s.Line, s.Evidence)
				head = ""
			}
		}
	}
	return shown
}

func place(where string) string {
	switch where {
	case diagnosis.Host:
		return "on the host"
	case diagnosis.Hardware:
		return "in the hardware"
	case diagnosis.User:
		return "in what was asked for"
	}
	return "in the guest"
}
