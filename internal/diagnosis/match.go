package diagnosis

import (
	"regexp/syntax"
)

// required is a set of texts of which every match of the pattern holds at least one, or nil where there is
// none. Of the parts of a sequence it takes the one whose shortest text is longest, because that is seldom met.
func required(re *syntax.Regexp) []string {
	switch re.Op {
	case syntax.OpLiteral:
		if re.Flags&syntax.FoldCase != 0 {
			return nil
		}
		return []string{string(re.Rune)}
	case syntax.OpCapture, syntax.OpPlus:
		return required(re.Sub[0])
	case syntax.OpRepeat:
		if re.Min == 0 {
			return nil
		}
		return required(re.Sub[0])
	case syntax.OpConcat:
		var best []string
		for _, sub := range re.Sub {
			if set := required(sub); shortest(set) > shortest(best) {
				best = set
			}
		}
		return best
	case syntax.OpAlternate:
		var all []string
		for _, sub := range re.Sub {
			set := required(sub)
			if set == nil {
				return nil
			}
			all = append(all, set...)
		}
		return all
	}
	return nil
}

func shortest(set []string) int {
	least := 0
	for i, text := range set {
		if i == 0 || len(text) < least {
			least = len(text)
		}
	}
	return least
}

// The marks a matcher finds beside the signatures: lines that say how to read the others.
const (
	markBoot    = "Linux version "
	markCmdline = "ommand line: "
	markBundle  = "Start of NVIDIA bug report log file"
	markError   = "ERROR: "
	markWarning = "WARNING: "
)

var marks = []string{markBoot, markCmdline, markBundle, markError, markWarning}

// A matcher finds in one pass over the bytes which texts of a set stand in them (Aho and Corasick's automaton
// as one table). A log of 200 MB holds a few lines worth a regular expression and millions that are not, so
// this loop is what reading costs. It is written here and not taken from a library because the ones for Go
// either walk a trie of pointers, which is several times slower, or report no position; it is this one table.
type matcher struct {
	class   [256]uint8 // bytes that stand in no text share class 0, the newline among them
	classes int
	next    []uint32   // state × classes + class → next state × classes, with hit set where a text ends
	ends    [][]uint16 // state → what ends there: a signature's index, or len(signatures) + a mark's
}

const hit = 1 << 31

func newMatcher(signatures []*Signature) *matcher {
	m := &matcher{classes: 1}
	texts := map[uint16][]string{}
	for i, s := range signatures {
		texts[uint16(i)] = s.literals
	}
	for i, mark := range marks {
		texts[uint16(len(signatures)+i)] = []string{mark}
	}
	for n := range len(texts) {
		for _, text := range texts[uint16(n)] {
			for i := range len(text) {
				if m.class[text[i]] == 0 {
					m.class[text[i]] = uint8(m.classes)
					m.classes++
				}
			}
		}
	}

	// The trie: 0 is its root and, in an edge, "no edge".
	edges := [][]int{make([]int, m.classes)}
	m.ends = [][]uint16{nil}
	for n := range len(texts) {
		for _, text := range texts[uint16(n)] {
			state := 0
			for i := range len(text) {
				class := m.class[text[i]]
				if edges[state][class] == 0 {
					edges[state][class] = len(edges)
					edges = append(edges, make([]int, m.classes))
					m.ends = append(m.ends, nil)
				}
				state = edges[state][class]
			}
			m.ends[state] = append(m.ends[state], uint16(n))
		}
	}

	// Breadth first, each state takes the edges it lacks from the longest proper end of itself that is a state.
	fail := make([]int, len(edges))
	queue := []int{0}
	for len(queue) > 0 {
		state := queue[0]
		queue = queue[1:]
		for class, to := range edges[state] {
			switch {
			case to == 0:
				if state != 0 {
					edges[state][class] = edges[fail[state]][class]
				}
			default:
				if state != 0 {
					fail[to] = edges[fail[state]][class]
				}
				m.ends[to] = append(m.ends[to], m.ends[fail[to]]...)
				queue = append(queue, to)
			}
		}
	}
	m.next = make([]uint32, len(edges)*m.classes)
	for state, to := range edges {
		for class, target := range to {
			entry := uint32(target * m.classes)
			if len(m.ends[target]) > 0 {
				entry |= hit
			}
			m.next[state*m.classes+class] = entry
		}
	}
	return m
}

// first is the place just behind the first text that ends in data, or -1.
func (m *matcher) first(data []byte) int {
	state := uint32(0)
	for i, b := range data {
		state = m.next[state+uint32(m.class[b])]
		if state&hit != 0 {
			return i + 1
		}
	}
	return -1
}

// all calls found for every text that ends in data, with what it is and the place just behind it.
func (m *matcher) all(data []byte, found func(what uint16, end int)) {
	state := uint32(0)
	for i, b := range data {
		state = m.next[state&^hit+uint32(m.class[b])]
		if state&hit != 0 {
			for _, what := range m.ends[int(state&^hit)/m.classes] {
				found(what, i+1)
			}
		}
	}
}
