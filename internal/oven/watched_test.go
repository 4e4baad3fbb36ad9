package oven

import (
	"context"
	"errors"
	"testing"
	"time"
)

// watchedGuest is a guest of which there is only what watching it says.
type watchedGuest struct {
	Guest
	ends chan error
}

func (g watchedGuest) Watch(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case err := <-g.ends:
		return err
	}
}

func TestWatchedEndsWithABadEndAlone(t *testing.T) {
	panicked := errors.New("kernel panic")
	g := watchedGuest{ends: make(chan error)}
	ctx, unwatch := Watched(t.Context(), g)
	g.ends <- panicked
	<-ctx.Done()
	if err := unwatch(); !errors.Is(err, panicked) || !errors.Is(context.Cause(ctx), panicked) {
		t.Errorf("a panic: %v, the context's cause %v", err, context.Cause(ctx))
	}

	// One that was told to go off does so before whoever told it has seen to the rest.
	ctx, unwatch = Watched(t.Context(), g)
	g.ends <- nil
	select {
	case <-ctx.Done():
		t.Error("a guest that went off as it was told ended the context")
	case <-time.After(50 * time.Millisecond):
	}
	if err := unwatch(); err != nil {
		t.Errorf("a guest that went off as it was told: %v", err)
	}

	ctx, unwatch = Watched(t.Context(), g)
	if err := unwatch(); err != nil || ctx.Err() == nil {
		t.Errorf("nothing was seen: %v, and the context's %v", err, ctx.Err())
	}
}
