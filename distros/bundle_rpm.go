package distros

import (
	"slices"
	"strings"

	"gpuguest/internal/sh"
)

// bundleID is the id of the repository that a bundle is, and gatherRun where the folder that packages are gathered in is
// found while copies of the guest's own stand before them.
const (
	bundleID  = "gpuguest-bundle"
	gatherRun = "/run/gpuguest-gather"
)

// gatherCopies are the folders of a guest that have a copy before them while packages are gathered, and caches those
// below them that the package managers keep what they fetch in: these are on the guest's disk, as all the rest is in
// its memory.
const (
	gatherCopies = "etc usr var root"
	gatherCaches = "dnf libdnf5 zypp"
)

// gatherRPM is Gather for what is on top of rpm. Which packages are missing depends on what the guest reads, on the
// stream or the lock that keeps the branch, and on what is there; so what install would do about these is done, in a
// mount name space whose /etc, /usr, /var and /root are copies (overlay file systems, whose upper folders are in memory)
// that are gone with it. What the package manager has there the package manager has checked, by the keys that the guest
// trusts; that every package is signed by one of them is looked at once more, as dnf 5 does not ask when it only
// downloads. download is what fetches the packages, index what makes an index of those in $G/repo.
func gatherRPM(g Gather, repoFiles, download, index string) string {
	inside := lines(
		`set -eu`,
		`G=`+gatherRun,
		`mount --bind `+gatherDir+` "$G"`,
		`mount -t tmpfs -o mode=0700 none "$G/copies"`,
		`for d in `+gatherCopies+`; do`,
		`	mkdir "$G/copies/$d" "$G/copies/$d.work"`,
		`	mount -t overlay -o "lowerdir=/$d,upperdir=$G/copies/$d,workdir=$G/copies/$d.work" none "/$d"`,
		`done`,
		`for d in `+gatherCaches+`; do`,
		`	mkdir -p "$G/cache/$d" "/var/cache/$d"`,
		`	mount --bind "$G/cache/$d" "/var/cache/$d"`,
		`done`,
		`rpm -q rpm >/dev/null || { echo "the rpm database is on a file system of its own, of which no copy is made"; exit 1; }`,
		download,
		`for k in /etc/pki/rpm-gpg/RPM-GPG-KEY-*; do if [ -f "$k" ]; then rpm --import "$k" 2>/dev/null || :; fi; done`,
		`unsigned=" $(awk '/^\[/ { id = substr($0, 2, index($0, "]") - 2) } /^gpgcheck[ \t]*=[ \t]*0/ { print id }' `+sh.Quote(repoFiles)+`/*.repo 2>/dev/null | tr '\n' ' ') "`,
		`: >"$G/origins"`,
		`find "$G/cache" -name '*.rpm' >"$G/found"`,
		`while IFS= read -r f; do`,
		`	name=${f##*/}`,
		// dnf: ID-SUM/packages/name; zypper: packages/ID/architecture/name.
		`	id=${f#"$G/cache/"} id=${id#*/} id=${id#packages/} id=${id%%/*}`,
		`	case $f in */packages/"$name") id=${id%-*} ;; esac`,
		`	case $(rpm -K "$f") in`,
		`	*"NOT OK"*) echo "$name is not signed by a key that this guest trusts, or is damaged"; exit 1 ;;`,
		`	*" signatures OK" | *" pgp "*OK) ;;`,
		`	*)`,
		`		case $unsigned in *" $id "*) ;; *) echo "$name is not signed, and its repository $id is not one whose packages need no signature"; exit 1 ;; esac`,
		`		;;`,
		`	esac`,
		`	[ ! -e "$G/repo/$name" ] || continue`,
		`	mv "$f" "$G/repo/$name"`,
		`	printf '%s %s %s\n' "$(sha256sum <"$G/repo/$name" | cut -d ' ' -f 1)" "$name" "$id" >>"$G/origins"`,
		`done <"$G/found"`,
		`[ -s "$G/origins" ] || { echo "no source of this guest has any of the packages"; exit 1; }`,
		index)
	return lines(
		`set -eu`,
		`umask 022`,
		`export LC_ALL=C`,
		`exec 3>&1 >&2`,
		`S=/var/lib/gpuguest T=`+gatherDir,
		`new=`,
		`if [ ! -e "$S" ]; then mkdir -m 700 "$S"; new=1; fi`,
		`trap 'rm -rf "$T"; rmdir `+gatherRun+`; if [ -n "$new" ]; then rmdir "$S" 2>/dev/null || :; fi' EXIT`,
		`trap 'exit 130' HUP INT TERM`,
		`rm -rf "$T"`,
		`mkdir -p `+gatherRun,
		`mkdir -m 700 "$T"`,
		`mkdir "$T/copies" "$T/cache" "$T/repo"`,
		`printf '%s\n' `+sh.Quote(g.Prepare)+` >"$T/prepare"`,
		`printf '%s\n' `+sh.Quote(inside)+` >"$T/inside"`,
		`unshare --mount --propagation private sh "$T/inside" </dev/null`,
		`tar -C "$T" -cf - repo origins >&3`)
}

// anew is a script that has rpm forget packages that are there and can be had, in the copy of its database: they are
// asked for, so they go into the bundle with what they need.
func anew(m Manager, packages []string) string {
	script := []string{}
	for _, p := range packages {
		n := sh.Quote(PackageName(p))
		script = append(script,
			`if rpm -q `+n+` >/dev/null 2>&1; then`,
			`	if ( `+m.Offered(p)+``,
			`	) >/dev/null 2>&1; then rpm -e --justdb --nodeps --noscripts `+n+`; else echo "gpuguest: warning: this guest has" `+n+` "and no source of its does: it is not in the bundle"; fi`,
			`fi`)
	}
	return lines(script...)
}

// oneOf is a script that sets the arguments to the first package of each group that can be had, as spec writes it, and
// fails where there is none.
func oneOf(m Manager, groups [][]string, spec func(string) string) string {
	script := []string{`set --`}
	for _, group := range groups {
		script = append(script, `got=`)
		var names []string
		for _, p := range group {
			names = append(names, PackageName(p))
			script = append(script, `if [ -z "$got" ] && ( `+m.Offered(PackageName(p))+``, `) >/dev/null 2>&1; then got=1; set -- "$@" `+spec(p)+`; fi`)
		}
		script = append(script, `[ -n "$got" ] || { echo "no source of this guest has" `+sh.Quote(strings.Join(names, " or "))+`; exit 1; }`)
	}
	return lines(script...)
}

// dnf keeps what it downloads where it is told to keep it. The plugin that locks versions is installed in the copy by what
// comes before, and so among what is kept.
func (d dnf) Gather(g Gather) string {
	const keep = `dnf() { command dnf --setopt=keepcache=1 "$@"; }`
	packages := slices.Concat(g.Pins, g.Packages)
	g.Prepare = lines(keep, g.Prepare)
	download := lines(
		keep,
		`sh "$G/prepare"`,
		anew(d, packages),
		`( `+g.Vault+``,
		`)`,
		oneOf(d, g.OneOf, func(p string) string { return d.specs([]string{p}) }),
		d.run("--best --setopt=install_weak_deps=False --downloadonly install ")+d.specs(packages)+` "$@"`)
	modules := `:`
	if g.Repo != nil {
		modules = `for f in "$G"/cache/*/` + sh.Quote(repoID(g.Repo.URL)) + `-*/repodata/*modules.yaml*; do if [ -e "$f" ]; then modifyrepo_c --mdtype=modules "$f" "$G/repo/repodata"; fi; done`
	}
	index := lines(
		`command -v createrepo_c >/dev/null 2>&1 || `+d.run("install createrepo_c"),
		`createrepo_c --quiet "$G/repo"`,
		modules)
	return gatherRPM(g, "/etc/yum.repos.d", download, index)
}

// Packages of the bundle are those of one stream, whose other packages are not there; what says which stream a package
// belongs to was NVIDIA's and is there for the stream to be enabled by. So nothing of the bundle is filtered.
func (d dnf) Local(dir string) string {
	return lines(
		`mkdir -p `+sh.Join(dir+"/repos", dir+"/cache"),
		`printf '[%s]\nname=%s\nbaseurl=file://%s\nenabled=1\ngpgcheck=0\nmodule_hotfixes=1\nmetadata_expire=1\n' `+sh.Join(bundleID, bundleID, dir+"/repo")+` >`+sh.Quote(dir+"/repos/bundle.repo"),
		`printf '%s\n' `+sh.Quote(`dnf() { command dnf --setopt=reposdir=`+dir+`/repos --setopt=cachedir=`+dir+`/cache "$@"; }`)+` >`+sh.Quote(dir+"/env"),
		`. `+sh.Quote(dir+"/env"),
		`dnf -q -y makecache`)
}

// A transaction that is only tested is worked out whole: what is missing, what conflicts and what has no room.
func (d dnf) Complete(packages ...string) string {
	return lines(
		`out=$(`+d.run("--best --setopt=install_weak_deps=False --setopt=tsflags=test install ")+d.specs(packages)+` 2>&1) || {`,
		`	printf '%s\n' "$out"`,
		`	exit 1`,
		`}`)
}

func (d dnf) PinNeeds(p Pin) []string {
	if len(p.Names) == 0 || d.tool == "dnf5" {
		return nil
	}
	return []string{"python3-dnf-plugin-versionlock"}
}

// zypper only downloads, and what it would have installed is put into the copy of rpm's database: the version of what
// comes after is that of what came first.
func (z zypper) Gather(g Gather) string {
	packages := slices.Concat(g.Pins, g.Packages)
	download := lines(
		`sh "$G/prepare"`,
		anew(z, packages),
		oneOf(z, g.OneOf, zypperSpec),
		`zypper() {`,
		`	n=$#`,
		`	for a; do`,
		`		set -- "$@" "$a"`,
		`		[ "$a" != install ] || set -- "$@" --download-only`,
		`	done`,
		`	shift "$n"`,
		`	command zypper "$@" || return`,
		`	find /var/cache/zypp/packages -name '*.rpm' -exec rpm -U --justdb --nodeps --noscripts --nosignature --force '{}' + `,
		`}`,
		z.Install(packages...),
		`[ $# = 0 ] || `+zypperRun+zypperInstall+`"$@"`+zypperEnds)
	return gatherRPM(g, "/etc/zypp/repos.d", download, ":")
}

// zypper makes the index of a folder of packages by itself. Services, which would be asked over the network, are left
// aside with the guest's repositories.
func (z zypper) Local(dir string) string {
	return lines(
		`mkdir -p `+sh.Join(dir+"/repos", dir+"/cache"),
		`printf '[%s]\nname=%s\nbaseurl=dir:%s\ntype=plaindir\nenabled=1\nautorefresh=0\ngpgcheck=0\n' `+sh.Join(bundleID, bundleID, dir+"/repo")+` >`+sh.Quote(dir+"/repos/bundle.repo"),
		`printf '%s\n' `+sh.Quote(lines(
			`zypper() {`,
			`	case " $* " in *" refresh "*) ;; *) set -- --no-refresh "$@" ;; esac`,
			`	ZYPP_LOCK_TIMEOUT=600 command zypper --reposd-dir `+dir+`/repos --cache-dir `+dir+`/cache "$@"`,
			`}`))+` >`+sh.Quote(dir+"/env"),
		`. `+sh.Quote(dir+"/env"),
		`zypper --non-interactive --quiet refresh`)
}

func (z zypper) Complete(packages ...string) string {
	var specs []string
	for _, p := range packages {
		specs = append(specs, zypperSpec(p))
	}
	return lines(
		`out=$( ( `+zypperRun+zypperInstall+`--dry-run `+strings.Join(specs, " ")+zypperEnds+` ) 2>&1) || {`,
		`	printf '%s\n' "$out"`,
		`	exit 1`,
		`}`)
}

// zypperSpec writes a package as zypper takes it, quoted. Of a branch, and of a version that another package has, zypper
// is told nothing: it takes the newest, or the one that is there.
func zypperSpec(p string) string {
	w := words([]string{p})[0]
	if strings.Contains(w.version, ".") {
		return sh.Quote(w.name + "=" + w.version)
	}
	return sh.Quote(w.name)
}

func (z zypper) PinNeeds(Pin) []string { return nil }

var (
	_ Bundler = dnf{}
	_ Bundler = zypper{}
)
