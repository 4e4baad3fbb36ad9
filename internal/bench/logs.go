//go:build linux

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// logBytes is how large the log is that diagnose reads.
const logBytes = 200 << 20

// logs are the figures of reading a large log: beside grep, which looks for one word and judges nothing.
func logs(ctx context.Context, b *bench) ([]figure, error) {
	file := filepath.Join(b.tmp, "kernel.log")
	if err := writeLog(file); err != nil {
		return nil, err
	}
	defer os.Remove(file)
	diagnose := []string{"diagnose", "--json", "--log", file}
	got, err := inTurn(b.runs(7), []way{
		{"diagnose", func() (float64, error) {
			t, err := b.time(ctx, nil, b.gpuguest, diagnose...)
			return t.seconds, err
		}},
		{"grep", func() (float64, error) {
			t, err := b.time(ctx, []string{"LC_ALL=C"}, "grep", "-c", "NVRM", file)
			return t.seconds, err
		}},
	})
	if err != nil {
		return nil, err
	}
	t, err := b.peak(ctx, b.gpuguest, diagnose...)
	if err != nil {
		return nil, err
	}
	return []figure{
		{What: "diagnose --log of 200 MiB", Unit: "s", Ours: got["diagnose"], Peer: got["grep"], Beside: "grep -c NVRM", Target: target{atMost, 2},
			Note: "constructed kernel log, one line in 500 known; the whole process"},
		{What: "its peak memory", Unit: "MB", Ours: []float64{t.peak}, Target: target{atMost, 64}},
	}, nil
}

// writeLog constructs a kernel log in which nothing is fatal: one line in 500 tells of a program's own fault.
func writeLog(file string) (err error) {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := bufio.NewWriterSize(f, 1<<20)
	for n, line := 0, 0; n < logBytes; line++ {
		format := "[%8d.%06d] audit: type=1400 apparmor=\"STATUS\" operation=\"profile_load\" name=\"/usr/sbin/ntpd\"\n"
		switch {
		case line%500 == 7:
			format = "[%8d.%06d] NVRM: Xid (PCI:0000:9b:00): 31, pid=4711, name=python3, Ch 00000008, intr 00000000\n"
		case line%3 == 1:
			format = "[%8d.%06d] nvidia-uvm: Loaded the UVM driver, major device number 235.\n"
		case line%3 == 2:
			format = "[%8d.%06d] pci 0000:00:1c.0: BAR 13: assigned [io  0x1000-0x1fff]\n"
		}
		wrote, err := fmt.Fprintf(w, format, line/10, line%1000000)
		if err != nil {
			return err
		}
		n += wrote
	}
	return w.Flush()
}
