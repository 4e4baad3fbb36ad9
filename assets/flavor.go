package assets

import _ "embed"

// Flavor is the script that picks the flavor of the kernel modules at an image's first boot; see its head.
//
//go:embed flavor.sh
var Flavor string
