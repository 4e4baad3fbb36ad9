//go:build !unix

package guest

import "os"

// lockFile does nothing where there is no flock: a single appending write is all the protection there is.
func lockFile(*os.File) error { return nil }
