package distros

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"gpuguest/internal/facts"
	"gpuguest/internal/sh"
)

// Extra is a repository that a distribution does not read by itself and that dkms or the driver's dependencies
// come from: EPEL, CRB, SUSE's Package Hub.
type Extra struct {
	Name string // for people: "EPEL"
	IDs  string // patterns of the ids of its sections, in a word of sh's case: "epel | *_developer_EPEL"
	// Gone is a host that the guest's repository files name and that no longer is; "" none. Such an extra has no
	// IDs: it is needed where the host is named.
	Gone string
	How  string // what is done, for people
	// Enable makes it be read. It runs with the step library, and under set -eu.
	Enable string
	// Packages: the work of Enable installs packages.
	Packages bool
	// Registers: Enable tells somebody outside the guest.
	Registers bool
	For       string // the source of drivers that it is needed for, "" all
}

// Reading returns the distribution with the extra repositories that a source of drivers needs.
func (d Distro) Reading(source string) Distro {
	d.Extras = slices.DeleteFunc(slices.Clone(d.Extras), func(e Extra) bool { return e.For != "" && e.For != source })
	return d
}

// sections is a command that prints the ids of the repositories that the files of a folder enable, between
// blanks. A section without a line of its own is enabled (dnf.conf(5), yum.conf(5)).
func sections(dir string) string {
	return `awk '
	/^\[/ { id = substr($0, 2, index($0, "]") - 2); if (id != "main") on[id] = 1 }
	/^enabled[ \t]*=/ { v = tolower($0); sub(/^[^=]*=[ \t]*/, "", v); if (v !~ /^(1|true|yes|on)/) delete on[id] }
	END { for (i in on) printf " %s ", i }' ` + sh.Quote(dir) + `/*.repo 2>/dev/null`
}

// ExtrasCheck exits zero when every extra repository is read, and none that is gone.
func (d Distro) ExtrasCheck() string {
	var gone []string
	for _, e := range d.Extras {
		if e.Gone != "" {
			gone = append(gone, `! grep -q '^[^#]*//`+strings.ReplaceAll(e.Gone, ".", `\.`)+`/' `+sh.Quote(d.RepoFiles)+`/*.repo 2>/dev/null || { echo `+sh.Quote(e.Gone+" is read, which is gone")+`; exit 1; }`)
		}
	}
	script := []string{`on=$(` + sections(d.RepoFiles) + `) || on=`, `for id in $on; do`, `	case $id in`}
	for i, e := range d.Extras {
		if e.IDs != "" {
			script = append(script, fmt.Sprintf("	%s) seen%d=1 ;;", e.IDs, i))
		}
	}
	script = append(script, "	esac", "done")
	for i, e := range d.Extras {
		if e.IDs == "" {
			continue
		}
		script = append(script, fmt.Sprintf(`[ -n "${seen%d:-}" ] || { echo %s; exit 1; }`, i, sh.Quote(e.Name+" is not read")))
	}
	return lines(append(gone, script...)...)
}

// centosVault has the repositories of a CentOS that is no longer made read from its vault: the mirrors named in a
// stock guest's files are gone since July 2024.
func centosVault() Extra {
	return Extra{Name: "CentOS's vault", Gone: "mirrorlist.centos.org", How: "read it in place of the mirrors, which are gone",
		Enable: lines(
			`for f in /etc/yum.repos.d/*.repo; do`,
			`	grep -q '^[^#]*//mirrorlist\.centos\.org/' "$f" || continue`,
			`	new=$(mktemp)`,
			`	sed 's|^mirrorlist=.*//mirrorlist\.centos\.org/|#&|; s|^#* *baseurl=http://mirror\.centos\.org/|baseurl=https://vault.centos.org/|' "$f" >"$new"`,
			`	put "$f" 0644 <"$new"`,
			`	rm -f "$new"`,
			`done`)}
}

// sectionFiles does something for every section with one of these ids, by $id in $f, in the guest's own repository
// files. A cloud's have each repository a second and third time, for debugging and with the sources.
func sectionFiles(dir, ids string, do ...string) string {
	script := []string{
		`for f in ` + sh.Quote(dir) + `/*.repo; do`,
		`	[ -r "$f" ] || continue`,
		`	for id in $(sed -n 's/^\[\([^]]*\)\].*/\1/p' "$f"); do`,
		`		case $id in`,
		`		*-debug* | *-source* | *-src*) ;;`,
		`		` + ids + `)`,
	}
	for _, l := range do {
		script = append(script, `			`+l)
	}
	return lines(append(script, `			;;`, `		esac`, `	done`, `done`)...)
}

// enableSection turns a section of the guest's own repository files on. The file's own line is what counts, for
// subscription-manager too, which keeps what was changed in redhat.repo.
func enableSection(dir, ids, missing string) string {
	return lines(
		`on=`,
		sectionFiles(dir, ids,
			`new=$(mktemp)`,
			`awk -v id="[$id]" '/^\[/ { in_it = $1 == id; if (in_it) { print; print "enabled=1"; next } } in_it && /^enabled[ \t]*=/ { next } { print }' "$f" >"$new"`,
			`put "$f" 0644 <"$new"`,
			`rm -f "$new"`,
			`on=1`),
		`[ -n "$on" ] || { echo `+sh.Quote(missing)+` >&2; exit 1; }`)
}

// crb is the repository with the development packages that EPEL's need.
func crb(name, ids string) Extra {
	return Extra{Name: name, IDs: ids, How: "turn it on",
		Enable: enableSection("/etc/yum.repos.d", ids, "no repository file has "+name+": is the guest registered with its distribution?")}
}

// codeReady is CodeReady Builder of RHEL, by the ids of subscription-manager, of AWS (without a machine), of Azure
// (rhui behind) and of Google (rhui before and behind); Oracle's cloud has none of RHEL. The one of the extended
// updates (eus) goes with a BaseOS of these and with no other.
//
// The ids are those of oamg/leapp-repository (repositories that an upgrade leaves out) and PerfKitBenchmarker's
// texinfo package; eus-rhui is what yum repolist says on Azure.
func codeReady(version string) Extra {
	base := "codeready-builder-for-rhel-" + version + "-"
	ids := func(eus string) string {
		return base + "[ax]*64" + eus + "-rpms | " + base + "[ax]*64" + eus + "-rhui-rpms | rhui-" + base + "[ax]*64" + eus + "-rhui-rpms | "
	}
	// This one has no architecture and no EUS.
	const amazon = "rhui-rpms"
	e := crb("CodeReady Builder", ids(`"$eus"`)+base+amazon)
	e.IDs = ids("") + ids("-eus") + base + amazon
	e.Enable = lines(
		`eus=`,
		`case $(`+sections("/etc/yum.repos.d")+`) in *-baseos-eus-*) eus=-eus ;; esac`,
		e.Enable)
	return e
}

// releasePackage is a repository that comes with a package of the distribution's own. Not every such package turns
// it on, and somebody may have turned it off. What the package brings goes with it on the way back, and a file
// that was there before it comes back.
func releasePackage(m Manager, name, ids, pkg string) Extra {
	const dir = "/etc/yum.repos.d"
	return Extra{Name: name, IDs: ids, How: "install " + pkg + ", and see that it is read", Packages: true,
		Enable: lines(
			`if ! rpm -q `+sh.Quote(pkg)+` >/dev/null 2>&1 || grep -q '^`+pkg+` ' "$S/before/packages"; then`,
			sectionFiles(dir, ids, `keep "$f"`),
			`fi`,
			m.Quiet(m.Install(pkg)),
			`seen=`,
			`for id in $(`+sections(dir)+`); do case $id in `+ids+`) seen=1 ;; esac; done`,
			`if [ -z "$seen" ]; then`,
			sectionFiles(dir, ids,
				`[ -e "$S/before/files$f" ] || { mkdir -p "$S/before/absent${f%/*}"; : >"$S/before/absent$f"; }`,
				`keep "$f.rpmsave"`),
			enableSection(dir, ids, pkg+" brings no "+name),
			`fi`)}
}

// epelKeys are the keys that EPEL's packages are signed with, by release: the fingerprints that Fedora publishes
// (getfedora.org/security; the image builds of MariaDB name the same).
var epelKeys = map[string]RepoKey{
	"7":  {File: "RPM-GPG-KEY-EPEL-7", ID: "352c64e5", Fingerprint: "91e97d7c4a5e96f17f3e888f6a2faea2352c64e5"},
	"8":  {File: "RPM-GPG-KEY-EPEL-8", ID: "2f86d6a1", Fingerprint: "94e279eb8d8f25b21810adf121ea45ab2f86d6a1"},
	"9":  {File: "RPM-GPG-KEY-EPEL-9", ID: "3228467c", Fingerprint: "ff8ad1344597106ece813b918a3872bf3228467c"},
	"10": {File: "RPM-GPG-KEY-EPEL-10", ID: "e37ed158", Fingerprint: "7d8d15cbfc4e62688591fb2633d98517e37ed158"},
}

// epelFromFedora is EPEL where the distribution has no package of its own for it: the release package from
// Fedora, once its signature is checked against the key with the known fingerprint.
func epelFromFedora(m Manager, release string) Extra {
	root := "https://dl.fedoraproject.org/pub/epel/"
	if release == "7" {
		root = "https://dl.fedoraproject.org/pub/archive/epel/"
	}
	k := epelKeys[release]
	const file = "/var/lib/gpuguest/epel-release.rpm"
	url := root + "epel-release-latest-" + release + ".noarch.rpm"
	return Extra{Name: "EPEL", IDs: "epel", How: "install epel-release from Fedora, its signature checked", Packages: true,
		Enable: lines(
			`(`,
			FetchKey(k, root+k.File, "/etc/pki/rpm-gpg/"+k.File, ""),
			`rpm --import /etc/pki/rpm-gpg/`+k.File,
			`)`,
			fetch(url, file),
			// Of an unsigned package rpm says "digests OK", of a signed one "digests signatures OK" (RHEL 7: "rsa sha1 (md5) pgp md5 OK").
			`case $(rpm -K `+file+`) in *"NOT OK"*) ok= ;; *" signatures OK" | *" pgp "*OK) ok=1 ;; *) ok= ;; esac`,
			`[ -n "$ok" ] || { rm -f `+file+`; echo "the signature of epel-release does not hold" >&2; exit 1; }`,
			m.Quiet(m.InstallFile(file)),
			`rm -f `+file)}
}

// ExtrasMissing returns the extra repositories that the guest's own files do not turn on, as far as they tell.
func (d Distro) ExtrasMissing(f facts.Facts) []Extra {
	return slices.DeleteFunc(slices.Clone(d.Extras), func(e Extra) bool {
		if e.Gone != "" {
			return !slices.ContainsFunc(f.Sources, func(s facts.Source) bool { return strings.Contains(s.URI, "//"+e.Gone+"/") })
		}
		return slices.ContainsFunc(f.Sources, func(s facts.Source) bool {
			for _, p := range strings.Split(e.IDs, "|") {
				if ok, _ := path.Match(strings.TrimSpace(p), s.Suite); ok {
					return true
				}
			}
			return false
		})
	})
}
