package main

import "testing"

func testCut(t *testing.T, w *world)        { t.SkipNow() }
func testRefuse(t *testing.T, w *world)     { t.SkipNow() }
func testSuites(t *testing.T, w *world)     { t.SkipNow() }
func testRealDriver(t *testing.T, w *world) { t.SkipNow() }
