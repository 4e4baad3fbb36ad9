package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"gpuguest/internal/choice"
	"gpuguest/internal/engine"
	"gpuguest/internal/facts"
	"gpuguest/internal/plan"
	"gpuguest/steps"
)

func newVerify(a *app) *cobra.Command {
	var w choice.Want
	var b bootFlags
	c := &cobra.Command{
		Use:   "verify --host GUEST",
		Short: "Prove that a guest's NVIDIA driver works, and change nothing",
		Long: `Prove that a guest's NVIDIA driver works: bound to every GPU, module and libraries at one version and at
the one that was planned, persistence on, the temperature read, and the next boot safe. Nothing is changed
in the guest. A driver that gpuguest did not install is held against itself: its own version and flavor.`,
		Example: `  gpuguest verify --host vm:5022
  gpuguest verify --host vm --json
  gpuguest verify --host vm --driver 580.95.05`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := checkWant(w); err != nil {
				return err
			}
			b.reboot, w.Reboot = choice.RebootNever, choice.RebootNever
			return a.converge(c.Context(), b, nil, func(f facts.Facts) (plan.Plan, error) {
				in, err := installed(f, w)
				if err != nil {
					return plan.Plan{}, err
				}
				return plan.Proofs(in, steps.Install())
			})
		},
	}
	a.addReach(c)
	addWant(c, &w)
	return c
}

// installed is what verify holds the guest against: the plan that the journal tells of, else the driver
// that is there.
func installed(f facts.Facts, w choice.Want) (steps.Input, error) {
	in, err := plan.Installed(f, asPlanned(f, w))
	if err != nil {
		return in, fmt.Errorf("verify: %w", err)
	}
	return in, nil
}

// asPlanned fills what the user left open with what the journal says was planned for the driver in the guest.
func asPlanned(f facts.Facts, w choice.Want) choice.Want {
	records, _ := engine.ParseJournal(f.State.Journal)
	var last engine.Record
	for _, r := range records {
		switch {
		case r.Step == "driver" && r.Event == "end":
			last = r
		case r.Event == "uninstalled":
			last = engine.Record{}
		}
	}
	return planned(w, last)
}

// planned fills what the user left open with what the journal says was planned.
func planned(w choice.Want, r engine.Record) choice.Want {
	fill := func(to *string, from string) {
		if *to == "" {
			*to = from
		}
	}
	fill(&w.Driver, r.Driver)
	fill(&w.Flavor, r.Flavor)
	fill(&w.Source, r.Source)
	fill(&w.Modules, r.Modules)
	return w
}
