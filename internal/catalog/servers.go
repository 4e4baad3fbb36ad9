package catalog

import (
	"regexp"
	"strings"
	"sync"

	"gpuguest/assets"
)

// MIG is what the tables say of GPUs that can be divided into instances.
type MIG struct {
	Driver string // oldest driver that divides them
	Source string // where the row comes from

	name *regexp.Regexp
}

var migs = sync.OnceValue(func() []MIG {
	var all []MIG
	for line := range body(assets.MIGs) {
		f := strings.Split(line, "\t")
		all = append(all, MIG{name: regexp.MustCompile(f[0]), Driver: f[1], Source: f[2]})
	}
	return all
})

// MIGOf returns what is known of dividing a GPU, by its name. It reports false for one that the table does not
// list.
func MIGOf(name string) (MIG, bool) {
	for _, m := range migs() {
		if m.name.MatchString(name) {
			return m, true
		}
	}
	return MIG{}, false
}
