package assets

import _ "embed"

// MIGs is the table of GPUs that can be divided into instances: tab-separated, one header line, a pattern of names a
// row. It is kept by hand: each row names its source.
//
//go:embed migs.tsv
var MIGs string

// MIG is the script that divides GPUs at every boot.
var MIG = withLimited(mig)

//go:embed mig.sh
var mig string
