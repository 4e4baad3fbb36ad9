package main

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"gpuguest/internal/engine"
	"gpuguest/internal/facts"
	"gpuguest/internal/guest"
	"gpuguest/internal/report"
	"gpuguest/steps"
)

// status is what gpuguest left in a guest. Its names are part of the interface.
type status struct {
	Host     string          `json:"host"`
	Boot     string          `json:"boot"`
	Journal  []engine.Record `json:"journal"`
	Torn     int             `json:"torn_records"`
	Jobs     []string        `json:"jobs"`
	Owed     []steps.ID      `json:"reboot_owed_by"`
	Loaded   string          `json:"driver_loaded"`
	Undoable bool            `json:"undoable"`
	Added    []string        `json:"packages_added"`
	Files    []string        `json:"files_changed"`
	// Verified is what gpuguest-verify.service left of the boot that it verified; nil: there is no such result.
	Verified *report.Guest `json:"verified,omitempty"`
}

func newStatus(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:   "status --host GUEST",
		Short: "Say what gpuguest did in a guest, what still runs there and what is owed",
		Long: `Say what gpuguest did in a guest: the end of its journal, the jobs that still run there, whether a reboot is
owed and by what, and what uninstall would take back. Nothing is changed.`,
		Example: `  gpuguest status --host vm:5022
  gpuguest status --host vm --json`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			conn, err := a.dial(c.Context())
			if err != nil {
				return err
			}
			defer conn.Close()
			_, f, err := ask(c.Context(), conn)
			if err != nil {
				return err
			}
			s := makeStatus(a.host, f)
			if s.Verified, err = verified(c.Context(), conn); err != nil {
				return err
			}
			if a.json {
				return a.writeJSON(s)
			}
			return a.printStatus(s)
		},
	}
	a.addReach(c)
	return c
}

// verified reads what the guest's own verification left, nil when there is none or it cannot be read: a status that
// fails for that would hide the rest.
func verified(ctx context.Context, conn *guest.Conn) (*report.Guest, error) {
	res, err := conn.Run(ctx, guest.Command{Script: `cat /var/lib/gpuguest/verify.json 2>/dev/null || true`, Timeout: time.Minute})
	if err != nil {
		return nil, err
	}
	found, err := report.Read("verify.json", bytes.NewReader(res.Stdout))
	if err != nil || len(found) != 1 {
		return nil, nil
	}
	return &found[0], nil
}

func makeStatus(host string, f facts.Facts) status {
	records, torn := engine.ParseJournal(f.State.Journal)
	return status{
		Host: host, Boot: f.BootID, Journal: records, Torn: torn, Jobs: f.State.Jobs,
		Owed: engine.Owed(records, f.BootID), Loaded: f.Driver.Loaded,
		Undoable: f.State.Before, Added: f.State.Added, Files: append(f.State.Kept, f.State.Absent...),
	}
}

func (a *app) printStatus(s status) error {
	if g := s.Verified; g != nil {
		fmt.Fprintf(a.out, "verified at boot, %s: %s", g.Time.Format("2006-01-02 15:04:05"), g.Outcome())
		if f, failed := g.Failure(); failed {
			fmt.Fprintf(a.out, ": %s", printable(f.Title()))
		}
		fmt.Fprintln(a.out)
	}
	if len(s.Journal) == 0 {
		fmt.Fprintf(a.out, "%s: gpuguest never changed anything here\n", s.Host)
		return nil
	}
	tab := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	const recent = 20
	if n := len(s.Journal); n > recent {
		fmt.Fprintf(tab, "the last %d of %d records:\n", recent, n)
		s.Journal = s.Journal[n-recent:]
	}
	for _, r := range s.Journal {
		what := string(r.Step)
		if r.Reason != "" {
			what = r.Reason
		}
		if r.Remedy != "" {
			what = r.Remedy + " for " + r.Cause
		}
		if r.Exit != 0 {
			what += fmt.Sprintf(" (exit %d)", r.Exit)
		}
		boot := "an earlier boot"
		if r.Boot == s.Boot {
			boot = "this boot"
		}
		fmt.Fprintf(tab, "%s\t%s\t%s\t%s\n", r.Time.Format("2006-01-02 15:04:05"), boot, r.Event, what)
	}
	tab.Flush()
	if s.Torn > 0 {
		fmt.Fprintf(a.out, "%s unreadable, as a power cut leaves them\n", report.Count(s.Torn, "record"))
	}
	fmt.Fprintf(a.out, "jobs at work: %s\n", listOr(s.Jobs, "none"))
	owed := make([]string, len(s.Owed))
	for i, id := range s.Owed {
		owed[i] = string(id)
	}
	fmt.Fprintf(a.out, "reboot owed by: %s\n", listOr(owed, "nothing"))
	if s.Undoable {
		fmt.Fprintf(a.out, "uninstall would take back %s and %s\n", report.Count(len(s.Added), "package"), report.Count(len(s.Files), "file"))
	}
	return nil
}

func listOr(all []string, none string) string {
	if len(all) == 0 {
		return none
	}
	return strings.Join(all, ", ")
}
