package diagnosis

import (
	"fmt"
	"maps"
	"regexp"
	"regexp/syntax"
	"slices"
	"strconv"
	"strings"
	"sync"

	"gpuguest/assets"
)

// A Signature is one row of assets/signatures.tsv: a line that a failure leaves behind and what it means.
// Cause, Remedy and the fixes may hold ${1}, which stands for the pattern's first group.
type Signature struct {
	ID         string
	Log        string // the kind of log the line stands in: kernel, dkms, build, apt, nvidia-smi, …
	Severity   string
	Where      string
	Rank       int    // among causes of equal standing the lower comes first: the more specific, the nearer the root
	Pattern    string // RE2, matched against one line
	Cause      string
	Remedy     string
	Fixes      []string // tried in this order
	ThenWhere  string   // where the cause lies once every fix was tried
	ThenRemedy string
	Explains   []string // ids of the symptoms that follow from this one
	Example    string   // a line as it really was
	Source     string   // where the line and its meaning are from

	re       *regexp.Regexp
	literals []string // one of these stands in every line that matches
	groups   []int    // the pattern's groups that the texts use; without any a second match says nothing new
}

// An Xid is one row of assets/xids.tsv: an error number of NVIDIA's kernel driver.
type Xid struct {
	Number   int
	Name     string // as in NVIDIA's nverror.h
	Meaning  string
	Where    string
	Severity string
	Action   string
	Rank     int
	Source   string
}

type catalogue struct {
	signatures []*Signature
	byID       map[string]*Signature
	xids       map[int]Xid
	follows    map[string]map[string]bool // id → every id that it explains, near or far
	matcher    *matcher
}

// loaded is the catalogue, made at its first use: compiling its patterns takes a few milliseconds that a run
// which never fails should not spend.
var loaded = sync.OnceValues(load)

// Signatures is every row of the catalogue in its order.
func Signatures() ([]Signature, error) {
	c, err := loaded()
	if err != nil {
		return nil, err
	}
	var all []Signature
	for _, s := range c.signatures {
		all = append(all, *s)
	}
	return all, nil
}

// Xids is every row of the table of error numbers, by number.
func Xids() ([]Xid, error) {
	c, err := loaded()
	if err != nil {
		return nil, err
	}
	var all []Xid
	for _, n := range slices.Sorted(maps.Keys(c.xids)) {
		all = append(all, c.xids[n])
	}
	return all, nil
}

func load() (*catalogue, error) {
	c := &catalogue{byID: map[string]*Signature{}, xids: map[int]Xid{}}
	rows, err := table(assets.Signatures, "id", "log", "severity", "where", "rank", "pattern", "cause", "remedy", "fix", "then_where", "then_remedy", "explains", "example", "source")
	if err != nil {
		return nil, fmt.Errorf("signatures.tsv: %w", err)
	}
	for n, row := range rows {
		s := &Signature{ID: row[0], Log: row[1], Severity: row[2], Where: row[3], Pattern: row[5], Cause: row[6], Remedy: row[7],
			ThenWhere: row[9], ThenRemedy: row[10], Explains: strings.Fields(row[11]), Example: row[12], Source: row[13]}
		if row[8] != "" {
			s.Fixes = strings.Split(row[8], "; ")
		}
		if s.Rank, err = strconv.Atoi(row[4]); err != nil {
			return nil, fmt.Errorf("signatures.tsv:%d: rank: %w", n+2, err)
		}
		if s.re, err = regexp.Compile(s.Pattern); err != nil {
			return nil, fmt.Errorf("signatures.tsv:%d: %w", n+2, err)
		}
		tree, err := syntax.Parse(s.Pattern, syntax.Perl)
		if err != nil {
			return nil, fmt.Errorf("signatures.tsv:%d: %w", n+2, err)
		}
		if s.literals = required(tree.Simplify()); shortest(s.literals) < coreSize {
			return nil, fmt.Errorf("signatures.tsv:%d: %s: no text of %d bytes stands in every line that the pattern matches", n+2, s.ID, coreSize)
		}
		for group := 1; group <= s.re.NumSubexp(); group++ {
			if strings.Contains(s.Cause+s.Remedy, fmt.Sprintf("${%d}", group)) {
				s.groups = append(s.groups, group)
			}
		}
		if c.byID[s.ID] != nil {
			return nil, fmt.Errorf("signatures.tsv:%d: %s stands there twice", n+2, s.ID)
		}
		c.byID[s.ID] = s
		c.signatures = append(c.signatures, s)
	}
	rows, err = table(assets.Xids, "xid", "name", "meaning", "where", "severity", "action", "rank", "source")
	if err != nil {
		return nil, fmt.Errorf("xids.tsv: %w", err)
	}
	for n, row := range rows {
		x := Xid{Name: row[1], Meaning: row[2], Where: row[3], Severity: row[4], Action: row[5], Source: row[7]}
		if x.Number, err = strconv.Atoi(row[0]); err != nil {
			return nil, fmt.Errorf("xids.tsv:%d: xid: %w", n+2, err)
		}
		if x.Rank, err = strconv.Atoi(row[6]); err != nil {
			return nil, fmt.Errorf("xids.tsv:%d: rank: %w", n+2, err)
		}
		c.xids[x.Number] = x
	}
	if err := c.close(); err != nil {
		return nil, fmt.Errorf("signatures.tsv: %w", err)
	}
	c.matcher = newMatcher(c.signatures)
	return c, nil
}

// table takes a tab-separated text apart and holds it to the columns given.
func table(text string, columns ...string) ([][]string, error) {
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	if got := strings.Split(lines[0], "\t"); !slices.Equal(got, columns) {
		return nil, fmt.Errorf("columns are %q, not %q", got, columns)
	}
	var rows [][]string
	for n, line := range lines[1:] {
		row := strings.Split(line, "\t")
		if len(row) != len(columns) {
			return nil, fmt.Errorf("line %d has %d columns, not %d", n+2, len(row), len(columns))
		}
		rows = append(rows, row)
	}
	return rows, nil
}

const xidPrefix = "xid-"

// xid is the row of an id such as "xid-79".
func (c *catalogue) xid(id string) (Xid, bool) {
	number, ok := strings.CutPrefix(id, xidPrefix)
	if !ok {
		return Xid{}, false
	}
	n, err := strconv.Atoi(number)
	x, known := c.xids[n]
	return x, err == nil && known
}

// symptomsOf is what the catalogue itself says that id explains. Of the numbered errors only a fatal one
// explains anything: the others are a program's own, or follow from an earlier one.
func (c *catalogue) symptomsOf(id string) []string {
	if s := c.byID[id]; s != nil {
		return s.Explains
	}
	if x, ok := c.xid(id); ok && x.Severity == Fatal && c.byID["xid"] != nil {
		return c.byID["xid"].Explains
	}
	return nil
}

// close works out what each id explains through others, which may be absent from a log, and refuses a cycle.
func (c *catalogue) close() error {
	c.follows = map[string]map[string]bool{}
	open := map[string]bool{}
	var visit func(id string) error
	visit = func(id string) error {
		if open[id] {
			return fmt.Errorf("%s explains itself", id)
		}
		if c.follows[id] != nil {
			return nil
		}
		open[id] = true
		defer delete(open, id)
		all := map[string]bool{}
		for _, symptom := range c.symptomsOf(id) {
			if _, isXid := c.xid(symptom); c.byID[symptom] == nil && !isXid {
				return fmt.Errorf("%s explains %s, which is not there", id, symptom)
			}
			if err := visit(symptom); err != nil {
				return err
			}
			all[symptom] = true
			maps.Copy(all, c.follows[symptom])
		}
		c.follows[id] = all
		return nil
	}
	for _, s := range c.signatures {
		if err := visit(s.ID); err != nil {
			return err
		}
	}
	for n := range c.xids {
		if err := visit(xidPrefix + strconv.Itoa(n)); err != nil {
			return err
		}
	}
	return nil
}

func (c *catalogue) explains(cause, symptom string) bool { return c.follows[cause][symptom] }

func (c *catalogue) rank(id string) int {
	if s := c.byID[id]; s != nil {
		return s.Rank
	}
	if x, ok := c.xid(id); ok {
		return x.Rank
	}
	return 1 << 20
}
