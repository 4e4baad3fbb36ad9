package catalog

import (
	"testing"

	"gpuguest/assets"
)

func TestEveryRowOfTheMIGTableNamesAGPUAndADriver(t *testing.T) {
	if n := columns(t, "migs", assets.MIGs, 1); n < 11 {
		t.Errorf("only %d rows", n)
	}
	seen := map[string]bool{}
	for g := range GPUs() {
		m, known := MIGOf(g.Name)
		if !known {
			continue
		}
		seen[m.name.String()] = true
		if b, err := BranchOf(m.Driver); err != nil || g.Last != 0 && g.Last < b {
			t.Errorf("%s is driven up to %d and divided from %s on", g.Name, g.Last, m.Driver)
		}
	}
	for _, m := range migs() {
		if !seen[m.name.String()] {
			t.Errorf("no GPU is named like %s", m.name)
		}
	}
}

func TestMIGOfKnowsWhatCanBeDivided(t *testing.T) {
	for name, driver := range map[string]string{
		"NVIDIA A100-SXM4-40GB": "450.80.02", "A100X": "", "A30 PCIe": "460.73.01", "H100L 94GB": "525.85.12", "NVIDIA H20-3e": "535.161.07",
		"NVIDIA H200 NVL": "550.90.07", "HGX GB200": "570.133.20", "NVIDIA B300 SXM6 AC": "580.82.07",
		"RTX PRO 5000 Blackwell / RTX PRO 5000 72GB Blackwell": "575.57.08", "NVIDIA RTX PRO 5000 Blackwell Generation Laptop GPU": "",
		"NVIDIA RTX PRO 6000 Blackwell Server Edition": "575.51.03", "Tesla T4": "", "L4": "", "GRID A100A": "", "": "",
	} {
		if m, known := MIGOf(name); m.Driver != driver || known != (driver != "") {
			t.Errorf("%s: %q, %v", name, m.Driver, known)
		}
	}
}
