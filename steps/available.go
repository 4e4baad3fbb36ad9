package steps

import (
	"strings"

	"gpuguest/internal/sh"
)

// pinned is the package whose name says the full version that was asked for, as its name without that version; false
// where no such package is how the version is kept.
func pinned(in Input) (prefix string, ok bool) {
	v := in.Choice.Version
	if v == "" || v != in.Want.Driver || len(in.Choice.Pin) != 1 {
		return "", false
	}
	return strings.CutSuffix(in.Choice.Pin[0], v)
}

func init() {
	register(Step{
		ID:    "available",
		Title: "see that NVIDIA's repository has the version",
		// A guest that knows the repository is refused when its driver is chosen; this is for one that does not yet,
		// and comes before anything is changed in it.
		Wanted: func(in Input) bool {
			_, ok := pinned(in)
			r, err := repoOf(in)
			return ok && err == nil && r.KeyPackage != "" && readsRepo(in) && !in.Proves
		},
		Refuses: true,
		Check: func(in Input) string {
			prefix, _ := pinned(in)
			r, err := repoOf(in)
			if err != nil {
				return "false"
			}
			index := strings.TrimRight(r.URL, "/") + "/Packages.gz"
			return lines(
				`if ( `+in.Distro.Packages.Installed(in.Choice.Pin...)+` ) >/dev/null 2>&1 || ( `+in.Distro.Packages.Offered(in.Choice.Pin...)+` ) >/dev/null 2>&1; then exit 0; fi`,
				private,
				// Nothing is installed from this, so that no signature is asked for; what is installed is apt's business.
				`if ! timeout -k 5 120 /usr/lib/apt/apt-helper download-file `+sh.Quote(index)+` "$t/index.gz" >/dev/null 2>&1 || ! gzip -dc "$t/index.gz" >"$t/index" 2>/dev/null; then`,
				`	echo "it is not known beforehand:" `+sh.Quote(index)+` "could not be read"`,
				`	exit 0`,
				`fi`,
				`sed -n `+sh.Quote(`s/^Package: `+strings.ReplaceAll(prefix, ".", `\.`)+`\([0-9][0-9]*\.[0-9.]*\)$/\1/p`)+` "$t/index" | sort -u -V >"$t/versions"`,
				`[ -s "$t/versions" ] || { echo "it is not known beforehand: the index names no version"; exit 0; }`,
				`if grep -qxF -- `+sh.Quote(in.Choice.Version)+` "$t/versions"; then exit 0; fi`,
				// The nearest are those of its branch, else the newest of all.
				`branch=`+sh.Quote(branchOf(in.Choice.Version)),
				`near=$(grep "^$branch\." "$t/versions" | tail -n 5 | tr '\n' ' ') || near=`,
				`[ -n "$near" ] || near=$(tail -n 3 "$t/versions" | tr '\n' ' ')`,
				`echo "NVIDIA's repository has no driver" `+sh.Quote(in.Choice.Version)+`"; the nearest that it has: ${near% }"`,
				`exit 1`)
		},
		Hint: "--driver names another version, or a branch alone, of which the newest is taken; nothing was changed in the guest",
	})
}

// branchOf is the branch that a version is of.
func branchOf(version string) string {
	branch, _, _ := strings.Cut(version, ".")
	return branch
}
