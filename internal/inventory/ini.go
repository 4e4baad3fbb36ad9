package inventory

import (
	"fmt"
	"maps"
	"regexp"
	"strings"
)

// section is the head of a group in the INI form, as Ansible's own plugin has it (plugins/inventory/ini.py).
var section = regexp.MustCompile(`^\[([^:\]\s]+)(?::(\w+))?\]\s*(?:#.*)?$`)

// ini reads Ansible's INI form, of which a plain list of names is the simplest case.
func (p *parser) ini(text string) {
	now, kind := p.all, "hosts"
	number := 0
	for line := range strings.Lines(text) {
		number++
		line = strings.TrimRight(line, "\r\n")
		trimmed := strings.TrimSpace(line)
		if trimmed == "" || trimmed[0] == '#' || trimmed[0] == ';' {
			continue
		}
		col := len(line) - len(strings.TrimLeft(line, " \t")) + 1
		if number == 1 && strings.HasPrefix(trimmed, "#!") {
			continue
		}
		if m := section.FindStringSubmatch(trimmed); m != nil {
			now, kind = p.group(m[1]), m[2]
			switch kind {
			case "", "hosts":
				kind = "hosts"
				now.define(Position{p.Name, number, col})
			case "children":
				now.define(Position{p.Name, number, col})
			case "vars":
				if now.named.Line == 0 {
					now.named = Position{p.Name, number, col}
				}
			default:
				p.wrong(number, col, "section %s: it is [%s], [%[3]s:children] or [%[3]s:vars]", trimmed, m[1], m[1])
				kind = "skip"
			}
			continue
		}
		if trimmed[0] == '[' && strings.HasSuffix(trimmed, "]") && kind != "skip" {
			p.wrong(number, col, "%s is no section: [GROUP], [GROUP:children] or [GROUP:vars], without blanks", trimmed)
			continue
		}
		switch kind {
		case "hosts":
			p.iniHost(line, number, now)
		case "children":
			words, err := split(line)
			if err != nil || len(words) != 1 {
				p.wrong(number, col, "one group's name a line belongs below [%s:children]", now.name)
				continue
			}
			c := p.group(words[0].text)
			if c.named.Line == 0 {
				c.named = Position{p.Name, number, col}
			}
			now.child(c)
		case "vars":
			name, value, ok := strings.Cut(trimmed, "=")
			if !ok {
				p.wrong(number, col, "%q is no NAME=VALUE", trimmed)
				continue
			}
			p.variable(now.settings, strings.TrimSpace(name), unquote(strings.TrimSpace(value)), Position{p.Name, number, col})
		}
	}
	for _, g := range p.groups {
		if g != p.all && !g.defined && g.named.Line > 0 {
			p.wrongAt(g.named, "group %s is not defined: there is no [%[1]s]", g.name)
		}
	}
}

func (g *group) define(at Position) {
	if !g.defined {
		g.defined, g.named = true, at
	}
}

// iniHost reads a line with a guest, or a range of them, and its variables.
func (p *parser) iniHost(line string, number int, now *group) {
	words, err := split(line)
	if err != nil {
		p.wrong(number, 1, "%v", err)
		return
	}
	if len(words) == 0 {
		return
	}
	hosts := p.add(words[0].text, now, Position{p.Name, number, words[0].col})
	found := make(settings)
	for _, w := range words[1:] {
		name, value, ok := strings.Cut(w.text, "=")
		if !ok || name == "" {
			p.wrong(number, w.col, "%q is no NAME=VALUE; one guest a line", w.text)
			continue
		}
		p.variable(found, name, value, Position{p.Name, number, w.col})
	}
	for _, h := range hosts {
		h.set(found)
	}
}

func (h *host) set(found settings) {
	if len(found) == 0 {
		return
	}
	if h.settings == nil {
		h.settings = make(settings, len(found))
	}
	maps.Copy(h.settings, found)
}

// word is one word of a line and where it begins.
type word struct {
	text string
	col  int
}

// split cuts a line into words as a shell would: blanks separate, quotes hold together, # begins a comment.
func split(line string) ([]word, error) {
	var words []word
	var b strings.Builder
	in, quote, from := false, byte(0), 0
	end := func() {
		if in {
			words = append(words, word{b.String(), from + 1})
			b.Reset()
			in = false
		}
	}
	for i := 0; i < len(line); i++ {
		c := line[i]
		if quote == 0 && (c == ' ' || c == '\t') {
			end()
			continue
		}
		if quote == 0 && c == '#' && !in {
			break
		}
		if !in {
			in, from = true, i
		}
		switch {
		case quote == 0 && (c == '\'' || c == '"'):
			quote = c
		case quote != 0 && c == quote:
			quote = 0
		case c == '\\' && quote != '\'' && i+1 < len(line):
			i++
			b.WriteByte(line[i])
		default:
			b.WriteByte(c)
		}
	}
	if quote != 0 {
		return nil, fmt.Errorf("a %c is not closed", quote)
	}
	end()
	return words, nil
}

// unquote takes the quotes off a value of a vars section.
func unquote(s string) string {
	if len(s) > 1 && (s[0] == '"' || s[0] == '\'') {
		if i := strings.IndexByte(s[1:], s[0]); i >= 0 {
			return s[1 : i+1]
		}
	}
	return s
}
