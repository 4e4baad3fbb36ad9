package distros

import "gpuguest/internal/sh"

// dpkg --audit also warns of files it misses, which is no half-installed package; the status words are
// what an interrupted run leaves. A package waiting for a trigger is finished by the next run of dpkg.
func (a apt) Sound() string {
	return `(
: "${gpuguest_packages=$(` + packageStates + `)}"
[ -n "$gpuguest_packages" ] || { echo "dpkg-query lists no package"; exit 1; }
case "
$gpuguest_packages" in
*"
half-"* | *"
unpacked "* | *"
triggers-"*)
	printf '%s\n' "$gpuguest_packages" | awk '$1 ~ /^(half-|unpacked$|triggers-)/ { print $2 " is " $1 }'
	exit 1
	;;
esac
for u in ` + sh.Quote(a.root+"/var/lib/dpkg/updates/") + `[0-9]*; do
	[ ! -e "$u" ] || { echo "dpkg was interrupted"; exit 1; }
done
)`
}

// A package that is removed and keeps its configuration is listed too, as "name rc-version": purging is
// part of taking it back.
func (a apt) List() string {
	return `dpkg-query -W -f='${db:Status-Status} ${binary:Package} ${Version}\n' | awk '$1 == "config-files" { print $2, "rc-" $3; next } $1 != "not-installed" { print $2, $3 }' | LC_ALL=C sort`
}

func (a apt) Manual() string { return "apt-mark showmanual" }

// dpkg is asked and not apt-mark, which reads every package list first.
func (a apt) Held() string {
	return `dpkg-query -W -f='${db:Status-Want} ${binary:Package}\n' | awk '$1 == "hold" { print $2 }'`
}

// A package on hold or another that needs the newer version makes it fail; nothing is forced.
func (a apt) Downgrade(name, version string) string {
	return "apt-get install " + common + " --no-install-recommends --allow-downgrades -- " + sh.Quote(name+"="+version)
}
