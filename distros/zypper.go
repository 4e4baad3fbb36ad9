package distros

import (
	"strings"

	"gpuguest/internal/sh"
)

// zypper builds command lines for zypper 1.14 and later (SLES and Leap 15).
type zypper struct{ rpm }

func newZypper() zypper { return zypper{rpm{pids: []string{"/run/zypp.pid"}}} }

// zypperRun begins a command line that changes something; it waits for zypp's lock.
const zypperRun = "ZYPP_LOCK_TIMEOUT=600 zypper --non-interactive "

// zypperEnds ends one: zypper exits with 102 and 103 where something was installed that asks for a reboot or a
// restart, and with 106 where a repository was passed over (zypper(8), exit codes).
const zypperEnds = ` || { code=$?; case $code in 102 | 103 | 106) ;; *) exit "$code" ;; esac; }`

const zypperInstall = "install --no-recommends --auto-agree-with-licenses "

// A package that has to have the version of another comes after it, as that version is known only then: SUSE's
// signed modules carry the kernel's version behind the driver's (580.82.07_k6.4.0_150600.23.65).
func (z zypper) Install(packages ...string) string { return z.install(zypperInstall, packages) }

func (z zypper) Exchange(packages ...string) string {
	return z.install(zypperInstall+"--force-resolution ", packages)
}

func (z zypper) install(verb string, packages []string) string {
	var first []string
	var after []word
	for _, w := range words(packages) {
		switch {
		case w.like != "":
			after = append(after, w)
		case w.version != "" && !strings.Contains(w.version, "."):
			// zypper knows no patterns of versions: of a branch it is the newest below the next.
			first = append(first, w.name+"<"+next(w.version))
		case w.version != "":
			first = append(first, w.name+"="+w.version)
		default:
			first = append(first, w.name)
		}
	}
	script := []string{"("}
	if len(first) > 0 {
		script = append(script, zypperRun+verb+sh.Join(first...)+zypperEnds)
	}
	for _, w := range after {
		script = append(script,
			`v=$(rpm -q --qf '%{VERSION}\n' `+sh.Quote(w.like)+` | cut -d _ -f 1 | sort -V | tail -n 1)`,
			zypperRun+verb+sh.Quote(w.name+"=")+`"$v"`+zypperEnds)
	}
	return lines(append(script, ")")...)
}

func (z zypper) InstallFile(path string) string {
	return `( ` + zypperRun + zypperInstall + sh.Quote(path) + zypperEnds + ` )`
}

func (z zypper) Purge(packages ...string) string {
	return `(
` + z.needed(packages) + `
if [ $# -gt 0 ]; then
	` + zypperRun + `remove --no-clean-deps "$@"` + zypperEnds + `
fi
)`
}

func (z zypper) Downgrade(name, version string) string {
	return `( ` + zypperRun + "install --no-recommends --oldpackage " + sh.Quote(name+"="+version) + zypperEnds + ` )`
}

func (z zypper) Hold(packages ...string) string {
	return zypperRun + "addlock " + sh.Join(packages...)
}

// zypper leaves an empty file behind the last lock.
func (z zypper) Unhold(packages ...string) string {
	file := sh.Quote(z.root + "/etc/zypp/locks")
	return lines(zypperRun+"removelock "+sh.Join(packages...), `[ -s `+file+` ] || rm -f `+file)
}

// zypper's locks are stanzas; the file is read and not zypper asked, which refreshes first.
func (z zypper) Held() string {
	file := sh.Quote(z.root + "/etc/zypp/locks")
	return `{ [ ! -r ` + file + ` ] || awk '$1 == "solvable_name:" { print $2 }' ` + file + ` | sort -u; }`
}

func (z zypper) Offered(packages ...string) string {
	var names []string
	for _, w := range words(packages) {
		names = append(names, w.name)
	}
	return `LC_ALL=C zypper --non-interactive --no-refresh --quiet search --details --match-exact --type package ` + sh.Join(names...) +
		` 2>/dev/null | awk -F ' *[|] *' 'NF > 5 { print $2, $4, $5 }' | ` + offers(packages)
}

func (z zypper) Fetched(uri string) string {
	return exists(sh.Quote(z.root+"/var/cache/zypp/raw/"+repoID(uri)) + "/repodata/repomd.xml")
}

func (z zypper) Refresh(r Refresh) string {
	all := zypperRun + "refresh"
	if len(r.Need) == 0 && r.Only == "" {
		return all
	}
	return lines(
		"(",
		"ids=$("+repoIDs(z.where("/etc/zypp/repos.d", r), r.Need)+`)`,
		`if [ -n "$ids" ]; then`,
		"	"+zypperRun+`refresh $ids`,
		"fi",
		all+` || echo "gpuguest: warning: going on without a repository that did not refresh" >&2`,
		")")
}

// zypper records the opposite, what came as a dependency; nothing here needs it.
func (z zypper) Manual() string { return ":" }

// SUSE's package names carry the branch, so there is nothing more to pin.
func (z zypper) Pin(Pin) string    { return ":" }
func (z zypper) Pinned(Pin) string { return ":" }
