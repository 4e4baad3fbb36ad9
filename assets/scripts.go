package assets

import _ "embed"

// Job starts, follows and lists jobs in a guest; see its head for the arguments.
//
//go:embed job.sh
var Job string

// Hold takes the guest's lock, runs a script and keeps the lock while its standard input lives.
//
//go:embed hold.sh
var Hold string
