package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"gpuguest/internal/choice"
	"gpuguest/internal/diagnosis"
	"gpuguest/internal/engine"
	"gpuguest/internal/facts"
	"gpuguest/internal/guest"
	"gpuguest/internal/plan"
	"gpuguest/internal/remedy"
	"gpuguest/internal/sh"
	"gpuguest/steps"
)

// guestLog is a log that a guest is asked for: a name for the verdicts, and the script that prints it, at most
// 4 MB of its end. One that is not there prints nothing. $R stands before the paths of the guest's files.
type guestLog struct {
	name, script string
	now          bool // it tells of this boot and of nothing before
	past         bool // it tells of an earlier boot, whose kernel said what this one need not say
}

// lastJob is sh that prints the log of the last step that changed something, if the boot in which it began compares
// so with the present one.
func lastJob(compares string) string {
	return `f=$(ls -t "$R"/var/lib/gpuguest/jobs/*/*/log 2>/dev/null | head -n 1); [ -n "$f" ] || exit 0
is=$(cat "${GPUGUEST_BOOT_ID:-/proc/sys/kernel/random/boot_id}"); was=$(cat "${f%/log}/boot" 2>/dev/null) || was=$is
[ "$was" ` + compares + ` "$is" ] || exit 0
tail -c 4000000 "$f"`
}

// changing are the commands of dnf and zypper of which a failure counts. What only asks, or is run by a timer, comes
// after them without saying anything of them.
const changing = `[" '](install|in|reinstall|upgrade|update|up|dup|dist-upgrade|downgrade|distro-sync|remove|rm|erase|swap|module|localinstall|group)[" ']`

// lastRun is sh that prints the last run in file of a package manager that met did, a pattern of awk: what an earlier
// one failed at may long be put right. A run begins at a line that holds begins.
func lastRun(file, begins, did string) string {
	return `f=$R` + file + `; [ -r "$f" ] || exit 0
tail -c 4000000 "$f" | awk ` + sh.Quote(`
index($0, "`+begins+`") { if (did) { from = began; to = NR - 1 } began = NR; did = 0 }
{ line[NR] = $0 }
`+did+` { did = 1 }
END { if (did) { from = began + !began; to = NR } for (i = from; from && i <= to; i++) print line[i] }`)
}

var guestLogs = []guestLog{
	{name: "kernel log", script: `dmesg 2>/dev/null || journalctl -k -b -q --no-pager -o short-monotonic 2>/dev/null || true`, now: true},
	{name: "nvidia-smi", script: `command -v nvidia-smi >/dev/null 2>&1 || exit 0; timeout 60 nvidia-smi 2>&1 || true`, now: true},
	{name: "persistence daemon", script: `journalctl -u nvidia-persistenced -b -q --no-pager -n 200 2>/dev/null || true`, now: true},
	{name: "fabric manager", script: `journalctl -u nvidia-fabricmanager -b -q --no-pager -n 200 2>/dev/null || true`, now: true},
	// Its own file tells what the journal does not once it has started (NVIDIA fabric manager user guide, LOG_FILE_NAME).
	{name: "fabricmanager.log", script: `[ ! -e "$R/var/log/fabricmanager.log" ] || tail -n 200 "$R/var/log/fabricmanager.log"`},
	{name: "dkms make.log", script: `for f in "$R"/var/lib/dkms/*nvidia*/*/build/make.log; do [ ! -e "$f" ] || tail -c 1000000 "$f"; done`},
	{name: "apt's log", script: `f=$R/var/log/apt/term.log; [ -e "$f" ] || exit 0; n=$(grep -n '^Log started:' "$f" | tail -n 1 | cut -d : -f 1); tail -n "+${n:-1}" "$f" | tail -c 4000000`},
	// dnf 4 and what rpm told it, which stands in a file of its own; dnf 5. yum 3 keeps no failure in a log.
	{name: "dnf.log", script: lastRun("/var/log/dnf.log", "--- logging initialized ---", `/ Command: / && /`+changing+`/`)},
	{name: "dnf.rpm.log", script: lastRun("/var/log/dnf.rpm.log", "--- logging initialized ---", `!/ logging initialized ---/`)},
	{name: "dnf5.log", script: lastRun("/var/log/dnf5.log", "DNF5 launched with arguments: ", `/DNF5 launched with arguments: / && /`+changing+`/`)},
	{name: "zypper.log", script: lastRun("/var/log/zypper.log", "===== Hi, me zypper", `/===== .zypper. / && /`+changing+`/`)},
	{name: "zypp's history", script: lastRun("/var/log/zypp/history", "|command|", `/[|]command[|]/ && /`+changing+`/`)},
	{name: "nvidia-installer.log", script: `[ ! -e "$R/var/log/nvidia-installer.log" ] || tail -c 4000000 "$R/var/log/nvidia-installer.log"`},
	{name: "cuda-installer.log", script: `[ ! -e "$R/var/log/cuda-installer.log" ] || tail -c 4000000 "$R/var/log/cuda-installer.log"`},
	{name: "gpuguest's last job", script: lastJob("=")},
	{name: "gpuguest's last job, before the boot", script: lastJob("!="), past: true},
}

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
and what to do, from the logs of a guest or from files. Causes come before their symptoms. Nothing is
changed. It exits 5 when something fatal is found.

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
				found, err := readLogs(logs)
				if err != nil {
					return err
				}
				return a.printVerdicts(diagnosis.Rank(found), nil)
			}
			if err := checkWant(w); err != nil {
				return err
			}
			now, before, f, err := a.guestVerdicts(c.Context())
			if err != nil {
				return err
			}
			all := diagnosis.Rank(slices.Concat(now, before))
			var lines []string
			for i := range all {
				all[i] = remedy.After(all[i], f)
				if lines == nil && !all[i].Past {
					lines = advice(all[i], f)
				}
			}
			if !fix || !mendable(all) {
				return a.printVerdicts(all, lines)
			}
			if !a.json {
				// What is fatal now may not be in a minute: the run's own result counts.
				_ = a.printVerdicts(all, lines)
			}
			w = settle(w)
			w.Reboot = b.reboot
			files, err := a.keyringFile(keyring, &w)
			if err != nil {
				return err
			}
			return a.converge(c.Context(), b, files, func(f facts.Facts) (plan.Plan, error) { return mendPlan(f, w) },
				mending(engine.AllRemedies, &w), func(cfg *engine.Config) { cfg.First, cfg.Look = diagnosis.Rank(now), lookNow })
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

// mendable tells whether there is anything among the verdicts that gpuguest can do something about.
func mendable(all []diagnosis.Verdict) bool {
	return slices.ContainsFunc(all, func(v diagnosis.Verdict) bool {
		return v.Fix != "" && !v.Past && v.Severity != diagnosis.Info && v.Where != diagnosis.Host && v.Where != diagnosis.Hardware
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

// guestVerdicts reads the guest's logs: those of this boot, and those that go further back. What was tried there
// is in its facts.
func (a *app) guestVerdicts(ctx context.Context) (now, before []diagnosis.Verdict, f facts.Facts, err error) {
	conn, err := a.dial(ctx)
	if err != nil {
		return nil, nil, f, err
	}
	defer conn.Close()
	if _, f, err = ask(ctx, conn); err != nil {
		return nil, nil, f, err
	}
	for _, l := range guestLogs {
		v, err := readGuestLog(ctx, conn, l)
		if err != nil {
			return nil, nil, f, err
		}
		if l.now {
			now = append(now, v...)
		} else {
			before = append(before, v...)
		}
	}
	return now, before, f, nil
}

func readGuestLog(ctx context.Context, conn *guest.Conn, l guestLog) ([]diagnosis.Verdict, error) {
	res, err := conn.Run(ctx, guest.Command{Script: "R=${GPUGUEST_ROOT:-}\n" + l.script, Timeout: 2 * time.Minute})
	if err != nil {
		return nil, err
	}
	found, err := diagnosis.Read(l.name, bytes.NewReader(res.Stdout))
	for i := range found {
		if l.past {
			found[i].Past, found[i].Severity = true, diagnosis.Info
		}
	}
	return found, err
}

// lookNow is a diagnosis of the boot at hand alone: what an old log tells of stays there for ever.
func lookNow(ctx context.Context, conn *guest.Conn) ([]diagnosis.Verdict, error) {
	var found []diagnosis.Verdict
	for _, l := range guestLogs {
		if !l.now {
			continue
		}
		v, err := readGuestLog(ctx, conn, l)
		if err != nil {
			return nil, err
		}
		found = append(found, v...)
	}
	return found, nil
}

// errFatalVerdict makes the exit code of a diagnosis that found something fatal.
var errFatalVerdict = errors.New("something fatal was found")

// printVerdicts prints verdicts, and the lines that say exactly what to change where gpuguest does not reach.
func (a *app) printVerdicts(all []diagnosis.Verdict, lines []string) error {
	var fatal error
	for _, v := range all {
		if v.Severity == diagnosis.Fatal && !v.Past {
			fatal = errFatalVerdict
		}
	}
	if a.json {
		if all == nil {
			all = []diagnosis.Verdict{}
		}
		said := map[string]any{"verdicts": all}
		if lines != nil {
			said["advice"] = lines
		}
		return errors.Join(a.writeJSON(said), fatal)
	}
	shown := printCauses(a.out, all)
	if shown == 0 {
		fmt.Fprintln(a.out, "nothing known is wrong")
	}
	for _, l := range lines {
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
