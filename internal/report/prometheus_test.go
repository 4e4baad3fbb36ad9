package report

import (
	"bytes"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"gpuguest/internal/diagnosis"
	"gpuguest/internal/engine"
)

// scraped is what Prometheus' own parser makes of the metrics of guests.
func scraped(t testing.TB, guests []Guest) map[string]*dto.MetricFamily {
	t.Helper()
	var b bytes.Buffer
	if err := Prometheus(&b, guests); err != nil {
		t.Fatal(err)
	}
	text := b.String()
	parser := expfmt.NewTextParser(model.LegacyValidation)
	found, err := parser.TextToMetricFamilies(&b)
	if err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	for name := range found {
		for _, head := range []string{"# HELP " + name + " ", "# TYPE " + name + " gauge\n"} {
			if n := strings.Count(text, head); n != 1 {
				t.Errorf("%q stands there %d times", head, n)
			}
		}
	}
	return found
}

// value finds the one sample with these labels: "guest=a step=b".
func value(t testing.TB, f *dto.MetricFamily, labels string) float64 {
	t.Helper()
	var found []float64
	for _, m := range f.GetMetric() {
		var all []string
		for _, l := range m.GetLabel() {
			all = append(all, l.GetName()+"="+l.GetValue())
		}
		if !slices.ContainsFunc(strings.Fields(labels), func(l string) bool { return !slices.Contains(all, l) }) {
			found = append(found, m.GetGauge().GetValue())
		}
		if m.TimestampMs != nil {
			t.Errorf("%s has a time, which the textfile collector refuses", f.GetName())
		}
	}
	if len(found) != 1 {
		t.Errorf("%s{%s}: %d samples", f.GetName(), labels, len(found))
		return -1
	}
	return found[0]
}

func TestPrometheusReadsTheMetrics(t *testing.T) {
	m := scraped(t, constructed(t))
	for _, c := range []struct {
		name, labels string
		want         float64
	}{
		{"gpuguest_success", "guest=gpu-good", 1},
		{"gpuguest_success", "guest=gpu-gone:5022", 0},
		{"gpuguest_exit_code", "guest=gpu-bar", 5},
		{"gpuguest_end_timestamp_seconds", "guest=gpu-good", 1795162502},
		{"gpuguest_duration_seconds", "guest=gpu-bar", 412.7},
		{"gpuguest_guest_info", "guest=gpu-good driver=580.95.05 flavor=open kernel=6.1.0-50-amd64", 1},
		{"gpuguest_gpus", "guest=gpu-eight.rack-2.example", 4},
		{"gpuguest_reboot_owed", "guest=ubuntu@gpu-apt", 1},
		{"gpuguest_reboot_owed", "guest=gpu-good", 0},
		{"gpuguest_step_success", "guest=gpu-bar step=module", 0},
		{"gpuguest_step_success", "guest=gpu-bar step=next-boot", 1},
		{"gpuguest_verdict", "guest=gpu-bar id=bar-zero where=guest", 1},
		{"gpuguest_gpu_success", "guest=gpu-eight.rack-2.example pci=0000:b1:00.0", 0},
		{"gpuguest_gpu_success", "guest=gpu-eight.rack-2.example pci=0000:17:00.0", 1},
		{"gpuguest_gpu_link_bytes_per_second", "guest=gpu-good pci=0000:01:00.0", 15.75e9},
		{"gpuguest_gpu_copy_bytes_per_second", "guest=gpu-good direction=host_to_device memory=pinned", 12.4e9},
		{"gpuguest_gpu_copy_bytes_per_second", "guest=gpu-good direction=device_to_device", 238.2e9},
	} {
		if m[c.name] == nil {
			t.Errorf("no %s", c.name)
			continue
		}
		if got := value(t, m[c.name], c.labels); got != c.want {
			t.Errorf("%s{%s} is %v, want %v", c.name, c.labels, got, c.want)
		}
	}
	// What was not measured has no sample: a zero would be a speed.
	for _, s := range m["gpuguest_gpu_link_bytes_per_second"].GetMetric() {
		if s.GetGauge().GetValue() == 0 {
			t.Errorf("an unknown link is %v", s)
		}
	}
}

func TestMetricNamesFollowPrometheusRules(t *testing.T) {
	m := scraped(t, fleet(t, 100))
	if len(m) != len(metrics) {
		t.Errorf("%d families of %d have samples: %v", len(m), len(metrics), slices.Sorted(maps.Keys(m)))
	}
	rule := regexp.MustCompile(`^gpuguest_[a-z]+(_[a-z]+)*$`)
	for name, f := range m {
		switch {
		case !rule.MatchString(name), strings.HasSuffix(name, "_total"), strings.HasSuffix(name, "_count"):
			t.Errorf("a gauge called %s", name)
		case f.GetType() != dto.MetricType_GAUGE:
			t.Errorf("%s is a %s", name, f.GetType())
		case f.GetHelp() == "" || !strings.HasSuffix(f.GetHelp(), "."):
			t.Errorf("%s: help %q", name, f.GetHelp())
		}
	}
}

func TestPrometheusLabelsAreEscaped(t *testing.T) {
	const host, kernel = "a\\b\"c\nd", "k\x00\xff,}"
	g := New(engine.Report{Host: host, Result: "done", Kernel: kernel}, 0, made)
	for _, l := range scraped(t, []Guest{g})["gpuguest_guest_info"].GetMetric()[0].GetLabel() {
		if want := map[string]string{"guest": host, "kernel": "k\x00\ufffd,}"}[l.GetName()]; want != "" && l.GetValue() != want {
			t.Errorf("%s came back as %q, want %q", l.GetName(), l.GetValue(), want)
		}
	}
}

func TestAVerdictSeenTwiceIsOneSample(t *testing.T) {
	g := constructed(t, "bar1-0m")[0]
	v := diagnosis.Verdict{ID: "xid-79", Severity: diagnosis.Fatal, Where: diagnosis.Hardware}
	g.Verdicts = []diagnosis.Verdict{v, v}
	if n := len(scraped(t, []Guest{g})["gpuguest_verdict"].GetMetric()); n != 1 {
		t.Errorf("%d samples", n)
	}
}
