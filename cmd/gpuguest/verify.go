package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"gpuguest/internal/choice"
	"gpuguest/internal/engine"
	"gpuguest/internal/facts"
	"gpuguest/internal/plan"
	"gpuguest/steps"
)

func newVerify(a *app) *cobra.Command {
	var w choice.Want
	var unit bool
	c := &cobra.Command{
		Use:   "verify --host GUEST",
		Short: "Prove that a guest's NVIDIA driver and CUDA work",
		Long: `Prove that a guest's NVIDIA driver works: bound to every GPU, module, libraries and firmware at one version
and at the one that was planned, persistence on, the temperature read, and the next boot safe. Then prove that
CUDA works on every GPU: kernels with checked results, memory patterns, copies held against the PCIe link,
managed memory, and the ways between GPUs. Nothing is changed in the guest; where it has no probe of an earlier
install, one is compiled in a folder of its own that is taken away again. A driver that gpuguest did not install
is held against itself: its own version and flavor.

With --with, NVIDIA's own programs are run as well, from wherever the guest has them. deviceQuery and
bandwidthTest, where only their source and nvcc are there, are built in that folder too; "gpuguest install
--with" builds them for good.

--install-unit is the one exception: it leaves gpuguest-verify.service in the guest, and one script that it runs.
At the next boot, once, they make the same checks without gpuguest and write what --json prints to
/var/lib/gpuguest/verify.json. With --no-gpu, for an image, the checks are about the GPUs that are there at
that boot, and the CUDA probe is built now. uninstall takes the unit back.`,
		Example: `  gpuguest verify --host vm:5022
  gpuguest verify --host vm --json
  gpuguest verify --host vm --with deviceQuery,nvbandwidth
  gpuguest verify --host vm --without-cuda
  gpuguest verify --host vm --driver 580.95.05
  gpuguest verify --host vm --html vm.html --prometheus vm.prom
  gpuguest verify --host image-builder --no-gpu --install-unit`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := checkWant(w); err != nil {
				return err
			}
			return a.prove(c.Context(), w, unit)
		},
	}
	a.addReach(c)
	addProofs(c, &w)
	a.files.add(c)
	c.Flags().BoolVar(&unit, "install-unit", false, "also leave a systemd unit in the guest that runs the same checks once, at its next boot")
	return c
}

// addProofs adds the flags that say what is to be proved.
func addProofs(c *cobra.Command, w *choice.Want) {
	addWant(c, w)
	addWith(c, w)
}

func addWith(c *cobra.Command, w *choice.Want) {
	c.Flags().StringSliceVar(&w.With, "with", nil, "NVIDIA's own `PROGRAMS` to prove the guest with too: "+strings.Join(steps.Samples(), ", "))
	_ = c.RegisterFlagCompletionFunc("with", cobra.FixedCompletions(steps.Samples(), cobra.ShellCompDirectiveNoFileComp))
}

// prove holds the guest against the driver that is there, and leaves the unit that does the same at the next boot
// where that is asked for.
func (a *app) prove(ctx context.Context, w choice.Want, unit bool) error {
	b := bootFlags{reboot: choice.RebootNever}
	w.Reboot = choice.RebootNever
	return a.converge(ctx, b, nil, func(f facts.Facts) (plan.Plan, error) {
		in, err := installed(f, w)
		if err != nil {
			return plan.Plan{}, err
		}
		if unit {
			return plan.ProofsWithUnit(in, steps.Install())
		}
		return plan.Proofs(in, steps.Install())
	})
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
		case r.Event == "picked":
			last.Flavor = r.Flavor
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
