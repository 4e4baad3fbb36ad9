package assets

import _ "embed"

// Verify is the end of the script that verifies in the guest itself, without gpuguest; see its head.
//
//go:embed verify.sh
var Verify string
