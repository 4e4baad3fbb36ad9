package assets

import _ "embed"

// Collect is the script that prints what a support bundle holds of a guest: POSIX sh, run as root with nothing on
// standard input. It changes nothing. Its output is framed as that of Facts is, with the head line
// "gpuguest-collect 1", and unmasked: internal/bundle masks it.
var Collect = withLimited(collect)

//go:embed collect.sh
var collect string
