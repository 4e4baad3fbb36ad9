// Package sh puts Go strings into POSIX shell text.
//
// It is the only place in the project that quotes. It never runs anything and knows nothing of guests.
package sh

import (
	"strings"

	"al.essio.dev/pkg/shellescape"
)

// Quote returns s as one POSIX shell word: whatever s holds, the shell reads back exactly s.
// A NUL byte cannot be part of a shell word; callers refuse such input where it enters the program.
func Quote(s string) string { return shellescape.Quote(s) }

// Join quotes every word and joins them with blanks, ready to be a command line.
func Join(words ...string) string {
	quoted := make([]string, len(words))
	for i, w := range words {
		quoted[i] = Quote(w)
	}
	return strings.Join(quoted, " ")
}

// Lean returns a script without its comment lines, empty lines and indentation. It is for scripts of our own, in which no
// quoted text and no here-document holds a line that begins with a blank or a number sign and counts.
func Lean(script string) string {
	var b strings.Builder
	b.Grow(len(script))
	for line := range strings.Lines(script) {
		if line = strings.TrimLeft(line, "\t "); line != "\n" && !strings.HasPrefix(line, "#") {
			b.WriteString(line)
		}
	}
	return b.String()
}
