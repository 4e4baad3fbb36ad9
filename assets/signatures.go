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
