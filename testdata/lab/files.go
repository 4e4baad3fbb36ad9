// Package labfiles holds what the lab puts into its guests: the pretend GPU's
// module, the stand-in packages' sources and the script that makes a disk.
package labfiles

import "embed"

// FS has the directories fakegpu, packages, guest and runfile.
//
//go:embed fakegpu packages guest runfile
var FS embed.FS
