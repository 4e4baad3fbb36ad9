package main

import (
	"fmt"
	"net"
	"testing"
	"time"
)

func TestDelayLineKeepsOrderAndDelaysEachWay(t *testing.T) {
	const delay = 30 * time.Millisecond
	var l delayLine
	l.delay.Store(int64(delay))
	a, lineA := net.Pipe()
	b, lineB := net.Pipe()
	ended := make(chan error, 1)
	go func() { ended <- l.run(t.Context(), lineA, lineB) }()

	for _, way := range []struct {
		name     string
		from, to net.Conn
	}{{"there", a, b}, {"back", b, a}} {
		sent := time.Now()
		go func() {
			for i := range 5 {
				if _, err := fmt.Fprintf(way.from, "packet %d", i); err != nil {
					t.Error(err)
				}
			}
		}()
		buf := make([]byte, 64)
		for i := range 5 {
			n, err := way.to.Read(buf)
			if err != nil {
				t.Fatal(err)
			}
			if got, want := string(buf[:n]), fmt.Sprintf("packet %d", i); got != want {
				t.Errorf("%s: %q, want %q", way.name, got, want)
			}
			if took := time.Since(sent); took < delay {
				t.Errorf("%s: packet %d came after %v, want at least %v", way.name, i, took, delay)
			}
		}
	}
	for _, c := range []net.Conn{a, b, lineA, lineB} {
		c.Close()
	}
	select {
	case err := <-ended:
		if err != nil && err.Error() != "io: read/write on closed pipe" {
			t.Error(err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("the line did not end when its devices were closed")
	}
}
