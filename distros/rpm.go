package distros

import (
	"fmt"
	"strings"

	"gpuguest/internal/sh"
)

// rpm holds what every package manager on top of rpm does in the same way: by asking rpm itself, which costs
// one fork where dnf costs seconds.
//
// A package is written as a name, as a name with version, release and architecture (kernel-devel of one
// kernel), or as name=version, which stands for the newest version that begins so.
type rpm struct {
	root   string   // stands before every path; "" but in tests
	pids   []string // files that the package manager writes its process id to while it works
	timers []string // the distribution's own timed package runs
}

// word is a package as it was asked for: version is "" when any will do, and like names the package whose
// version it must have.
type word struct{ name, version, like string }

func words(packages []string) []word {
	all := make([]word, len(packages))
	for i, p := range packages {
		name, version, _ := strings.Cut(p, "=")
		if like, ok := strings.CutPrefix(version, "@"); ok {
			all[i] = word{name: name, like: like}
			continue
		}
		// A version that ends in a star, as apt takes it, is what a version means here anyway.
		all[i] = word{name: name, version: strings.TrimSuffix(strings.TrimSuffix(version, "*"), ".")}
	}
	return all
}

// PackageName is the name in a package word, which may say a version behind "=".
func PackageName(p string) string {
	name, _, _ := strings.Cut(p, "=")
	return name
}

// versionBegins is an awk condition: the text in v begins with the version in p, at a boundary.
const versionBegins = `index(v, p) == 1 && substr(v, length(p) + 1, 1) ~ /^[._-]?$/`

// Each question to rpm looks up a few names in its index; to list every package would cost more than all of them.
func (r rpm) Snapshot() string { return "" }

// Where versions count, one awk looks at all that rpm says, instead of a fork for each package.
func (r rpm) Installed(packages ...string) string {
	var names []string
	versions := false
	script := []string{"("}
	for _, w := range words(packages) {
		names = append(names, w.name)
		versions = versions || w.version != ""
		if w.like != "" {
			script = append(script, `[ "$(rpm -q --qf '%{VERSION}' `+sh.Quote(w.name)+`)" = "$(rpm -q --qf '%{VERSION}\n' `+sh.Quote(w.like)+` | cut -d _ -f 1 | sort -V | tail -n 1)" ] || exit 1`)
		}
	}
	ask := `rpm -q --qf '%{NAME} %{VERSION}-%{RELEASE}\n' ` + sh.Join(names...)
	if versions {
		ask = `rpm -q --qf '%{NAME} %{VERSION}-%{RELEASE} %{ARCH}\n' ` + sh.Join(names...) + ` | ` + among(packages, ``, `for (i = 1; i <= n; i++) if (!(i in seen)) print w[i] " is not installed"; exit found + 0 < n`)
	}
	if len(script) == 1 {
		return ask
	}
	return lines(append(script, ask, ")")...)
}

// Packages of which several versions stand side by side carry theirs in the name, so that one more of them
// is an addition and not a change: kernels and what belongs to one kernel, and imported keys.
func (r rpm) List() string {
	return `rpm -qa --qf '%{NAME} %{ARCH} %|EPOCH?{%{EPOCH}:}:{}|%{VERSION}-%{RELEASE}\n' | awk '
	$1 == "gpg-pubkey" { print $1 "-" $3, $3; next }
	$1 ~ /^kernel/ && $1 !~ /^kernel.*-(headers|tools|tools-libs|matched|macros|firmware.*|srpm-macros|rpm-macros|doc|docs)$/ { print $1 "-" $3 "." $2, $3; next }
	$2 ~ /^i[3-6]86$/ { print $1 "." $2, $3; next }
	{ print $1, $3 }' | LC_ALL=C sort`
}

// An rpm database that cannot be read is what an interrupted run leaves at worst.
func (r rpm) Sound() string {
	return `( rpm -q rpm >/dev/null 2>&1 || { echo "the rpm database cannot be read"; exit 1; } )`
}

func (r rpm) Repair() string {
	return `rpm -q rpm >/dev/null 2>&1 || rpm --rebuilddb`
}

func (r rpm) WaitLock(seconds int) string {
	return waitLock(r.root, []string{"/var/lib/rpm/.rpm.lock", "/usr/lib/sysimage/rpm/.rpm.lock"}, r.pids, seconds)
}

func (r rpm) Quiet(script string) string { return quiet(r.timers, script) }

// curl comes with most of these distributions and wget with the others.
func (r rpm) Download(url, dest, sum string) string {
	part := sh.Quote(dest + ".part")
	return fetch(url, dest+".part") + `
echo ` + sh.Quote(strings.ToLower(sum)+"  "+dest+".part") + ` | sha256sum -c --status || {
	rm -f ` + part + `
	echo "SHA-256 differs:" ` + sh.Quote(url) + ` >&2
	exit 1
}
chmod 0644 ` + part + `
mv -f ` + part + ` ` + sh.Quote(dest)
}

// fetch downloads url to dest, unchecked.
func fetch(url, dest string) string {
	return `rm -f ` + sh.Quote(dest) + `
if command -v curl >/dev/null 2>&1; then
	curl -fsSL --retry 3 -o ` + sh.Join(dest, url) + `
else
	wget -q -t 3 -O ` + sh.Join(dest, url) + `
fi || { rm -f ` + sh.Quote(dest) + `; echo "could not be fetched:" ` + sh.Quote(url) + ` >&2; exit 1; }`
}

// needed is the front of every removal: it sets the arguments to those of the packages that are installed,
// and fails where another package needs one of them. Imported keys are no packages to anything but rpm.
func (r rpm) needed(packages []string) string {
	return `set --
keys=
for p in ` + sh.Join(packages...) + `; do
	rpm -q "$p" >/dev/null 2>&1 || continue
	case $p in gpg-pubkey-*) keys="$keys $p" ;; *) set -- "$@" "$p" ;; esac
done
if [ $# -gt 0 ]; then
	others=$(rpm -e --test -- "$@" 2>&1) || {
		printf 'removing these would break other packages: %s\n' "$others" >&2
		exit 1
	}
fi
for k in $keys; do rpm -e -- "$k"; done`
}

// repoIDs is a command that prints the ids of the repositories that stand for the sources at these URIs, in
// one folder's files or in one file.
func repoIDs(where string, need []string) string {
	return `NEED=` + sh.Quote(strings.Join(need, "\n")) + ` awk '
	BEGIN { n = split(ENVIRON["NEED"], w, "\n"); for (i = 1; i <= n; i++) { sub(/\/+$/, "", w[i]); want[w[i]] = 1 } }
	/^\[/ { id = substr($0, 2, index($0, "]") - 2) }
	/^(baseurl|mirrorlist|metalink)[ \t]*=/ { v = $0; sub(/^[^=]*=[ \t]*/, "", v); sub(/\/*[ \t]*$/, "", v); if (v in want && !seen[id]++) print id }' ` + where + ` 2>/dev/null`
}

// where are the repository files that a Refresh reads.
func (r rpm) where(dir string, f Refresh) string {
	if f.Only != "" {
		return sh.Quote(f.Only)
	}
	return sh.Quote(r.root+dir) + `/*.repo`
}

// repoID is the id that Repo gives the repository at a URI: its last two folders, as NVIDIA names them.
func repoID(uri string) string {
	parts := strings.Split(strings.TrimRight(uri, "/"), "/")
	if len(parts) > 2 {
		parts = parts[len(parts)-2:]
	}
	return "cuda-" + strings.Join(parts, "-")
}

// exists exits zero when one of the paths, patterns of sh without blanks, is there.
func exists(patterns ...string) string {
	return `( for f in ` + strings.Join(patterns, " ") + `; do if [ -e "$f" ]; then exit 0; fi; done; exit 1 )`
}

// Pin keeps a guest's driver within one branch.
type Pin struct {
	Stream string   // module stream to enable: "nvidia-driver:580-open"
	Within string   // branch or full version that Names stay within
	Names  []string // package names
	Suite  string   // suite of a Debian archive that Names, which may hold wildcards, are taken from
}

// None tells whether there is nothing to pin but by packages.
func (p Pin) None() bool { return p.Stream == "" && len(p.Names) == 0 }

// quiet is Manager.Quiet for a distribution's timers.
func quiet(timers []string, script string) string {
	if len(timers) == 0 {
		return "(\n" + strings.TrimRight(script, "\n") + "\n)"
	}
	return `(
timers=
if [ -d /run/systemd/system ]; then
	for t in ` + strings.Join(timers, " ") + `; do
		if systemctl is-active --quiet "$t"; then timers="$timers $t"; fi
	done
fi
again() { for t in $timers; do systemctl start --no-block "$t" || :; done; }
trap again EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
for t in $timers; do systemctl stop "$t"; done
` + strings.TrimRight(script, "\n") + `
)`
}

// waitLock is Manager.WaitLock for lock files and files with process ids. The kernel's table of locks is
// asked, as neither fuser nor lsof is on a stock guest. It knows files by inode only, so the process must also
// have that very file open. A process id that a crash left behind may be another program's by now, so it counts
// only where it names a package manager. Where nobody holds a lock nothing is forked.
func waitLock(root string, files, pids []string, seconds int) string {
	rooted := func(paths []string) string {
		out := make([]string, len(paths))
		for i, p := range paths {
			out[i] = root + p
		}
		return sh.Join(out...)
	}
	byPID := ""
	if len(pids) > 0 {
		byPID = `	for f in ` + rooted(pids) + `; do
		p=
		[ ! -r "$f" ] || read -r p <"$f" || :
		case $p in '' | *[!0-9]*) continue ;; esac
		[ -r "/proc/$p/cmdline" ] || continue
		c=$(tr '\0' ' ' <"/proc/$p/cmdline" 2>/dev/null | cut -c 1-120)
		case $c in *dnf* | *yum* | *zypp* | *[Yy]a[Ss][Tt]* | *[Pp]ackage[Kk]it*) holder="process $p ($c) holds $f" ;; esac
	done
`
	}
	return `(
left=` + fmt.Sprint(seconds) + `
said=
[ -r /proc/locks ] || exit 0
while :; do
	holder=
` + byPID + `	while read -r _ kind _ mode p dev _; do
		[ "$kind$mode" = POSIXWRITE ] || continue
		for f in ` + rooted(files) + `; do
			for d in "/proc/$p/fd"/*; do
				# shellcheck disable=SC3013 # dash, bash and busybox know -ef
				[ "$d" -ef "$f" ] && [ "${dev##*:}" = "$(stat -L -c %i "$f" 2>/dev/null)" ] || continue
				holder="process $p ($(tr '\0' ' ' <"/proc/$p/cmdline" 2>/dev/null | cut -c 1-120)) holds $f"
			done
		done
	done </proc/locks
	[ -n "$holder" ] || exit 0
	if [ "$holder" != "$said" ]; then
		echo "gpuguest: waiting: $holder" >&2
		said=$holder
	fi
	if [ "$left" -le 0 ]; then
		echo "still held after ` + fmt.Sprint(seconds) + ` s: $holder" >&2
		exit 75
	fi
	left=$((left - 1))
	sleep 1
done
)`
}
