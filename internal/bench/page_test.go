//go:build linux

package main

import (
	"bytes"
	"testing"

	"gpuguest/internal/report"
)

func TestBenchedResultsAreWhatTheirRowSays(t *testing.T) {
	guests, err := results(pageGuests)
	if err != nil {
		t.Fatal(err)
	}
	s := report.Summarise(guests)
	if s.Guests != 200 || s.Done != 180 || s.GPUs != 1600 {
		t.Errorf("%+v", s)
	}
	measured := 0
	for _, g := range guests {
		measured += len(g.Measured())
	}
	if measured != 180*gpusEach {
		t.Errorf("%d GPUs are measured", measured)
	}
	var b bytes.Buffer
	if err := report.HTML(&b, guests, guests[0].Time); err != nil {
		t.Fatal(err)
	}
	if b.Len() > 2<<20 {
		t.Errorf("the page is %d bytes", b.Len())
	}
}
