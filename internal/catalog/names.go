package catalog

import (
	"fmt"
	"slices"
	"strings"
)

// plainName is a GPU's name as people write it: the maker's name in front is left out, case and runs of blanks do not
// count.
func plainName(s string) string {
	words := strings.Fields(strings.ToLower(s))
	if len(words) > 1 && words[0] == "nvidia" {
		words = words[1:]
	}
	return strings.Join(words, " ")
}

// Named returns the devices of a name, "Tesla T4": one name may be that of several PCI ids. Where no name is exactly
// that, one that has all its words will do, if there is only one. The error names what comes close.
func Named(name string) ([]GPU, error) {
	want := plainName(name)
	if want == "" {
		return nil, fmt.Errorf("a GPU without a name")
	}
	var exact, close []GPU
	var names []string // of close, each once
	words := splitName(want)
	for g := range GPUs() {
		plain := plainName(g.Name)
		if plain == want {
			exact = append(exact, g)
			continue
		}
		has := splitName(plain)
		if slices.ContainsFunc(words, func(w string) bool { return !slices.Contains(has, w) }) {
			continue
		}
		close = append(close, g)
		if !slices.Contains(names, g.Name) {
			names = append(names, g.Name)
		}
	}
	switch {
	case len(exact) > 0:
		return exact, nil
	case len(names) == 1:
		return close, nil
	case len(names) == 0:
		return nil, fmt.Errorf("no GPU of the tables is named %q; its id will do too, as in 10de:1eb8", name)
	}
	const most = 6
	more := ""
	if n := len(names) - most; n > 0 {
		names, more = names[:most], fmt.Sprintf(" and %d more", n)
	}
	return nil, fmt.Errorf("%q is several GPUs: %s%s", name, strings.Join(names, ", "), more)
}

func splitName(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool {
		return r == ' ' || r == '-' || r == '/' || r == '[' || r == ']' || r == '(' || r == ')'
	})
}
