package assets

import _ "embed"

// GPUs is the table of NVIDIA GPUs: tab-separated, one header line, sorted by device and then subsystem.
// A row without a subsystem tells all about a device; a row with one only gives another name.
// Package internal/catalog reads it; internal/catalog/gen writes it.
//
//go:embed gpus.tsv
var GPUs string

// VGPUs is the table of subsystem ids that a vGPU guest sees, one row a device, sorted by device.
//
//go:embed vgpus.tsv
var VGPUs string

// Branches is the table of driver branches, oldest first. It is kept by hand: each row names its source.
//
//go:embed branches.tsv
var Branches string
