package inventory

import (
	"errors"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"gpuguest/internal/guest"
)

var errTooMany = fmt.Errorf("more than %d guests", maxGuests)

// brackets is one pair of them, and span what stands in those that are a range: 01:20, a:f, 1:9:2, :9.
var (
	brackets = regexp.MustCompile(`\[[^\[\]]*\]`)
	span     = regexp.MustCompile(`^(?:([0-9]*):([0-9]+)|([a-z]):([a-z])|([A-Z]):([A-Z]))(?::([0-9]+))?$`)
)

// expand returns the names that a pattern stands for, at most so many: node[01:03] is node01, node02, node03. The
// end of a range belongs to it, leading zeros give the width, and a third number is the step, all as in
// Ansible. Brackets at the beginning that hold no range are an IPv6 address's.
func expand(pattern string, most int) ([]string, error) {
	names := []string{""}
	rest, begin := pattern, true
	for rest != "" {
		at := brackets.FindStringIndex(rest)
		if at == nil {
			break
		}
		inside := rest[at[0]+1 : at[1]-1]
		begin = begin && (at[0] == 0 || rest[at[0]-1] == '@')
		words, err := spell(inside, most)
		if words == nil && err == nil {
			if !begin {
				return nil, fmt.Errorf("host %q: [%s] is no range: it is [FIRST:LAST] or [FIRST:LAST:STEP], of numbers or of letters", pattern, inside)
			}
			words = []string{rest[at[0]:at[1]]}
		}
		if err != nil {
			return nil, fmt.Errorf("host %q: %w", pattern, err)
		}
		if len(names)*len(words) > most {
			return nil, fmt.Errorf("host %q: %w", pattern, errTooMany)
		}
		next := make([]string, 0, len(names)*len(words))
		for _, n := range names {
			for _, w := range words {
				next = append(next, n+rest[:at[0]]+w)
			}
		}
		names, rest, begin = next, rest[at[1]:], false
	}
	if len(names) > most {
		return nil, errTooMany
	}
	for i := range names {
		names[i] += rest
	}
	return names, nil
}

// spell returns the words of a range, nil when it is none.
func spell(s string, most int) ([]string, error) {
	m := span.FindStringSubmatch(s)
	if m == nil {
		return nil, nil
	}
	step := 1
	if m[7] != "" {
		n, err := strconv.Atoi(m[7])
		if err != nil || n == 0 {
			return nil, fmt.Errorf("[%s]: a step of %s", s, m[7])
		}
		step = n
	}
	var first, last, width int
	letters := m[2] == ""
	if letters {
		first, last = int((m[3] + m[5])[0]), int((m[4] + m[6])[0])
	} else {
		from := m[1]
		if from == "" {
			from = "0"
		}
		var err1, err2 error
		first, err1 = strconv.Atoi(from)
		last, err2 = strconv.Atoi(m[2])
		if err := errors.Join(err1, err2); err != nil {
			return nil, fmt.Errorf("[%s]: %w", s, errTooMany)
		}
		if len(from) > 1 && from[0] == '0' {
			width = len(from)
			if width != len(m[2]) {
				return nil, fmt.Errorf("[%s]: its ends are of different width", s)
			}
		}
	}
	if first > last {
		return nil, fmt.Errorf("[%s] runs backwards", s)
	}
	if (last-first)/step >= most {
		return nil, errTooMany
	}
	var words []string
	for i := first; i <= last && i >= 0; i += step {
		if letters {
			words = append(words, string(rune(i)))
		} else {
			words = append(words, fmt.Sprintf("%0*d", width, i))
		}
	}
	return words, nil
}

func checkName(name string) error {
	_, err := guest.ParseTarget(name)
	return err
}

// checkAddress refuses what is no address by itself: user and port are options of their own.
func checkAddress(s string) error {
	t, err := guest.ParseTarget(s)
	switch {
	case err != nil:
		return fmt.Errorf("address: %w", err)
	case t.User != "" || t.Port != 0:
		return fmt.Errorf("address %q: a name or an address alone; the options user and port give the rest", s)
	}
	return nil
}

// Limit returns the guests that a pattern leaves, in their order: names and groups with * and ?, separated by
// commas; those behind ! are taken away, and & leaves only what is in both. Away and both count after the rest, as
// in Ansible. A part that fits no guest at all is an error, for it is more likely a slip than meant.
func Limit(guests []Guest, pattern string) ([]Guest, error) {
	var some, away, both [][]bool
	for part := range strings.SplitSeq(pattern, ",") {
		part = strings.TrimSpace(part)
		glob := strings.TrimLeft(part, "!&")
		if glob == "" || len(part)-len(glob) > 1 {
			return nil, fmt.Errorf("--limit %q: %q is no pattern of names", pattern, part)
		}
		fits := make([]bool, len(guests))
		for i, g := range guests {
			ok, err := matches(g, glob)
			if err != nil {
				return nil, fmt.Errorf("--limit %q: %q: %w", pattern, part, err)
			}
			fits[i] = ok
		}
		if !slices.Contains(fits, true) {
			return nil, fmt.Errorf("--limit %q: %q fits no guest of %d", pattern, part, len(guests))
		}
		switch part[0] {
		case '!':
			away = append(away, fits)
		case '&':
			both = append(both, fits)
		default:
			some = append(some, fits)
		}
	}
	var left []Guest
	for i, g := range guests {
		at := func(fits []bool) bool { return fits[i] }
		not := func(fits []bool) bool { return !fits[i] }
		if (len(some) == 0 || slices.ContainsFunc(some, at)) && !slices.ContainsFunc(away, at) && !slices.ContainsFunc(both, not) {
			left = append(left, g)
		}
	}
	if len(left) == 0 {
		return nil, fmt.Errorf("--limit %q leaves no guest of %d", pattern, len(guests))
	}
	return left, nil
}

func matches(g Guest, glob string) (bool, error) {
	if glob == "all" {
		return true, nil
	}
	names := append([]string{g.Name}, g.Groups...)
	if t, err := guest.ParseTarget(g.Name); err == nil {
		names = append(names, t.Host)
	}
	for _, name := range names {
		ok, err := path.Match(glob, name)
		if ok || err != nil {
			return ok, err
		}
	}
	return false, nil
}
