package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"gpuguest/internal/choice"
	"gpuguest/internal/engine"
	"gpuguest/internal/facts"
	"gpuguest/internal/guest"
	"gpuguest/internal/plan"
	"gpuguest/internal/remedy"
	"gpuguest/steps"
)

func newPlan(a *app) *cobra.Command {
	var w choice.Want
	var m methods
	var recording, format string
	c := &cobra.Command{
		Use:   "plan {--host GUEST | --facts FILE}",
		Short: "Say what install would do, and why, and change nothing",
		Long: `Say what install would do: which driver and why, and every step with its actions. With --host the guest
is asked which steps are met already; with --facts a recording is planned for and no guest is needed.`,
		Example: `  gpuguest plan --host vm:5022
  gpuguest plan --facts vm.txt --driver 580
  gpuguest plan --facts vm.txt --format sh >install.sh
  gpuguest plan --host vm --json`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) (err error) {
			if err := checkWant(w); err != nil {
				return err
			}
			closeFiles, err := m.settle(&w, make(map[string]string))
			defer func() { err = errors.Join(err, closeFiles()) }()
			if err != nil {
				return err
			}
			w = settle(w)
			if a.json {
				format = "json"
			}
			switch format {
			case "text", "json", "sh":
			default:
				return fmt.Errorf("--format %q: it is text, json or sh", format)
			}
			f, outcomes, p, err := a.makePlan(c.Context(), recording, w)
			if err != nil {
				return a.writeCert(&m, err)
			}
			if p.Remedies, err = remedy.Promises(w, f); err != nil {
				return err
			}
			switch format {
			case "json":
				return p.JSON(a.out, f, outcomes)
			case "sh":
				return p.Shell(a.out)
			}
			return p.Text(a.out, f, outcomes)
		},
	}
	a.addReach(c)
	addWant(c, &w)
	m.add(c, &w)
	c.Flags().StringVar(&recording, "facts", "", "recording to plan for, `FILE` (\"-\": standard input), made by \"gpuguest facts --save\"")
	c.Flags().StringVar(&format, "format", "text", "how to print the plan, `FORMAT`: text, json or sh")
	return c
}

// makePlan plans for a recording, or for a guest, which it then asks what is met.
func (a *app) makePlan(ctx context.Context, recording string, w choice.Want) (facts.Facts, map[steps.ID]plan.Outcome, plan.Plan, error) {
	var f facts.Facts
	var conn *guest.Conn
	switch {
	case recording != "" && a.host != "":
		return f, nil, plan.Plan{}, errors.New("--facts and --host: one of them")
	case recording != "":
		raw, err := readRecording(recording, a.in)
		if err != nil {
			return f, nil, plan.Plan{}, err
		}
		if f, err = facts.Parse(raw); err != nil {
			return f, nil, plan.Plan{}, fmt.Errorf("%s: %w", recording, err)
		}
	default:
		var err error
		if conn, err = a.dial(ctx); err != nil {
			return f, nil, plan.Plan{}, err
		}
		defer conn.Close()
		if _, f, err = ask(ctx, conn); err != nil {
			return f, nil, plan.Plan{}, err
		}
	}
	in, err := plan.Input(f, w)
	if err != nil {
		return f, nil, plan.Plan{}, err
	}
	p, err := plan.Build(in, steps.Install())
	if err != nil || conn == nil {
		return f, nil, p, err
	}
	outcomes, _, err := engine.Check(ctx, conn, p.Distro, p.Items())
	return f, outcomes, p, err
}

func readRecording(path string, stdin io.Reader) ([]byte, error) {
	if path == "-" {
		return io.ReadAll(stdin)
	}
	return os.ReadFile(path)
}
