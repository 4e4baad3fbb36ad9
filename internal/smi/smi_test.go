package smi

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func output(t testing.TB, name string) []byte {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("..", "..", "testdata", "outputs", "smi", name))
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func at(n int) *int { return &n }

func TestBothDocumentTypesAreRead(t *testing.T) {
	got, err := Parse(output(t, "v12-t4.xml"))
	want := Log{DTD: "nvsmi_device_v12.dtd", Driver: "535.309.01", CUDA: "12.2",
		GPUs: []GPU{{
			PCI: "0000:00:1e.0", Name: "Tesla T4", Arch: "Turing", VBIOS: "90.04.38.00.03", GSP: "535.309.01",
			LinkGen: at(1), LinkGenMax: at(3), LinkWidth: at(8), LinkWidthMax: at(16), Replays: at(0),
			ECC: "Enabled", Uncorrected: at(0), UncorrectedTotal: at(1), Retired: at(1), RetirePending: "Yes", Temperature: at(31),
		}},
		Notes: []string{
			"0000:00:1e.0: its PCIe link is x8 and could be x16",
			"0000:00:1e.0: bad memory waits to be taken out of use: reset the GPU or reboot",
			"0000:00:1e.0: 1 pages of its memory are retired",
		}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("v12: %v\ngot  %s\nwant %s", err, asJSON(t, got), asJSON(t, want))
	}
	got, err = Parse(output(t, "v13-h100.xml"))
	if err != nil || got.DTD != "nvsmi_device_v13.dtd" || got.Driver != "610.57.04" || len(got.GPUs) != 2 {
		t.Fatalf("v13: %v\n%s", err, asJSON(t, got))
	}
	first := GPU{
		PCI: "0000:18:00.0", Name: "NVIDIA H100 80GB HBM3", Arch: "Hopper", VBIOS: "96.00.74.00.01", GSP: "610.57.04", MIG: "Disabled", Recovery: "None",
		LinkGen: at(5), LinkGenMax: at(5), LinkWidth: at(16), LinkWidthMax: at(16), Replays: at(3),
		ECC: "Enabled", Uncorrected: at(0), UncorrectedTotal: at(0), Remapped: at(0), RemapPending: "No", RemapFailed: "No", Temperature: at(34), Fabric: "Completed",
	}
	if !reflect.DeepEqual(got.GPUs[0], first) {
		t.Errorf("v13:\ngot  %s\nwant %s", asJSON(t, got.GPUs[0]), asJSON(t, first))
	}
	if g := got.GPUs[1]; *g.Uncorrected != 3 || g.Temperature != nil || g.LinkGen != nil || g.ECC != "" {
		t.Errorf("%s", asJSON(t, g))
	}
}

func asJSON(t testing.TB, v any) string {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

func TestFaultsAreTheGPUsThatHaveThem(t *testing.T) {
	l, err := Parse(output(t, "v13-h100.xml"))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"0000:2a:00.0: the firmware on the GPU is 595.71.05, the driver is 610.57.04",
		"0000:2a:00.0: the driver asks for a recovery of the GPU: Drain and Reset",
		"0000:2a:00.0: the GPU ran out of spare memory rows: have it replaced",
		"0000:2a:00.0: 3 ECC errors that could not be corrected since the driver was loaded",
	}
	if got := l.Faults("610.57.04"); !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
	if l, err = Parse(output(t, "v12-t4.xml")); err != nil || len(l.Faults("535.309.01")) != 0 {
		t.Errorf("%v, faults of a sound GPU: %q", err, l.Faults("535.309.01"))
	}
}

func TestSerialNumbersAreNotRead(t *testing.T) {
	raw := output(t, "v12-t4.xml")
	const serial = "0000000000000"
	if !strings.Contains(string(raw), serial) {
		t.Fatal("the fixture has no serial number")
	}
	l, err := Parse(raw)
	if err != nil || strings.Contains(asJSON(t, l), serial) {
		t.Errorf("%v: %s", err, asJSON(t, l))
	}
}

func TestTextWithoutTheDocumentIsRefused(t *testing.T) {
	for _, text := range []string{"", "No devices were found\n", "Failed to initialize NVML: Unknown Error\n", "<nvidia_smi_log>", "<nvidia_smi_log><gpu></nvidia_smi_log>", "<nvidia_smi_log_other/>"} {
		if _, err := Parse([]byte(text)); !errors.Is(err, ErrNotXML) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestAddressIsSysfss(t *testing.T) {
	for id, want := range map[string]string{"00000000:01:00.0": "0000:01:00.0", "00000001:AF:00.0": "0001:af:00.0", "00010000:01:00.0": "10000:01:00.0", "GPU-1": "GPU-1", "": ""} {
		if got := Address(id); got != want {
			t.Errorf("%q becomes %q", id, got)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(output(f, "v12-t4.xml"))
	f.Add(output(f, "v13-h100.xml"))
	f.Add([]byte(`<nvidia_smi_log><gpu id="x"><temperature><gpu_temp>99999999999999999999 C</gpu_temp></temperature></gpu></nvidia_smi_log>`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		l, err := Parse(raw)
		if err != nil {
			return
		}
		_ = l.Faults("1.2")
		asJSON(t, l)
	})
}
