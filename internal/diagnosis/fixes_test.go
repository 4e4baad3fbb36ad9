package diagnosis_test

import (
	"slices"
	"strings"
	"testing"

	"gpuguest/internal/diagnosis"
	"gpuguest/steps"
)

// The catalogue is text and names steps by their id: a step that is renamed must be renamed there.
func TestEveryFixThatIsAStepIsOneOfInstall(t *testing.T) {
	all, err := diagnosis.Signatures()
	if err != nil {
		t.Fatal(err)
	}
	install := steps.Install()
	named := 0
	for _, s := range all {
		for _, fix := range s.Fixes {
			id, ok := strings.CutPrefix(fix, "step ")
			if !ok {
				continue
			}
			named++
			if !slices.ContainsFunc(install, func(s steps.Step) bool { return string(s.ID) == id }) {
				t.Errorf("%s: install has no step %q", s.ID, id)
			}
		}
	}
	if named == 0 {
		t.Error("no fix is a step")
	}
}
