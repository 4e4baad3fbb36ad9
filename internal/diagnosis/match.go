package diagnosis

import (
	"encoding/binary"
	"regexp/syntax"
	"slices"
)

// required is a set of texts of which every match of the pattern holds at least one, or nil where there is
// none. Of the parts of a sequence it takes those whose shortest text is longest, because they are seldom met.
func required(re *syntax.Regexp) []string {
	if set := exact(re); shortest(set) > 0 {
		return set
	}
	switch re.Op {
	case syntax.OpCapture, syntax.OpPlus:
		return required(re.Sub[0])
	case syntax.OpRepeat:
		if re.Min > 0 {
			return required(re.Sub[0])
		}
	case syntax.OpConcat:
		var best, run []string
		for _, sub := range re.Sub {
			set := exact(sub)
			if run = product(run, set); run == nil {
				run = set
			}
			for _, candidate := range [][]string{run, required(sub)} {
				if shortest(candidate) > shortest(best) {
					best = candidate
				}
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

// maxTexts bounds what one pattern is written out to: a digit is ten texts, two would be a hundred.
const maxTexts = 12

// exact is every text that the pattern matches, or nil where they are too many.
func exact(re *syntax.Regexp) []string {
	switch re.Op {
	case syntax.OpLiteral:
		if re.Flags&syntax.FoldCase == 0 {
			return []string{string(re.Rune)}
		}
	case syntax.OpEmptyMatch, syntax.OpWordBoundary, syntax.OpBeginText, syntax.OpEndText:
		return []string{""}
	case syntax.OpCharClass:
		var all []string
		for i := 0; i < len(re.Rune); i += 2 {
			for c := re.Rune[i]; c <= re.Rune[i+1]; c++ {
				if all = append(all, string(c)); len(all) > maxTexts {
					return nil
				}
			}
		}
		return all
	case syntax.OpCapture:
		return exact(re.Sub[0])
	case syntax.OpQuest:
		if set := exact(re.Sub[0]); set != nil && len(set) < maxTexts {
			return append(slices.Clone(set), "")
		}
	case syntax.OpConcat:
		all := []string{""}
		for _, sub := range re.Sub {
			if all = product(all, exact(sub)); all == nil {
				return nil
			}
		}
		return all
	case syntax.OpAlternate:
		var all []string
		for _, sub := range re.Sub {
			set := exact(sub)
			if all = append(all, set...); set == nil || len(all) > maxTexts {
				return nil
			}
		}
		return all
	}
	return nil
}

// product is each of the first texts before each of the second, or nil where they are too many.
func product(first, second []string) []string {
	if len(first)*len(second) > maxTexts {
		return nil
	}
	var all []string
	for _, a := range first {
		for _, b := range second {
			all = append(all, a+b)
		}
	}
	return all
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
	markJournal = "journalctl "
	markSection = "____________________"
)

var marks = []string{markBoot, markCmdline, markBundle, markError, markWarning, markJournal, markSection}

// A matcher finds which texts of a set stand in a log. A log of 200 MB holds a few lines worth a regular
// expression and millions that are not, so this is what reading costs. It has two parts: skim leaps over the
// log and names places where a text may stand, and Aho and Corasick's automaton, as one table, tells of one
// line which texts stand in it. Both are written here because the libraries for Go either walk a trie of
// pointers, several times slower, or report no position, and none leaps.
type matcher struct {
	class   [256]uint8 // bytes that stand in no text share class 0, the newline among them
	classes int
	next    []uint32   // state × classes + class → next state × classes, with hit set where a text ends
	ends    [][]uint16 // state → what ends there: a signature's index, or len(signatures) + a mark's

	grams map[uint64]struct{}
	bits  [1 << 16 / 64]uint64 // which hashes the grams have
}

// Every text has a core of coreSize bytes. Of any stride places in a row in a log that lie in a core's first
// bytes, one is looked at, and the gramSize bytes from there on are wholly the core's.
const (
	coreSize = 7
	stride   = 3
	gramSize = coreSize - stride + 1
	gramMask = 1<<(8*gramSize) - 1
	loadSize = 8
)

func gramHash(gram uint64) uint64 { return gram * 0x9e3779b97f4a7c15 >> 48 }

// core is where the least ordinary coreSize bytes of a text begin: those with the fewest letters that every
// line is full of, and not the "NVRM: " that half the lines of some logs begin with.
func core(text string) int {
	best, most := 0, -1
	for at := range len(text) - coreSize + 1 {
		rare := 0
		for i := range coreSize {
			switch c := text[at+i]; {
			case c == ' ', c >= '0' && c <= '9', slices.Contains([]byte("etaoinsrdl:NVRM"), c):
			case c >= 'a' && c <= 'z':
				rare++
			default:
				rare += 2
			}
		}
		if rare > most {
			best, most = at, rare
		}
	}
	return best
}

func (m *matcher) addGrams(text string) {
	from := core(text)
	for i := range stride {
		var raw [loadSize]byte
		copy(raw[:], text[from+i:from+i+gramSize])
		gram := binary.LittleEndian.Uint64(raw[:])
		m.grams[gram] = struct{}{}
		hash := gramHash(gram)
		m.bits[hash/64] |= 1 << (hash % 64)
	}
}

// skim is a place in data in whose line a text may stand, with none in the lines before it. It is len(data)
// when there is none at all.
func (m *matcher) skim(data []byte) int {
	i := 0
	for ; i+loadSize <= len(data); i += stride {
		gram := binary.LittleEndian.Uint64(data[i:]) & gramMask
		hash := gramHash(gram)
		if m.bits[hash/64]>>(hash%64)&1 != 0 {
			if _, ok := m.grams[gram]; ok {
				return i
			}
		}
	}
	// Too few bytes are left to look at that way.
	return min(i, len(data))
}

const hit = 1 << 31

func newMatcher(signatures []*Signature) *matcher {
	m := &matcher{classes: 1, grams: map[uint64]struct{}{}}
	texts := map[uint16][]string{}
	for i, s := range signatures {
		texts[uint16(i)] = s.literals
	}
	for i, mark := range marks {
		texts[uint16(len(signatures)+i)] = []string{mark}
	}
	for n := range len(texts) {
		for _, text := range texts[uint16(n)] {
			m.addGrams(text)
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

// holds is whether some text stands in data.
func (m *matcher) holds(data []byte) bool {
	state := uint32(0)
	for _, b := range data {
		state = m.next[state+uint32(m.class[b])]
		if state&hit != 0 {
			return true
		}
	}
	return false
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
