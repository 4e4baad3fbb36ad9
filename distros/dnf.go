package distros

import (
	"strings"

	"gpuguest/internal/sh"
)

// dnf builds command lines for dnf 4, dnf 5 and, on RHEL 7, yum 3. What differs between them is said where it
// differs.
type dnf struct {
	rpm
	tool string // "dnf4", "dnf5", "yum"
}

// testedDNF is how distributions were tested whose packages dnf 4 was seen to install, pin, upgrade and remove.
const testedDNF = "real package manager (dnf 4.14) on a constructed guest, with stand-ins for all packages"

var rpmPIDs = []string{"/run/yum.pid", "/var/cache/dnf/metadata_lock.pid", "/var/cache/dnf/download_lock.pid", "/var/lib/dnf/rpmdb_lock.pid"}

func newDNF(tool string) dnf {
	return dnf{tool: tool, rpm: rpm{pids: rpmPIDs, timers: []string{"dnf-makecache.timer", "dnf-automatic.timer", "dnf-automatic-install.timer", "dnf5-automatic.timer"}}}
}

// run begins a command line that changes something. A repository that cannot be reached is passed over: what
// is needed was made sure of by Refresh, and what is missing fails by its own name. dnf waits for locks by
// itself; yum has to be told to fail on a name that it does not know.
func (d dnf) run(verb string) string {
	if d.tool == "yum" {
		return "yum -y --setopt='*.skip_if_unavailable=1' --setopt=skip_missing_names_on_install=0 " + verb
	}
	return "dnf -y --setopt='*.skip_if_unavailable=1' " + verb
}

// specs writes packages as dnf and yum take them: a branch is a pattern of the version.
func (d dnf) specs(packages []string) string {
	out := make([]string, len(packages))
	for i, w := range words(packages) {
		switch {
		case w.version == "":
			out[i] = w.name
		case strings.Contains(w.version, "."):
			out[i] = w.name + "-" + w.version
		default:
			out[i] = w.name + "-" + w.version + ".*"
		}
	}
	return sh.Join(out...)
}

// Weak dependencies are left out, as a driver's are a desktop's; yum knows none. Without --best dnf is content with
// a package that is there, whatever its version, and another branch would never come (seen with dnf 4.14).
func (d dnf) Install(packages ...string) string {
	if d.tool == "yum" {
		return d.run("install ") + d.specs(packages)
	}
	return d.run("--best --setopt=install_weak_deps=False install ") + d.specs(packages)
}

// yum has one flavor of everything, so nothing is exchanged there.
func (d dnf) Exchange(packages ...string) string {
	if d.tool == "yum" {
		return d.Install(packages...)
	}
	return d.run("--best --setopt=install_weak_deps=False install --allowerasing ") + d.specs(packages)
}

func (d dnf) InstallFile(path string) string {
	return d.run("--setopt=localpkg_gpgcheck=1 install ") + sh.Quote(path)
}

// What nothing needs any more is left alone: it is somebody else's to remove, or in the list itself.
func (d dnf) Purge(packages ...string) string {
	return `(
` + d.needed(packages) + `
if [ $# -gt 0 ]; then
	` + d.run("--setopt=clean_requirements_on_remove=0 remove") + ` "$@"
fi
)`
}

func (d dnf) Downgrade(name, version string) string {
	for _, arch := range []string{".i686", ".i586", ".i386"} {
		if bare, ok := strings.CutSuffix(name, arch); ok {
			return d.run("downgrade ") + sh.Quote(bare+"-"+version+arch)
		}
	}
	return d.run("downgrade ") + sh.Quote(name+"-"+version)
}

// lockFile is where versions are locked: by a plugin of dnf 4 and of yum, by dnf 5 itself.
func (d dnf) lockFile() string {
	switch d.tool {
	case "yum":
		return d.root + "/etc/yum/pluginconf.d/versionlock.list"
	case "dnf5":
		return d.root + "/etc/dnf/versionlock.toml"
	}
	return d.root + "/etc/dnf/plugins/versionlock.list"
}

// lockPlugin installs the plugin that reads lockFile, where there has to be one.
func (d dnf) lockPlugin() string {
	switch d.tool {
	case "dnf5":
		return ":"
	case "yum":
		return "rpm -q yum-plugin-versionlock >/dev/null 2>&1 || " + d.Install("yum-plugin-versionlock")
	}
	return "rpm -q python3-dnf-plugin-versionlock >/dev/null 2>&1 || " + d.Install("python3-dnf-plugin-versionlock")
}

func (d dnf) Hold(packages ...string) string {
	return lines(d.lockPlugin(), d.run("versionlock add ")+sh.Join(packages...))
}

// It is Held that tells whether it came to anything: a lock that is gone already is no error.
func (d dnf) Unhold(packages ...string) string {
	return `for p in ` + sh.Join(packages...) + `; do ` + d.run(`versionlock delete "$p"`) + ` || :; done`
}

// It does not begin with a parenthesis: behind "$(" that would be arithmetic.
//
// A hold is a lock on versions that are written out; a pattern in their place is a Pin.
func (d dnf) Held() string {
	file := sh.Quote(d.lockFile())
	if d.tool == "dnf5" {
		return `{ [ ! -r ` + file + ` ] || awk -F '"' '/^name *=/ { n = $2 } /^comparator *=/ && $2 == "=" { print n }' ` + file + ` | sort -u; }`
	}
	return `{ [ ! -r ` + file + ` ] || sed -n '/^[#!]/d; s/^[0-9]*://; s/^\(.*\)-[^-*]*-[^-*]*\.\*$/\1/p' ` + file + ` | sort -u; }`
}

// yum keeps notes of a transaction that was cut off; to be rid of them is what yum-complete-transaction
// --cleanup-only does.
func (d dnf) Sound() string {
	if d.tool != "yum" {
		return d.rpm.Sound()
	}
	return `( rpm -q rpm >/dev/null 2>&1 || { echo "the rpm database cannot be read"; exit 1; }
for f in ` + sh.Quote(d.root+"/var/lib/yum/transaction-all.") + `*; do [ ! -e "$f" ] || { echo "yum was interrupted"; exit 1; }; done )`
}

func (d dnf) Repair() string {
	if d.tool != "yum" {
		return d.rpm.Repair()
	}
	return lines(d.rpm.Repair(), `rm -f `+sh.Quote(d.root+"/var/lib/yum/transaction-all.")+`* `+sh.Quote(d.root+"/var/lib/yum/transaction-done.")+`*`)
}

// offers is the end of Offered: it reads "name version-release arch" lines and prints the packages asked for. It exits
// non-zero unless all are among them.
func offers(packages []string) string {
	return among(packages, `print $1, v`, `exit found + 0 < n`)
}

// among is an awk that reads "name version-release arch" lines: each is done for the first line of every package asked
// for, whose word is w[i], with the version in v; end comes last, with their number in n and that of those found in found.
func among(packages []string, each, end string) string {
	return `awk -v words=` + sh.Quote(strings.Join(packages, " ")) + ` '
	BEGIN { n = split(words, w, " ") }
	NF >= 3 {
		for (i = 1; i <= n; i++) {
			name = w[i]; p = ""
			if (at = index(name, "=")) { p = substr(name, at + 1); name = substr(name, 1, at - 1) }
			v = $2; sub(/^[0-9]+:/, "", v)
			if (p ~ /^@/) p = ""
			if ((name == $1 || name == $1 "-" v "." $3) && (p == "" || ` + versionBegins + `) && !seen[i]++) { found++; ` + each + ` }
		}
	}
	END { ` + end + ` }'`
}

// Packages of a module's stream that is not enabled are filtered out here as they are at an install ("All
// matches were filtered out by modular filtering"): dnf sees the packages of enabled and default streams
// only, and of a module that has neither, nothing. So a branch is offered once its stream is enabled.
func (d dnf) Offered(packages ...string) string {
	if d.tool == "yum" {
		return `LC_ALL=C yum -q info ` + d.specs(packages) + ` 2>/dev/null | awk -F ' *: ' '
	$1 == "Name" { n = $2 } $1 == "Arch" { a = $2 } $1 == "Version" { v = $2 } $1 == "Release" { print n, v "-" $2, a }' | ` + offers(packages)
	}
	return `LC_ALL=C dnf -q --setopt='*.skip_if_unavailable=1' repoquery --queryformat '%{name} %{version}-%{release} %{arch}\n' ` + d.specs(packages) + ` | ` + offers(packages)
}

// Each keeps a repository's lists in a folder named by its id; dnf adds a sum of its addresses.
func (d dnf) Fetched(uri string) string {
	id := sh.Quote(repoID(uri))
	root := sh.Quote(d.root + "/")
	switch d.tool {
	case "yum":
		return exists(root + "var/cache/yum/*/*/" + id + "/repomd.xml")
	case "dnf5":
		return exists(root + "var/cache/libdnf5/" + id + "-*/repodata/repomd.xml")
	}
	return exists(root + "var/cache/dnf/" + id + "-*/repodata/repomd.xml")
}

// Lists are marked as old, so that they are fetched again. Sources that are needed come first and alone, for
// another's failure to be none of theirs.
func (d dnf) Refresh(r Refresh) string {
	tool, makecache := "dnf", "makecache"
	if d.tool == "yum" {
		tool, makecache = "yum", "makecache fast"
	}
	all := tool + " -y " + makecache
	if len(r.Need) == 0 && r.Only == "" {
		return lines("(", tool+" -q clean expire-cache", all, ")")
	}
	return lines(
		"(",
		tool+" -q clean expire-cache",
		"ids=$("+repoIDs(d.where("/etc/yum.repos.d", r), r.Need)+` | tr '\n' ',')`,
		`if [ -n "$ids" ]; then`,
		"	"+tool+` -y --disablerepo='*' --enablerepo="${ids%,}" `+makecache,
		"fi",
		tool+" -y --setopt='*.skip_if_unavailable=1' "+makecache+` || echo "gpuguest: warning: going on without a repository that did not refresh" >&2`,
		")")
}

// Only dnf records it, and it is asked without the network.
func (d dnf) Manual() string {
	if d.tool == "yum" {
		return ":"
	}
	return `dnf -q -C repoquery --userinstalled --queryformat '%{name}\n' | LC_ALL=C sort -u`
}

// lock is the text that keeps the pin's packages within its branch.
//
// dnf 4 reads patterns of name-epoch:version-release.arch; all of NVIDIA's driver packages have epoch 3, the
// metapackages too (dnf-plugins-core versionlock; NVIDIA driver installation guide, version locking; listed and asked
// for in public recipes: cuda-drivers-3:570.211.01-1.el9, nvidia-open-3:<version> of amzn2023). dnf 5 compares
// (dnf5-versionlock(8)).
func (d dnf) lock(p Pin) string {
	var b strings.Builder
	b.WriteString(blockBegin + "\n")
	for _, n := range p.Names {
		if d.tool != "dnf5" {
			version := p.Within + ".*"
			if strings.Contains(p.Within, ".") {
				version = p.Within
			}
			b.WriteString(n + "-3:" + version + "-*.*\n")
			continue
		}
		from, below := "3:"+p.Within, "3:"+next(p.Within)
		b.WriteString("[[packages]]\nname = \"" + n + "\"\n[[packages.conditions]]\nkey = \"evr\"\ncomparator = \">=\"\nvalue = \"" + from +
			"\"\n[[packages.conditions]]\nkey = \"evr\"\ncomparator = \"<\"\nvalue = \"" + below + "\"\n")
	}
	b.WriteString(blockEnd + "\n")
	return b.String()
}

// next is the first version behind all that begin with v: "581" for "580", "580.95.06" for "580.95.05".
func next(v string) string {
	digits := []byte(v)
	for i := len(digits) - 1; i >= 0 && digits[i] != '.'; i-- {
		if digits[i] < '9' {
			digits[i]++
			return string(digits)
		}
		digits[i] = '0'
	}
	at := strings.LastIndexByte(v, '.') + 1
	return v[:at] + "1" + string(digits[at:])
}

// The stream of before is put aside first: dnf refuses to change from one stream to another by itself.
func (d dnf) Pin(p Pin) string {
	var script []string
	if p.Stream != "" {
		module, _, _ := strings.Cut(p.Stream, ":")
		script = append(script,
			"keep "+sh.Quote(d.root+"/etc/dnf/modules.d/"+module+".module"),
			d.run("module reset ")+sh.Quote(module),
			d.run("module enable ")+sh.Quote(p.Stream))
	}
	if len(p.Names) == 0 {
		// A full version was locked, and its branch is enough now: the lock would keep everything else away.
		file := sh.Quote(d.lockFile())
		script = append(script,
			`if grep -qx `+sh.Quote(blockBegin)+` `+file+` 2>/dev/null; then`,
			`	new=$(mktemp)`,
			`	sed '/^`+blockBegin+`$/,/^`+blockEnd+`$/d' `+file+` >"$new"`,
			`	put `+file+` 0644 <"$new"`,
			`	rm -f "$new"`,
			`fi`)
	} else {
		file := sh.Quote(d.lockFile())
		start := ""
		if d.tool == "dnf5" {
			start = "version = \"1.0\"\n"
		}
		// The list is the plugin's own file: it is kept before the plugin brings it, and so is what rpm makes of it
		// when the plugin goes.
		script = append(script,
			`keep `+file,
			`keep `+sh.Quote(d.lockFile()+".rpmsave"),
			d.lockPlugin(),
			`new=$(mktemp)`,
			`if [ -s `+file+` ]; then sed '/^`+blockBegin+`$/,/^`+blockEnd+`$/d' `+file+` >"$new"; else printf %s `+sh.Quote(start)+` >"$new"; fi`,
			`printf %s `+sh.Quote(d.lock(p))+` >>"$new"`,
			`put `+file+` 0644 <"$new"`,
			`rm -f "$new"`)
	}
	return lines(script...)
}

func (d dnf) Pinned(p Pin) string {
	var script []string
	if p.Stream != "" {
		module, stream, _ := strings.Cut(p.Stream, ":")
		script = append(script,
			`stream= state=`,
			`if [ -r `+sh.Quote(d.root+"/etc/dnf/modules.d/"+module+".module")+` ]; then`,
			`	while IFS= read -r line; do case $line in stream=*) stream=${line#*=} ;; state=*) state=${line#*=} ;; esac; done <`+sh.Quote(d.root+"/etc/dnf/modules.d/"+module+".module"),
			`fi`,
			`[ "$stream $state" = `+sh.Quote(stream+" enabled")+` ] || { echo `+sh.Quote("module stream "+p.Stream+" is not enabled")+`; exit 1; }`)
	}
	if len(p.Names) == 0 {
		script = append(script, `! grep -qx `+sh.Quote(blockBegin)+` `+sh.Quote(d.lockFile())+` 2>/dev/null || { echo "the driver is locked within one version"; exit 1; }`)
	} else {
		script = append(script,
			`[ "$(sed -n '/^`+blockBegin+`$/,/^`+blockEnd+`$/p' `+sh.Quote(d.lockFile())+` 2>/dev/null)" = `+sh.Quote(strings.TrimSuffix(d.lock(p), "\n"))+` ] || { echo `+sh.Quote("versions are not locked within "+p.Within)+`; exit 1; }`)
	}
	return lines(script...)
}
