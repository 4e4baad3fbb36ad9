package distros

import (
	"path"
	"slices"
	"strings"

	"gpuguest/internal/facts"
)

// ExtraSourcesPath is where ExtraSources belongs.
const ExtraSourcesPath = "/etc/apt/sources.list.d/gpuguest.sources"

// ExtraSources returns the source file that adds the components the distribution's own driver packages
// live in, where the guest does not read them yet; "" when nothing is missing. With mirror, the guest
// reads them, and main, from there.
//
// Each entry repeats the Signed-By of the guest's own source of that URI and suite: apt refuses to read
// any source when two entries disagree about it. For the same reason nothing is added to a source whose
// key is written out in its own file; the guest's owner has to add the components there.
func (d Distro) ExtraSources(f facts.Facts, mirror string) string {
	if len(d.Components) == 0 {
		return ""
	}
	type key struct{ uri, suite string }
	var order []key
	components := map[key][]string{}
	signed := map[key]string{}
	for _, s := range f.Sources {
		if s.File == ExtraSourcesPath {
			continue
		}
		k := key{strings.TrimRight(s.URI, "/"), s.Suite}
		if _, ok := components[k]; !ok {
			order = append(order, k)
		}
		components[k] = append(components[k], strings.Fields(s.Component)...)
		signed[k] = s.SignedBy
	}
	var out strings.Builder
	entry := func(k key, want []string) {
		signedBy, known := signed[k]
		if signedBy == "embedded" {
			return
		}
		if !known {
			signedBy = d.Keyring
		}
		var missing []string
		for _, c := range want {
			if !slices.Contains(components[k], c) {
				missing = append(missing, c)
			}
		}
		if len(missing) == 0 {
			return
		}
		if out.Len() > 0 {
			out.WriteByte('\n')
		}
		out.WriteString("Types: deb\nURIs: " + k.uri + "\nSuites: " + k.suite + "\nComponents: " + strings.Join(missing, " ") + "\n")
		if signedBy != "" {
			out.WriteString("Signed-By: " + signedBy + "\n")
		}
	}
	if mirror != "" {
		for _, suite := range d.Suites {
			entry(key{strings.TrimRight(mirror, "/"), suite}, append([]string{"main"}, d.Components...))
		}
		return out.String()
	}
	for _, k := range order {
		if slices.Contains(components[k], "main") && (slices.Contains(d.Suites, k.suite) || k.suite == d.Codename+"-security") {
			entry(k, d.Components)
		}
	}
	return out.String()
}

// Archive returns the URIs that the distribution's own packages come from in a guest: the sources that must
// refresh before they can be installed, whatever else the guest is told to read.
func (d Distro) Archive(f facts.Facts, mirror string) []string {
	if d.RepoFiles != "" {
		return d.repositories(f)
	}
	if mirror != "" {
		return []string{strings.TrimRight(mirror, "/")}
	}
	var uris []string
	for _, s := range f.Sources {
		uri := strings.TrimRight(s.URI, "/")
		own := slices.Contains(d.Suites, s.Suite) || s.Suite == d.Codename+"-security"
		if own && slices.Contains(strings.Fields(s.Component), "main") && !slices.Contains(uris, uri) {
			uris = append(uris, uri)
		}
	}
	return uris
}

// repositories returns the URIs of the distribution's own repositories that the guest's files turn on, by the
// names of their sections. Those for debugging and with the sources, which clouds turn on too, are nobody's need.
func (d Distro) repositories(f facts.Facts) []string {
	var uris []string
	for _, s := range f.Sources {
		uri := strings.TrimRight(s.URI, "/")
		own := !strings.Contains(s.Suite, "-debug") && !strings.Contains(s.Suite, "-source") &&
			slices.ContainsFunc(d.Suites, func(p string) bool { ok, _ := path.Match(p, s.Suite); return ok })
		if own && !slices.Contains(uris, uri) {
			uris = append(uris, uri)
		}
	}
	return uris
}
