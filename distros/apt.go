package distros

import (
	"fmt"
	"strings"

	"gpuguest/internal/sh"
)

// apt builds command lines for apt and dpkg, from apt 2.0 (Ubuntu 20.04) on. No text it returns ends in a
// newline, and each can stand in front of a redirection.
type apt struct {
	// root stands before dpkg's and apt's paths. It is "" but in tests.
	root string
}

// common are the options of every apt-get that changes something. Configuration files the guest's owner
// edited stay as they are; without Use-Pty dpkg's output is lines and not a terminal's. Locks are waited
// for; a lock that stays is the caller's WaitLock to name.
const common = "-y -q -o DPkg::Lock::Timeout=600 -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold -o Dpkg::Use-Pty=0 -o Acquire::Retries=3"

// Recommends are left out: a driver metapackage needs its dependencies only, and what it recommends is a
// desktop. Held packages and downgrades make apt-get fail, since no --allow option is given.
func (a apt) Install(packages ...string) string {
	return "apt-get install " + common + " --no-install-recommends -- " + sh.Join(packages...)
}

// apt lets go of what conflicts by itself.
func (a apt) Exchange(packages ...string) string { return a.Install(packages...) }

// A keyring package keeps its version from one repository to the next, so apt would skip it; and its
// source list is a configuration file that a user may have deleted.
func (a apt) InstallFile(path string) string {
	return "apt-get install " + common + " --no-install-recommends --reinstall -o Dpkg::Options::=--force-confmiss -- " + sh.Quote(path)
}

// A package of somebody else's that needs one of these would be removed with it; apt is asked first.
func (a apt) Purge(packages ...string) string {
	return `(
set --
for p in ` + sh.Join(packages...) + `; do
	s=$(dpkg-query -W -f='${db:Status-Status}\n' "$p" 2>/dev/null | head -n 1) || s=
	case $s in '' | not-installed) ;; *) set -- "$@" "$p" ;; esac
done
if [ $# -gt 0 ]; then
	others=$(apt-get -s purge -q -o APT::Get::AutomaticRemove=false -- "$@" | awk -v list="$*" '
		BEGIN { n = split(list, w, " "); for (i = 1; i <= n; i++) { sub(/:.*/, "", w[i]); mine[w[i]] = 1 } }
		$1 == "Remv" || $1 == "Purg" { p = $2; sub(/:.*/, "", p); if (!(p in mine)) print p }')
	if [ -n "$others" ]; then
		echo "removing these would remove other packages too:" $others >&2
		exit 1
	fi
	apt-get purge ` + common + ` --no-install-recommends -o APT::Get::AutomaticRemove=false -- "$@"
fi
)`
}

func (a apt) Hold(packages ...string) string { return "apt-mark hold " + sh.Join(packages...) }
func (a apt) Unhold(packages ...string) string {
	return "apt-mark unhold " + sh.Join(packages...)
}

// dpkg --configure -a is the only thing that clears an interrupted dpkg run, and does nothing otherwise.
// It passes over a package that dpkg was killed in the middle of unpacking, and apt-get check finds no fault
// in that one; --fix-broken unpacks it again.
func (a apt) Repair() string {
	return `dpkg --force-confdef --force-confold --configure -a
if ! apt-get check -q -o DPkg::Lock::Timeout=600 >/dev/null 2>&1 ||
	dpkg-query -W -f='${db:Status-Status}\n' | grep -q '^half-installed'; then
	apt-get install ` + common + ` --no-install-recommends --fix-broken
fi`
}

// Snapshot's lines go on with what facts.sh reads of a package, so that it need not ask again.
func (a apt) Snapshot() string {
	return `gpuguest_packages_code=0
gpuguest_packages=$(dpkg-query -W -f='${db:Status-Status} ${Package} ${Version}\t|${db:Status-Abbrev}\t${Package}\t${Version}\t${Architecture}\n' 2>/dev/null) || gpuguest_packages_code=$?`
}

// packageStates lists every package, the state first, so that a pattern finds one without a fork.
const packageStates = `dpkg-query -W -f='${db:Status-Status} ${Package} ${Version}\n'`

func (a apt) Installed(packages ...string) string {
	return `(
: "${gpuguest_packages=$(` + packageStates + ` ` + sh.Join(packages...) + ` 2>/dev/null)}"
missing=
for p in ` + sh.Join(packages...) + `; do
	case "
$gpuguest_packages" in
*"
installed $p "*) ;;
*)
		echo "$p is not installed"
		missing=1
		;;
	esac
done
[ -z "$missing" ]
)`
}

func (a apt) Offered(packages ...string) string {
	return `LC_ALL=C apt-cache policy ` + sh.Join(packages...) +
		` | awk '/^[^ ]/ { p = $1; sub(/:$/, "", p) } $1 == "Candidate:" && $2 != "(none)" && !seen[p]++ { print p, $2; n++ } END { exit n + 0 < ` + fmt.Sprint(len(packages)) + ` }'`
}

// Asking apt costs half a second, so the file it keeps the list in is looked for. Its name is the URI
// without scheme, with some characters escaped and slashes turned into underscores (URItoFileName in
// apt-pkg/contrib/strutl.cc).
func (a apt) Fetched(uri string) string {
	_, rest, found := strings.Cut(strings.TrimRight(uri, "/"), "://")
	if !found {
		_, rest, _ = strings.Cut(strings.TrimRight(uri, "/"), ":")
	}
	if at := strings.LastIndexByte(rest, '@'); at >= 0 {
		rest = rest[at+1:]
	}
	var name strings.Builder
	for i := range len(rest) {
		switch c := rest[i]; {
		case c == '/':
			name.WriteByte('_')
		case c <= ' ' || c >= 0x7f || strings.IndexByte("\\|{}[]<>\"^~_=!@#$%^&*", c) >= 0:
			fmt.Fprintf(&name, "%%%02x", c)
		default:
			name.WriteByte(c)
		}
	}
	return `( set -- ` + sh.Quote(a.root+"/var/lib/apt/lists/"+name.String()+"_") + `*Packages*; [ -e "$1" ] )`
}

// apt-helper is there wherever apt is, which curl and wget are not, and it uses apt's own proxy settings.
// What it downloaded with the wrong sum it keeps as .FAILED.
func (a apt) Download(url, dest, sum string) string {
	part := sh.Quote(dest + ".part")
	return `rm -f ` + part + `
if ! /usr/lib/apt/apt-helper -o Acquire::Retries=3 download-file ` + sh.Join(url, dest+".part", "SHA256:"+strings.ToLower(sum)) + `; then
	rm -f ` + part + ` ` + sh.Quote(dest+".part.FAILED") + `
	exit 1
fi
echo ` + sh.Quote(strings.ToLower(sum)+"  "+dest+".part") + ` | sha256sum -c --status || {
	rm -f ` + part + `
	echo "SHA-256 differs:" ` + sh.Quote(url) + ` >&2
	exit 1
}
chmod 0644 ` + part + `
mv -f ` + part + ` ` + sh.Quote(dest)
}

func (a apt) WaitLock(seconds int) string {
	return waitLock(a.root, []string{"/var/lib/dpkg/lock-frontend", "/var/lib/dpkg/lock", "/var/lib/apt/lists/lock", "/var/cache/apt/archives/lock"}, nil, seconds)
}

func (a apt) Quiet(script string) string {
	return quiet([]string{"apt-daily.timer", "apt-daily-upgrade.timer"}, script)
}

// pinFile is where apt reads which suite the driver comes from.
const pinFile = "/etc/apt/preferences.d/gpuguest-driver"

func (p Pin) preferences() string {
	return "# Written by gpuguest: the driver whole from one suite, also where another has newer parts of it.\n" +
		"Package: " + strings.Join(p.Names, " ") + "\nPin: release n=" + p.Suite + "\nPin-Priority: 990\n"
}

// Branches are pinned by packages, see Offer.Pin.
func (a apt) Pin(p Pin) string {
	if p.Suite == "" {
		return ":"
	}
	return `printf %s ` + sh.Quote(p.preferences()) + ` | put ` + sh.Quote(a.root+pinFile) + ` 0644`
}

func (a apt) Pinned(p Pin) string {
	if p.Suite == "" {
		return ":"
	}
	return `printf %s ` + sh.Quote(p.preferences()) + ` | cmp -s - ` + sh.Quote(a.root+pinFile) + ` || { echo ` + sh.Quote("the driver's packages are not taken from "+p.Suite+" alone") + `; exit 1; }`
}

// apt-get update ends well when a source could not be reached and badly when some source has no key, so
// its exit status says little. What it prints is read instead: an error that names a source is that
// source's; one that names none ("The list of sources could not be read") is everybody's.
func (a apt) Refresh(r Refresh) string {
	options := "-q -o Acquire::Retries=3 -o DPkg::Lock::Timeout=600"
	if r.Only != "" {
		options += " " + sh.Join("-o", "Dir::Etc::sourcelist="+r.Only) + " -o Dir::Etc::sourceparts=- -o APT::Get::List-Cleanup=0"
	}
	need := make([]string, len(r.Need))
	for i, u := range r.Need {
		need[i] = strings.TrimRight(u, "/")
	}
	return `(
out=$(mktemp)
trap 'rm -f "$out"' EXIT
code=0
LC_ALL=C apt-get update ` + options + ` >"$out" 2>&1 || code=$?
cat "$out"
bad=$(NEED=` + sh.Quote(strings.Join(need, "\n")) + ` awk '
	BEGIN { n = split(ENVIRON["NEED"], need, "\n") }
	/^Err:/ || /^E: / || (/^W: / && / Failed to fetch |GPG error: /) {
		if ($0 ~ /^E: Some index files failed to download/) next
		source = match($0, /[a-z0-9+.-]+:\/[^ ]*/) ? substr($0, RSTART, RLENGTH) : ""
		mine = source == "" || n == 0
		for (i = 1; i <= n; i++) if (source == need[i] || index(source, need[i] "/") == 1) mine = 1
		print (mine ? "needed: " : "other: ") $0
	}' "$out")
if [ -z "$bad" ]; then exit "$code"; fi
case "
$bad" in
*"
needed: "*)
	printf '%s\n' "$bad" | sed -n 's/^needed: //p' >&2
	exit 100
	;;
esac
printf '%s\n' "$bad" | sed -n 's/^other: /gpuguest: warning: going on without a package source that did not refresh: /p' >&2
)`
}
