package assets

import _ "embed"

// Facts is the script that tells everything gpuguest wants to know of a guest: POSIX sh, run as root with
// nothing on standard input. It changes nothing. Its output is read by facts.Parse, and, kept as it is, is a
// recording.
//
//go:embed facts.sh
var Facts string
