// Package steps holds what gpuguest can do to a guest, one step a file.
//
// A step is a pure function from what the guest is, what it runs and what the user wants, to a check and
// a list of actions. Steps never name a distribution: what differs is a field of distros.Distro. They
// never reach a guest: the engine runs what they return.
package steps
