//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"gpuguest/internal/choice"
	"gpuguest/internal/engine"
	"gpuguest/internal/lab"
)

// wish is what the guest is brought to and held against.
type wish struct {
	Want choice.Want
	Args []string // the same as flags of gpuguest
	What string   // in words
}

// makeWish decides where the driver comes from: the lab's stand-in repository, which is laid out like NVIDIA's
// and whose small module is built by DKMS in seconds, or the distribution's archive with NVIDIA's real driver,
// whose build takes minutes. The repository serves until the function that is returned is called.
func (b *bench) makeWish(ctx context.Context) (func() error, error) {
	b.wish = wish{
		Want: choice.Want{NoGPU: true, Devices: []string{guestDevice}, Reboot: choice.RebootNever},
		Args: []string{"--no-gpu", "--device", guestDevice, "--json"},
	}
	w := &b.wish
	if b.real {
		w.Want.Source, w.What = choice.SourceDistro, "NVIDIA's real driver from the distribution's archive"
		w.Args = append(w.Args, "--source", choice.SourceDistro)
		return func() error { return nil }, nil
	}
	release, err := hostRelease()
	if err != nil {
		return nil, err
	}
	name := "debian" + release["VERSION_ID"]
	repo, err := lab.ServeRepo(ctx, lab.RepoSpec{Distros: []string{name}, Host: "127.0.0.1", Log: io.Discard})
	if err != nil {
		return nil, err
	}
	w.Want.Mirror, w.Want.KeyringSHA256, w.What = repo.URL, repo.KeyringSHA256[name], "the lab's stand-in driver"
	w.Args = append(w.Args, "--mirror", repo.URL, "--keyring-sha256", repo.KeyringSHA256[name])
	return repo.Close, nil
}

// installRun is the install that made the guest what it is.
type installRun struct {
	Wish   wish
	Report engine.Report
	Peak   float64 // peak resident memory of the client, MB
	Reused bool    `json:"-"`
}

type installSpec struct {
	cache, base, scratch string
	reuse                bool
}

// installed returns the layer that gpuguest install writes above the base: over SSH, with real headers, compiler
// and DKMS from the distribution's archive. The guest shares this machine's network for that, which the
// bench's own namespaces do not reach.
func (b *bench) installed(ctx context.Context, s installSpec) (layer string, err error) {
	dir := filepath.Join(s.cache, "installed")
	layer, record := filepath.Join(dir, "upper"), filepath.Join(dir, "install.json")
	if s.reuse {
		text, err := os.ReadFile(record)
		if err != nil {
			return "", fmt.Errorf("no install to reuse: %w", err)
		}
		err = json.Unmarshal(text, &b.install)
		b.install.Reused, b.wish = true, b.install.Wish
		return layer, err
	}
	unserve, err := b.makeWish(ctx)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, unserve()) }()
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
	b.say("gpuguest install in it: %s", b.wish.What)
	b.net = &network{} // this machine's own
	t, err := b.peak(ctx, b.gpuguest, b.installCommand("install")...)
	if err = errors.Join(err, stop()); err != nil {
		return "", err
	}
	if err := json.Unmarshal(t.out, &b.install.Report); err != nil {
		return "", fmt.Errorf("report: %w", err)
	}
	b.install.Peak, b.install.Wish = t.peak, b.wish
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
	return append([]string{"install", "--host", host, "-F", b.sshConfig(), "--reboot", choice.RebootNever}, b.wish.Args...)
}

func (b *bench) verifyCommand(host string) []string {
	return append([]string{"verify", "--host", host, "-F", b.sshConfig()}, b.wish.Args...)
}

// overhead is the share of an install in which no command ran in the guest and the guest was not booting.
func overhead(_ context.Context, b *bench) ([]figure, error) {
	r, what, note := b.install.Report, "client's share of an install", "in the container, of "+b.wish.What+", without a reboot"
	if b.install.Reused {
		note += ", by the last run"
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
		note = "from " + filepath.Base(b.report)
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
	return []figure{{What: what, Unit: "%", Ours: []float64{share}, Target: target{atMost, 3}, Note: note + ": " + detail}}, nil
}
