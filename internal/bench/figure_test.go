package main

import (
	"strings"
	"testing"
)

func TestMedianIsTheMiddleOfUnsortedSamples(t *testing.T) {
	for _, c := range []struct {
		in   []float64
		want float64
	}{{nil, 0}, {[]float64{7}, 7}, {[]float64{9, 1, 2}, 2}, {[]float64{8, 2, 4, 6}, 5}} {
		in := append([]float64(nil), c.in...)
		if got := median(c.in); got != c.want {
			t.Errorf("median(%v) = %v, want %v", c.in, got, c.want)
		}
		for i := range in {
			if in[i] != c.in[i] {
				t.Fatalf("median changed its input to %v", c.in)
			}
		}
	}
}

func TestTargetsAreMetOrNot(t *testing.T) {
	for _, c := range []struct {
		name       string
		f          figure
		met, known bool
	}{
		{"below the allowed multiple", figure{Ours: []float64{1.4}, Peer: []float64{1}, Target: target{timesAtMost, 1.5}}, true, true},
		{"above the allowed multiple", figure{Ours: []float64{1.6}, Peer: []float64{1}, Target: target{timesAtMost, 1.5}}, false, true},
		{"fast enough", figure{Ours: []float64{1}, Peer: []float64{41}, Target: target{timesFaster, 40}}, true, true},
		{"not fast enough", figure{Ours: []float64{1}, Peer: []float64{39}, Target: target{timesFaster, 40}}, false, true},
		{"absolute, met", figure{Ours: []float64{0.2, 0.3, 9}, Target: target{atMost, 0.3}}, true, true},
		{"absolute, missed", figure{Ours: []float64{0.31}, Target: target{atMost, 0.3}}, false, true},
		{"nothing asked", figure{Ours: []float64{1}, Peer: []float64{1}}, false, false},
		{"no sample is not a success", figure{Target: target{atMost, 1}}, false, false},
		{"no peer is not a success", figure{Ours: []float64{1}, Target: target{timesAtMost, 2}}, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			met, known := c.f.met()
			if (met && known) != c.met || known != c.known {
				t.Errorf("met = %v, known = %v, want %v, %v", met, known, c.met, c.known)
			}
		})
	}
}

func TestTableSaysWhatWasMissed(t *testing.T) {
	var b strings.Builder
	err := printTable(&b, []figure{
		{Row: "upload", What: "256 MiB, 50 ms", Unit: "s", Ours: []float64{3, 2, 2.5}, Peer: []float64{8, 10, 9}, Beside: "scp", Target: target{timesFaster, 3}},
		{Row: "size", What: "binary", Unit: "MB", Ours: []float64{25}, Target: target{atMost, 20}, Note: "stripped"},
	})
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Split(b.String(), "\n")
	for i, want := range [][]string{1: {"2.5 s", "9 s", "scp", "3.60x", ">= 3x faster", "yes"}, 2: {"25 MB", "<= 20", "NO"}, 3: {"size: binary: stripped"}} {
		for _, w := range want {
			if !strings.Contains(got[i], w) {
				t.Errorf("line %d lacks %q: %s", i, w, got[i])
			}
		}
	}
}
