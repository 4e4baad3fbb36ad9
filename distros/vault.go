package distros

import (
	"regexp"
	"strings"

	"gpuguest/internal/sh"
)

// Vault is an archive of a distribution's minor releases that are over: the headers of a kernel of last month's
// may be there alone.
type Vault struct {
	URL   string   // with {minor}, the minor release, {repo} and {machine}
	Repos []string // its repositories; nil: BaseOS and AppStream
	Keys  string   // pattern of sh for the files of the keys its packages are signed with, which the guest has
	// Minors are the minor releases as the vault calls them, by the first two numbers of their kernels, "3.10.0-1062":
	// for vaults whose folders have more in their names than a kernel's release tells.
	Minors map[string]string
}

// centosReleases are CentOS's vault by major release: its folders, and the kernel that each minor release began with.
// They are those of vault.centos.org, in whose folders public recipes fetch kernel-devel of these releases; for 8 the
// kernels' own el8_N tells the same.
var centosReleases = map[string]Vault{
	"7": {
		URL: "https://vault.centos.org/{minor}/{repo}/{machine}/", Repos: []string{"os", "updates"}, Keys: "/etc/pki/rpm-gpg/RPM-GPG-KEY-CentOS-7",
		Minors: map[string]string{
			"3.10.0-123": "7.0.1406", "3.10.0-229": "7.1.1503", "3.10.0-327": "7.2.1511", "3.10.0-514": "7.3.1611", "3.10.0-693": "7.4.1708",
			"3.10.0-862": "7.5.1804", "3.10.0-957": "7.6.1810", "3.10.0-1062": "7.7.1908", "3.10.0-1127": "7.8.2003", "3.10.0-1160": "7.9.2009",
		},
	},
	"8": {
		URL: "https://vault.centos.org/{minor}/{repo}/{machine}/os/", Keys: "/etc/pki/rpm-gpg/RPM-GPG-KEY-centosofficial",
		Minors: map[string]string{
			"4.18.0-80": "8.0.1905", "4.18.0-147": "8.1.1911", "4.18.0-193": "8.2.2004", "4.18.0-240": "8.3.2011", "4.18.0-305": "8.4.2105", "4.18.0-348": "8.5.2111",
		},
	},
}

var (
	minorRelease = regexp.MustCompile(`\.el(\d+)_(\d+)\.`)
	kernelFirst  = regexp.MustCompile(`^\d+\.\d+\.\d+-\d+`)
)

// URLs returns the vault's repositories for the minor release that a kernel belongs to, none where its release
// does not say.
func (v Vault) URLs(release, machine string) []string {
	minor := v.Minors[kernelFirst.FindString(release)]
	if m := minorRelease.FindStringSubmatch(release); m != nil && v.Minors == nil {
		minor = m[1] + "." + m[2]
	}
	if v.URL == "" || minor == "" {
		return nil
	}
	repos := v.Repos
	if repos == nil {
		repos = []string{"BaseOS", "AppStream"}
	}
	var urls []string
	for _, repo := range repos {
		urls = append(urls, strings.NewReplacer("{minor}", minor, "{repo}", repo, "{machine}", machine).Replace(v.URL))
	}
	return urls
}

// FromVault is a script that installs packages of the kernel's own minor release from the vault where no repository
// offers them any more; "" where there is no vault. That the vault lacks them too is no failure here: what is
// missing fails where it is asked for. It says so where the minor release is not known.
//
// yum cannot be given a repository on its command line, so that it reads one more file of settings.
func (d Distro) FromVault(release, machine, refresh string, packages []string) string {
	if d.Vault.URL == "" || len(packages) == 0 {
		return ""
	}
	m := d.Packages
	script := []string{
		`there() { ( ` + m.Installed(packages...) + ``,
		`) >/dev/null 2>&1 || ( ` + m.Offered(packages...) + ``,
		`) >/dev/null 2>&1; }`,
		`if there; then exit 0; fi`,
		refresh,
		`if ! there; then`,
	}
	urls := d.Vault.URLs(release, machine)
	if len(urls) == 0 {
		return lines(append(script, `	echo `+sh.Quote("gpuguest: the repositories have them no more, and which minor release of "+d.Name+" kernel "+release+" is of is not known, so that the vault is not looked in"), `fi`)...)
	}
	script = append(script,
		`	echo "gpuguest: the repositories have them no more: look in the vault"`,
		`	keys=`,
		`	for k in `+d.Vault.Keys+`; do [ ! -e "$k" ] || keys="$keys,file://$k"; done`,
		`	keys=${keys#,}`)
	names := []string{"gpuguest-vault-base", "gpuguest-vault-app"}
	lacks := ` install ` + sh.Join(packages...) + ` || echo "gpuguest: the vault has them not either"`
	if dnf, ok := m.(dnf); ok && dnf.tool == "yum" {
		conf := "[main]\ngpgcheck=1\n"
		for i, url := range urls {
			conf += "[" + names[i] + "]\nname=" + names[i] + "\nbaseurl=" + url + "\nenabled=1\ngpgcheck=1\ngpgkey=KEYS\n"
		}
		return lines(append(script,
			`	conf=$(mktemp)`,
			`	printf %s `+sh.Quote(conf)+` | sed "s|KEYS|$keys|" >"$conf"`,
			`	yum -y -c "$conf" --setopt='*.skip_if_unavailable=1'`+lacks,
			`	rm -f "$conf"`,
			`fi`)...)
	}
	take := `dnf -y --setopt='*.skip_if_unavailable=1'`
	for i, name := range names {
		take += ` --repofrompath=` + name + `,` + sh.Quote(urls[i]) + ` --setopt=` + name + `.gpgcheck=1 --setopt=` + name + `.gpgkey="$keys"`
	}
	return lines(append(script, `	`+take+lacks, `fi`)...)
}
