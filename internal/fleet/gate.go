package fleet

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"
)

// Gate keeps logins apart. A login costs a guest some 40 ms of processor time, and a thousand at once on guests that
// share one host take 20 s each, which no handshake deadline survives; sixteen at once take a quarter of a second.
// Over a long way, on the other hand, a login is nothing but waiting, and sixteen at once would make a thousand
// guests wait for a minute. So the gate looks at what a login took beyond its round trips: it opens one wider where
// that is no more than one guest alone needs, and to half where it becomes a matter of seconds.
type Gate struct {
	now func() time.Time

	mu     sync.Mutex
	limit  int
	in     int
	shrunk time.Time     // when it was last made narrower
	best   time.Duration // the least that a login took beyond its round trips; 0: none yet
	queue  []chan struct{}
}

const (
	gateMin   = 16
	gateFirst = 32
	gateMax   = 256 // a thousand logins of 0.9 s each are then through in 5 s

	// One of TCP and seven of SSH make a login.
	loginTrips = 8
	// What processors took: quick is what they do for one guest, or twice that of the quickest; slow is far from the
	// 20 s that a handshake may take.
	quickLogin = 75 * time.Millisecond
	slowLogin  = 4 * time.Second
)

// NewGate makes a gate that lets 32 in at first.
func NewGate() *Gate { return &Gate{now: time.Now, limit: gateFirst} }

// Enter waits until the gate lets one more in. What it returns is called when the login is over, with the guest's
// round trip and the login's error.
func (g *Gate) Enter(ctx context.Context) (leave func(rtt time.Duration, err error), err error) {
	g.mu.Lock()
	if g.in < g.limit && len(g.queue) == 0 {
		g.in++
		g.mu.Unlock()
		return g.leaver(), nil
	}
	turn := make(chan struct{})
	g.queue = append(g.queue, turn)
	g.mu.Unlock()
	select {
	case <-turn:
		return g.leaver(), nil
	case <-ctx.Done():
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if i := slices.Index(g.queue, turn); i >= 0 {
		g.queue = slices.Delete(g.queue, i, i+1)
	} else { // let in at the same moment
		g.in--
		g.admit()
	}
	return nil, context.Cause(ctx)
}

func (g *Gate) leaver() func(time.Duration, error) {
	began := g.now()
	return func(rtt time.Duration, err error) {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.in--
		g.adjust(began, rtt, err)
		g.admit()
	}
}

// adjust judges one login. One that ended in an error tells nothing of how busy guests are, but one that waited long
// for a guest that is not there held a place for nothing. One that was called off, as a reboot's other probes are when
// the first is in, tells nothing at all.
func (g *Gate) adjust(began time.Time, rtt time.Duration, err error) {
	took := g.now().Sub(began)
	if err != nil {
		if took > time.Second && !errors.Is(err, context.Canceled) {
			g.limit = min(g.limit+1, gateMax)
		}
		return
	}
	took = max(took-loginTrips*rtt, 0)
	if g.best == 0 || took < g.best {
		g.best = took
	}
	switch {
	case took <= max(quickLogin, 2*g.best):
		g.limit = min(g.limit+1, gateMax)
	case took > slowLogin && began.After(g.shrunk):
		g.limit = max(g.limit/2, gateMin)
		g.shrunk = g.now()
	}
}

// admit lets in as many as there is room for.
func (g *Gate) admit() {
	for g.in < g.limit && len(g.queue) > 0 {
		g.in++
		close(g.queue[0])
		g.queue = g.queue[1:]
	}
}
