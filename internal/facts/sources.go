package facts

import (
	"sort"
	"strings"
)

// readSources reads the package sources in force from their files: apt's one-line and deb822 formats
// (sources.list(5)), yum's and zypper's .repo files. `apt-get indextargets` would tell apt's, but costs as
// much as apt-cache and does not expand Signed-By before apt 2.7.
func readSources(files map[string][]string) []Source {
	var names []string
	for name := range files {
		names = append(names, name)
	}
	sort.Strings(names)
	var all []Source
	for _, name := range names {
		lines := files[name]
		switch {
		case name == "/etc/apt/sources.list", strings.HasPrefix(name, "/etc/apt/") && strings.HasSuffix(name, ".list"):
			for _, l := range lines {
				all = append(all, oneLine(l, name)...)
			}
		case strings.HasPrefix(name, "/etc/apt/") && strings.HasSuffix(name, ".sources"):
			all = append(all, deb822(lines, name)...)
		case strings.HasSuffix(name, ".repo"):
			all = append(all, repo(lines, name)...)
		}
	}
	return all
}

// expand makes one source of every combination; a suite that ends in "/" is a flat repository's path.
func expand(s Source, uris, suites, components []string) []Source {
	var all []Source
	for _, u := range uris {
		for _, suite := range suites {
			s.URI, s.Suite, s.Component = u, suite, ""
			if strings.HasSuffix(suite, "/") || len(components) == 0 {
				all = append(all, s)
				continue
			}
			for _, c := range components {
				s.Component = c
				all = append(all, s)
			}
		}
	}
	return all
}

// oneLine reads "deb [signed-by=/k.gpg arch=amd64] URI SUITE COMPONENT…".
func oneLine(l, file string) []Source {
	l, _, _ = strings.Cut(l, "#")
	rest, ok := strings.CutPrefix(strings.TrimSpace(l), "deb")
	if !ok || rest == "" || (rest[0] != ' ' && rest[0] != '\t') {
		return nil
	}
	rest = strings.TrimSpace(rest)
	s := Source{File: file}
	if strings.HasPrefix(rest, "[") {
		options, after, ok := strings.Cut(rest[1:], "]")
		if !ok {
			return nil
		}
		for _, o := range strings.Fields(options) {
			if v, ok := strings.CutPrefix(o, "signed-by="); ok {
				s.SignedBy = v
			}
		}
		rest = strings.TrimSpace(after)
	}
	var uri string
	if strings.HasPrefix(rest, "cdrom:[") {
		name, after, ok := strings.Cut(rest, "]")
		if !ok {
			return nil
		}
		tail, _, _ := strings.Cut(after, " ")
		uri, rest = name+"]"+tail, strings.TrimPrefix(after, tail)
	} else {
		uri, rest, _ = strings.Cut(strings.ReplaceAll(rest, "\t", " "), " ")
	}
	w := strings.Fields(rest)
	if len(w) == 0 {
		return nil
	}
	return expand(s, []string{uri}, w[:1], w[1:])
}

// deb822 reads stanzas of "Field: value" with continuation lines.
func deb822(lines []string, file string) []Source {
	var all []Source
	stanza, last := map[string]string{}, ""
	flush := func() {
		enabled := strings.ToLower(strings.TrimSpace(stanza["enabled"]))
		off := enabled == "no" || enabled == "false" || enabled == "0" || enabled == "off" || enabled == "without" || enabled == "disable"
		binary := false
		for _, t := range strings.Fields(stanza["types"]) {
			binary = binary || t == "deb"
		}
		if binary && !off {
			s := Source{File: file, SignedBy: strings.TrimSpace(stanza["signed-by"])}
			if strings.Contains(s.SignedBy, "BEGIN PGP") {
				s.SignedBy = "embedded"
			}
			all = append(all, expand(s, strings.Fields(stanza["uris"]), strings.Fields(stanza["suites"]), strings.Fields(stanza["components"]))...)
		}
		stanza, last = map[string]string{}, ""
	}
	for _, l := range lines {
		switch {
		case strings.TrimSpace(l) == "":
			flush()
		case strings.HasPrefix(l, "#"):
		case l[0] == ' ' || l[0] == '\t':
			if last != "" {
				stanza[last] += " " + strings.TrimSpace(l)
			}
		default:
			name, value, ok := strings.Cut(l, ":")
			if !ok {
				continue
			}
			last = strings.ToLower(strings.TrimSpace(name))
			stanza[last] = strings.TrimSpace(value)
		}
	}
	flush()
	return all
}

// repo reads yum's and zypper's "[id]" sections. The id stands in Suite; the URI is the first of baseurl,
// mirrorlist and metalink that is there.
func repo(lines []string, file string) []Source {
	var all []Source
	id, v := "", map[string]string{}
	flush := func() {
		uri := v["baseurl"]
		if uri == "" {
			uri = v["mirrorlist"]
		}
		if uri == "" {
			uri = v["metalink"]
		}
		if id != "" && uri != "" && v["enabled"] != "0" {
			all = append(all, Source{URI: uri, Suite: id, SignedBy: v["gpgkey"], File: file})
		}
		v = map[string]string{}
	}
	for _, l := range lines {
		l = strings.TrimSpace(l)
		if strings.HasPrefix(l, "[") && strings.HasSuffix(l, "]") {
			flush()
			id = l[1 : len(l)-1]
			continue
		}
		if name, value, ok := strings.Cut(l, "="); ok {
			v[strings.TrimSpace(name)] = strings.TrimSpace(value)
		}
	}
	flush()
	return all
}
