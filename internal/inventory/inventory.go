// Package inventory reads the names of many guests and what is to be done differently for each: gpuguest's own
// YAML, Ansible inventories (INI and YAML) as they are, and plain lists of names.
//
// It reaches no guest and knows no flag: what an option means, and which there are, it is told by its caller.
// A file with mistakes gives all of them at once, each with its line and column, and no guest.
//
// The parsers of Ansible's forms are our own: relex/aini stops at the first mistake and does not tell its line, and
// panics on a range that runs backwards.
package inventory

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
)

// Guest is one guest of an inventory.
type Guest struct {
	Name    string   // as the inventory has it, for messages and reports: "gpu07", "root@gpu07:2222"
	Address string   // where to dial in place of the name, "" the name itself
	Groups  []string // that it belongs to, those above them included, sorted
	Options []Option // flags by their names, in the names' order; each once

	Password     string // for its login, "" none given
	SudoPassword string // "" none given
}

// Option is one flag of gpuguest as an inventory gives it.
type Option struct {
	Name   string
	Values []string // one, or several for a flag that may be given more than once
	Where  Position
}

// Position is a place in a file, line and column from 1; a column of 0 is the whole line.
type Position struct {
	File      string
	Line, Col int
}

func (p Position) String() string {
	switch {
	case p.Line == 0:
		return p.File
	case p.Col == 0:
		return fmt.Sprintf("%s:%d", p.File, p.Line)
	}
	return fmt.Sprintf("%s:%d:%d", p.File, p.Line, p.Col)
}

// Problem is one mistake in an inventory.
type Problem struct {
	Where Position
	What  string
}

func (p Problem) String() string { return p.Where.String() + ": " + p.What }

// Problems are all mistakes of an inventory, in the order of their places.
type Problems []Problem

func (p Problems) Error() string {
	if len(p) == 1 {
		return p[0].String()
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %d mistakes", p[0].Where.File, len(p))
	for _, one := range p {
		b.WriteString("\n" + one.String())
	}
	return b.String()
}

// Source is an inventory to read.
type Source struct {
	Name string // of the file, for messages
	Text []byte
	Vars fs.FS // the folder that the file is in, for Ansible's group_vars and host_vars; nil: none

	// Check says what is wrong with an option: an unknown name, a value that is none. nil: nothing is.
	Check func(name string, values []string) error
}

// Inventory is what a Source says.
type Inventory struct {
	Guests  []Guest  // in the order of their first mention
	Notices []string // what was left aside and why
}

// maxGuests is how many guests one inventory may have. More is a range with a digit too many.
const maxGuests = 100_000

// Parse reads an inventory in whatever form it is. Its error is Problems.
func Parse(s Source) (Inventory, error) {
	p := &parser{Source: s, groups: make(map[string]*group), hosts: make(map[string]*host), told: make(map[Problem]bool)}
	p.all = p.group("all")
	text := bytes.TrimPrefix(s.Text, []byte("\ufeff"))
	if bytes.HasPrefix(text, []byte("$ANSIBLE_VAULT")) {
		p.wrong(1, 0, "it is encrypted by ansible-vault; decrypt it first")
	} else if isYAML(s.Name, text) {
		p.yaml(text)
	} else {
		p.ini(string(text))
	}
	p.varFiles()
	guests := p.resolve()
	if len(p.problems) > 0 {
		slices.SortFunc(p.problems, func(a, b Problem) int {
			x, y := a.Where, b.Where
			return cmp.Or(cmp.Compare(x.File, y.File), cmp.Compare(x.Line, y.Line), cmp.Compare(x.Col, y.Col), cmp.Compare(a.What, b.What))
		})
		return Inventory{}, p.problems
	}
	return Inventory{Guests: guests, Notices: p.notices}, nil
}

// yamlLine is what a line of YAML looks like that no line of the INI form does.
var yamlLine = regexp.MustCompile(`^(---|\{|- |["']?[^\s"'\[\]=:]+["']?\s*:(\s|$))`)

// isYAML tells the two forms apart, by the file's name where that says it, else by the first line that says something.
func isYAML(name string, text []byte) bool {
	switch path.Ext(name) {
	case ".yaml", ".yml", ".json":
		return true
	case ".ini", ".cfg":
		return false
	}
	for line := range bytes.Lines(text) {
		line = bytes.TrimSpace(line)
		if len(line) == 0 || line[0] == '#' || line[0] == ';' {
			continue
		}
		return yamlLine.Match(line)
	}
	return false
}

// parser collects groups, guests and mistakes.
type parser struct {
	Source
	all      *group
	groups   map[string]*group
	hosts    map[string]*host
	order    []*host
	problems Problems
	told     map[Problem]bool
	notices  []string
	full     bool // there are maxGuests already
	visited  int  // keys of mappings, aliases followed
}

// settings are options by name. Beside gpuguest's flags there are address, password and sudoPassword.
type settings map[string]Option

// The settings that are no flags. The names of the last two cannot be written in a file.
const (
	address      = "address"
	password     = " password"
	sudoPassword = " sudo password"
)

type group struct {
	name     string
	defined  bool // it has a section of its own, and is not merely named as a child
	settings settings
	files    settings // from group_vars
	parents  []*group
	named    Position
	depth    int // below all; 0: not known yet
	above    []*group
}

type host struct {
	name     string
	settings settings
	groups   []*group
}

func (p *parser) wrong(line, col int, format string, args ...any) {
	p.wrongAt(Position{p.Name, line, col}, format, args...)
}

// wrongAt notes a mistake, once.
func (p *parser) wrongAt(at Position, format string, args ...any) {
	one := Problem{at, fmt.Sprintf(format, args...)}
	if !p.told[one] {
		p.told[one] = true
		p.problems = append(p.problems, one)
	}
}

func (p *parser) group(name string) *group {
	g := p.groups[name]
	if g == nil {
		g = &group{name: name, settings: make(settings), files: make(settings)}
		p.groups[name] = g
	}
	return g
}

// child puts one group below another.
func (g *group) child(c *group) {
	if !slices.Contains(c.parents, g) {
		c.parents = append(c.parents, g)
	}
}

// add makes guests of a pattern, ranges expanded, and puts them in a group.
func (p *parser) add(pattern string, g *group, at Position) []*host {
	names, err := expand(pattern, maxGuests-len(p.order))
	if err != nil {
		if !p.full {
			p.wrongAt(at, "%v", err)
		}
		p.full = p.full || errors.Is(err, errTooMany)
		return nil
	}
	var all []*host
	for _, name := range names {
		h := p.hosts[name]
		if h == nil {
			if err := checkName(name); err != nil {
				p.wrongAt(at, "%v", err)
				return all
			}
			h = &host{name: name}
			p.hosts[name] = h
			p.order = append(p.order, h)
		}
		if g != p.all && !slices.Contains(h.groups, g) {
			h.groups = append(h.groups, g)
		}
		all = append(all, h)
	}
	return all
}

// option puts one flag among settings and says what is wrong with it.
func (p *parser) option(into settings, o Option) {
	if p.Check != nil {
		// What a template stands for is known once there is a guest.
		if err := p.Check(o.Name, o.Values); err != nil && !slices.ContainsFunc(o.Values, isTemplate) {
			p.wrongAt(o.Where, "%v", err)
			return
		}
	}
	into[o.Name] = o
}

// lineage fills in a group's depth and the groups above it. The path is that from below.
func (p *parser) lineage(g *group, path []*group) bool {
	if slices.Contains(path, g) {
		p.wrongAt(g.named, "group %s is below itself", g.name)
		return false
	}
	if g.depth > 0 || g == p.all {
		return true
	}
	depth := 1
	path = append(path, g)
	for _, up := range g.parents {
		if !p.lineage(up, path) {
			return false
		}
		depth = max(depth, up.depth+1)
		for _, one := range append(up.above, up) {
			if one != p.all && !slices.Contains(g.above, one) {
				g.above = append(g.above, one)
			}
		}
	}
	g.depth = depth
	return true
}

// resolve works out each guest's own settings. What is nearer to the guest counts: all, the groups from above
// to below and among those of one depth by name; the same order once more for group_vars; the guest itself. That is
// Ansible's precedence, 3 to 9 of "Understanding variable precedence", and was held against ansible-inventory 2.14.
func (p *parser) resolve() []Guest {
	for _, name := range slices.Sorted(maps.Keys(p.groups)) {
		if !p.lineage(p.groups[name], nil) {
			return nil
		}
	}
	guests := make([]Guest, 0, len(p.order))
	for _, h := range p.order {
		groups := slices.Clone(h.groups)
		for _, g := range h.groups {
			for _, up := range g.above {
				if !slices.Contains(groups, up) {
					groups = append(groups, up)
				}
			}
		}
		slices.SortFunc(groups, func(a, b *group) int { return cmp.Or(cmp.Compare(a.depth, b.depth), cmp.Compare(a.name, b.name)) })
		guest := Guest{Name: h.name}
		merged := make(settings)
		groups = append([]*group{p.all}, groups...)
		for _, g := range groups {
			if g != p.all {
				guest.Groups = append(guest.Groups, g.name)
			}
			maps.Copy(merged, g.settings)
		}
		for _, g := range groups {
			maps.Copy(merged, g.files)
		}
		maps.Copy(merged, h.settings)
		slices.Sort(guest.Groups)
		p.fill(&guest, merged)
		guests = append(guests, guest)
	}
	return guests
}

func (p *parser) fill(g *Guest, merged settings) {
	for name, o := range merged {
		o.Values = p.untemplated(g.Name, o)
		switch name {
		case address:
			g.Address = o.Values[0]
			if err := checkAddress(g.Address); err != nil && !isTemplate(g.Address) {
				p.wrongAt(o.Where, "%v", err)
			}
		case password:
			g.Password = o.Values[0]
		case sudoPassword:
			g.SudoPassword = o.Values[0]
		default:
			g.Options = append(g.Options, o)
		}
	}
	slices.SortFunc(g.Options, func(a, b Option) int { return cmp.Compare(a.Name, b.Name) })
}

func isTemplate(s string) bool { return strings.Contains(s, "{{") || strings.Contains(s, "{%") }

// hostnameTemplate is the one template that inventories use for addresses and names.
var hostnameTemplate = regexp.MustCompile(`\{\{\s*inventory_hostname(_short)?\s*\}\}`)

// untemplated puts the guest's name where a template asks for it. Any other template would need Ansible.
func (p *parser) untemplated(name string, o Option) []string {
	if !slices.ContainsFunc(o.Values, isTemplate) {
		return o.Values
	}
	short, _, _ := strings.Cut(name, ".")
	var all []string
	for _, v := range o.Values {
		v = hostnameTemplate.ReplaceAllStringFunc(v, func(t string) string {
			if strings.Contains(t, "_short") {
				return short
			}
			return name
		})
		if isTemplate(v) {
			p.wrongAt(o.Where, "%s is the template %q, and of templates only {{ inventory_hostname }} is understood", strings.TrimSpace(o.Name), v)
		} else if p.Check != nil && o.Name != address && o.Name[0] != ' ' {
			if err := p.Check(o.Name, []string{v}); err != nil {
				p.wrongAt(o.Where, "%v", err)
			}
		}
		all = append(all, v)
	}
	return all
}
