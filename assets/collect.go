package assets

import _ "embed"

// Collect is the script that prints what a support bundle holds of a guest, and what a diagnosis of it goes by: POSIX
// sh, run as root with nothing on standard input; GPUGUEST_SECTIONS says how much. It changes nothing. Its output is
// framed as that of Facts is, with the head line "gpuguest-collect 1", and unmasked: internal/bundle masks it.
//
//go:embed collect.sh
var Collect string
