//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strconv"

	"gpuguest/internal/choice"
	"gpuguest/internal/guest"
)

// work is what this program does as its own child in the client's network namespace.
func work(ctx context.Context, args []string, out io.Writer) error {
	if len(args) < 2 {
		return fmt.Errorf("worker %q: too few arguments", args)
	}
	config := func(host string) guest.Config {
		return guest.Config{Host: host, SSHConfig: args[1], Home: os.TempDir()}
	}
	debug.SetGCPercent(50) // as cmd/gpuguest does
	switch name, rest := args[0], args[2:]; {
	case name == "scripts" && len(rest) == 1:
		var w choice.Want
		if err := json.Unmarshal([]byte(rest[0]), &w); err != nil {
			return err
		}
		s, err := makeScripts(ctx, config("near"), w)
		if err != nil {
			return err
		}
		return json.NewEncoder(out).Encode(s)
	case name == "noop" && len(rest) == 2:
		count, err := strconv.Atoi(rest[1])
		if err != nil {
			return err
		}
		report, err := workNoop(ctx, config(rest[0]), count)
		if err != nil {
			return err
		}
		return json.NewEncoder(out).Encode(report)
	case name == "reboot" && len(rest) == 1:
		return workReboot(ctx, config("gate"), rest[0])
	case name == "fleet" && len(rest) == 1:
		n, err := strconv.Atoi(rest[0])
		if err != nil {
			return err
		}
		return workFleet(ctx, config, n)
	case name == "fleet-put" && len(rest) == 2:
		return workFleetPut(ctx, config, rest[0], rest[1])
	case name == "pretend" && len(rest) == 5:
		first, err1 := strconv.Atoi(rest[3])
		n, err2 := strconv.Atoi(rest[4])
		if err := errors.Join(err1, err2); err != nil {
			return err
		}
		return workPretend(ctx, rest[0], rest[1], rest[2], first, n)
	case name == "put" && len(rest) == 4:
		return workPut(ctx, config(rest[0]), upload{file: rest[1], to: rest[2], sum: rest[3]})
	default:
		return fmt.Errorf("worker %q: there is no such work", args)
	}
}
