// Package fleet decides when the guests of a batch have their turn: how many at once, the first ones before the
// rest, no more after too many failed, and which of them are this machine's share.
//
// It knows nothing of guests but their number and their names, and reaches none. What is done to one it is told as a
// function.
package fleet

import (
	"context"
	"fmt"
	"sync"
)

// Config says who is run and how. Guests are numbered from 0.
type Config struct {
	Guests      int
	Parallel    int // at most so many at once; less than 1 counts as 1
	Canary      int // the first so many must succeed before any other starts; 0: none
	MaxFailures int // no guest starts once so many have failed; 0: all start

	Run   func(ctx context.Context, guest int) error
	Ended func(guest int, err error) // told of each guest as it ends or is left out, one at a time; nil: nobody
}

// NotStartedError is the error of a guest that was left out.
type NotStartedError struct {
	Why   string // "a canary failed", "2 guests failed already", "interrupted"
	Cause error  // the error of the guest for which it was, or the context's cause
}

func (e *NotStartedError) Error() string { return "not started: " + e.Why }

// Unwrap lets a guest that was left out count as what it was left out for.
func (e *NotStartedError) Unwrap() error { return e.Cause }

// Run runs all guests and returns when each has ended: their errors, by number. When ctx ends, no more guests
// start, and those at work are waited for.
func Run(ctx context.Context, c Config) []error {
	b := &batch{Config: c, errs: make([]error, c.Guests)}
	first := min(max(c.Canary, 0), c.Guests)
	b.part(ctx, first)
	if b.stop == nil && b.failed > 0 {
		b.stop = &NotStartedError{Why: "a canary failed", Cause: b.cause}
	}
	b.part(ctx, c.Guests)
	for i := b.next; i < c.Guests; i++ {
		b.ended(i, b.stop)
	}
	return b.errs
}

type batch struct {
	Config
	mu     sync.Mutex
	next   int // the first guest that has not started
	failed int
	cause  error // the first failure
	stop   error // why no more guests start
	errs   []error
}

// part runs the guests up to a number and waits for them.
func (b *batch) part(ctx context.Context, to int) {
	var workers sync.WaitGroup
	for range min(max(b.Parallel, 1), to-b.next) {
		workers.Go(func() {
			for i := b.take(ctx, to); i >= 0; i = b.take(ctx, to) {
				b.ended(i, b.Run(ctx, i))
			}
		})
	}
	workers.Wait()
}

// take returns the next guest to start, -1 when there is none.
func (b *batch) take(ctx context.Context, to int) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.stop == nil && ctx.Err() != nil {
		b.stop = &NotStartedError{Why: "interrupted", Cause: context.Cause(ctx)}
	}
	if b.stop != nil || b.next >= to {
		return -1
	}
	b.next++
	return b.next - 1
}

func (b *batch) ended(i int, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.errs[i] = err
	if err != nil && b.stop == nil {
		if b.failed++; b.failed == 1 {
			b.cause = err
		}
		if b.failed == b.MaxFailures {
			what := "guests"
			if b.failed == 1 {
				what = "guest"
			}
			b.stop = &NotStartedError{Why: fmt.Sprintf("%d %s failed already", b.failed, what), Cause: err}
		}
	}
	if b.Ended != nil {
		b.Ended(i, err)
	}
}

// SendsAtOnce is how many guests are sent a big file at one moment. One takes up to 20 MB here (make bench), and eight
// fill any way. Their turns are short (guest.File), so that all of a batch come forward alike and a slow one holds
// nobody.
const SendsAtOnce = 8

// Turns are had by so many at once, first come first.
type Turns chan struct{}

// NewTurns makes n of them.
func NewTurns(n int) Turns { return make(Turns, n) }

// Take waits for a turn. What it returns gives it back.
func (t Turns) Take(ctx context.Context) (func(), error) {
	select {
	case t <- struct{}{}:
		return sync.OnceFunc(func() { <-t }), nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}
