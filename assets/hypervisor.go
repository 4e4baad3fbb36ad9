package assets

import _ "embed"

// Hypervisor is the script that tells what a GPU's passthrough needs to know of the machine that VMs run on:
// POSIX sh, run as root with nothing on standard input. It changes nothing. Its output is read by
// hypervisor.Parse.
//
//go:embed hypervisor.sh
var Hypervisor string
