package steps

import (
	"gpuguest/internal/action"
	"gpuguest/internal/sh"
)

// The proxy's URL may hold a password. It is in files for root alone and in the environment of what gpuguest runs
// there, where root alone can read it (proc(5), /proc/pid/environ), and in no argument, script or record.
const (
	proxyDir = "/var/lib/gpuguest/proxy"
	proxyEnv = proxyDir + "/env"
)

// Environment is sh text that stands before the work of every step: what of the guest's own ways to packages does not
// count for gpuguest's work in it. "" nothing is to be said. It needs no step to have run: what is not there yet is
// passed over.
func Environment(in Input) string {
	var script string
	if in.Want.Proxy.Given() {
		script += "if [ -r " + proxyEnv + " ]; then . " + proxyEnv + "; fi\n"
	}
	if byBundle(in) {
		script += "if [ -r " + bundleDir + "/id ]; then . " + bundleDir + "/env; fi\n"
	}
	return script
}

// aptProxy is apt's part of the proxy. apt asks its own configuration before the environment, so the guest's word
// would count. A file named by APT_CONFIG is read before apt.conf.d, and what that names as the main file after it
// (apt.conf(5)); the guest's own main file is taken along. A proxy of the guest's for one single host goes on to count
// for that host.
const aptProxy = `umask 077
rm -f ` + proxyDir + `/apt.conf
{
	if [ -r /etc/apt/apt.conf ]; then cat /etc/apt/apt.conf; fi
	printf 'Acquire::http::Proxy "%s";\nAcquire::https::Proxy "%s";\n' "${http_proxy:?}" "${https_proxy:?}"
} >` + proxyDir + `/apt.main
printf 'Dir::Etc::main "%s";\n' ` + proxyDir + `/apt.main >` + proxyDir + `/apt.conf.tmp
mv -f ` + proxyDir + `/apt.conf.tmp ` + proxyDir + `/apt.conf`

// ProxyConfig is what the file says that tells apt of the proxy: it is named in the environment.
const ProxyConfig = proxyDir + "/apt.conf"

func init() {
	register(Step{
		ID:     "proxy",
		Title:  "have gpuguest's own work go out by the proxy",
		After:  []ID{"ready"},
		Wanted: func(in Input) bool { return in.Want.Proxy.Given() },
		Check: func(in Input) string {
			return lines(
				`[ "$(stat -c '%a %U' `+proxyEnv+` 2>/dev/null)" = "600 root" ] || { echo "the guest was not told of the proxy"; exit 1; }`,
				`echo `+sh.Quote(in.Want.Proxy.SHA256+"  "+proxyEnv)+` | sha256sum -c --status || { echo "the guest was told of another proxy"; exit 1; }`,
				`[ -s `+ProxyConfig+` ] || { echo "apt was not told of the proxy"; exit 1; }`)
		},
		Apply: func(in Input) []action.Action {
			return []action.Action{
				action.Send{Path: proxyEnv, SHA256: in.Want.Proxy.SHA256},
				action.Run{Title: "go out by " + in.Want.Proxy.Shown, Script: lines(
					`chmod 700 `+proxyDir,
					`chmod 600 `+proxyEnv,
					`. `+proxyEnv,
					aptProxy)},
			}
		},
	})
	registerRemoval(Step{
		ID:     "remove-ways",
		Title:  "remove the proxy's settings and the bundle",
		After:  []ID{"ready", "remove-packages"},
		Wanted: changedByUs,
		Check: func(Input) string {
			return `for d in ` + sh.Join(proxyDir, bundleDir, bundleArchive) + `; do [ ! -e "$d" ] || { echo "$d is there"; exit 1; }; done`
		},
		Apply: func(Input) []action.Action {
			return []action.Action{action.Run{Title: "remove what gpuguest's own work went out by", Script: `rm -rf ` + sh.Join(proxyDir, bundleDir, bundleDir+".new", bundleArchive)}}
		},
	})
}
