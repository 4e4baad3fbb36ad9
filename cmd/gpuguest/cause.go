package main

import "gpuguest/internal/diagnosis"

// knownCause returns the cause and the remedy that a step's output gives away, "" when none is known.
func knownCause(text string) string {
	v, ok := diagnosis.Cause(text)
	if !ok {
		return ""
	}
	return v.Hint()
}
