package main

import (
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"gpuguest/distros"
)

func newDistros(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "distros",
		Short: "Say which distributions are known, which drivers each has, and how that was tested",
		Long: `Say which distributions are known: where drivers come from, which branches and flavors of their modules
there are and how they come, what is added to the guest for them, and how each was tested. With --json there
is one record for each source, flavor and way, with what is known to be uncertain.

"real guest" was run in a guest of that distribution; "real package manager" with the distribution's package
manager in a guest that was made to look like it; "plan only" was worked out and never run.`,
		Example: `  gpuguest distros
  gpuguest distros --json`,
		Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			if a.json {
				return a.writeJSON(distros.Matrix())
			}
			w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
			for _, l := range distros.Summary() {
				if _, err := fmt.Fprintln(w, strings.Join(l.Cells(), "\t")); err != nil {
					return err
				}
			}
			return w.Flush()
		},
	}
}
