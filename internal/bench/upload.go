//go:build linux

package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"crypto/sha256"

	"gpuguest/internal/guest"
)

const (
	uploadBytes = 256 << 20
	uploadTo    = "/tmp/gpuguest-bench" // a tmpfs in the guest
)

// payload makes the file to upload: no byte of it can be left out by compression.
func (b *bench) payload() (path, sum string, err error) {
	path = filepath.Join(b.tmp, "payload")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|os.O_TRUNC, 0o600)
	if err != nil {
		return "", "", err
	}
	h := sha256.New()
	_, err = io.Copy(io.MultiWriter(f, h), io.LimitReader(rand.Reader, uploadBytes))
	return path, hex.EncodeToString(h.Sum(nil)), errors.Join(err, f.Close())
}

func uploads(ctx context.Context, b *bench) ([]figure, error) {
	file, sum, err := b.payload()
	if err != nil {
		return nil, err
	}
	var figures []figure
	for _, p := range []struct {
		host   string
		rtt    time.Duration
		runs   int
		target float64
	}{{"near", 0, 7, 1.5}, {"far", 50 * time.Millisecond, 3, 3}, {"far", 100 * time.Millisecond, 3, 3}} {
		b.net.setRTT(p.rtt)
		got, err := inTurn(b.runs(p.runs), []way{
			{"gpuguest", func() (float64, error) {
				t, err := b.put(ctx, p.host, file, sum)
				return t.seconds, err
			}},
			{"scp", func() (float64, error) {
				t, err := b.scp(ctx, p.host, file, sum)
				return t.seconds, err
			}},
		})
		name := fmt.Sprintf("256 MiB upload, %d ms", p.rtt.Milliseconds())
		figures = append(figures, figure{What: name, Unit: "s", Ours: got["gpuguest"], Peer: got["scp"], Beside: "scp", Target: target{timesFaster, p.target}})
		if err != nil {
			return figures, err
		}
	}
	figures[0].Note = "whole processes, connect to finish; random bytes from tmpfs to tmpfs; the SHA-256 is given, as a plan gives it to the engine, and the guest's file is compared with it outside the time"
	return figures, nil
}

// put uploads by gpuguest's own code; gpuguest itself has no command that only uploads.
func (b *bench) put(ctx context.Context, host, file, sum string) (timed, error) {
	t, err := b.worker(ctx, "put", b.sshConfig(), host, file, uploadTo, sum)
	return t, errors.Join(err, b.arrived(ctx, sum))
}

func (b *bench) scp(ctx context.Context, host, file, sum string) (timed, error) {
	t, err := b.time(ctx, nil, "scp", "-q", "-F", b.sshConfig(), file, host+":"+uploadTo)
	return t, errors.Join(err, b.arrived(ctx, sum))
}

// arrived sees that the file is whole in the guest and takes it away, so that the next upload sends it all.
func (b *bench) arrived(ctx context.Context, sum string) error {
	t, err := b.time(ctx, nil, "ssh", append([]string{"-n"}, b.ssh("near", "sha256sum <"+uploadTo+"; rm -rf "+uploadTo+" /var/lib/gpuguest/stamps")...)...)
	if err != nil {
		return err
	}
	if !strings.HasPrefix(string(t.out), sum) {
		return fmt.Errorf("what arrived differs: %s", t.out)
	}
	return nil
}

// upload is what is sent, where to and when.
type upload struct {
	file, to, sum string
	turn          func(context.Context) (func(), error) // nil: at once
}

// workPut is one upload: dial, send, finish.
func workPut(ctx context.Context, c guest.Config, u upload) error {
	st, err := os.Stat(u.file)
	if err != nil {
		return err
	}
	conn, err := guest.Dial(ctx, c)
	if err != nil {
		return err
	}
	defer conn.Close()
	res, err := conn.Put(ctx, guest.File{Path: u.to, Size: st.Size(), SHA256: u.sum, Turn: u.turn, Open: func() (io.ReadSeekCloser, error) { return os.Open(u.file) }})
	if err == nil && res.Sent != st.Size() {
		err = fmt.Errorf("%d of %d bytes were sent: the guest had some", res.Sent, st.Size())
	}
	return err
}
