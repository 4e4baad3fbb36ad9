package main

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"gpuguest/assets"
	"gpuguest/internal/catalog"
	"gpuguest/internal/facts"
	"gpuguest/internal/guest"
	"gpuguest/internal/report"
	"gpuguest/internal/sh"
)

func newFacts(a *app) *cobra.Command {
	var save string
	c := &cobra.Command{
		Use:   "facts --host GUEST",
		Short: "Say what a guest is: system, kernels, GPUs, drivers, Secure Boot, locks, room",
		Long: `Say what a guest is. One script is run in the guest, which changes nothing there. With --save, what it
printed is kept as a recording that "gpuguest plan --facts FILE" reads without a guest.`,
		Example: `  gpuguest facts --host vm:5022
  gpuguest facts --host vm --json
  gpuguest facts --host vm --save vm.txt`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			conn, err := a.dial(c.Context())
			if err != nil {
				return err
			}
			defer conn.Close()
			raw, f, err := ask(c.Context(), conn)
			if err != nil {
				return err
			}
			if save != "" {
				if err := saveRecording(save, a.host, raw); err != nil {
					return err
				}
				fmt.Fprintf(a.err, "gpuguest: saved to %s\n", save)
			}
			if a.json {
				return a.writeJSON(f)
			}
			return facts.Print(a.out, f, gpuName)
		},
	}
	a.addReach(c)
	c.Flags().StringVar(&save, "save", "", "keep the recording in this `FILE`")
	return c
}

// ask runs the facts script in a guest.
func ask(ctx context.Context, conn *guest.Conn) ([]byte, facts.Facts, error) {
	res, err := conn.Run(ctx, guest.Command{Script: sh.Lean(assets.Facts), Timeout: 5 * time.Minute})
	if err != nil {
		return nil, facts.Facts{}, err
	}
	f, err := facts.Parse(res.Stdout)
	if err != nil {
		return nil, facts.Facts{}, fmt.Errorf("facts: %w", err)
	}
	return res.Stdout, f, nil
}

// saveRecording writes a recording whole or not at all.
func saveRecording(path, host string, raw []byte) error {
	return report.Write(path, report.Private, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "# recorded by: gpuguest facts --host %s --save %s\n%s", host, filepath.Base(path), raw)
		return err
	})
}

func gpuName(p facts.PCI) string {
	g, _ := catalog.Lookup(p.Vendor, p.Device, p.Subvendor, p.Subdevice)
	return g.Name
}
