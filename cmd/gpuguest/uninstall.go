package main

import (
	"github.com/spf13/cobra"

	"gpuguest/internal/choice"
	"gpuguest/internal/facts"
	"gpuguest/internal/plan"
	"gpuguest/steps"
)

func newUninstall(a *app) *cobra.Command {
	var w choice.Want
	var b bootFlags
	c := &cobra.Command{
		Use:   "uninstall --host GUEST",
		Short: "Take back what install did to a guest, and prove it",
		Long: `Take back what install did: the packages it added, the files it wrote, kernel arguments, blocklist and
holds, as the guest's own ledger tells them; reboot when that is needed; and prove that all of it is gone, and
that packages and files are those of before. What others did since is left alone.`,
		Example: `  gpuguest uninstall --host vm:5022
  gpuguest uninstall --host vm --reboot never`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			w.Reboot = b.reboot
			return a.converge(c.Context(), b, nil, func(f facts.Facts) (plan.Plan, error) {
				in, err := plan.Bare(f, w)
				if err != nil {
					return plan.Plan{}, err
				}
				return plan.Build(in, steps.Uninstall())
			})
		},
	}
	a.addReach(c)
	b.add(c)
	c.Flags().StringVar(&w.As, "as", "", "treat the guest as this `DISTRIBUTION`: debian:12")
	c.Flags().DurationVar(&w.LockWait, "lock-wait", 0, "how long to wait for cloud-init and the package manager's lock (default 10m)")
	return c
}
