package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// version is set by the linker in a release build.
var version = ""

func newVersion(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Print gpuguest's version",
		Long:    "Print gpuguest's version, the commit it was built from and the Go release that built it.",
		Example: "  gpuguest version\n  gpuguest version --json",
		Args:    noArgs,
		RunE: func(*cobra.Command, []string) error {
			v, commit := buildVersion()
			if a.json {
				return a.writeJSON(map[string]string{"version": v, "commit": commit, "go": runtime.Version()})
			}
			_, err := fmt.Fprintf(a.out, "gpuguest %s (commit %s, %s)\n", v, commit, runtime.Version())
			return err
		},
	}
}

func buildVersion() (v, commit string) {
	v, commit = version, "unknown"
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return v, commit
	}
	if v == "" {
		v = info.Main.Version
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			commit = s.Value
		}
	}
	return v, commit
}
