package assets

import _ "embed"

// Bake is the library of what is done to a guest that becomes an image; see its head.
//
//go:embed bake.sh
var Bake string
