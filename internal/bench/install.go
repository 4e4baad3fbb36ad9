//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"gpuguest/internal/engine"
)

// installRun is the install that made the guest what it is.
type installRun struct {
	Report engine.Report
	RSS    float64 // peak resident memory of the client, MB
	Reused bool    `json:"-"`
}

type installSpec struct {
	cache, base, scratch string
	reuse                bool
}

// installed returns the layer that gpuguest install writes above the base, made by a real install: over SSH,
// from the distribution's archive, NVIDIA's real driver built by DKMS. The guest shares this machine's network
// for that, which the bench's own namespaces do not reach.
func (b *bench) installed(ctx context.Context, s installSpec) (layer string, err error) {
	dir := filepath.Join(s.cache, "installed")
	layer, record := filepath.Join(dir, "upper"), filepath.Join(dir, "install.json")
	if s.reuse {
		text, err := os.ReadFile(record)
		if err != nil {
			return "", fmt.Errorf("no install to reuse: %w", err)
		}
		b.install.Reused = true
		return layer, json.Unmarshal(text, &b.install)
	}
	if err := os.RemoveAll(dir); err != nil {
		return "", err
	}
	m, err := newMachine(filepath.Join(s.scratch, "install"), b.tmp, s.base)
	if err != nil {
		return "", err
	}
	mounted := true
	defer func() {
		if mounted {
			err = errors.Join(err, m.close())
		}
	}()
	if err := m.prepare(ctx); err != nil {
		return "", err
	}
	stop, err := m.boot(ctx, "", "install")
	if err != nil {
		return "", err
	}
	b.say("gpuguest install in it, with NVIDIA's real driver: some minutes")
	b.net = &network{} // this machine's own
	t, err := b.time(ctx, nil, b.gpuguest, b.installCommand("install")...)
	if err = errors.Join(err, stop()); err != nil {
		return "", err
	}
	if err := json.Unmarshal(t.out, &b.install.Report); err != nil {
		return "", fmt.Errorf("report: %w", err)
	}
	b.install.RSS = t.rss
	mounted = false
	if err := m.close(); err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	if err := os.Rename(m.upper(), layer); err != nil {
		return "", err
	}
	text, err := json.MarshalIndent(b.install, "", "  ")
	if err != nil {
		return "", err
	}
	return layer, os.WriteFile(record, text, 0o644)
}

func (b *bench) installCommand(host string) []string {
	return append([]string{"install", "--host", host, "-F", b.sshConfig()}, installArgs...)
}

// overhead is the share of an install in which no command ran in the guest and the guest was not booting.
func overhead(_ context.Context, b *bench) ([]figure, error) {
	r, what := b.install.Report, "an install in the container (real driver by DKMS, no reboot)"
	note := ""
	if b.install.Reused {
		note = "from the last run's install"
	}
	if b.report != "" {
		text, err := os.ReadFile(b.report)
		if err != nil {
			return nil, err
		}
		r = engine.Report{}
		if err := json.Unmarshal(text, &r); err != nil {
			return nil, fmt.Errorf("%s: %w", b.report, err)
		}
		what, note = "an install elsewhere", "from "+filepath.Base(b.report)
	}
	if r.Seconds == 0 || r.Result != "done" {
		return nil, fmt.Errorf("the install's report says %q after %.1f s", r.Result, r.Seconds)
	}
	changed := 0
	for _, s := range r.Steps {
		if s.State == engine.Changed {
			changed++
		}
	}
	if changed == 0 {
		return nil, errors.New("the install changed nothing, so its time is no install's")
	}
	share := 100 * (r.Seconds - r.GuestTime) / r.Seconds
	detail := fmt.Sprintf("%.1f s in all, %.2f s of them not in the guest; %d steps changed, %d reboots, %d commands", r.Seconds, r.Seconds-r.GuestTime, changed, r.Reboots, r.Execs)
	if note != "" {
		detail += "; " + note
	}
	return []figure{{What: what, Unit: "%", Ours: []float64{share}, Target: target{atMost, 3}, Note: detail}}, nil
}
