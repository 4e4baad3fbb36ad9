package main

import (
	"sync"

	"golang.org/x/term"
)

// terminal gives the user's terminal back as it was found, also when the process ends while a secret is typed and
// nothing is echoed. A nil terminal keeps nothing.
type terminal struct {
	mu    sync.Mutex
	fd    int
	state *term.State // nil: nothing is to be given back
}

// keep remembers how the terminal is now, until done is called.
func (t *terminal) keep(fd int) (done func()) {
	state, err := term.GetState(fd)
	if t == nil || err != nil {
		return func() {}
	}
	set := func(s *term.State) {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.fd, t.state = fd, s
	}
	set(state)
	return func() { set(nil) }
}

// restore gives it back.
func (t *terminal) restore() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.state != nil {
		_ = term.Restore(t.fd, t.state)
	}
}
