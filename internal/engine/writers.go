package engine

import "bytes"

// lastBytes keeps the end of what is written to it.
type lastBytes struct {
	limit int
	buf   []byte
}

func (l *lastBytes) Write(p []byte) (int, error) {
	l.buf = append(l.buf, p...)
	if over := len(l.buf) - l.limit; over > 0 {
		l.buf = append(l.buf[:0], l.buf[over:]...)
	}
	return len(p), nil
}

func (l *lastBytes) String() string { return string(l.buf) }

// lineWriter hands over whole lines as they end. A carriage return ends one too: that is how programs
// redraw a progress line.
type lineWriter struct {
	each func(string)
	rest []byte
}

func (w *lineWriter) Write(p []byte) (int, error) {
	w.rest = append(w.rest, p...)
	for {
		i := bytes.IndexAny(w.rest, "\r\n")
		if i < 0 {
			return len(p), nil
		}
		if i > 0 {
			w.each(string(w.rest[:i]))
		}
		w.rest = w.rest[i+1:]
	}
}
