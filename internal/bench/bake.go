//go:build linux

package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"gpuguest/internal/lab"
)

// bakes are the figures of baking one base in both ovens, the second time under the first one's lock. The driver is the
// lab's stand-in, which DKMS builds in both. Where QEMU has no KVM, its bake takes a quarter of an hour or more.
func bakes(ctx context.Context, b *bench) ([]figure, error) {
	image, err := lab.Build(ctx, lab.Spec{})
	if err != nil {
		return nil, err
	}
	repo, err := lab.ServeRepo(ctx, lab.RepoSpec{})
	if err != nil {
		return nil, err
	}
	defer repo.Close()
	// Not in b.tmp, which is memory.
	dir, err := os.MkdirTemp("", "gpuguest-bench-bake-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	base := filepath.Join(dir, "base.qcow2")
	if err := lab.BakeBase(ctx, image, base); err != nil {
		return nil, err
	}
	h := sha256.New()
	f, err := os.Open(base)
	if err != nil {
		return nil, err
	}
	_, err = io.Copy(h, f)
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	text := fmt.Sprintf("images:\n  one:\n    base: base.qcow2\n    sha256: %s\n    output: one.qcow2\n    lock: one.lock\n    target-gpu: GeForce GTX 1050 Ti\n    source: nvidia\n    mirror: %s\n    keyring-sha256: %s\n",
		hex.EncodeToString(h.Sum(nil)), repo.URL, repo.KeyringSHA256["debian12"])
	file := filepath.Join(dir, "bake.yaml")
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		return nil, err
	}
	whole, install, size := map[string]float64{}, map[string]float64{}, map[string]float64{}
	for _, oven := range []string{"nspawn", "qemu"} {
		cmd := exec.CommandContext(ctx, b.gpuguest, "bake", "-f", file, "--oven", oven, "--again", "--json")
		var complaint strings.Builder
		cmd.Stderr = &complaint
		out, err := cmd.Output()
		if err != nil {
			return nil, fmt.Errorf("oven %s: %w: %s", oven, err, complaint.String())
		}
		var result struct {
			Images []struct {
				Bytes  float64 `json:"bytes"`
				Phases []struct {
					Name    string  `json:"name"`
					Seconds float64 `json:"seconds"`
				} `json:"phases"`
			} `json:"images"`
		}
		if err := json.Unmarshal(out, &result); err != nil {
			return nil, fmt.Errorf("oven %s: %w: %s", oven, err, out)
		}
		if len(result.Images) != 1 {
			return nil, fmt.Errorf("oven %s: %d images: %s", oven, len(result.Images), out)
		}
		for _, p := range result.Images[0].Phases {
			whole[oven] += p.Seconds
			if p.Name == "install" {
				install[oven] = p.Seconds
			}
		}
		size[oven] = result.Images[0].Bytes / 1e6
		b.say("oven %s: %.0f s, of which install %.0f s; %.0f MB", oven, whole[oven], install[oven], size[oven])
	}
	return []figure{
		{What: "bake, DKMS builds, oven nspawn", Unit: "s", Ours: []float64{whole["nspawn"]}, Peer: []float64{whole["qemu"]}, Beside: "oven qemu", Target: target{timesFaster, 5}, Note: "the lab's base and stand-in driver; the whole bake"},
		{What: "its install alone", Unit: "s", Ours: []float64{install["nspawn"]}, Peer: []float64{install["qemu"]}, Beside: "oven qemu"},
		{What: "the image", Unit: "MB", Ours: []float64{size["nspawn"]}, Peer: []float64{size["qemu"]}, Beside: "oven qemu"},
	}, nil
}
