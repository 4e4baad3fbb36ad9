//go:build linux

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/chromedp/chromedp"

	"gpuguest/internal/engine"
	"gpuguest/internal/report"
	"gpuguest/steps"
)

// pageGuests is how many guests the measured page is of, with gpusEach GPUs in each.
const (
	pageGuests = 200
	gpusEach   = 8
)

// pages are the figures of the HTML report of many guests: how long gpuguest takes to make it, how large it is, and
// how long Chromium takes to draw it.
func pages(ctx context.Context, b *bench) ([]figure, error) {
	guests, err := results(pageGuests)
	if err != nil {
		return nil, err
	}
	raw, err := json.Marshal(guests)
	if err != nil {
		return nil, err
	}
	in, page := filepath.Join(b.tmp, "results.json"), filepath.Join(b.tmp, "report.html")
	if err := os.WriteFile(in, raw, 0o644); err != nil {
		return nil, err
	}
	var making []float64
	for range b.runs(11) {
		t, err := b.time(ctx, nil, b.gpuguest, "report", "merge", "--html", page, in)
		if err != nil {
			return nil, err
		}
		making = append(making, t.seconds)
	}
	st, err := os.Stat(page)
	if err != nil {
		return nil, err
	}
	figures := []figure{
		{What: "report merge --html, 200 guests", Unit: "s", Ours: making, Note: fmt.Sprintf("constructed results of %d guests with %d GPUs, one in ten failed; the whole process", pageGuests, gpusEach)},
		{What: "its page", Unit: "MB", Ours: []float64{float64(st.Size()) / 1e6}, Target: target{atMost, 2}},
	}
	drawn, err := draw(ctx, "file://"+page, b.runs(11))
	if err != nil {
		return figures, err
	}
	return append(figures, figure{What: "the page drawn by Chromium", Unit: "s", Ours: drawn, Target: target{atMost, 1},
		Note: "from the start of its load to its first paint and the end of its script, whichever is later"}), nil
}

// results constructs what so many guests would print, one in ten of them failed.
func results(n int) ([]report.Guest, error) {
	all := make([]report.Guest, n)
	for i := range all {
		r := engine.Report{
			Host: fmt.Sprintf("gpu-%03d.bench", i), Result: "done", Distro: "Debian GNU/Linux 12", Kernel: "6.1.0-50-amd64",
			Driver: "580.95.05", Flavor: "open", Source: "nvidia", Modules: "dkms", Connections: 1, Execs: 2, Seconds: 3 + float64(i%7)/10,
		}
		var devices []map[string]any
		for n := range gpusEach {
			pci := fmt.Sprintf("0000:%02x:00.0", 16+n*16)
			r.GPUs = append(r.GPUs, pci+" NVIDIA H100 80GB HBM3 (10de:2330)")
			speed := math.Round(530+float64((i*7+n*3)%23)) / 10
			devices = append(devices, map[string]any{
				"index": n, "pci": pci, "name": "NVIDIA H100 80GB HBM3", "link": map[string]any{"known": true, "gbs": 63.0},
				"bandwidth": map[string]any{"pinned_h2d": speed, "pinned_d2h": speed + 1, "pageable_h2d": 12.5, "pageable_d2h": 11.8, "d2d": 2400.5},
			})
		}
		data, err := json.Marshal(map[string]any{"tool": "probe", "format": 1, "devices": devices})
		if err != nil {
			return nil, err
		}
		for _, id := range []string{"next-boot", "module", "persistence", "verify-versions", "verify-smi"} {
			r.Steps = append(r.Steps, engine.StepReport{ID: steps.ID(id), Title: "prove " + id, State: engine.Met, Detail: "as it was planned for " + r.Host})
		}
		exit := 0
		if i%10 == 3 {
			exit = 5
			r.Result = "failed"
			r.Steps = append(r.Steps[:1], engine.StepReport{ID: "module", Title: "bind the driver to every GPU", State: engine.Failed, Detail: "0000:10:00.0: bound to no driver\nNVRM: BAR1 is 0M @ 0x0 (PCI:0000:10:00.0)"})
			r.Error = &engine.Problem{Message: "module: " + r.Steps[1].Detail, Step: "module"}
		} else {
			r.Steps = append(r.Steps, engine.StepReport{ID: "verify-cuda", Title: "verify that CUDA works on every GPU", State: engine.Met, Data: data})
		}
		all[i] = report.New(r, exit, time.Unix(1790000000, 0))
	}
	return all, nil
}

// draw opens a page n times in a headless Chromium and returns how long it took to be drawn, in seconds.
func draw(ctx context.Context, url string, n int) ([]float64, error) {
	profile, err := os.MkdirTemp("", "gpuguest-bench-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(profile)
	options := append(slices.Clone(chromedp.DefaultExecAllocatorOptions[:]), chromedp.UserDataDir(profile),
		chromedp.Flag("no-sandbox", true), chromedp.Flag("disable-gpu", true), chromedp.Flag("disable-quic", true), chromedp.Flag("disable-component-update", true))
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	ctx, cancel = chromedp.NewExecAllocator(ctx, options...)
	defer cancel()
	ctx, cancel = chromedp.NewContext(ctx)
	defer cancel()
	var samples []float64
	for range n {
		if err := chromedp.Do(ctx, chromedp.Navigate(url)); err != nil {
			return samples, err
		}
		// The first paint is told of some time after it was made.
		ms, err := chromedp.Run(ctx, chromedp.Evaluate[float64](`new Promise(done => {
			const look = () => {
				const paint = performance.getEntriesByName("first-contentful-paint")[0];
				const load = performance.getEntriesByType("navigation")[0].loadEventEnd;
				if (paint && load) done(Math.max(paint.startTime, load));
				else setTimeout(look, 10);
			};
			look();
		})`, chromedp.EvalAwaitPromise))
		if err != nil {
			return samples, err
		}
		samples = append(samples, ms/1000)
	}
	return samples, nil
}
