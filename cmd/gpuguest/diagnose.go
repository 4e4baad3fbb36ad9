package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"gpuguest/internal/diagnosis"
	"gpuguest/internal/guest"
)

// guestLogs are the logs that a guest is asked for: a name for the verdicts, and the script that prints
// it, at most 4 MB of its end. One that is not there prints nothing.
var guestLogs = []struct{ name, script string }{
	{"kernel log", `dmesg 2>/dev/null || journalctl -k -b -q --no-pager -o short-monotonic 2>/dev/null || true`},
	{"nvidia-smi", `command -v nvidia-smi >/dev/null 2>&1 || exit 0; timeout 60 nvidia-smi 2>&1 || true`},
	{"dkms make.log", `for f in /var/lib/dkms/*nvidia*/*/build/make.log; do [ ! -e "$f" ] || tail -c 1000000 "$f"; done`},
	{"apt's log", `[ ! -e /var/log/apt/term.log ] || tail -c 4000000 /var/log/apt/term.log`},
	{"nvidia-installer.log", `[ ! -e /var/log/nvidia-installer.log ] || tail -c 4000000 /var/log/nvidia-installer.log`},
	{"cuda-installer.log", `[ ! -e /var/log/cuda-installer.log ] || tail -c 4000000 /var/log/cuda-installer.log`},
	{"gpuguest's last job", `f=$(ls -t /var/lib/gpuguest/jobs/*/*/log 2>/dev/null | head -n 1); [ -z "$f" ] || tail -c 4000000 "$f"`},
	{"persistence daemon", `journalctl -u nvidia-persistenced -b -q --no-pager -n 200 2>/dev/null || true`},
}

func newDiagnose(a *app) *cobra.Command {
	var logs []string
	c := &cobra.Command{
		Use:   "diagnose {--host GUEST | --log FILE ...}",
		Short: "Say what is wrong, where, and what to do",
		Long: `Say what is wrong with a guest's driver, where it can be put right (in the guest, on its host, in the hardware)
and what to do, from the logs of a guest or from files. Causes come before their symptoms. Nothing is
changed. It exits 5 when something fatal is found.`,
		Example: `  gpuguest diagnose --host vm:5022
  gpuguest diagnose --log dmesg.txt --log nvidia-installer.log
  gpuguest diagnose --log nvidia-bug-report.log.gz --json`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			var found []diagnosis.Verdict
			var err error
			switch {
			case len(logs) > 0 && a.host != "":
				return errors.New("--log and --host: one of them")
			case len(logs) > 0:
				found, err = readLogs(logs)
			default:
				found, err = a.guestVerdicts(c.Context())
			}
			if err != nil {
				return err
			}
			return a.printVerdicts(diagnosis.Rank(found))
		},
	}
	a.addReach(c)
	c.Flags().StringArrayVar(&logs, "log", nil, "log to read, `FILE`, plain or gzip; may be given more than once")
	return c
}

func readLogs(names []string) ([]diagnosis.Verdict, error) {
	var found []diagnosis.Verdict
	for _, name := range names {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		v, err := diagnosis.Read(name, f)
		f.Close()
		if err != nil {
			return nil, err
		}
		found = append(found, v...)
	}
	return found, nil
}

func (a *app) guestVerdicts(ctx context.Context) ([]diagnosis.Verdict, error) {
	conn, err := a.dial(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	var found []diagnosis.Verdict
	for _, l := range guestLogs {
		res, err := conn.Run(ctx, guest.Command{Script: l.script, Timeout: 2 * time.Minute})
		if err != nil {
			return nil, err
		}
		v, err := diagnosis.Read(l.name, bytes.NewReader(res.Stdout))
		if err != nil {
			return nil, err
		}
		found = append(found, v...)
	}
	return found, nil
}

// errFatalVerdict makes the exit code of a diagnosis that found something fatal.
var errFatalVerdict = errors.New("something fatal was found")

func (a *app) printVerdicts(all []diagnosis.Verdict) error {
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
		return errors.Join(a.writeJSON(map[string]any{"verdicts": all}), fatal)
	}
	shown := 0
	for _, v := range all {
		if v.Severity == diagnosis.Info {
			continue
		}
		shown++
		fmt.Fprintf(a.out, "%d. %s, %s: %s\n   %s:%d: %s\n   do: %s\n", shown, v.Severity, place(v.Where), v.Cause, v.Source, v.Line, v.Evidence, v.Remedy)
	}
	if shown == 0 {
		fmt.Fprintln(a.out, "nothing known is wrong")
	}
	return fatal
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
