package inventory

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// ansibleFlags are Ansible's connection variables that are flags of gpuguest, the older names too. The names are
// those of Ansible's documentation, "How to build your inventory", behavioral inventory parameters.
var ansibleFlags = map[string]string{
	"ansible_host": address, "ansible_ssh_host": address,
	"ansible_port": "port", "ansible_ssh_port": "port",
	"ansible_user": "user", "ansible_ssh_user": "user",
	"ansible_ssh_private_key_file": "identity", "ansible_private_key_file": "identity",
	"ansible_password": password, "ansible_ssh_pass": password, "ansible_ssh_password": password,
	"ansible_become_password": sudoPassword, "ansible_become_pass": sudoPassword, "ansible_sudo_pass": sudoPassword,
}

// ansibleFixed are those of which gpuguest can do one thing only: root by sudo, over SSH. Another value would have
// it work on another machine, or as somebody who cannot, so it is refused.
var ansibleFixed = map[string][]string{
	"ansible_connection":    {"ssh", "smart", "paramiko", "paramiko_ssh", "ansible.builtin.ssh", "ansible.builtin.paramiko_ssh"},
	"ansible_become_method": {"sudo", "ansible.builtin.sudo"},
	"ansible_become_user":   {"root"},
}

// ansibleArgs are those whose words are for the ssh program.
var ansibleArgs = []string{"ansible_ssh_common_args", "ansible_ssh_extra_args", "ansible_ssh_args"}

// variable reads one variable of an Ansible inventory. Those that are about something else are for others.
func (p *parser) variable(into settings, name, value string, at Position) {
	if flag, ok := strings.CutPrefix(name, "gpuguest_"); ok {
		p.option(into, Option{strings.ReplaceAll(flag, "_", "-"), []string{value}, at})
		return
	}
	if flag, ok := ansibleFlags[name]; ok {
		if value == "" {
			p.wrongAt(at, "%s is empty", name)
			return
		}
		o := Option{flag, []string{value}, at}
		if flag == address || flag[0] == ' ' {
			into[flag] = o
		} else {
			p.option(into, o)
		}
		return
	}
	if allowed, ok := ansibleFixed[name]; ok && !slices.Contains(allowed, value) && !isTemplate(value) {
		p.wrongAt(at, "%s=%s: gpuguest reaches guests over SSH and becomes root by sudo", name, value)
	}
	if slices.Contains(ansibleArgs, name) && value != "" {
		p.notice("%s is not used: it is for the ssh program; put what it says into ssh_config (at %v)", name, at)
	}
}

func (p *parser) notice(format string, args ...any) {
	s := fmt.Sprintf(format, args...)
	if !slices.Contains(p.notices, s) {
		p.notices = append(p.notices, s)
	}
}

// groupDepth is how deep groups may stand in each other. An alias may have one stand in itself.
const groupDepth = 100

// ansibleGroups reads the YAML form: groups by name, each with hosts, children and vars.
func (p *parser) ansibleGroups(m *yaml.Node, parent *group, deep int) {
	if deep > groupDepth {
		p.wrongAt(p.at(m), "groups more than %d deep", groupDepth)
		return
	}
	p.each(m, func(key, value *yaml.Node) {
		g := p.group(key.Value)
		g.define(p.at(key))
		if parent != nil {
			parent.child(g)
		}
		if isNull(value) || !p.is(value, yaml.MappingNode, "group "+key.Value, "hosts, children and vars") {
			return
		}
		p.each(value, func(key, value *yaml.Node) {
			switch {
			case isNull(value):
			case key.Value == "hosts" && value.Kind == yaml.ScalarNode:
				p.add(value.Value, g, p.at(value))
			case key.Value == "hosts":
				if p.is(value, yaml.MappingNode, "hosts", "names of guests, each with a colon behind it") {
					p.ansibleHosts(value, g)
				}
			case key.Value == "children":
				if p.is(value, yaml.MappingNode, "children", "names of groups, each with a colon behind it") {
					p.ansibleGroups(value, g, deep+1)
				}
			case key.Value == "vars":
				p.ansibleVars(value, g.settings)
			default:
				p.notice("%v: %q is no part of a group and left out: those are hosts, children and vars", p.at(key), key.Value)
			}
		})
	})
}

func (p *parser) ansibleHosts(m *yaml.Node, g *group) {
	p.each(m, func(key, value *yaml.Node) {
		hosts := p.add(key.Value, g, p.at(key))
		if isNull(value) {
			return
		}
		found := make(settings)
		p.ansibleVars(value, found)
		for _, h := range hosts {
			h.set(found)
		}
	})
}

func (p *parser) ansibleVars(m *yaml.Node, into settings) {
	if isNull(m) || !p.is(m, yaml.MappingNode, "variables", "NAME: VALUE") {
		return
	}
	p.each(m, func(key, value *yaml.Node) {
		name := key.Value
		_, known := ansibleFlags[name]
		flag, ours := strings.CutPrefix(name, "gpuguest_")
		value = real(value)
		switch {
		case ours:
			if values, ok := p.values(name, value); ok {
				p.option(into, Option{strings.ReplaceAll(flag, "_", "-"), values, p.at(key)})
			}
		case value.Tag == "!vault" && known:
			p.wrongAt(p.at(value), "%s is encrypted by ansible-vault; give it in another way", name)
		case value.Kind == yaml.ScalarNode && !isNull(value):
			p.variable(into, name, value.Value, p.at(key))
		case known:
			p.wrongAt(p.at(value), "%s is no single value", name)
		}
	})
}

// varFiles reads group_vars and host_vars beside the inventory: in each the files NAME, NAME.yml, NAME.yaml and
// NAME.json, or a folder NAME of such.
func (p *parser) varFiles() {
	if p.Vars == nil {
		return
	}
	p.varFolder("group_vars", func(name string) settings {
		if g := p.groups[name]; g != nil {
			return g.files
		}
		return nil
	})
	p.varFolder("host_vars", func(name string) settings {
		h := p.hosts[name]
		if h == nil {
			return nil
		}
		if h.settings == nil {
			h.settings = make(settings)
		}
		return h.settings
	})
}

// varFolder reads the files whose name belongs to somebody.
func (p *parser) varFolder(dir string, of func(name string) settings) {
	entries, err := fs.ReadDir(p.Vars, dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		p.wrongAt(Position{File: dir}, "%v", err)
	}
	for _, e := range entries {
		name, ok := varName(e.Name())
		if !ok {
			continue
		}
		full := path.Join(dir, e.Name())
		into := of(name)
		if e.IsDir() {
			into = of(e.Name())
		}
		if into == nil {
			continue
		}
		if !e.IsDir() {
			p.varText(full, into)
			continue
		}
		below, err := fs.ReadDir(p.Vars, full)
		if err != nil {
			p.wrongAt(Position{File: full}, "%v", err)
		}
		for _, f := range below {
			if _, ok := varName(f.Name()); ok && !f.IsDir() {
				p.varText(path.Join(full, f.Name()), into)
			}
		}
	}
}

// varName is whose variables a file holds; false for one that Ansible would not read.
func varName(file string) (string, bool) {
	ext := path.Ext(file)
	switch {
	case file[0] == '.', strings.HasSuffix(file, "~"):
		return "", false
	case ext == ".yml" || ext == ".yaml" || ext == ".json":
		return strings.TrimSuffix(file, ext), true
	}
	return file, true
}

func (p *parser) varText(name string, into settings) {
	text, err := fs.ReadFile(p.Vars, name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return
	case err != nil:
		p.wrongAt(Position{File: name}, "%v", err)
		return
	case strings.HasPrefix(string(text), "$ANSIBLE_VAULT"):
		p.notice("%s is encrypted by ansible-vault and was not read", name)
		return
	}
	within := p.Name
	p.Name = path.Join(path.Dir(p.Name), name)
	defer func() { p.Name = within }()
	if root := p.document(text); root != nil {
		p.ansibleVars(root, into)
	}
}
