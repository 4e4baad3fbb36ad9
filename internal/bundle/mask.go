// Package bundle makes support bundles: files of a guest, masked, in one archive with a manifest; and reads the
// logs out of one.
//
// It reaches no guest. Nothing goes into an archive that did not pass the Masker.
package bundle

import (
	"bytes"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
)

// A Masker takes out of text what identifies a machine or a person and what opens doors: serial numbers, UUIDs,
// MAC addresses, host and user names, keys, tokens, passwords. The same value becomes the same word everywhere in
// one bundle ("[serial-1]"), so that what belongs together can still be told. IP addresses stay: versions look
// like them, and most are the lab's own.
//
// It errs on the side of too much.
type Masker struct {
	names []*regexp.Regexp
	words map[string]map[string]string // kind → value → the word in its place
	count map[string]int               // kind → occurrences
}

// NewMasker makes a masker that also knows the names of this guest. Names that are everyday words here, as
// "debian" or "gpu", tell nobody anything and would take half of the text with them; they stay.
func NewMasker(names ...string) *Masker {
	m := &Masker{words: make(map[string]map[string]string), count: make(map[string]int)}
	for _, n := range names {
		if len(n) < 3 || slices.Contains(everyday, strings.ToLower(n)) || strings.Trim(n, "0123456789.:") == "" {
			continue
		}
		m.names = append(m.names, regexp.MustCompile(`(?i)(^|[^A-Za-z0-9_-])(`+regexp.QuoteMeta(n)+`)($|[^A-Za-z0-9_-])`))
	}
	return m
}

var everyday = []string{"cuda", "debian", "fedora", "gpu", "guest", "host", "kernel", "linux", "localhost", "nvidia", "opensuse", "rhel", "rocky", "root", "system", "ubuntu", "unknown", "virtual"}

// A rule masks the last group of its pattern.
type rule struct {
	kind  string
	hints []string // lower case; the pattern cannot match a line that has none of them; nil: always look
	re    *regexp.Regexp
	spare func(value string) bool // values that stay; nil: none
}

var digit = regexp.MustCompile(`[0-9]`)

// rules are applied in this order, line by line. Their patterns are made of: RFC 3986 (userinfo), RFC 9110
// (Authorization), RFC 7519 (JWT), apt_auth.conf(5), nvidia-smi -q, lspci -vv, sshd(8), and the token formats that
// GitHub, GitLab, AWS, NGC and Ubuntu Pro document. They are compiled when a bundle is made and not at every start.
var rules = sync.OnceValue(func() []rule {
	return []rule{
		{kind: "credentials", hints: []string{"://"}, re: regexp.MustCompile(`[A-Za-z][A-Za-z0-9+.-]*://([^/\s"'<>\[\]]+)@`)},
		{kind: "credentials", hints: []string{"-u", "--user", "--proxy-user"}, re: regexp.MustCompile(`(?:\s-u|--user|--proxy-user)[ =]?([^\s:=/"'-][^\s:=/"']*:[^\s"']+)`)},
		{kind: "secret", hints: []string{"authorization", "x-api-key", "x-auth-token", "cookie"}, re: regexp.MustCompile(`(?i)\b(?:proxy-)?(?:authorization|x-api-key|x-auth-token|(?:set-)?cookie)\b["']?\s*[:=]\s*["']?([^\s"'][^"'\r\n]*)`)},
		{kind: "secret", hints: []string{"machine "}, re: regexp.MustCompile(`(?i)\bmachine\s+\S+.*?\blogin\s+(\S+)`)},
		{kind: "secret", hints: []string{"machine "}, re: regexp.MustCompile(`(?i)\bmachine\s+\S+.*?\bpassword\s+(\S+)`)},
		{kind: "secret", hints: []string{"bearer"}, re: regexp.MustCompile(`(?i)\bbearer\s+([A-Za-z0-9._~+/=-]{8,})`)},
		{kind: "secret", hints: []string{"eyj"}, re: regexp.MustCompile(`\b(eyJ[A-Za-z0-9_-]{6,}\.[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]*)?)`)},
		{kind: "secret", hints: []string{"akia", "asia", "gh", "glpat-", "xox", "nvapi-", "sk-", "aiza"},
			re: regexp.MustCompile(`\b((?:AKIA|ASIA)[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,}|glpat-[A-Za-z0-9_-]{16,}|xox[abprs]-[A-Za-z0-9-]{10,}|nvapi-[A-Za-z0-9_-]{16,}|sk-[A-Za-z0-9_-]{20,}|AIza[A-Za-z0-9_-]{30,})`)},
		{kind: "secret", hints: []string{"c1"}, re: regexp.MustCompile(`\b(C1[1-9A-HJ-NP-Za-km-z]{22,})\b`)},
		{kind: "secret", hints: []string{"="}, re: regexp.MustCompile(`(?i)[?&](?:sig|signature|x-amz-[a-z-]+|x-goog-[a-z-]+|token|key|auth|access_token|password)=([^&\s"'<>]+)`)},
		{kind: "secret", hints: []string{"pass", "secret", "token", "key", "credential"},
			re: regexp.MustCompile(`(?i)[\w.-]*(?:password|passwd|passphrase|secret|token|api[_-]?key|access[_-]?key|private[_-]?key|license[_-]?key|activation[_-]?key|credential)[\w.-]*["']?\s*[:=]\s*("[^"]*"|'[^']*'|[^\s,;&"'<>]+)`),
			spare: func(v string) bool {
				return slices.Contains([]string{"amd64", "arm64", "i386", "all", "any", "noarch", "Deactivated", `""`, "''"}, v)
			}},
		{kind: "secret", hints: []string{"password ", "login ", "passwd "}, re: regexp.MustCompile(`(?i)\b(?:password|passwd)\s+([^\s:,()]{4,})\s*$`)},
		{kind: "subscription", hints: []string{"org"}, re: regexp.MustCompile(`(?i)\borg(?:anization)?[ _-]?(?:id|key|name)?["']?\s*[:=]\s*["']?([\w-]{3,})`)},
		{kind: "ssh-key", hints: []string{" aaaa"}, re: regexp.MustCompile(`\b[\w@.-]+ (AAAA[A-Za-z0-9+/=]{16,})`)},
		{kind: "ssh-key", hints: []string{"sha256:"}, re: regexp.MustCompile(`\bSHA256:([A-Za-z0-9+/]{43}=?)`)},
		{kind: "ssh-key", hints: []string{":"}, re: regexp.MustCompile(`(?i)\b((?:[0-9a-f]{2}:){15}[0-9a-f]{2})\b`)},
		{kind: "mac", hints: []string{":"}, re: regexp.MustCompile(`(?i)\b((?:[0-9a-f]{2}:){5,19}[0-9a-f]{2})\b`)},
		{kind: "mac", hints: []string{":"}, re: regexp.MustCompile(`(?i)\b((?:[0-9a-f]{4}:){3}[0-9a-f]{4})\b`), spare: isDevice},
		{kind: "mac", hints: []string{"-"}, re: regexp.MustCompile(`(?i)\b((?:[0-9a-f]{2}-){5,7}[0-9a-f]{2})\b`)},
		{kind: "uuid", hints: []string{"-"}, re: regexp.MustCompile(`(?i)\b([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})\b`)},
		{kind: "id", re: regexp.MustCompile(`\b([0-9a-f]{32})\b`)},
		{kind: "serial", hints: []string{"serial", "s/n", "asset", "pdi", "guid", "host id", "host_id", "uuid"},
			re:    regexp.MustCompile(`(?i)(?:\bid_serial(?:_short)?|\bserial(?:[ _-]?(?:number|no|num))?|\bs/n|\basset[ _-]?tag|\bpdi|\bguid|\bhost[ _]id|\bclusteruuid)["']?\s*[:=#]\s*["']?([^\s"',<>\[\]]{3,})`),
			spare: func(v string) bool { return !digit.MatchString(v) || strings.HasPrefix(v, "8250") || v == "0x0" }},
		{kind: "serial", hints: []string{"serial"}, re: regexp.MustCompile(`(?i)\bserial number\s+([0-9a-f][0-9a-f:-]{5,})`)},
		{kind: "serial", hints: []string{"<"}, re: regexp.MustCompile(`(?i)<(?:serial|uuid|gpu_pdi|chassis_serial_number|host_id|gpu_fabric_guid|clusteruuid)>([^<\[]{3,})<`), spare: func(v string) bool { return !digit.MatchString(v) }},
		{kind: "user", hints: []string{"/home/"}, re: regexp.MustCompile(`/home/([^/\s:;"',)\]]+)`)},
		{kind: "user", hints: []string{"requested-by"}, re: regexp.MustCompile(`(?i)\brequested-by:\s*(\S+)`)},
		{kind: "user", hints: []string{"user"}, re: regexp.MustCompile(`\b(?:SUDO_)?USER=([^\s;"']+)`), spare: isRoot},
		{kind: "user", hints: []string{"logname="}, re: regexp.MustCompile(`\bLOGNAME=([^\s;"']+)`), spare: isRoot},
		{kind: "user", hints: []string{"for user ", "of user "}, re: regexp.MustCompile(`\b(?:for|of) user ([A-Za-z_][\w-]*)`), spare: isRoot},
		{kind: "user", hints: []string{"(uid="}, re: regexp.MustCompile(`\bby ([A-Za-z_][\w-]*)\(uid=`), spare: isRoot},
		{kind: "mail", hints: []string{"@"}, re: regexp.MustCompile(`\b([A-Za-z0-9][\w.+-]*@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+)\b`), spare: isUnit},
	}
})

func isRoot(v string) bool { return v == "root" }

// isDevice tells a PCI id with its subsystem, 10de:1c82:1b4c:11bf, which has the form of a GUID.
func isDevice(v string) bool { return strings.HasPrefix(v, "10de:") }

// isUnit tells what looks like a mail address and names no person: a systemd unit made from a template, and the
// lists that stand in every Debian kernel's first line.
func isUnit(v string) bool {
	for _, end := range []string{".service", ".socket", ".slice", ".target", ".path", ".timer", "@lists.debian.org"} {
		if strings.HasSuffix(v, end) {
			return true
		}
	}
	return false
}

var (
	pemBegin = regexp.MustCompile(`-----BEGIN ([A-Z0-9 ]+)-----`)
	pemEnd   = regexp.MustCompile(`-----END [A-Z0-9 ]+-----`)
	ownWord  = regexp.MustCompile(`^["']?\[[a-z-]+-[0-9]+\]["']?$`)
)

// pemLines is how many lines a PEM block may have; what claims to be longer is taken to have lost its end.
const pemLines = 400

// File masks one file. Lines stay lines, but for blocks of keys and certificates, which are left out.
func (m *Masker) File(text []byte) []byte {
	var out bytes.Buffer
	out.Grow(len(text))
	inside := 0
	for len(text) > 0 {
		line, rest, whole := bytes.Cut(text, []byte("\n"))
		text = rest
		l := string(line)
		if inside > 0 {
			inside++
			if pemEnd.MatchString(l) || inside > pemLines {
				inside = 0
			}
			continue
		}
		if at := pemBegin.FindStringIndex(l); at != nil {
			m.count["key"]++
			if !pemEnd.MatchString(l[at[1]:]) {
				inside = 1
			}
			l = m.line(l[:at[0]]) + "[a key or certificate was left out]"
		} else {
			l = m.line(l)
		}
		out.WriteString(l)
		if whole {
			out.WriteByte('\n')
		}
	}
	return out.Bytes()
}

func (m *Masker) line(l string) string {
	lower := strings.ToLower(l)
	for _, r := range rules() {
		if r.hints != nil && !slices.ContainsFunc(r.hints, func(h string) bool { return strings.Contains(lower, h) }) {
			continue
		}
		l = m.replace(l, r.kind, r.re, r.re.NumSubexp(), r.spare)
	}
	for _, n := range m.names {
		// Twice: two names with one character between them share it.
		for range 2 {
			l = m.replace(l, "host", n, 2, nil)
		}
	}
	return l
}

func (m *Masker) replace(l, kind string, re *regexp.Regexp, group int, spare func(string) bool) string {
	found := re.FindAllStringSubmatchIndex(l, -1)
	if found == nil {
		return l
	}
	var b strings.Builder
	last := 0
	for _, at := range found {
		from, to := at[2*group], at[2*group+1]
		if from < last {
			continue
		}
		value := l[from:to]
		if ownWord.MatchString(value) || spare != nil && spare(value) {
			continue
		}
		b.WriteString(l[last:from])
		b.WriteString(m.Word(kind, value))
		last = to
	}
	b.WriteString(l[last:])
	return b.String()
}

// Word is what stands for a value of a kind; it counts as one occurrence.
func (m *Masker) Word(kind, value string) string {
	m.count[kind]++
	if m.words[kind] == nil {
		m.words[kind] = make(map[string]string)
	}
	value = strings.ToLower(strings.Trim(value, `"'`))
	w, ok := m.words[kind][value]
	if !ok {
		w = fmt.Sprintf("[%s-%d]", kind, len(m.words[kind])+1)
		m.words[kind][value] = w
	}
	return w
}

// Counts tells how many occurrences of each kind were masked.
func (m *Masker) Counts() map[string]int { return m.count }
