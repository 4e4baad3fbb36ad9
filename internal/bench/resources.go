//go:build linux

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"gpuguest/internal/choice"
	"gpuguest/internal/facts"
	"gpuguest/internal/plan"
	"gpuguest/steps"
)

// recorded is the guest whose plan is timed: the seed documents' own.
const recorded = "debian12-gtx1050ti-nouveau.txt"

// resources are the figures that have a limit and no peer: what a plan, a run and the binary take.
func resources(ctx context.Context, b *bench) ([]figure, error) {
	var figures []figure
	plans, err := b.plans()
	if err != nil {
		return figures, err
	}
	figures = append(figures, figure{What: "plan for one guest", Unit: "ms", Ours: plans, Target: target{atMost, 1},
		Note: "recorded facts parsed, the driver chosen, every step and the script of all checks worked out"})

	b.net.setRTT(farRTT)
	file, sum, err := b.payload()
	if err != nil {
		return figures, err
	}
	samples := make(map[string][]float64)
	for range b.runs(3) {
		for _, p := range []struct {
			key, name string
			args      []string
			uploads   bool
		}{
			{"install", b.gpuguest, b.installCommand("near"), false},
			{"ssh", "ssh", append([]string{"-n"}, b.ssh("near", "true")...), false},
			{"put", b.self, []string{"worker", "put", b.sshConfig(), "far", file, uploadTo, sum}, true},
			{"scp", "scp", []string{"-q", "-F", b.sshConfig(), file, "near:" + uploadTo}, true},
		} {
			t, err := b.peak(ctx, p.name, p.args...)
			if err == nil && p.uploads {
				err = b.arrived(ctx, sum)
			}
			if err != nil {
				return figures, err
			}
			samples[p.key] = append(samples[p.key], t.peak)
		}
	}
	figures = append(figures,
		figure{What: "peak memory, converged install", Unit: "MB", Ours: samples["install"], Peer: samples["ssh"], Beside: "ssh host true", Target: target{atMost, 25}},
		figure{What: "peak memory, 256 MiB upload at 100 ms", Unit: "MB", Ours: samples["put"], Peer: samples["scp"], Beside: "scp (its ssh not counted)", Target: target{atMost, 25}})
	if b.install.Peak > 0 {
		figures = append(figures, figure{What: "peak memory, whole install", Unit: "MB", Ours: []float64{b.install.Peak}, Target: target{atMost, 25}})
	}
	st, err := os.Stat(b.gpuguest)
	if err != nil {
		return figures, err
	}
	return append(figures, figure{What: "static binary", Unit: "MB", Ours: []float64{float64(st.Size()) / 1e6}, Target: target{atMost, 20}}), nil
}

// plans times what lies between a guest's facts and its plan, in milliseconds.
func (b *bench) plans() ([]float64, error) {
	raw, err := os.ReadFile(filepath.Join(b.guests, recorded))
	if err != nil {
		return nil, err
	}
	var samples []float64
	for range b.runs(301) {
		began := time.Now()
		f, err := facts.Parse(raw)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", recorded, err)
		}
		in, err := plan.Input(f, choice.Want{})
		if err != nil {
			return nil, err
		}
		p, err := plan.Build(in, steps.Install())
		if err != nil {
			return nil, err
		}
		if plan.Checks(p.Distro, p.Items(), "--bench") == "" {
			return nil, fmt.Errorf("%s: an empty plan", recorded)
		}
		samples = append(samples, time.Since(began).Seconds()*1000)
	}
	return samples, nil
}
