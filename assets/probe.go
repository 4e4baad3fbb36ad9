package assets

import _ "embed"

// Probe is the source of the program that proves CUDA, C99 for one file: see its head for how it is compiled
// and called. Package internal/cuda reads what it prints.
//
//go:embed cuda/probe.c
var Probe string
