// Package action holds the things a step may ask to have done in a guest: run a script, write a file,
// send a file.
//
// An action is a value. It never reaches a guest by itself: internal/engine turns actions into one script
// and has that script run.
package action

import "io/fs"

// Action is a Run, a Write or a Send.
type Action interface{ action() }

// Run is a POSIX sh script, run as root with `set -eu` in force and the guest's hygiene variables
// exported (LC_ALL=C, DEBIAN_FRONTEND=noninteractive, …). Its standard input is empty. It may call
// put, drop and keep of assets/step.sh, so that what it changes can be put back.
type Run struct {
	Title    string // what it does, for the progress line: "install the driver packages"
	Script   string
	Packages bool // it changes the set of installed packages: the difference goes into the guest's ledger
}

// Write puts Data at Path, owned by root, by a temporary name and a rename. The content found there
// before gpuguest's first write is kept in the guest, so that it can be put back; a file that already
// has this content and mode is left alone.
type Write struct {
	Path string
	Mode fs.FileMode // permission bits only; 0 means 0644
	Data []byte
}

// Send puts a file of the client's at Path: the engine uploads it before the step's script runs, and the
// script proves that it is there whole.
type Send struct {
	Path   string
	SHA256 string // lower-case hex; it is also what the engine finds the client's file by
}

func (Run) action()   {}
func (Write) action() {}
func (Send) action()  {}
