package assets

import (
	_ "embed"
	"strings"
)

// Job starts, follows and lists jobs in a guest; see its head for the arguments.
//
//go:embed job.sh
var Job string

// Hold takes the guest's lock, runs a script and keeps the lock while its standard input lives.
//
//go:embed hold.sh
var Hold string

// Limited is the shell function limited, which runs a command that may hang in the kernel; see its head.
//
//go:embed limited.sh
var Limited string

// withLimited puts Limited where a script says that it stands.
func withLimited(script string) string {
	return strings.Replace(script, "# limited.sh\n", Limited, 1)
}
