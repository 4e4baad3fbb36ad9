package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"gpuguest/internal/report"
)

// reportFiles are the files that a run's results are written to beside what is printed.
type reportFiles struct{ html, junit, prometheus string }

func (r *reportFiles) add(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&r.html, "html", "", "also write the result as one self-contained page, `FILE`")
	f.StringVar(&r.junit, "junit", "", "also write the result as JUnit XML, `FILE`")
	f.StringVar(&r.prometheus, "prometheus", "", "also write the result as metrics for Prometheus' textfile collector, `FILE`")
}

// file is one file of the results and who writes it.
type file struct {
	flag, path string
	write      func(io.Writer, []report.Guest, time.Time) error
}

func (r reportFiles) files() []file {
	timeless := func(write func(io.Writer, []report.Guest) error) func(io.Writer, []report.Guest, time.Time) error {
		return func(w io.Writer, guests []report.Guest, _ time.Time) error { return write(w, guests) }
	}
	var all []file
	for _, f := range []file{{"html", r.html, report.HTML}, {"junit", r.junit, timeless(report.JUnit)}, {"prometheus", r.prometheus, timeless(report.Prometheus)}} {
		if f.path != "" {
			all = append(all, f)
		}
	}
	return all
}

// check refuses, before any guest is touched, a file that could not be written when the run is over.
func (r reportFiles) check() error {
	seen := make(map[string]string)
	for _, f := range r.files() {
		if err := report.CanWrite(f.path); err != nil {
			return fmt.Errorf("--%s: %w", f.flag, err)
		}
		if other := seen[filepath.Clean(f.path)]; other != "" {
			return fmt.Errorf("--%s and --%s: both to %s", other, f.flag, f.path)
		}
		seen[filepath.Clean(f.path)] = f.flag
	}
	return nil
}

// write writes every file that was asked for, whatever becomes of the others.
func (r reportFiles) write(guests []report.Guest) error {
	var all []error
	for _, f := range r.files() {
		if err := report.Write(f.path, report.Public, func(w io.Writer) error { return f.write(w, guests, time.Now()) }); err != nil {
			all = append(all, fmt.Errorf("--%s: %w", f.flag, err))
		}
	}
	return errors.Join(all...)
}

// tellResult prints a run's result and writes its files, also those of a run that failed: that is when they matter.
// The run's own error goes before one of writing.
func (a *app) tellResult(g report.Guest, err error) error {
	guests := []report.Guest{g}
	ferr := a.files.write(guests)
	if ferr != nil && err != nil {
		fmt.Fprintf(a.err, "gpuguest: %v\n", ferr)
	}
	var perr error
	if a.json {
		perr = a.writeJSON(g)
	} else {
		perr = report.Text(a.out, guests)
	}
	return cmp.Or(err, ferr, perr)
}

func newReport(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:   "report COMMAND",
		Short: "Work with the results of runs",
		Long:  `Work with the results of runs, as install, verify and uninstall print them with --json.`,
		Example: `  gpuguest verify --host gpu-1 --json >gpu-1.json
  gpuguest verify --host gpu-2 --json >gpu-2.json
  gpuguest report merge --html gpus.html gpu-1.json gpu-2.json`,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				return fmt.Errorf("unknown command %q for %q", args[0], c.CommandPath())
			}
			return nil
		},
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(newReportMerge(a))
	return c
}

func newReportMerge(a *app) *cobra.Command {
	var files reportFiles
	c := &cobra.Command{
		Use:   "merge FILE ...",
		Short: "Join the results of several runs into one report",
		Long: `Join the results of several runs into one report. A FILE holds what install, verify or uninstall printed with
--json, or a guest's own /var/lib/gpuguest/verify.json: one result or several, one behind the other, as a list, or as an
earlier merge printed them with --json. "-" is standard input. Of the same guest's results the one that ended last is
taken, and that is said. What a run left that came to no guest, for a wrong flag or inventory, is named and left out.

It exits 0 when the results could be joined, whatever they say.`,
		Example: `  gpuguest report merge results/*.json
  gpuguest report merge --html gpus.html --junit gpus.xml results/*.json
  gpuguest report merge --prometheus /var/lib/node_exporter/gpus.prom results/*.json
  cat results/*.json | gpuguest report merge --json -`,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return fmt.Errorf("%s: which files?", c.CommandPath())
			}
			return nil
		},
		RunE: func(_ *cobra.Command, names []string) error {
			if err := files.check(); err != nil {
				return err
			}
			var all []report.Guest
			var without []error
			for _, name := range names {
				found, err := a.readResults(name)
				if _, ok := errors.AsType[*report.RunError](err); ok {
					without = append(without, err)
				} else if err != nil {
					return err
				}
				all = append(all, found...)
			}
			if len(all) == 0 && without != nil {
				return errors.Join(without...)
			}
			for _, err := range without {
				fmt.Fprintf(a.err, "gpuguest: left out, %s\n", printable(err.Error()))
			}
			guests, twice := report.Merge(all)
			if len(twice) > 0 {
				fmt.Fprintf(a.err, "gpuguest: more than one result, the last is taken: %s\n", printable(strings.Join(twice, ", ")))
			}
			if err := files.write(guests); err != nil {
				return err
			}
			if a.json {
				return a.writeJSON(report.NewDocument(guests, time.Now()))
			}
			if err := report.Text(a.out, guests); err != nil {
				return err
			}
			if len(guests) == 1 {
				// Of a run of its own the cause is told as its error.
				report.Causes(a.out, guests)
			}
			return nil
		},
	}
	files.add(c)
	return c
}

// maxResults bounds what is read of one file of results, in bytes: 10,000 guests' at 20 KB each.
const maxResults = 200 << 20

func (a *app) readResults(name string) ([]report.Guest, error) {
	in := a.in
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	return report.Read(name, io.LimitReader(in, maxResults))
}
