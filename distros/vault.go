package distros

import (
	"regexp"
	"strings"

	"gpuguest/internal/sh"
)

// Vault is an archive of a distribution's minor releases that are over: the headers of a kernel of last month's
// may be there alone.
type Vault struct {
	URL  string // with {minor}, the minor release, and {machine}
	Keys string // pattern of sh for the files of the keys its packages are signed with, which the guest has
}

var minorRelease = regexp.MustCompile(`\.el(\d+)_(\d+)\.`)

// URLs returns the vault's repositories for the minor release that a kernel belongs to, none where its release
// does not say.
func (v Vault) URLs(release, machine string) []string {
	m := minorRelease.FindStringSubmatch(release)
	if v.URL == "" || m == nil {
		return nil
	}
	base := strings.NewReplacer("{minor}", m[1]+"."+m[2], "{machine}", machine)
	return []string{base.Replace(strings.Replace(v.URL, "{repo}", "BaseOS", 1)), base.Replace(strings.Replace(v.URL, "{repo}", "AppStream", 1))}
}

// FromVault is a script that installs packages of the kernel's own minor release from the vault where no repository
// offers them any more; "" where there is no vault. That the vault lacks them too is no failure here: what is
// missing fails where it is asked for.
func (d Distro) FromVault(release, machine, refresh string, packages []string) string {
	urls := d.Vault.URLs(release, machine)
	if len(urls) == 0 || len(packages) == 0 {
		return ""
	}
	m := d.Packages
	take := `dnf -y --setopt='*.skip_if_unavailable=1'`
	for i, name := range []string{"gpuguest-vault-base", "gpuguest-vault-app"} {
		take += ` --repofrompath=` + name + `,` + sh.Quote(urls[i]) + ` --setopt=` + name + `.gpgcheck=1 --setopt=` + name + `.gpgkey="$keys"`
	}
	return lines(
		`there() { ( `+m.Installed(packages...)+``,
		`) >/dev/null 2>&1 || ( `+m.Offered(packages...)+``,
		`) >/dev/null 2>&1; }`,
		`if there; then exit 0; fi`,
		refresh,
		`if ! there; then`,
		`	echo "gpuguest: the repositories have them no more: look in the vault"`,
		`	keys=`,
		`	for k in `+d.Vault.Keys+`; do [ ! -e "$k" ] || keys="$keys,file://$k"; done`,
		`	keys=${keys#,}`,
		`	`+take+` install `+sh.Join(packages...)+` || echo "gpuguest: the vault has them not either"`,
		`fi`)
}
