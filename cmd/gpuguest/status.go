package main

import (
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"gpuguest/internal/engine"
	"gpuguest/internal/facts"
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
			if a.json {
				return a.writeJSON(s)
			}
			return a.printStatus(s)
		},
	}
	a.addReach(c)
	return c
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
		fmt.Fprintf(a.out, "%s unreadable, as a power cut leaves them\n", plural(s.Torn, "record"))
	}
	fmt.Fprintf(a.out, "jobs at work: %s\n", listOr(s.Jobs, "none"))
	owed := make([]string, len(s.Owed))
	for i, id := range s.Owed {
		owed[i] = string(id)
	}
	fmt.Fprintf(a.out, "reboot owed by: %s\n", listOr(owed, "nothing"))
	if s.Undoable {
		fmt.Fprintf(a.out, "uninstall would take back %s and %s\n", plural(len(s.Added), "package"), plural(len(s.Files), "file"))
	}
	return nil
}

func listOr(all []string, none string) string {
	if len(all) == 0 {
		return none
	}
	return strings.Join(all, ", ")
}
