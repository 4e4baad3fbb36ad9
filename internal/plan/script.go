package plan

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"gpuguest/assets"
	"gpuguest/distros"
	"gpuguest/internal/action"
	"gpuguest/internal/sh"
	"gpuguest/steps"
)

// NotMet is the exit code of a step's script whose actions all succeeded and whose check still fails. It
// is out of the way of what apt (100), dpkg (1, 2), dkms (1 to 101) and shells (126 and up) exit with.
const NotMet = 113

// Library returns the shell functions that every step's script begins with.
func Library(d distros.Distro) string {
	return assets.StepLibrary +
		"list_packages() {\n" + d.Packages.List() + "\n}\n" +
		"list_manual() {\n" + d.Packages.Manual() + "\n}\n"
}

// Script returns the whole script of one item: look whether it is met already, record the beginning, act,
// look again, record the end. It needs nobody at the other end of a connection, so a client that dies
// costs nothing. It exits 0 when the item is met, NotMet, or as the action that failed.
func (p Plan) Script(it Item) string {
	return Library(p.Distro) + p.Env + p.frame(it)
}

func (p Plan) frame(it Item) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("set +e")
	line("why=$( (set -eu\n%s\n) 2>&1 ); met=$?", it.Check)
	line(`if [ $met -eq 0 ]; then echo "gpuguest: already so"; exit 0; fi`)
	line("set -e")
	line("prepare")
	if hasPackages(it) {
		line("open_bracket")
	}
	line("journal %s", sh.Quote(p.record(it, "begin")))
	line("set +e")
	for _, a := range it.Actions {
		line("( set -eu\n%s\n) </dev/null; code=$?", actionScript(a))
		line(`if [ $code -ne 0 ]; then`)
		if hasPackages(it) {
			line("	build_logs")
			line("	close_bracket")
		}
		line("	journal %s\"$code\"", sh.Quote(p.record(it, "failed")+`,"exit":`))
		line("	exit $code\nfi")
	}
	if hasPackages(it) {
		line("close_bracket")
	}
	line("why=$( (set -eu\n%s\n) 2>&1 ); met=$?", it.Check)
	line(`if [ $met -ne 0 ]; then`)
	line("	journal %s", sh.Quote(p.record(it, "failed")))
	line(`	printf 'gpuguest: applied, but %%s\n' "$why"`)
	line("	exit %d\nfi", NotMet)
	line("set -e\njournal %s", sh.Quote(p.record(it, "end")))
	return b.String()
}

// record is the tail of a journal record: everything but time and boot, which the guest fills in.
func (p Plan) record(it Item, event string) string {
	r := struct {
		Event   string `json:"event"`
		Step    string `json:"step"`
		AtBoot  bool   `json:"at_boot,omitempty"`
		Driver  string `json:"driver,omitempty"`
		Flavor  string `json:"flavor,omitempty"`
		Source  string `json:"source,omitempty"`
		Modules string `json:"modules,omitempty"`
	}{event, string(it.ID), it.AtBoot, p.driver(), p.Choice.Flavor, p.Choice.Source, p.Choice.Modules}
	text, err := json.Marshal(r)
	if err != nil {
		panic(err) // strings and a bool always marshal
	}
	return strings.TrimSuffix(strings.TrimPrefix(string(text), "{"), "}")
}

func (p Plan) driver() string {
	switch {
	case p.Choice.Version != "":
		return p.Choice.Version
	case p.Choice.Branch != 0:
		return fmt.Sprint(p.Choice.Branch)
	}
	return ""
}

func hasPackages(it Item) bool {
	for _, a := range it.Actions {
		if r, ok := a.(action.Run); ok && r.Packages {
			return true
		}
	}
	return false
}

func actionScript(a action.Action) string {
	switch a := a.(type) {
	case action.Run:
		return "echo " + sh.Quote("gpuguest: "+a.Title) + "\n" + a.Script
	case action.Write:
		return fmt.Sprintf("echo %s\nprintf %%s %s | put %s %s",
			sh.Quote("gpuguest: write "+a.Path), sh.Quote(string(a.Data)), sh.Quote(a.Path), mode(a.Mode))
	case action.Send:
		return fmt.Sprintf("echo %s | sha256sum -c --status || { echo %s >&2; exit 1; }",
			sh.Quote(a.SHA256+"  "+a.Path), sh.Quote(a.Path+" was not sent, or not whole"))
	}
	panic(fmt.Sprintf("plan: unknown action %T", a))
}

func mode(m fs.FileMode) string {
	if m == 0 {
		m = 0o644
	}
	return fmt.Sprintf("%04o", m.Perm())
}

// Checks returns one script that runs the checks of all items in order in a guest of this distribution, and
// prints each outcome between lines that carry nonce, which no check can know. After an item that is not met and waits for no boot,
// Fresh items are passed over: they would only tell that the work before them is not done.
func Checks(d distros.Distro, items []Item, nonce string) string {
	return Before(d, items) + Beside(items, nonce)
}

// Before is the beginning of Checks: it asks once for what several checks look at, leaves the answers in variables and
// prints nothing. What else runs in that shell may read them.
func Before(d distros.Distro, items []Item) string {
	var b strings.Builder
	b.WriteString("export LC_ALL=C\nset +e\n")
	if len(items) > 1 && d.Packages != nil {
		b.WriteString(d.Packages.Snapshot() + "\n")
	}
	for i, words := range shared(items) {
		fmt.Fprintf(&b, "gpuguest_said_%[2]d=$(modinfo %[1]s 2>/dev/null)\ngpuguest_code_%[2]d=$?\n", words, i+1)
	}
	return b.String()
}

// Beside is the rest of Checks. It changes nothing of the shell that Before ran in when it has a subshell of its own.
func Beside(items []Item, nonce string) string {
	var b strings.Builder
	b.WriteString("open=\n" + asked(items))
	for _, it := range items {
		if it.Fresh {
			fmt.Fprintf(&b, "if [ -z \"$open\" ]; then\n")
		}
		fmt.Fprintf(&b, "out=$( (set -eu\n%s\n) 2>&1 </dev/null ); code=$?\n", it.Check)
		fmt.Fprintf(&b, "printf '%%s\\n%%s %%s %%s\\n' \"$out\" %s %s \"$code\"\n", sh.Quote(nonce), sh.Quote(string(it.ID)))
		if it.Fresh {
			b.WriteString("fi\n")
		} else {
			b.WriteString("[ $code -eq 0 ] || open=1\n")
		}
	}
	return b.String()
}

// isEnabled answers systemctl is-enabled for a unit whose link is where enabling puts it and which nothing masks; what
// systemd looks at itself, without a program and its talk with the manager. All else it passes on.
const isEnabled = `systemctl() {
	if [ "$1 $#" = "is-enabled 2" ] && ! [ -L "/etc/systemd/system/$2" ] && ! [ -L "/run/systemd/system/$2" ]; then
		for l in /etc/systemd/system/*.wants/"$2"; do
			if [ -L "$l" ] && [ -f "$l" ]; then
				echo enabled
				return 0
			fi
		done
	fi
	command systemctl "$@"
}
`

// compare answers cmp -s of standard input and a file, which are a few lines where checks ask so, without a program.
const compare = `cmp() {
	if [ "$# ${1-} ${2-}" = "3 -s -" ] && [ -f "$3" ] && [ -r "$3" ]; then
		one= two=
		while IFS= read -r l; do one="$one$l
"; done
		one=$one$l
		while IFS= read -r l; do two="$two$l
"; done <"$3"
		[ "$one" = "$two$l" ]
		return
	fi
	command cmp "$@"
}
`

// shared are the words for modinfo of the modules that several items ask it for.
func shared(items []Item) []string {
	count := make(map[string]int)
	var words []string
	for _, it := range items {
		if count[it.Module]++; it.Module != "" && count[it.Module] == 2 {
			words = append(words, it.Module)
		}
	}
	return words
}

// asked returns functions that answer some of the programs that checks call. modinfo, of a module that several of them
// ask for, answers with the fields that checks read and exits as modinfo did when Before asked it: sh reads an answer
// byte by byte, and a driver's has kilobytes of aliases and parameters. All other calls are passed on.
func asked(items []Item) string {
	var b, cases strings.Builder
	for i, words := range shared(items) {
		fmt.Fprintf(&b, `gpuguest_info_%[1]d=
set -f
IFS='
'
for l in $gpuguest_said_%[1]d; do
	case $l in version:* | license:* | vermagic:* | signer:*) gpuguest_info_%[1]d="$gpuguest_info_%[1]d$l
" ;; esac
done
unset IFS
set +f
`, i+1)
		fmt.Fprintf(&cases, "\t%[1]s)\n\t\tprintf %%s \"$gpuguest_info_%[2]d\"\n\t\treturn \"$gpuguest_code_%[2]d\"\n\t\t;;\n", sh.Quote(words), i+1)
	}
	if cases.Len() > 0 {
		b.WriteString("modinfo() {\n\tcase \"$*\" in\n" + cases.String() + "\tesac\n\tcommand modinfo \"$@\"\n}\n")
	}
	if slices.ContainsFunc(items, func(it Item) bool { return strings.Contains(it.Check, "| cmp -s - ") }) {
		b.WriteString(compare)
	}
	if slices.ContainsFunc(items, func(it Item) bool { return strings.Contains(it.Check, "systemctl is-enabled ") }) {
		b.WriteString(isEnabled)
	}
	return b.String()
}

// Outcome is what one check said.
type Outcome struct {
	ID  steps.ID
	Met bool
	Why string // what it printed

	// Data is what it printed for programs, behind steps.DataMark, and after Judge what Item.Read made of it:
	// JSON, or nothing.
	Data string
}

// ParseChecks reads what the script of Checks printed. Items that were passed over are missing.
func ParseChecks(out, nonce string) map[steps.ID]Outcome {
	found := make(map[steps.ID]Outcome)
	var said, data []string
	for line := range strings.Lines(out) {
		line = strings.TrimSuffix(line, "\n")
		rest, ok := strings.CutPrefix(line, nonce+" ")
		if !ok {
			if d, marked := strings.CutPrefix(line, steps.DataMark); marked {
				data = append(data, d)
			} else {
				said = append(said, line)
			}
			continue
		}
		id, code, _ := strings.Cut(rest, " ")
		found[steps.ID(id)] = Outcome{ID: steps.ID(id), Met: code == "0", Why: strings.TrimSpace(strings.Join(said, "\n")), Data: strings.Join(data, "\n")}
		said, data = nil, nil
	}
	return found
}

// Judge has each item read what its check printed for programs. An item may find there that it is not met
// although its check exited well.
func Judge(items []Item, outcomes map[steps.ID]Outcome) map[steps.ID]Outcome {
	for _, it := range items {
		o, asked := outcomes[it.ID]
		if !asked || o.Data == "" {
			continue
		}
		data := o.Data
		o.Data = ""
		if it.Read != nil {
			report, why := it.Read(data)
			if json.Valid(report) {
				o.Data = string(report)
			}
			if why != "" {
				o.Met, o.Why = false, strings.TrimSpace(o.Why+"\n"+why)
			}
		}
		outcomes[it.ID] = o
	}
	return outcomes
}
