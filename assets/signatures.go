package assets

import _ "embed"

// Signatures is the catalogue of the lines that failures leave behind: tab-separated, with a header, one
// row a signature. The package diagnosis reads it and says what each column means.
//
//go:embed signatures.tsv
var Signatures string

// Xids is the table of the driver's numbered errors ("NVRM: Xid (PCI:0000:01:00): 79, …"): tab-separated,
// with a header, one row a number.
//
//go:embed xids.tsv
var Xids string

// Remedies is the table of what gpuguest can do by itself about a failure: tab-separated, with a header, one
// row for each fix that a signature names. The package remedy reads it and says what each column means.
//
//go:embed remedies.tsv
var Remedies string
