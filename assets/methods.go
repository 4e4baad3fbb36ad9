package assets

import _ "embed"

// Toolkits is the table of CUDA toolkits: tab-separated, one header line, oldest first, one row a release.
// Package internal/catalog reads these tables and internal/catalog/gen writes them; each row names its source.
//
//go:embed toolkits.tsv
var Toolkits string

// ToolkitRepos is the table of what series of toolkits NVIDIA's repositories hold, by directory: the first and the
// last one. It is kept by hand: each row names its source. A repository without a row was not looked at.
//
//go:embed toolkit_repos.tsv
var ToolkitRepos string

// ToolkitRunfiles is the table of CUDA's self-extracting installers, one row a release and machine.
//
//go:embed toolkit_runfiles.tsv
var ToolkitRunfiles string

// DriverRunfiles is the table of the driver's self-extracting installers, one row a version and machine.
//
//go:embed driver_runfiles.tsv
var DriverRunfiles string

// CUDASamples is the table of the archives of NVIDIA's cuda-samples, one row a tag, oldest first.
//
//go:embed cuda_samples.tsv
var CUDASamples string

// InstallerOptions is the table of nvidia-installer's options and of the releases that know them, by name.
//
//go:embed installer_options.tsv
var InstallerOptions string

// Capabilities is the table of compute capabilities, by ranges of PCI device ids, sorted.
//
//go:embed capabilities.tsv
var Capabilities string
