package distros

import (
	"strings"

	"gpuguest/internal/sh"
)

// tdnf builds command lines for tdnf 3 (Azure Linux 3). It has no groups, no modules, no patterns in versions
// and no version locks; a name=version is looked up in what the repositories list.
type tdnf struct{ rpm }

func newTDNF() tdnf {
	return tdnf{rpm{pids: rpmPIDs, timers: []string{"tdnf-cache-updateinfo.timer", "dnf-automatic.timer", "dnf-automatic-install.timer"}}}
}

// resolve is a command that prints the newest version that begins with the one asked for.
func resolve(w word) string {
	return `tdnf -q list --showduplicates ` + sh.Quote(w.name) + ` 2>/dev/null | awk -v n=` + sh.Quote(w.name) + ` -v p=` + sh.Quote(w.version) +
		` '{ split($1, a, "."); v = $2; sub(/^[0-9]+:/, "", v); if (a[1] == n && ` + versionBegins + `) print v }' | sort -V | tail -n 1`
}

func (t tdnf) Install(packages ...string) string {
	script := []string{"(", "set --"}
	for _, w := range words(packages) {
		if w.version == "" {
			script = append(script, `set -- "$@" `+sh.Quote(w.name))
			continue
		}
		script = append(script,
			`v=$(`+resolve(w)+`)`,
			`[ -n "$v" ] || { echo "no repository has" `+sh.Quote(w.name+" "+w.version)+` >&2; exit 1; }`,
			`set -- "$@" `+sh.Quote(w.name+"-")+`"$v"`)
	}
	return lines(append(script, `tdnf -y install "$@"`, ")")...)
}

// Of Azure Linux's drivers there is one flavor.
func (t tdnf) Exchange(packages ...string) string { return t.Install(packages...) }

func (t tdnf) InstallFile(path string) string { return "tdnf -y install " + sh.Quote(path) }

func (t tdnf) Purge(packages ...string) string {
	return `(
` + t.needed(packages) + `
if [ $# -gt 0 ]; then
	tdnf -y --noautoremove remove "$@"
fi
)`
}

func (t tdnf) Downgrade(name, version string) string {
	if _, rest, ok := strings.Cut(version, ":"); ok {
		version = rest
	}
	return "tdnf -y downgrade " + sh.Quote(name+"-"+version)
}

// tdnf changes no package whose name stands in a file below locks.d (tdnf configuration options, "package
// locks"; Azure/azhpc-images writes such files).
const tdnfLocks = "/etc/tdnf/locks.d/gpuguest.conf"

func (t tdnf) Hold(packages ...string) string {
	file := sh.Quote(t.root + tdnfLocks)
	return lines(
		`mkdir -p `+sh.Quote(t.root+"/etc/tdnf/locks.d"),
		`printf '%s\n' `+sh.Join(packages...)+` >>`+file,
		`sort -u -o `+file+` `+file)
}

func (t tdnf) Unhold(packages ...string) string {
	file := sh.Quote(t.root + tdnfLocks)
	return lines(
		`for p in `+sh.Join(packages...)+`; do`,
		`	[ ! -e `+file+` ] || { grep -vxF -- "$p" `+file+` >`+file+`.tmp || :; mv -f `+file+`.tmp `+file+`; }`,
		`done`,
		`[ -s `+file+` ] || rm -f `+file)
}

func (t tdnf) Held() string {
	return `{ cat ` + sh.Quote(t.root+"/etc/tdnf/locks.d/") + `*.conf 2>/dev/null | sort -u; }`
}

func (t tdnf) Offered(packages ...string) string {
	var names []string
	for _, w := range words(packages) {
		names = append(names, w.name)
	}
	return `LC_ALL=C tdnf -q list --showduplicates ` + sh.Join(names...) +
		` 2>/dev/null | awk '{ n = $1; a = $1; sub(/\.[^.]*$/, "", n); sub(/.*\./, "", a); print n, $2, a }' | ` + offers(packages)
}

func (t tdnf) Fetched(uri string) string {
	return exists(sh.Quote(t.root+"/var/cache/tdnf/"+repoID(uri)) + "*/repodata/repomd.xml")
}

func (t tdnf) Refresh(r Refresh) string {
	if len(r.Need) == 0 && r.Only == "" {
		return "tdnf -y --refresh makecache"
	}
	return lines(
		"(",
		"ids=$("+repoIDs(t.where("/etc/yum.repos.d", r), r.Need)+`)`,
		`if [ -n "$ids" ]; then`,
		`	set -- --refresh '--disablerepo=*'`,
		`	for i in $ids; do set -- "$@" "--enablerepo=$i"; done`,
		`	tdnf -y "$@" makecache`,
		`fi`,
		`tdnf -y --refresh makecache || echo "gpuguest: warning: going on without a repository that did not refresh" >&2`,
		")")
}

func (t tdnf) Manual() string { return ":" }

// The branch is part of what is asked to be installed; nothing keeps a later upgrade within it but a hold.
func (t tdnf) Pin(Pin) string    { return ":" }
func (t tdnf) Pinned(Pin) string { return ":" }
