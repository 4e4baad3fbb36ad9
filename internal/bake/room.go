package bake

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"

	"gpuguest/internal/guest"
)

// Space is what a file system has free.
type Space struct {
	FS   uint64 // which it is: its device number
	Free int64  // bytes
}

// promise is room that an image being baked may still take in its work folder.
type promise struct {
	dir  string
	fs   uint64
	need int64 // bytes in all, of which some are taken by now
}

// reserve promises room to the image, or waits for it until images that were promised theirs have ended. Without that,
// images side by side would each see the same free bytes. It is guest.ErrNoSpace when the room would not be there even
// then.
func (k *baking) reserve(ctx context.Context, need int64) error {
	k.unreserve()
	if k.Free == nil {
		return nil
	}
	p := &promise{dir: k.w.dir, need: need}
	for told := false; ; {
		freed, err := k.promised(p)
		if freed == nil || err != nil {
			return err
		}
		if !told {
			told = true
			k.notice("waiting for room: it may take %s, which other images have been promised", gib(need))
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-freed:
		}
	}
}

// promised makes a promise, or returns what is closed when another one ends.
func (k *baking) promised(p *promise) (<-chan struct{}, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	space, err := k.Free(p.dir)
	if err != nil {
		return nil, err
	}
	p.fs = space.FS
	owed, taken := int64(0), int64(0) // by and to all that are at work there
	others := false
	for _, q := range k.promises {
		if q.fs == p.fs {
			has := taking(q.dir)
			owed, taken, others = owed+max(0, q.need-has), taken+has, true
		}
	}
	switch {
	case space.Free-owed >= p.need:
		k.promises, k.room = append(k.promises, p), p
		return nil, nil
	case !others || space.Free+taken < p.need:
		return nil, fmt.Errorf("%w: %s has %s free, and baking may take %s there", guest.ErrNoSpace, filepath.Dir(k.im.Output), gib(space.Free), gib(p.need))
	}
	if k.freed == nil {
		k.freed = make(chan struct{})
	}
	return k.freed, nil
}

// unreserve takes the image's promise back, which is to be called when its work folder is empty, or its image there.
func (k *baking) unreserve() {
	if k.room == nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.promises = slices.DeleteFunc(k.promises, func(p *promise) bool { return p == k.room })
	k.room = nil
	if k.freed != nil {
		close(k.freed)
		k.freed = nil
	}
}
