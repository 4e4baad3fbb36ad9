package main

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"sync"
	"sync/atomic"
	"time"
)

// delayLine carries packets from one device to another, each so much later than it came, in order and
// without loss. It stands in for netem, which not every kernel has; the TCP above it is the kernel's own.
type delayLine struct {
	delay atomic.Int64 // nanoseconds, one way
	rooms sync.Pool    // of *[maxPacket]byte
}

// maxPacket is a TUN device's largest read: 64 KiB when it hands over unsegmented TCP, and its header.
const maxPacket = 65536 + 64

type packet struct {
	due  time.Time
	data []byte
	full *[maxPacket]byte // what data is in when it is large: taken from a pool, to which it goes back
}

// largePacket is the size from which a packet's room is used again: the line is no part of what is measured, and
// shares the processors with what is.
const largePacket = 2048

// run carries packets both ways until a device is closed, and returns when both directions have ended.
func (l *delayLine) run(ctx context.Context, a, b io.ReadWriter) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var all sync.WaitGroup
	errs := make(chan error, 4)
	for _, way := range [][2]io.ReadWriter{{a, b}, {b, a}} {
		// As long as a queue is not full nothing is dropped; 64 K packets are far more than TCP's windows hold.
		queue := make(chan packet, 1<<16)
		all.Go(func() { errs <- l.read(ctx, way[0], queue) })
		all.Go(func() { errs <- l.deliver(ctx, queue, way[1]) })
	}
	all.Wait()
	close(errs)
	for err := range errs {
		if err != nil && !errors.Is(err, fs.ErrClosed) && !errors.Is(err, context.Canceled) && !errors.Is(err, io.EOF) {
			return err
		}
	}
	return nil
}

func (l *delayLine) read(ctx context.Context, from io.Reader, queue chan<- packet) error {
	defer close(queue)
	room := new([maxPacket]byte)
	for {
		n, err := from.Read(room[:])
		if err != nil {
			return err
		}
		p := packet{due: time.Now().Add(time.Duration(l.delay.Load()))}
		if n < largePacket {
			p.data = append(p.data, room[:n]...)
		} else {
			p.data, p.full = room[:n], room
			if room, _ = l.rooms.Get().(*[maxPacket]byte); room == nil {
				room = new([maxPacket]byte)
			}
		}
		select {
		case queue <- p:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (l *delayLine) deliver(ctx context.Context, queue <-chan packet, to io.Writer) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for p := range queue {
		if wait := time.Until(p.due); wait > 0 {
			timer.Reset(wait)
			select {
			case <-timer.C:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		// A device that is not up yet refuses what the kernel sends of itself; TCP would repeat what it lost.
		if _, err := to.Write(p.data); errors.Is(err, fs.ErrClosed) {
			return err
		}
		if p.full != nil {
			l.rooms.Put(p.full)
		}
	}
	return nil
}
