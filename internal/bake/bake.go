// Package bake makes disk images that have the driver in them.
//
// It boots a copy of a base image in an oven, has the engine install in it what it installs in any guest, seals
// it, turns it off and puts it beside its manifest, whole or not at all. It decides nothing about drivers and
// installs nothing by itself; the base is only ever read.
package bake
