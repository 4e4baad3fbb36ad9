package guest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Why ssh_config is read here and not by kevinburke/ssh_config (v1.6.0): that library fails the whole file
// on a Match criterion it does not know, takes "Match host a user b" for three host patterns, does not
// split "Match host a,b", and looks up Include below the operating system's idea of home. Each of these
// would send a login to the wrong place in silence, or refuse a file that ssh takes.

const maxIncludeDepth = 16 // OpenSSH's own limit, READCONF_MAX_DEPTH in readconf.c

// settings is what ssh_config says about one host, with the words of ssh_config(5) as keys in lower case.
// For most keywords the first value counts; those in multiValued collect.
type settings struct {
	values map[string][]string
}

var multiValued = map[string]bool{"identityfile": true, "certificatefile": true}

func (s settings) get(key string) string {
	if v := s.values[key]; len(v) > 0 {
		return v[0]
	}
	return ""
}

// isSet reports a boolean keyword.
func (s settings) isSet(key string) bool {
	v := strings.ToLower(s.get(key))
	return v == "yes" || v == "true"
}

// configReader walks the files of one look-up.
type configReader struct {
	home      string
	alias     string // the name the user gave
	user      string // from the command line, "" unknown
	localUser string
	notice    func(string)
	out       settings
}

// readSSHConfig evaluates the files that cfg names for alias.
func readSSHConfig(cfg Config, home, alias, user, localUser string) (settings, error) {
	r := &configReader{home: home, alias: alias, user: user, localUser: localUser, notice: cfg.notice,
		out: settings{values: map[string][]string{}}}
	switch cfg.SSHConfig {
	case "none":
		return r.out, nil
	case "":
		if err := r.file(filepath.Join(home, ".ssh", "config"), 0, true); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return r.out, err
		}
		if err := r.file("/etc/ssh/ssh_config", 0, true); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return r.out, err
		}
		return r.out, nil
	default:
		return r.out, r.file(cfg.SSHConfig, 0, true)
	}
}

// file reads one file. active says whether the block that includes it applies.
func (r *configReader) file(path string, depth int, active bool) error {
	if depth > maxIncludeDepth {
		return fmt.Errorf("%s: more than %d nested Include lines", path, maxIncludeDepth)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	outer := active
	for i, line := range strings.Split(string(data), "\n") {
		words, err := splitConfigLine(line)
		if err != nil {
			return fmt.Errorf("%s:%d: %w", path, i+1, err)
		}
		if len(words) == 0 {
			continue
		}
		key, args := strings.ToLower(words[0]), words[1:]
		if len(args) == 0 {
			return fmt.Errorf("%s:%d: %s has no value", path, i+1, words[0])
		}
		switch key {
		case "host":
			active = outer && matchPatterns(args, r.alias)
		case "match":
			ok, unknown := r.match(args)
			if unknown != "" && outer {
				r.notice(fmt.Sprintf("%s:%d: \"Match %s\" is not supported; the block is left out", path, i+1, unknown))
			}
			active = outer && ok
		case "include":
			if err := r.include(path, args, depth, active); err != nil {
				return err
			}
		default:
			if active {
				r.set(key, args)
			}
		}
	}
	return nil
}

func (r *configReader) set(key string, args []string) {
	value := strings.Join(args, " ")
	if multiValued[key] {
		r.out.values[key] = append(r.out.values[key], value)
		return
	}
	if _, ok := r.out.values[key]; !ok {
		r.out.values[key] = args
		if key == "proxycommand" || key == "proxyjump" {
			r.out.values[key] = []string{value}
		}
	}
}

func (r *configReader) include(from string, args []string, depth int, active bool) error {
	for _, pattern := range args {
		switch {
		case strings.HasPrefix(pattern, "~/"):
			pattern = filepath.Join(r.home, pattern[2:])
		case filepath.IsAbs(pattern):
		case strings.HasPrefix(from, "/etc/ssh/"):
			pattern = filepath.Join("/etc/ssh", pattern)
		default:
			pattern = filepath.Join(r.home, ".ssh", pattern)
		}
		files, err := filepath.Glob(pattern)
		if err != nil {
			return fmt.Errorf("%s: Include %s: %w", from, pattern, err)
		}
		for _, f := range files {
			if err := r.file(f, depth+1, active); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}

// match evaluates a Match line. unknown names the first criterion that cannot be evaluated here; such a
// block does not apply. A line whose known criteria already fail needs no notice.
func (r *configReader) match(args []string) (ok bool, unknown string) {
	ok = true
	for i := 0; i < len(args); i++ {
		word, negated := strings.CutPrefix(strings.ToLower(args[i]), "!")
		name, value, inline := strings.Cut(word, "=")
		if inline {
			_, value, _ = strings.Cut(args[i], "=")
		}
		var hit bool
		switch name {
		case "all":
			hit = true
		case "canonical", "final":
			hit = false // gpuguest makes one pass and canonicalizes nothing
		case "host", "originalhost", "user", "localuser":
			if !inline {
				i++
				if i >= len(args) {
					return false, name + " without a pattern"
				}
				value = args[i]
			}
			subject := r.alias
			switch name {
			case "host":
				if h := r.out.get("hostname"); h != "" {
					subject = strings.ReplaceAll(h, "%h", r.alias)
				}
			case "user":
				subject = r.user
				if subject == "" {
					subject = r.out.get("user")
				}
				if subject == "" {
					subject = r.localUser
				}
			case "localuser":
				subject = r.localUser
			}
			hit = matchPatterns(strings.Split(value, ","), subject)
		default:
			if !ok {
				return false, ""
			}
			return false, args[i]
		}
		if hit == negated {
			ok = false
		}
	}
	return ok, ""
}

// matchPatterns is ssh_config(5)'s pattern list: any pattern, and no negated one.
func matchPatterns(patterns []string, s string) bool {
	found := false
	for _, p := range patterns {
		neg := strings.HasPrefix(p, "!")
		if matchPattern(strings.ToLower(strings.TrimPrefix(p, "!")), strings.ToLower(s)) {
			if neg {
				return false
			}
			found = true
		}
	}
	return found
}

// matchPattern knows * (any run) and ? (one character). It goes back to the last * only, so that its time
// is bounded by the product of the lengths.
func matchPattern(p, s string) bool {
	pi, si, star, mark := 0, 0, -1, 0
	for si < len(s) {
		switch {
		case pi < len(p) && (p[pi] == '?' || p[pi] == s[si]) && p[pi] != '*':
			pi, si = pi+1, si+1
		case pi < len(p) && p[pi] == '*':
			star, mark = pi, si
			pi++
		case star >= 0:
			mark++
			pi, si = star+1, mark
		default:
			return false
		}
	}
	return strings.Trim(p[pi:], "*") == ""
}

// splitConfigLine splits a line into keyword and arguments: blanks or one '=' after the keyword, double
// quotes around arguments with blanks, # begins a comment.
func splitConfigLine(line string) ([]string, error) {
	line = strings.TrimSpace(line)
	if line == "" || line[0] == '#' {
		return nil, nil
	}
	end := strings.IndexAny(line, " \t=\"")
	if end < 0 {
		return []string{line}, nil
	}
	if end == 0 {
		return nil, errors.New("no keyword")
	}
	words := []string{line[:end]}
	rest := strings.TrimLeft(line[end:], " \t")
	rest = strings.TrimLeft(strings.TrimPrefix(rest, "="), " \t")
	for rest != "" && rest[0] != '#' {
		var word strings.Builder
		quoted := false
		i := 0
		for ; i < len(rest); i++ {
			b := rest[i]
			if b == '"' {
				quoted = !quoted
				continue
			}
			if b == '\\' && i+1 < len(rest) && (rest[i+1] == '"' || rest[i+1] == '\\') {
				i++
				word.WriteByte(rest[i])
				continue
			}
			if !quoted && (b == ' ' || b == '\t') {
				break
			}
			word.WriteByte(b)
		}
		if quoted {
			return nil, errors.New("a quotation mark is not closed")
		}
		words = append(words, word.String())
		rest = strings.TrimLeft(rest[i:], " \t")
	}
	return words, nil
}

// hop is one SSH server on the way, the guest being the last.
type hop struct {
	name       string // as the user or ProxyJump wrote it
	host       string // to dial
	port       int
	user       string
	hostKey    string // name used in known_hosts instead of host:port, "" none
	identities []string
	explicit   bool // identities were named, not guessed
	only       bool // IdentitiesOnly
	agent      string
	knownHosts []string // the first is written to
	hash       bool     // HashKnownHosts
	strict     bool
}

func (h hop) addr() string {
	return joinHostPort(h.host, h.port)
}

// resolve works out the way to the guest: jump hosts first, the guest last.
func resolve(cfg Config) ([]hop, error) {
	home, local := cfg.Home, localUser()
	if home == "" {
		home, _ = os.UserHomeDir()
	}
	last := Target{Host: cfg.Host, Port: cfg.Port, User: cfg.User}
	if last.Host == "" {
		return nil, errors.New("no host named")
	}
	return resolveChain(cfg, home, local, last, cfg.Identities, 0)
}

const maxJumps = 8

func resolveChain(cfg Config, home, local string, t Target, identities []string, depth int) ([]hop, error) {
	if depth > maxJumps {
		return nil, fmt.Errorf("more than %d jump hosts: does ProxyJump lead back to itself?", maxJumps)
	}
	set, err := readSSHConfig(cfg, home, t.Host, t.User, local)
	if err != nil {
		return nil, fmt.Errorf("ssh_config: %w", err)
	}
	h, err := makeHop(cfg, set, home, local, t, identities)
	if err != nil {
		return nil, err
	}
	jump := set.get("proxyjump")
	if pc := set.get("proxycommand"); jump == "" && pc != "" && !strings.EqualFold(pc, "none") {
		cfg.notice(fmt.Sprintf("%s: ProxyCommand is not supported and is left out; ProxyJump is", t.Host))
	}
	if jump == "" || strings.EqualFold(jump, "none") {
		return []hop{h}, nil
	}
	// The first jump host may have a ProxyJump of its own; the later ones are reached through the one
	// before, whatever the file says about them, as ssh does.
	var way []hop
	for i, part := range strings.Split(jump, ",") {
		jt, err := ParseTarget(strings.TrimSpace(part))
		if err != nil {
			return nil, fmt.Errorf("ProxyJump of %s: %w", t.Host, err)
		}
		if i == 0 {
			first, err := resolveChain(cfg, home, local, jt, nil, depth+1)
			if err != nil {
				return nil, err
			}
			way = first
			continue
		}
		set, err := readSSHConfig(cfg, home, jt.Host, jt.User, local)
		if err != nil {
			return nil, fmt.Errorf("ssh_config: %w", err)
		}
		jh, err := makeHop(cfg, set, home, local, jt, nil)
		if err != nil {
			return nil, err
		}
		way = append(way, jh)
	}
	if len(way) > maxJumps {
		return nil, fmt.Errorf("more than %d jump hosts", maxJumps)
	}
	return append(way, h), nil
}

func makeHop(cfg Config, set settings, home, local string, t Target, identities []string) (hop, error) {
	h := hop{name: t.Host, host: t.Host, port: t.Port, user: t.User, agent: cfg.Agent,
		only: set.isSet("identitiesonly"), hash: set.isSet("hashknownhosts"), hostKey: set.get("hostkeyalias"),
		strict: cfg.HostKeyCheck == Strict || set.isSet("stricthostkeychecking")}
	if v := set.get("hostname"); v != "" {
		h.host = expand(v, map[byte]string{'h': t.Host})
	}
	if h.port == 0 {
		h.port = 22
		if v := set.get("port"); v != "" {
			n, err := strconv.Atoi(v)
			if err != nil || n < 1 || n > 65535 {
				return hop{}, fmt.Errorf("ssh_config: Port %q of %s: not a port", v, t.Host)
			}
			h.port = n
		}
	}
	if h.user == "" {
		h.user = set.get("user")
	}
	if h.user == "" {
		h.user = local
	}
	if v := strings.ToLower(set.get("stricthostkeychecking")); v == "no" || v == "off" {
		cfg.notice(fmt.Sprintf("%s: StrictHostKeyChecking %s is not followed: a new key is added, a changed key is refused", t.Host, v))
	}
	switch v := set.get("identityagent"); {
	case v == "" || v == "SSH_AUTH_SOCK":
	case strings.EqualFold(v, "none"):
		h.agent = ""
	case strings.HasPrefix(v, "$"):
		h.agent = os.Getenv(strings.Trim(v, "${}"))
	default:
		h.agent = v
	}
	tokens := map[byte]string{'h': h.host, 'n': t.Host, 'p': strconv.Itoa(h.port), 'r': h.user, 'u': local, 'd': home}
	path := func(p string) string {
		p = expand(p, tokens)
		if rest, ok := strings.CutPrefix(p, "~/"); ok {
			return filepath.Join(home, rest)
		}
		return p
	}
	h.agent = path(h.agent)

	h.identities = append(h.identities, identities...)
	h.explicit = len(identities) > 0
	if !h.explicit {
		for _, f := range set.values["identityfile"] {
			if strings.EqualFold(f, "none") {
				h.explicit, h.identities = true, nil
				break
			}
			h.explicit = true
			h.identities = append(h.identities, path(f))
		}
	}
	if !h.explicit {
		for _, name := range []string{"id_ed25519", "id_ecdsa", "id_rsa"} {
			h.identities = append(h.identities, filepath.Join(home, ".ssh", name))
		}
	}

	switch {
	case cfg.KnownHosts != "":
		h.knownHosts = []string{cfg.KnownHosts}
	case len(set.values["userknownhostsfile"]) > 0:
		for _, f := range set.values["userknownhostsfile"] {
			if !strings.EqualFold(f, "none") {
				h.knownHosts = append(h.knownHosts, path(f))
			}
		}
	default:
		h.knownHosts = []string{filepath.Join(home, ".ssh", "known_hosts")}
	}
	if cfg.KnownHosts == "" && cfg.SSHConfig == "" {
		global := set.values["globalknownhostsfile"]
		if len(global) == 0 {
			global = []string{"/etc/ssh/ssh_known_hosts"}
		}
		for _, f := range global {
			if !strings.EqualFold(f, "none") {
				h.knownHosts = append(h.knownHosts, f)
			}
		}
	}
	return h, nil
}

// expand replaces ssh_config's % tokens; one that is not known stays as it is.
func expand(s string, tokens map[byte]string) string {
	if !strings.Contains(s, "%") {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && i+1 < len(s) {
			if s[i+1] == '%' {
				b.WriteByte('%')
				i++
				continue
			}
			if v, ok := tokens[s[i+1]]; ok {
				b.WriteString(v)
				i++
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
