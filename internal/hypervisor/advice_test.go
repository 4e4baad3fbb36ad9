package hypervisor

import (
	"strings"
	"testing"

	"gpuguest/internal/facts"
)

func TestAdviceNamesSizesOnlyWhereTheyAreKnown(t *testing.T) {
	bar := func(index int, size uint64) facts.BAR { return facts.BAR{Index: index, Size: size, Flags: 0x14220c} }
	gpu := func(bars ...facts.BAR) []facts.PCI { return []facts.PCI{{Address: "0000:00:16.0", BARs: bars}} }
	for name, c := range map[string]struct {
		gpus []facts.PCI
		has  []string
		not  string
	}{
		"known":          {gpu(bar(1, 64<<30), bar(3, 32<<20)), []string{"pci-hole64-size=128G", "X-PciMmio64Mb,string=131072", "<pcihole64 unit='KiB'>134217728</pcihole64>"}, "<GB>"},
		"given up":       {gpu(bar(1, 0), bar(3, 32<<20)), []string{"gpuguest hypervisor qemu-args", "pci-hole64-size=<GB>G"}, "64G"},
		"no GPU is seen": {nil, []string{"gpuguest hypervisor qemu-args"}, "32G"},
	} {
		text := strings.Join(WindowAdvice(c.gpus), "\n")
		for _, want := range c.has {
			if !strings.Contains(text, want) {
				t.Errorf("%s: no %q in\n%s", name, want, text)
			}
		}
		if strings.Contains(text, c.not) {
			t.Errorf("%s: %q in\n%s", name, c.not, text)
		}
	}
}
