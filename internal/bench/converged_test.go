//go:build linux

package main

import (
	"errors"
	"slices"
	"testing"

	"gpuguest/internal/engine"
)

func TestWaysAreMeasuredInTurn(t *testing.T) {
	var order []string
	count := 0.0
	w := func(name string) way {
		return way{name, func() (float64, error) {
			order = append(order, name)
			count++
			return count, nil
		}}
	}
	got, err := inTurn(2, []way{w("ours"), w("peer")})
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"ours", "peer", "ours", "peer"}; !slices.Equal(order, want) {
		t.Errorf("order %v, want %v", order, want)
	}
	if !slices.Equal(got["ours"], []float64{1, 3}) || !slices.Equal(got["peer"], []float64{2, 4}) {
		t.Errorf("samples %v", got)
	}
}

func TestAWayThatFailsNamesItself(t *testing.T) {
	broken := errors.New("no answer")
	_, err := inTurn(1, []way{{"scp", func() (float64, error) { return 0, broken }}})
	if !errors.Is(err, broken) || err.Error() != "scp: no answer" {
		t.Errorf("error %v", err)
	}
}

func TestAReportOfAChangeIsNoConvergedInstall(t *testing.T) {
	for report, ok := range map[string]bool{
		`{"steps":[{"id":"driver","state":"met"}]}`:             true,
		`{"steps":[{"id":"driver","state":"changed"}]}`:         false,
		`{"steps":[{"id":"driver","state":"met"}],"reboots":1}`: false,
		`{"steps":[]}`: false,
		`no JSON`:      false,
	} {
		var r engine.Report
		err := didNothing([]byte(report), &r)
		if (err == nil) != ok {
			t.Errorf("%s: %v", report, err)
		}
	}
}
