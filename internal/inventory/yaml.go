package inventory

import (
	"bytes"
	"errors"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// ownKeys are the top of gpuguest's own form. A file that has one of them is no Ansible inventory.
var ownKeys = []string{"defaults", "groups", "hosts"}

// yaml reads gpuguest's own form, or Ansible's, by what stands at the top.
func (p *parser) yaml(text []byte) {
	root := p.document(text)
	switch {
	case root == nil:
		return
	case root.Kind == yaml.SequenceNode:
		p.names(root, p.all)
		return
	case !p.is(root, yaml.MappingNode, "an inventory", "defaults, groups and hosts, or Ansible's groups"):
		return
	}
	own := false
	for i := 0; i+1 < len(root.Content); i += 2 {
		own = own || slices.Contains(ownKeys, root.Content[i].Value)
	}
	if !own {
		p.ansibleGroups(root, nil, 0)
		return
	}
	p.each(root, func(key, value *yaml.Node) {
		switch {
		case !slices.Contains(ownKeys, key.Value):
			p.wrongAt(p.at(key), "unknown key %q: there are defaults, groups and hosts", key.Value)
		case isNull(value):
		case key.Value == "defaults":
			p.options(value, p.all.settings, "defaults")
		case key.Value == "hosts":
			p.ownHosts(value, p.all)
		case p.is(value, yaml.MappingNode, "groups", "names of groups, each with a colon behind it"):
			p.ownGroups(value)
		}
	})
	for _, g := range p.groups {
		if g != p.all && !g.defined {
			p.wrongAt(g.named, "group %s is not defined", g.name)
		}
	}
}

// document parses the text and returns what it holds, nil when that is nothing or no YAML.
func (p *parser) document(text []byte) *yaml.Node {
	var doc yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(text))
	if err := dec.Decode(&doc); err != nil {
		if !errors.Is(err, io.EOF) {
			line, what := yamlError(err)
			p.wrong(line, 0, "%s", what)
		}
		return nil
	}
	var second yaml.Node
	if err := dec.Decode(&second); err == nil {
		p.wrongAt(p.at(&second), "a second document; one is read")
	}
	if len(doc.Content) == 0 || isNull(doc.Content[0]) {
		return nil
	}
	return real(doc.Content[0])
}

// yamlLineNumber is where the library says the line of a mistake in its message: there is no other way to it.
var yamlLineNumber = regexp.MustCompile(`^yaml: line ([0-9]+): `)

func yamlError(err error) (line int, what string) {
	what = err.Error()
	if m := yamlLineNumber.FindStringSubmatch(what); m != nil {
		line, _ = strconv.Atoi(m[1])
		what = what[len(m[0]):]
	}
	return line, "not YAML: " + strings.TrimPrefix(what, "yaml: ")
}

func (p *parser) at(n *yaml.Node) Position { return Position{p.Name, n.Line, n.Column} }

// real follows an alias.
func real(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

func isNull(n *yaml.Node) bool {
	n = real(n)
	return n.Kind == yaml.ScalarNode && n.Tag == "!!null"
}

func (p *parser) is(n *yaml.Node, kind yaml.Kind, what, wanted string) bool {
	if real(n).Kind == kind {
		return true
	}
	p.wrongAt(p.at(n), "%s: it is %s", what, wanted)
	return false
}

// each goes through a mapping's keys, those merged in by << last, and refuses a key that is there twice.
func (p *parser) each(m *yaml.Node, visit func(key, value *yaml.Node)) {
	seen := make(map[string]bool)
	p.eachOf(real(m), seen, 0, visit)
}

// mergeDepth is how deep mappings may be merged into each other, maxVisited how many keys are looked at: a few
// aliases of aliases stand for more than any machine can read.
const (
	mergeDepth = 8
	maxVisited = 5_000_000
)

func (p *parser) eachOf(m *yaml.Node, seen map[string]bool, depth int, visit func(key, value *yaml.Node)) {
	var merged []*yaml.Node
	for i := 0; i+1 < len(m.Content); i += 2 {
		key, value := real(m.Content[i]), m.Content[i+1]
		if p.visited++; p.visited > maxVisited {
			p.wrongAt(Position{File: p.Name}, "its aliases stand for more than %d keys", maxVisited)
			return
		}
		switch {
		case key.Tag == "!!merge":
			merged = append(merged, real(value))
		case key.Kind != yaml.ScalarNode:
			p.wrongAt(p.at(m.Content[i]), "a key that is no word")
		case seen[key.Value] && depth == 0:
			p.wrongAt(p.at(key), "%q is there twice", key.Value)
		case !seen[key.Value]:
			seen[key.Value] = true
			visit(key, value)
		}
	}
	for _, from := range merged {
		all := []*yaml.Node{from}
		if from.Kind == yaml.SequenceNode {
			all = from.Content
		}
		for _, one := range all {
			one = real(one)
			if one.Kind != yaml.MappingNode || depth >= mergeDepth {
				p.wrongAt(p.at(one), "<< merges mappings, at most %d deep", mergeDepth)
				continue
			}
			p.eachOf(one, seen, depth+1, visit)
		}
	}
}

// values are what an option is given: one word or a list of them.
func (p *parser) values(name string, n *yaml.Node) ([]string, bool) {
	n = real(n)
	switch {
	case isNull(n):
		p.wrongAt(p.at(n), "%s has no value", name)
		return nil, false
	case n.Kind == yaml.ScalarNode:
		return []string{n.Value}, true
	case n.Kind == yaml.SequenceNode:
		all := make([]string, 0, len(n.Content))
		for _, one := range n.Content {
			one = real(one)
			if one.Kind != yaml.ScalarNode || isNull(one) {
				p.wrongAt(p.at(one), "%s: a list of words", name)
				return nil, false
			}
			all = append(all, one.Value)
		}
		if len(all) == 0 {
			p.wrongAt(p.at(n), "%s: an empty list", name)
		}
		return all, len(all) > 0
	}
	p.wrongAt(p.at(n), "%s: it is a word or a list of words", name)
	return nil, false
}

// options reads flags by their names, and the address; skip are keys that others read.
func (p *parser) options(m *yaml.Node, into settings, what string, skip ...string) {
	if !p.is(m, yaml.MappingNode, what, "options, each NAME: VALUE") {
		return
	}
	p.each(m, func(key, value *yaml.Node) {
		if slices.Contains(skip, key.Value) {
			return
		}
		values, ok := p.values(key.Value, value)
		if !ok {
			return
		}
		o := Option{key.Value, values, p.at(key)}
		switch {
		case key.Value != address:
			p.option(into, o)
		case len(values) > 1:
			p.wrongAt(p.at(value), "address: one word")
		default:
			into[address] = o
		}
	})
}

func (p *parser) ownGroups(m *yaml.Node) {
	p.each(m, func(key, value *yaml.Node) {
		g := p.group(key.Value)
		if g == p.all {
			p.wrongAt(p.at(key), "all is every guest: its options go below defaults")
			return
		}
		g.define(p.at(key))
		if isNull(value) {
			return
		}
		p.options(value, g.settings, "group "+key.Value, "hosts", "groups")
		if real(value).Kind != yaml.MappingNode {
			return
		}
		p.each(value, func(key, value *yaml.Node) {
			switch {
			case isNull(value):
			case key.Value == "hosts":
				p.ownHosts(value, g)
			case key.Value == "groups":
				p.eachName(value, "groups", func(n *yaml.Node) {
					c := p.group(n.Value)
					if c.named.Line == 0 {
						c.named = p.at(n)
					}
					g.child(c)
				})
			}
		})
	})
}

// ownHosts reads guests: a list of names, or names with options.
func (p *parser) ownHosts(n *yaml.Node, g *group) {
	n = real(n)
	if n.Kind != yaml.MappingNode {
		p.names(n, g)
		return
	}
	p.each(n, func(key, value *yaml.Node) {
		hosts := p.add(key.Value, g, p.at(key))
		if isNull(value) {
			return
		}
		found := make(settings)
		p.options(value, found, "host "+key.Value)
		for _, h := range hosts {
			h.set(found)
		}
	})
}

func (p *parser) names(n *yaml.Node, g *group) {
	p.eachName(n, "hosts", func(n *yaml.Node) { p.add(n.Value, g, p.at(n)) })
}

func (p *parser) eachName(n *yaml.Node, what string, visit func(*yaml.Node)) {
	n = real(n)
	if n.Kind != yaml.SequenceNode {
		p.wrongAt(p.at(n), "%s: it is a list of names, or names with options", what)
		return
	}
	for _, one := range n.Content {
		one = real(one)
		if one.Kind != yaml.ScalarNode || isNull(one) {
			p.wrongAt(p.at(one), "%s: a name", what)
			continue
		}
		visit(one)
	}
}
