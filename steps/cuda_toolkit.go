package steps

import (
	"gpuguest/internal/action"
	"gpuguest/internal/choice"
	"gpuguest/internal/sh"
)

const (
	cudaLink    = "/usr/local/cuda"
	cudaProfile = "/etc/profile.d/gpuguest-cuda.sh"
	cudaLibs    = "/etc/ld.so.conf.d/gpuguest-cuda.conf"
)

// The link leads to one toolkit of several, so that a person who changes it changes all of these.
const (
	cudaProfileText = "# Written by gpuguest: CUDA for everybody who logs in.\n" +
		"case \":$PATH:\" in *:" + cudaLink + "/bin:*) ;; *) PATH=$PATH:" + cudaLink + "/bin; export PATH ;; esac\n"
	cudaLibsText = "# Written by gpuguest.\n" + cudaLink + "/lib64\n"
)

func wantsToolkit(in Input) bool { return in.Choice.CUDA.Version != "" }

// readToolkit sets $have to the release of the toolkit in $dir, "" where it does not tell: from 11.1 on in
// version.json, before in version.txt (seen in NVIDIA's packages).
const readToolkit = `have=$(sed -n '/"cuda" *:/,/}/s/.*"version" *: *"\([0-9.]*\)".*/\1/p' "$dir/version.json" 2>/dev/null | head -n 1) || :
[ -n "$have" ] || have=$(sed -n 's/^CUDA Version \([0-9.]*\).*/\1/p' "$dir/version.txt" 2>/dev/null | head -n 1) || :`

func toolkitThere(in Input) string {
	k := in.Choice.CUDA
	script := []string{
		`dir=` + sh.Quote(k.Dir),
		`[ -x "$dir/bin/nvcc" ] || { echo "$dir/bin/nvcc is missing"; exit 1; }`,
	}
	if k.Exact {
		script = append(script, readToolkit,
			`case $have in ""|`+k.Version+`|`+k.Version+`.*) ;; *) echo "$dir holds CUDA $have, planned is `+k.Version+`"; exit 1 ;; esac`)
	}
	return lines(script...)
}

// toolkitFiles prints what lies where a toolkit's installer writes beside its own folder.
func toolkitFiles(dir string) string {
	return `find /etc /opt /usr/local /usr/share/applications -xdev -path ` + sh.Quote(dir) + ` -prune -o \( -type f -o -type l \) -print 2>/dev/null | sort`
}

// noteCUDALink records, once, where /usr/local/cuda leads: "-" nowhere, "alternatives=" and the folder where the
// alternatives system rules it, else the link's own text.
const noteCUDALink = `if [ ! -e "$S/before/cuda-link" ]; then
	was=-
	if [ -L ` + cudaLink + ` ]; then
		was=$(readlink ` + cudaLink + `)
		if [ "$was" = /etc/alternatives/cuda ]; then was=alternatives=$(readlink "$was"); fi
	elif [ -e ` + cudaLink + ` ]; then
		was=folder
	fi
	mkdir -p "$S/before"
	printf '%s\n' "$was" >"$S/before/cuda-link.tmp"
	flush "$S/before/cuda-link.tmp"
	mv -f "$S/before/cuda-link.tmp" "$S/before/cuda-link"
fi`

func runToolkitInstaller(in Input) []action.Action {
	k := in.Choice.CUDA
	file, fetch := fetchInstaller(in, k.Installer)
	was, made := `"$S/before/toolkit-`+k.Series+`.was"`, `"$S/before/toolkit-`+k.Series+`.files"`
	return []action.Action{
		fetch,
		action.Run{Title: "run " + k.Installer.Name, Script: lines(
			noteCUDALink,
			`[ ! -e `+sh.Quote(k.Dir)+` ] || [ -e `+was+` ] || { echo `+sh.Quote(k.Dir+" is there already, and it is not a toolkit that was planned")+`; exit 1; }`,
			// What an earlier run that was cut off began from is where this one begins too.
			`if [ ! -e `+was+` ]; then`,
			`	{ `+toolkitFiles(k.Dir)+`; } >`+was+`.tmp`,
			`	flush `+was+`.tmp`,
			`	mv -f `+was+`.tmp `+was,
			`fi`,
			record("toolkit", k.Series),
			`for f in /var/log/cuda-installer.log /var/log/nvidia/.uninstallManifests; do [ -d "$f" ] || keep "$f"; done`,
			`tmp=`+runfileDir+`/tmp`,
			`rm -rf "$tmp" /var/log/cuda-installer.log`,
			`mkdir -p "$tmp"`,
			`code=0`,
			`TMPDIR=$tmp sh `+sh.Quote(file)+` `+sh.Join(k.Installer.Flags...)+` || code=$?`,
			`rm -rf "$tmp"`,
			`{ `+toolkitFiles(k.Dir)+`; } | comm -13 `+was+` - >`+made+`.tmp`,
			`flush `+made+`.tmp`,
			`mv -f `+made+`.tmp `+made,
			`if [ "$code" -ne 0 ]; then`,
			`	for log in /var/log/cuda-installer.log /tmp/cuda_install_*.log; do`,
			`		if [ -e "$log" ]; then echo "$log:"; tail -n 40 "$log"; fi`,
			`	done`,
			`	exit "$code"`,
			`fi`,
			`rm -f `+sh.Quote(file))},
	}
}

func init() {
	register(Step{
		ID:    "toolkit-pin",
		Title: "keep NVIDIA's repository from replacing the driver",
		After: []ID{"ready", "rescue"},
		Wanted: func(in Input) bool {
			file, _ := in.Distro.ToolkitOnly()
			return file != "" && toolkitOnly(in)
		},
		Check: func(in Input) string {
			file, text := in.Distro.ToolkitOnly()
			return `printf %s ` + sh.Quote(text) + ` | cmp -s - ` + sh.Quote(file) + ` || { echo "packages of its driver could be taken"; exit 1; }`
		},
		Apply: func(in Input) []action.Action {
			file, text := in.Distro.ToolkitOnly()
			return []action.Action{action.Write{Path: file, Data: []byte(text)}}
		},
	})
	register(Step{
		ID:     "toolkit",
		Title:  "install the CUDA toolkit",
		After:  []ID{"ready", "rescue", "headers", "repo", "components", "toolkit-pin", "driver"},
		Wanted: wantsToolkit,
		Check: func(in Input) string {
			if p := in.Choice.CUDA.Package; p != "" {
				return lines(must(in.Distro.Packages.Installed(p), p+" is not installed"), toolkitThere(in))
			}
			return toolkitThere(in)
		},
		Apply: func(in Input) []action.Action {
			k := in.Choice.CUDA
			if k.Source == choice.SourceRunfile {
				return runToolkitInstaller(in)
			}
			p := k.Package
			if k.Exact {
				p += "=" + k.Version + "-1"
			}
			return []action.Action{
				action.Run{Title: "note where " + cudaLink + " leads", Script: noteCUDALink},
				action.Run{Title: "install " + p, Packages: true, Script: in.Distro.Packages.Quiet(installPackages(in, p))},
			}
		},
		Hint: "NVIDIA's repository may not carry this toolkit for this distribution: --cuda names another, --cuda-source runfile takes its installer",
	})
	register(Step{
		ID:     "cuda-environment",
		Title:  "make the CUDA toolkit the guest's",
		After:  []ID{"ready", "rescue", "toolkit"},
		Wanted: wantsToolkit,
		Check: func(in Input) string {
			return lines(
				`printf %s `+sh.Quote(cudaProfileText)+` | cmp -s - `+cudaProfile+` || { echo "`+cudaProfile+` is not as planned"; exit 1; }`,
				`printf %s `+sh.Quote(cudaLibsText)+` | cmp -s - `+cudaLibs+` || { echo "`+cudaLibs+` is not as planned"; exit 1; }`,
				`[ "$(readlink -f `+cudaLink+`)" = "$(readlink -f `+sh.Quote(in.Choice.CUDA.Dir)+`)" ] || { echo "`+cudaLink+` leads to $(readlink -f `+cudaLink+`)"; exit 1; }`,
				`echo "`+cudaLink+` is `+in.Choice.CUDA.Dir+`"`)
		},
		Apply: func(in Input) []action.Action {
			dir := sh.Quote(in.Choice.CUDA.Dir)
			return []action.Action{
				action.Write{Path: cudaProfile, Data: []byte(cudaProfileText)},
				action.Write{Path: cudaLibs, Data: []byte(cudaLibsText)},
				action.Run{Title: "lead " + cudaLink + " to " + in.Choice.CUDA.Dir, Script: lines(
					noteCUDALink,
					`if [ "$(readlink -f `+cudaLink+`)" != "$(readlink -f `+dir+`)" ]; then`,
					`	if [ -L `+cudaLink+` ] && [ "$(readlink `+cudaLink+`)" = /etc/alternatives/cuda ]; then`,
					`		update-alternatives --set cuda `+dir,
					`	elif [ -e `+cudaLink+` ] && [ ! -L `+cudaLink+` ]; then`,
					`		echo "`+cudaLink+` is no link, and it is not gpuguest's to replace"`,
					`		exit 1`,
					`	else`,
					`		ln -sfn `+dir+` `+cudaLink+`.gpuguest-tmp`,
					`		mv -fT `+cudaLink+`.gpuguest-tmp `+cudaLink,
					`	fi`,
					`fi`,
					`ldconfig`)},
			}
		},
	})
	register(Step{
		ID:     "verify-nvcc",
		Title:  "verify that nvcc is the planned one",
		After:  []ID{"toolkit", "cuda-environment", "next-boot"},
		Fresh:  true,
		Wanted: wantsToolkit,
		Check: func(in Input) string {
			return lines(
				`set +e; out=$(`+cudaLink+`/bin/nvcc --version 2>&1); code=$?; set -e`,
				`[ $code -eq 0 ] || { printf 'nvcc: exit %s: %s\n' "$code" "$out"; exit 1; }`,
				`case $out in`,
				`*"release `+in.Choice.CUDA.Series+`,"*) ;;`,
				`*) printf 'nvcc is not of CUDA `+in.Choice.CUDA.Series+`: %s\n' "$out"; exit 1 ;;`,
				`esac`,
				`printf '%s\n' "$out" | grep release`)
		},
		Hint: cudaLink + " leads to another toolkit, or the toolkit is not whole",
	})
	registerRemoval(Step{
		ID:     "remove-toolkits",
		Title:  "remove the CUDA toolkits that came by installers",
		After:  []ID{"ready"},
		Wanted: func(in Input) bool { return len(in.Facts.State.Toolkits) > 0 },
		Check: func(in Input) string {
			return lines(
				stateDir,
				`for v in `+sh.Join(in.Facts.State.Toolkits...)+`; do`,
				`	[ ! -e "/usr/local/cuda-$v" ] || { echo "/usr/local/cuda-$v is there"; exit 1; }`,
				`	[ ! -e "$S/before/toolkit-$v.files" ] || while IFS= read -r f; do`,
				`		if [ -e "$f" ] && [ ! -e "$S/before/absent$f" ]; then echo "$f is there"; exit 1; fi`,
				`	done <"$S/before/toolkit-$v.files"`,
				`done`)
		},
		Apply: func(in Input) []action.Action {
			return []action.Action{action.Run{Title: "remove their folders and what they put beside", Script: lines(
				`for v in `+sh.Join(in.Facts.State.Toolkits...)+`; do`,
				// Its own uninstaller is a menu from 10.1 on and a script before; what either leaves goes after it.
				`	u=/usr/local/cuda-$v/bin/cuda-uninstaller`,
				`	if [ -x "$u" ]; then timeout 300 "$u" --silent || echo "${u##*/}: exit $?"; fi`,
				`	u=/usr/local/cuda-$v/bin/uninstall_cuda_$v.pl`,
				`	if [ -x "$u" ]; then timeout 300 "$u" || echo "${u##*/}: exit $?"; fi`,
				`	rm -rf "/usr/local/cuda-$v"`,
				`	[ ! -e "$S/before/toolkit-$v.files" ] || while IFS= read -r f; do`,
				`		rm -f -- "$f"`,
				`	done <"$S/before/toolkit-$v.files"`,
				`done`)}}
		},
	})
	registerRemoval(Step{
		ID:     "restore-cuda-link",
		Title:  "lead " + cudaLink + " where it led before",
		After:  []ID{"ready", "remove-toolkits", "remove-packages", "restore-files"},
		Wanted: func(in Input) bool { return in.Facts.State.CUDALink != "" && in.Facts.State.CUDALink != "folder" },
		Check: func(in Input) string {
			return lines(
				cudaLinkWas(in),
				`case $was in`,
				`-) [ ! -L `+cudaLink+` ] || [ -e `+cudaLink+` ] || { echo "`+cudaLink+` leads nowhere"; exit 1; } ;;`,
				`alternatives=*) [ ! -d "${was#*=}" ] || [ "$(readlink -f `+cudaLink+`)" = "$(readlink -f "${was#*=}")" ] || { echo "`+cudaLink+` leads to $(readlink -f `+cudaLink+`)"; exit 1; } ;;`,
				`*) [ "$(readlink `+cudaLink+`)" = "$was" ] || { echo "`+cudaLink+` leads to $(readlink `+cudaLink+`)"; exit 1; } ;;`,
				`esac`)
		},
		Apply: func(in Input) []action.Action {
			return []action.Action{action.Run{Title: "set the link", Script: lines(
				cudaLinkWas(in),
				`case $was in`,
				`-) if [ -L `+cudaLink+` ] && [ ! -e `+cudaLink+` ]; then rm -f `+cudaLink+`; fi ;;`,
				`alternatives=*) update-alternatives --set cuda "${was#*=}" ;;`,
				`*)`,
				`	ln -sfn "$was" `+cudaLink+`.gpuguest-tmp`,
				`	mv -fT `+cudaLink+`.gpuguest-tmp `+cudaLink,
				`	;;`,
				`esac`,
				`ldconfig`)}}
		},
	})
}

func cudaLinkWas(in Input) string { return `was=` + sh.Quote(in.Facts.State.CUDALink) }
