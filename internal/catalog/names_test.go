package catalog_test

import (
	"strings"
	"testing"

	"gpuguest/internal/catalog"
)

func TestNamed(t *testing.T) {
	for name, want := range map[string]string{
		"Tesla T4":        "1eb8",
		"tesla  t4":       "1eb8",
		"NVIDIA Tesla T4": "1eb8",
	} {
		got, err := catalog.Named(name)
		if err != nil || len(got) == 0 || got[0].Device != want {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	for name, want := range map[string]string{
		"":             "without a name",
		"Voodoo 2":     `no GPU of the tables is named "Voodoo 2"`,
		"GeForce":      "is several GPUs: ",
		"10de":         "no GPU",
		"GeForce RTX ": " more",
	} {
		if got, err := catalog.Named(name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, %v", name, got, err)
		}
	}
	several, err := catalog.Named("GeForce GTX 1050 Ti")
	if err != nil || len(several) < 1 {
		t.Errorf("%v, %v", several, err)
	}
}
