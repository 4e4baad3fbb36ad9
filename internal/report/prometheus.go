package report

import (
	"io"
	"slices"
	"strconv"
	"strings"

	"gpuguest/internal/engine"
)

// metrics are the families that Prometheus writes, in their order. Names end in their unit, and speeds are in bytes
// a second, as Prometheus' naming rules ask for. No sample has a time: the textfile collector refuses those.
var metrics = []struct {
	name, help string
	samples    func(Guest) []sample
}{
	{"gpuguest_success", "Whether the last run did what was asked for (1) or failed (0).", func(g Guest) []sample {
		return []sample{{nil, truth(g.OK())}}
	}},
	{"gpuguest_exit_code", "What gpuguest exited with; 0 is done.", func(g Guest) []sample {
		return []sample{{nil, float64(g.Exit)}}
	}},
	{"gpuguest_end_timestamp_seconds", "When the last run ended, in seconds since 1970.", func(g Guest) []sample {
		if g.Time.IsZero() {
			return nil
		}
		return []sample{{nil, float64(g.Time.Unix())}}
	}},
	{"gpuguest_duration_seconds", "How long the last run took.", func(g Guest) []sample {
		return []sample{{nil, g.Seconds}}
	}},
	{"gpuguest_guest_info", "What the guest is; always 1.", func(g Guest) []sample {
		return []sample{{labels{{"distro", g.Distro}, {"kernel", g.Kernel}, {"driver", g.Driver}, {"flavor", g.Flavor}}, 1}}
	}},
	{"gpuguest_gpus", "GPUs that the guest has.", func(g Guest) []sample {
		return []sample{{nil, float64(len(g.GPUs))}}
	}},
	{"gpuguest_reboots", "Reboots in the last run.", func(g Guest) []sample {
		return []sample{{nil, float64(g.Reboots)}}
	}},
	{"gpuguest_reboot_owed", "Whether a change waits for a reboot (1) or none does (0).", func(g Guest) []sample {
		return []sample{{nil, truth(len(g.Owed) > 0)}}
	}},
	{"gpuguest_step_success", "Whether a step was met or brought about (1) or failed (0).", func(g Guest) []sample {
		var all []sample
		for _, s := range g.Steps {
			if s.State == engine.Met || s.State == engine.Changed || s.State == engine.Failed {
				all = append(all, sample{labels{{"step", string(s.ID)}}, truth(s.State != engine.Failed)})
			}
		}
		return all
	}},
	{"gpuguest_verdict", "What the run's failure gives away; always 1.", func(g Guest) []sample {
		var all []sample
		for _, v := range g.Verdicts {
			s := sample{labels{{"id", v.ID}, {"severity", v.Severity}, {"where", v.Where}}, 1}
			if !slices.ContainsFunc(all, func(o sample) bool { return slices.Equal(o.labels, s.labels) }) {
				all = append(all, s)
			}
		}
		return all
	}},
	{"gpuguest_gpu_success", "Whether the CUDA probe found a GPU good (1) or not (0).", eachGPU(func(g GPU) []sample {
		return []sample{{nil, truth(len(g.Failures) == 0)}}
	})},
	{"gpuguest_gpu_link_bytes_per_second", "What the GPU's negotiated PCIe link carries one way.", eachGPU(func(g GPU) []sample {
		return speeds(speed{nil, g.Link})
	})},
	{"gpuguest_gpu_copy_bytes_per_second", "Measured copy speed between host and GPU, and within the GPU.", eachGPU(func(g GPU) []sample {
		return speeds(
			speed{labels{{"direction", "host_to_device"}, {"memory", "pinned"}}, g.PinnedH2D},
			speed{labels{{"direction", "device_to_host"}, {"memory", "pinned"}}, g.PinnedD2H},
			speed{labels{{"direction", "host_to_device"}, {"memory", "pageable"}}, g.PageableH2D},
			speed{labels{{"direction", "device_to_host"}, {"memory", "pageable"}}, g.PageableD2H},
			speed{labels{{"direction", "device_to_device"}, {"memory", "device"}}, g.D2D})
	})},
}

type label struct{ name, value string }

type labels []label

type sample struct {
	labels labels
	value  float64
}

type speed struct {
	labels labels
	gbs    float64 // 0: not measured, and no sample
}

func speeds(all ...speed) []sample {
	var found []sample
	for _, s := range all {
		if s.gbs > 0 {
			found = append(found, sample{s.labels, s.gbs * 1e9})
		}
	}
	return found
}

func eachGPU(of func(GPU) []sample) func(Guest) []sample {
	return func(g Guest) []sample {
		var all []sample
		for _, gpu := range g.Measured() {
			for _, s := range of(gpu) {
				s.labels = append(labels{{"pci", gpu.PCI}, {"gpu", gpu.Name}}, s.labels...)
				all = append(all, s)
			}
		}
		return all
	}
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// Prometheus writes the results in Prometheus' text format, for the textfile collector of its node exporter: HELP
// and TYPE once a family, all its samples below. Every sample names its guest.
func Prometheus(w io.Writer, guests []Guest) error {
	var b strings.Builder
	for _, m := range metrics {
		head := "# HELP " + m.name + " " + m.help + "\n# TYPE " + m.name + " gauge\n"
		for _, g := range guests {
			for _, s := range m.samples(g) {
				b.WriteString(head)
				head = ""
				b.WriteString(m.name)
				sep := "{"
				for _, l := range append(labels{{"guest", g.Host}}, s.labels...) {
					b.WriteString(sep + l.name + `="` + escape.Replace(strings.ToValidUTF8(l.value, "\ufffd")) + `"`)
					sep = ","
				}
				b.WriteString("} " + strconv.FormatFloat(s.value, 'g', -1, 64) + "\n")
			}
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// escape is how the text format escapes a label's value (Prometheus' "Text format details").
var escape = strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`)
