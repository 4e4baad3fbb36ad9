package distros

import (
	"path"
	"strings"

	"gpuguest/internal/sh"
)

// Gather says what is to be gathered in a guest that reaches its packages, for one that does not.
type Gather struct {
	Packages []string // as they are asked for: a name, or name=version
	Pins     []string // packages that decide which versions of the others are taken
	Repo     *Repo    // NVIDIA's repository, nil: nothing is taken from it
	Sources  string   // source file to read besides the guest's own, "" none
	Prefer   string   // apt preferences to go by besides the guest's own, "" none
	Need     []string // URIs of the sources that must refresh
	Drop     []string // files of the guest's own sources that are left aside
	// OneOf are groups of packages of which the first is gathered that can be had.
	OneOf [][]string
	// Container is the repository of NVIDIA's container toolkit, nil: nothing is taken from it.
	Container *ContainerRepo
	// Prepare is a whole script that has a guest read what a plan's guest reads, and keep to its branch; for package
	// managers that gather in a copy of the guest, which need nothing else that tells of sources. Vault is one that, in
	// the same copy, installs what no source has any more.
	Prepare, Vault string
}

// Bundler is a Manager that can gather packages for a guest without a network, and install from what was gathered.
type Bundler interface {
	// Gather is a whole script that changes nothing of the guest's. It prints a tar archive: in "repo", packages and
	// an index by which Local has them read, each package checked by what the guest's signed indexes say of it, or by its
	// own signature; and "origins", a line a package: its SHA-256, its file's name in repo, its URL or the id of its
	// repository.
	Gather(Gather) string
	// Local makes the package manager read the packages in dir/repo and no other source, in every script that reads
	// dir/env first. What the package manager keeps of them it keeps below dir.
	Local(dir string) string
	// Complete exits zero when all packages could be installed now, and says what is missing otherwise. It changes
	// nothing.
	Complete(packages ...string) string
	// PinNeeds are the packages that Pin installs by itself.
	PinNeeds(p Pin) []string
}

// Bundler returns what makes bundles for a distribution, and whether anything does.
func (d Distro) Bundler() (Bundler, bool) {
	if m, ok := d.Packages.(dnf); ok && m.tool == "yum" {
		return nil, false
	}
	b, ok := d.Packages.(Bundler)
	return b, ok
}

// gatherDir is where packages are gathered. It is root's alone, below gpuguest's own folder: a folder of a known name
// below /tmp could be somebody else's.
const gatherDir = "/var/lib/gpuguest/gather"

// aptConfig writes a file for APT_CONFIG that has settings count more than the guest's own: it is read first and names
// the main file, which apt reads last (apt.conf(5)).
func aptConfig(dir, settings string) string {
	return `{ if [ -r /etc/apt/apt.conf ]; then cat /etc/apt/apt.conf; fi; cat <<'END'; } >` + sh.Quote(dir+"/apt.main") + `
` + settings + `END
printf 'Dir::Etc::main "%s";\n' ` + sh.Quote(dir+"/apt.main") + ` >` + sh.Quote(dir+"/apt.conf")
}

// The packages are asked for again although they are there, so that they are in the bundle; what they depend on is
// taken as far as this guest lacks it. apt has checked each file by its signed index once; it is done here again, for
// a file that came from apt's cache.
func (a apt) Gather(g Gather) string {
	script := []string{
		`set -eu`,
		`umask 022`,
		`export LC_ALL=C DEBIAN_FRONTEND=noninteractive`,
		`exec 3>&1 >&2`,
		`S=/var/lib/gpuguest T=` + gatherDir,
		`new=`,
		`if [ ! -e "$S" ]; then mkdir -m 700 "$S"; new=1; fi`,
		`trap 'rm -rf "$T"; if [ -n "$new" ]; then rmdir "$S" 2>/dev/null || :; fi' EXIT`,
		`trap 'exit 130' HUP INT TERM`,
		`rm -rf "$T"`,
		`mkdir -p "$T/lists/partial" "$T/cache/archives/partial" "$T/sources" "$T/preferences" "$T/pins" "$T/repo"`,
		`: >"$T/sources.list"`,
		`if [ -r /etc/apt/sources.list ]; then sed 's|^deb.*developer\.download\.nvidia\.com.*|# &|' /etc/apt/sources.list >"$T/sources.list"; fi`,
		`if [ -d /etc/apt/sources.list.d ]; then cp -a /etc/apt/sources.list.d/. "$T/sources/"; fi`,
		`if [ -d /etc/apt/preferences.d ]; then cp -a /etc/apt/preferences.d/. "$T/preferences/"; fi`,
	}
	drop := g.Drop
	if g.Repo != nil {
		drop = append([]string{g.Repo.ListPath}, drop...)
	}
	for _, f := range drop {
		script = append(script, `rm -f "$T"/sources/`+sh.Quote(path.Base(f)))
	}
	if g.Sources != "" {
		script = append(script, `printf %s `+sh.Quote(g.Sources)+` >"$T/sources/gpuguest.sources"`)
	}
	if g.Prefer != "" {
		script = append(script, `printf %s `+sh.Quote(g.Prefer)+` >"$T/preferences/gpuguest.pref"`)
	}
	script = append(script, aptConfig(gatherDir, `Dir::Etc::sourcelist "`+gatherDir+`/sources.list";
Dir::Etc::sourceparts "`+gatherDir+`/sources";
Dir::Etc::preferencesparts "`+gatherDir+`/preferences";
Dir::State::lists "`+gatherDir+`/lists";
Dir::Cache "`+gatherDir+`/cache";
APT::Keep-Downloaded-Packages "true";
APT::Sandbox::User "root";
`), `export APT_CONFIG="$T/apt.conf"`)
	need := g.Need
	if r := g.Repo; r != nil {
		need = append([]string{r.URL}, need...)
		script = append(script,
			a.Download(r.KeyringURL, gatherDir+"/keyring.deb", r.KeyringSHA256),
			`dpkg-deb -x "$T/keyring.deb" "$T/keyring"`,
			`if [ -d "$T/keyring/etc/apt/preferences.d" ]; then cp -a "$T/keyring/etc/apt/preferences.d/." "$T/preferences/"; fi`,
			`printf %s `+sh.Quote(strings.ReplaceAll(r.List, r.Keyring, gatherDir+"/keyring"+r.Keyring))+` >"$T/sources/gpuguest-nvidia.list"`)
	}
	if r := g.Container; r != nil {
		need = append(need[:len(need):len(need)], r.URL)
		script = append(script,
			a.Download(r.KeyURL, gatherDir+"/container.asc", containerKey),
			`printf %s `+sh.Quote(strings.ReplaceAll(r.List, r.Key, gatherDir+"/container.asc"))+` >"$T/sources/gpuguest-container.list"`)
	}
	script = append(script, a.Refresh(Refresh{Need: need}))
	if len(g.Pins) > 0 {
		script = append(script,
			`( cd "$T/pins" && apt-get download -q `+sh.Join(g.Pins...)+` )`,
			`for f in "$T"/pins/*.deb; do dpkg-deb -x "$f" "$T/pins/root"; done`,
			`if [ -d "$T/pins/root/etc/apt/preferences.d" ]; then cp -a "$T/pins/root/etc/apt/preferences.d/." "$T/preferences/"; fi`)
	}
	install := `apt-get install ` + common + ` --no-install-recommends --reinstall `
	words := sh.Join(append(append([]string{}, g.Pins...), g.Packages...)...) + ` "$@"`
	script = append(script,
		oneOf(a, g.OneOf, func(p string) string { return sh.Quote(p) }),
		// Unless it is asked for another, apt prints the MD5 sum.
		install+`-o Acquire::ForceHash=SHA256 --print-uris -- `+words+` >"$T/uris"`,
		`sed -n "s/^'\(.*\)' \([^ ]*\) [0-9]* SHA256:\([0-9a-f]*\)\$/\3 \2 \1/p" "$T/uris" >"$T/wanted"`,
		`[ "$(grep -c "^'" "$T/uris")" = "$(grep -c . "$T/wanted")" ] || { echo "an index gives no SHA-256 of its packages"; cat "$T/uris"; exit 1; }`,
		`[ -s "$T/wanted" ] || { echo "no source of this guest has any of the packages"; exit 1; }`,
		install+`--download-only -- `+words,
		`: >"$T/origins"`,
		`while read -r sum file url; do`,
		`	got=$T/cache/archives/$file`,
		`	echo "$sum  $got" | sha256sum -c --status || { echo "$file is not what the index of its source says"; exit 1; }`,
		// apt writes an epoch into its file names, which a path within a source does not take.
		`	name=$(printf %s "$file" | sed 's/_[0-9]*%3a/_/')`,
		`	mv "$got" "$T/repo/$name"`,
		`	printf '%s %s %s\n' "$sum" "$name" "$url" >>"$T/origins"`,
		`done <"$T/wanted"`,
		`cd "$T/repo"`,
		`for f in *.deb; do`,
		`	dpkg-deb -f "$f"`,
		`	printf 'Filename: ./%s\nSize: %s\nSHA256: %s\n\n' "$f" "$(stat -c %s "$f")" "$(sha256sum "$f" | cut -d ' ' -f 1)"`,
		`done >Packages`,
		`tar -C "$T" -cf - repo origins >&3`)
	return lines(script...)
}

// The source needs no signature: it is a folder of root's alone whose every file was checked by its SHA-256 when it was
// unpacked, as was the archive that it came in, and apt checks each package by the index once more. Nobody's apt but
// gpuguest's reads it.
func (a apt) Local(dir string) string {
	return lines(
		`mkdir -p `+sh.Join(dir+"/lists/partial", dir+"/cache/archives/partial"),
		`printf '%s\n' `+sh.Quote("deb [trusted=yes] file:"+dir+"/repo ./")+` >`+sh.Quote(dir+"/sources.list"),
		aptConfig(dir, `Dir::Etc::sourcelist "`+dir+`/sources.list";
Dir::Etc::sourceparts "-";
Dir::State::lists "`+dir+`/lists";
Dir::Cache "`+dir+`/cache";
APT::Sandbox::User "root";
`),
		`printf '%s\n' `+sh.Quote("APT_CONFIG="+dir+"/apt.conf")+` 'export APT_CONFIG' >`+sh.Quote(dir+"/env"),
		`. `+sh.Quote(dir+"/env"),
		`apt-get update -q -o DPkg::Lock::Timeout=600`)
}

func (a apt) Complete(packages ...string) string {
	return lines(
		`out=$(apt-get install `+common+` --no-install-recommends --simulate -- `+sh.Join(packages...)+` 2>&1) || {`,
		`	printf '%s\n' "$out"`,
		`	exit 1`,
		`}`)
}

func (a apt) PinNeeds(Pin) []string { return nil }

var _ Bundler = apt{}
