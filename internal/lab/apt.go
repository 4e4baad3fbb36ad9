package lab

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// listsMaxAge is how old apt's lists may be before they are fetched anew.
const listsMaxAge = 6 * time.Hour

// source is one line of a sources.list or one stanza of a .sources file.
type source struct {
	uris, suites, components []string
	signedBy                 string
}

// aptRoot is an apt of its own for one suite: the host's sources, rewritten to
// that suite, with lists and a cache that are not the host's.
type aptRoot struct {
	dir         string
	suite       string
	sources     string // deb822, every component
	sourcesPath string
	conf        string // what the host's apt has set that its archive needs
	confPath    string
	entries     []source
	log         io.Writer
}

func openApt(ctx context.Context, cache, suite string, log io.Writer) (*aptRoot, error) {
	if log == nil {
		log = io.Discard
	}
	codename, err := hostCodename("/etc/os-release")
	if err != nil {
		return nil, err
	}
	all, err := readSources("/etc/apt")
	if err != nil {
		return nil, err
	}
	entries, err := forSuite(ctx, all, codename, suite)
	if err != nil {
		return nil, err
	}
	conf, err := hostAptConf(ctx)
	if err != nil {
		return nil, err
	}
	a := &aptRoot{suite: suite, entries: entries, conf: conf, log: log}
	a.sources = a.withComponents([]string{"main", "contrib", "non-free", "non-free-firmware"})
	sum := sha256.Sum256([]byte(a.sources + "\x00" + conf))
	a.dir = filepath.Join(cache, "apt-"+suite+"-"+hex.EncodeToString(sum[:6]))
	a.sourcesPath = filepath.Join(a.dir, "lab.sources")
	a.confPath = filepath.Join(a.dir, "host.conf")
	return a, a.refresh(ctx)
}

func (a *aptRoot) refresh(ctx context.Context) error {
	unlock, err := lock(ctx, filepath.Join(filepath.Dir(a.dir), "locks", filepath.Base(a.dir)))
	if err != nil {
		return err
	}
	defer unlock()
	stamp := filepath.Join(a.dir, "updated")
	if info, err := os.Stat(stamp); err == nil && time.Since(info.ModTime()) < listsMaxAge {
		return nil
	}
	for _, d := range []string{"state/lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(a.dir, d), 0o755); err != nil {
			return err
		}
	}
	own := fmt.Sprintf(`Dir::Etc::sourcelist %q;
Dir::Etc::sourceparts "-";
Dir::State %q;
Dir::State::status "/dev/null";
Dir::Cache %q;
APT::Sandbox::User "root";
APT::Architecture "amd64";
APT::Architectures "amd64";
`, a.sourcesPath, filepath.Join(a.dir, "state"), filepath.Join(a.dir, "cache"))
	for name, text := range map[string]string{"lab.sources": a.sources, "host.conf": a.conf, "apt.conf": a.conf + own} {
		if err := writeFile(filepath.Join(a.dir, name), text, 0o644); err != nil {
			return err
		}
	}
	if err := run(ctx, a.log, a.dir, "env", "APT_CONFIG="+filepath.Join(a.dir, "apt.conf"), "apt-get", "-q", "update"); err != nil {
		return err
	}
	return writeFile(stamp, "", 0o644)
}

// candidate is the version apt would install.
func (a *aptRoot) candidate(ctx context.Context, pkg string) (string, error) {
	cmd := exec.CommandContext(ctx, "apt-cache", "policy", pkg)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "APT_CONFIG="+filepath.Join(a.dir, "apt.conf"))
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("apt-cache policy %s: %w", pkg, err)
	}
	for line := range strings.Lines(string(out)) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), "Candidate: "); ok && v != "(none)" {
			return v, nil
		}
	}
	return "", fmt.Errorf("%s has no package %s", a.suite, pkg)
}

// unpack downloads a package and unpacks its files into dir; it returns the
// package's Depends field.
func (a *aptRoot) unpack(ctx context.Context, pkg, dir string) (string, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	if err := run(ctx, a.log, dir, "env", "APT_CONFIG="+filepath.Join(a.dir, "apt.conf"), "apt-get", "-q", "download", pkg); err != nil {
		return "", err
	}
	debs, err := filepath.Glob(filepath.Join(dir, pkg+"_*.deb"))
	if err != nil || len(debs) != 1 {
		return "", fmt.Errorf("download of %s left %d files: %w", pkg, len(debs), errors.Join(err, os.ErrNotExist))
	}
	if err := run(ctx, a.log, dir, "dpkg-deb", "-x", debs[0], dir); err != nil {
		return "", err
	}
	out, err := exec.CommandContext(ctx, "dpkg-deb", "-f", debs[0], "Depends").Output()
	return strings.TrimSpace(string(out)), err
}

// withComponents writes the sources with those of the components the suite has.
func (a *aptRoot) withComponents(want []string) string {
	var b strings.Builder
	for i, e := range a.entries {
		if i > 0 {
			b.WriteString("\n")
		}
		components := slices.Clone(want)
		if a.suite == "bullseye" || a.suite == "buster" {
			// Firmware got a component of its own in Debian 12.
			components = slices.DeleteFunc(components, func(c string) bool { return c == "non-free-firmware" })
		}
		fmt.Fprintf(&b, "Types: deb\nURIs: %s\nSuites: %s\nComponents: %s\n",
			strings.Join(e.uris, " "), strings.Join(e.suites, " "), strings.Join(components, " "))
		if e.signedBy != "" {
			fmt.Fprintf(&b, "Signed-By: %s\n", e.signedBy)
		}
	}
	return b.String()
}

func hostCodename(path string) (string, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	fields := map[string]string{}
	for line := range strings.Lines(string(data)) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			fields[k] = strings.Trim(v, `"`)
		}
	}
	if fields["ID"] != "debian" || fields["VERSION_CODENAME"] == "" {
		return "", fmt.Errorf("the lab takes Debian's packages from the host's own sources, and this host is %q", fields["ID"])
	}
	return fields["VERSION_CODENAME"], nil
}

// readSources reads every source of an apt configuration directory.
func readSources(dir string) ([]source, error) {
	paths, err := filepath.Glob(filepath.Join(dir, "sources.list.d", "*"))
	if err != nil {
		return nil, err
	}
	var out []source
	for _, path := range append([]string{filepath.Join(dir, "sources.list")}, paths...) {
		data, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		switch filepath.Ext(path) {
		case ".list":
			out = append(out, parseList(string(data))...)
		case ".sources":
			out = append(out, parseDeb822(string(data))...)
		}
	}
	return out, nil
}

// optionsPattern is the bracketed part of a one-line source.
var optionsPattern = regexp.MustCompile(`\[[^\]]*\]`)

func parseList(text string) []source {
	var out []source
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		var s source
		for _, option := range strings.Fields(strings.Trim(optionsPattern.FindString(line), "[]")) {
			if v, ok := strings.CutPrefix(option, "signed-by="); ok {
				s.signedBy = v
			}
		}
		f := strings.Fields(optionsPattern.ReplaceAllString(line, " "))
		if len(f) < 4 || f[0] != "deb" {
			continue
		}
		s.uris, s.suites, s.components = f[1:2], f[2:3], f[3:]
		out = append(out, s)
	}
	return out
}

func parseDeb822(text string) []source {
	var out []source
	fields, last := map[string]string{}, ""
	flush := func() {
		if slices.Contains(strings.Fields(fields["types"]), "deb") && fields["enabled"] != "no" {
			out = append(out, source{
				uris: strings.Fields(fields["uris"]), suites: strings.Fields(fields["suites"]),
				components: strings.Fields(fields["components"]), signedBy: fields["signed-by"],
			})
		}
		fields, last = map[string]string{}, ""
	}
	for sc := bufio.NewScanner(strings.NewReader(text)); sc.Scan(); {
		line := sc.Text()
		switch {
		case strings.HasPrefix(line, "#"):
		case strings.TrimSpace(line) == "":
			flush()
		case line[0] == ' ' || line[0] == '\t':
			fields[last] += "\n" + line
		default:
			k, v, _ := strings.Cut(line, ":")
			last = strings.ToLower(strings.TrimSpace(k))
			fields[last] = strings.TrimSpace(v)
		}
	}
	flush()
	return out
}

// forSuite picks the host's sources of the distribution itself and turns them
// to another suite; a suite the archive does not have (an -updates that has been
// retired) is left out.
func forSuite(ctx context.Context, all []source, codename, suite string) ([]source, error) {
	var out []source
	for _, s := range all {
		if !slices.Contains(s.components, "main") {
			continue
		}
		e := source{uris: s.uris, signedBy: s.signedBy}
		for _, name := range s.suites {
			rest, ok := strings.CutPrefix(name, codename)
			if !ok || (rest != "" && rest[0] != '-') {
				continue
			}
			found, err := hasSuite(ctx, s.uris[0], suite+rest)
			if err != nil {
				return nil, err
			}
			if found {
				e.suites = append(e.suites, suite+rest)
			}
		}
		if len(e.suites) > 0 {
			out = append(out, e)
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("the host's apt has no source for %s that offers %s", codename, suite)
	}
	return out, nil
}

func hasSuite(ctx context.Context, uri, suite string) (bool, error) {
	if !strings.HasPrefix(uri, "http") {
		return true, nil // a file or another method: apt itself will say
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	url := strings.TrimRight(uri, "/") + "/dists/" + suite + "/InRelease"
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, url, nil)
	if err != nil {
		return false, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false, err
	}
	resp.Body.Close()
	return resp.StatusCode != http.StatusNotFound, nil
}

// hostAptConf is what of the host's settings the archive itself needs: how it
// is reached and whether its dates may be old.
func hostAptConf(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "apt-config", "dump").Output()
	if err != nil {
		return "", fmt.Errorf("apt-config dump: %w", err)
	}
	wanted := []string{"Acquire::Check-Valid-Until", "Acquire::Check-Date", "Acquire::http::Proxy", "Acquire::https::Proxy"}
	var b strings.Builder
	for line := range strings.Lines(string(out)) {
		key, _, _ := strings.Cut(line, " ")
		if slices.Contains(wanted, key) && !strings.HasSuffix(strings.TrimSpace(line), `"";`) {
			b.WriteString(line)
		}
	}
	return b.String(), nil
}

// guestAptConf is the same for a guest, to which the host's loopback is HostAddress.
func guestAptConf(conf string) string {
	return strings.NewReplacer("//localhost", "//"+HostAddress, "//127.0.0.1", "//"+HostAddress).Replace(conf)
}
