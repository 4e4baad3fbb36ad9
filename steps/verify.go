package steps

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"gpuguest/internal/choice"
	"gpuguest/internal/sh"
	"gpuguest/internal/smi"
)

// missingCUDA is sh that is true where libcuda may be missing and is.
func missingCUDA(in Input) string {
	if provesCUDA(in) {
		return "false"
	}
	return `[ -z "$library" ]`
}

// firmwareCheck is sh that fails when the open modules have no firmware of their version to load: they start no GPU
// without (NVIDIA/open-gpu-kernel-modules, README). The proprietary ones need it on some GPUs only, so there it is
// nvidia-smi that tells.
func firmwareCheck(in Input) string {
	if in.Choice.License != choice.LicenseOpen {
		return ":"
	}
	return lines(
		`found=`,
		`for f in /lib/firmware/nvidia/"$loaded"/gsp*.bin*; do [ ! -s "$f" ] || found=1; done`,
		`[ -n "$found" ] || { echo "/lib/firmware/nvidia/$loaded holds no GSP firmware, without which the open modules start no GPU"; exit 1; }`)
}

// noDegrees is a case of the shell for what nvidia-smi may say in place of a temperature: a virtual GPU has no sensor of
// its own.
func noDegrees(in Input) string {
	if slices.ContainsFunc(in.Choice.GPUs, func(g choice.GPU) bool { return g.Virtual }) {
		return "*N/A*) ;; "
	}
	return ""
}

// libraryVersions is the shell function versions: it prints the versions of a library that the guest's folders hold, a
// line each.
const libraryVersions = `versions() { for f in /usr/lib/*/"$1".so.[0-9]*.* /usr/lib64/"$1".so.[0-9]*.* /usr/lib/*/nvidia/*/"$1".so.[0-9]*.* /usr/lib/"$1".so.[0-9]*.*; do [ ! -e "$f" ] || echo "${f##*.so.}"; done | sort -u; }`

func init() {
	// What runs now may agree while an upgrade of half the packages waits for the next boot to break it: all of them
	// are of the planned branch, so next-boot alone does not see it. An install sees to its packages by itself.
	register(Step{
		ID:     "verify-packages",
		Title:  "verify that the next boot's module and the libraries are of one version",
		After:  []ID{"next-boot"},
		Fresh:  true,
		Wanted: func(in Input) bool { return in.Proves },
		Check: func(in Input) string {
			return lines(
				`module=$(modinfo -k `+sh.Quote(in.Facts.Kernel.Next)+` -F version `+sh.Quote(in.Choice.Module)+` 2>/dev/null) || module=`,
				libraryVersions,
				`library=$(versions libnvidia-ml)`,
				`[ "$module" = "$library" ] || { echo "the next boot loads module ${module:-unknown}, libnvidia-ml in the guest is ${library:-missing}"; exit 1; }`,
				`library=$(versions libcuda)`,
				`[ "$module" = "$library" ] || [ -z "$library" ] || { echo "the next boot loads module $module, libcuda in the guest is $library"; exit 1; }`,
				`echo "the next boot's module and the libraries are $module"`)
		},
		Hint: "the driver's packages are not all of one version: gpuguest install brings them there, or finish the upgrade that was begun",
	})
	register(Step{
		ID:     "verify-versions",
		Title:  "verify that module, libraries and plan agree",
		After:  []ID{"module"},
		Fresh:  true,
		Wanted: hasGPU,
		Check: func(in Input) string {
			return lines(
				`loaded=$(sed -n 's/^NVRM version:.* \([0-9][0-9]*\.[0-9.]*\) .*/\1/p' /proc/driver/nvidia/version 2>/dev/null)`,
				`[ -n "$loaded" ] || { echo "the nvidia module is not loaded"; `+evidence+`; exit 1; }`,
				`case $loaded in`,
				versionPattern(in)+`) ;;`,
				`*) echo "the loaded module is $loaded, planned is `+planned(in)+`"; exit 1 ;;`,
				`esac`,
				libraryVersions,
				`library=$(versions libnvidia-ml)`,
				`[ "$library" = "$loaded" ] || { echo "the loaded module is $loaded, libnvidia-ml in the guest is ${library:-missing}"; exit 1; }`,
				// A guest that shall only have a driver may do without CUDA's library, but not with another version's.
				`library=$(versions libcuda)`,
				`[ "$library" = "$loaded" ] || { `+missingCUDA(in)+`; } || { echo "the loaded module is $loaded, libcuda in the guest is ${library:-missing}"; exit 1; }`,
				firmwareCheck(in),
				`echo "module, libraries and firmware are $loaded"`)
		},
		Hint: "a reboot loads the module that belongs to the libraries",
	})
	register(Step{
		ID:     "verify-cmdline",
		Title:  "verify the kernel command line",
		After:  []ID{"next-boot"},
		Fresh:  true,
		Wanted: func(in Input) bool { return len(extraArgs(in)) > 0 },
		Check: func(in Input) string {
			return lines(
				`line=" $(cat /proc/cmdline) "`,
				`for a in `+sh.Join(extraArgs(in)...)+`; do`,
				`	case $line in *" $a "*) ;; *) echo "the running kernel was started without $a"; exit 1 ;; esac`,
				`done`,
				`echo "started with" `+sh.Join(extraArgs(in)...))
		},
	})
	register(Step{
		ID:     "verify-smi",
		Title:  "verify with nvidia-smi",
		After:  []ID{"module", "persistence", "verify-versions"},
		Fresh:  true,
		Wanted: hasGPU,
		Check: func(in Input) string {
			// nvidia-smi -L exits 0 with no GPU at all, so its exit code proves nothing; the query's lines
			// are counted instead. All nvidia-smi says goes to standard output, errors too.
			return lines(
				private,
				limited(),
				`code=0; limited 120 nvidia-smi --query-gpu=pci.bus_id,name,driver_version,persistence_mode,temperature.gpu --format=csv,noheader,nounits || code=$?`,
				`out=$(cat "$t/said" "$t/errors")`,
				`if [ $code -ne 0 ]; then`,
				`	case $code in 124 | 137) echo "nvidia-smi did not end within 120 s" ;; esac`,
				`	printf 'nvidia-smi: exit %s: %s\n' "$code" "$out"`,
				`	`+evidence,
				`	exit 1`,
				`fi`,
				// Before or behind the rows it may print a warning of a GPU's ("WARNING: infoROM is corrupted at gpu
				// 0000:01:00.0"), which is told and is no GPU.
				`rows=$(printf '%s\n' "$out" | grep -E '^ *[0-9A-Fa-f]{4,8}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-9A-Fa-f], ') || rows=`,
				`printf '%s\n' "$out" | grep -Ev '^ *([0-9A-Fa-f]{4,8}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-9A-Fa-f], |$)' | sed 's/^/`+WarningMark+`nvidia-smi: /' || true`,
				`count=$(printf '%s\n' "$rows" | grep -c .) || true`,
				fmt.Sprintf(`[ "$count" -eq %s ] || { echo "nvidia-smi lists $count of %s GPUs"; %s; exit 1; }`, gpuCount(in), gpuCount(in), evidence),
				`printf '%s\n' "$rows" | while IFS= read -r line; do`,
				// A name has no comma, and would it have one, the last fields are still the last.
				`	degrees=${line##*, } line_of=${line%, *}`,
				`	mode=${line_of##*, } line_of=${line_of%, *}`,
				`	version=${line_of##*, }`,
				`	case $version in`,
				`	`+versionPattern(in)+`) ;;`,
				`	*) echo "nvidia-smi reports driver $version, planned is `+planned(in)+`"; exit 1 ;;`,
				`	esac`,
				`	[ "$mode" = Enabled ] || { echo "persistence mode is $mode: $line"; exit 1; }`,
				`	case $degrees in `+noDegrees(in)+`*[!0-9]*|"") echo "no temperature could be read: $line"; exit 1 ;; esac`,
				`	echo "$line C"`,
				`done`,
				// The document for programs tells what the fields do not. A driver that does not answer it says
				// nothing, and nothing is concluded from that. Serial numbers stay in the guest.
				`if limited 120 nvidia-smi -q -x; then grep -v '<serial>' "$t/said" >"$t/log" || :; `+marked(`"$t/log"`)+`; fi`)
		},
		Read: func(_ Input, data string) (json.RawMessage, string) {
			l, err := smi.Parse([]byte(data))
			if err != nil {
				return nil, ""
			}
			return marshal(l), strings.Join(l.Faults(l.Driver), "\n")
		},
	})
	register(Step{
		ID:    "verify-offline",
		Title: "verify what can be verified without a GPU",
		After: []ID{"next-boot", "persistence"},
		Fresh: true,
		Wanted: func(in Input) bool {
			return in.Want.NoGPU && !hasGPU(in)
		},
		Module: moduleWords,
		Check: func(in Input) string {
			return lines(
				moduleCheck(in),
				`modprobe -n -S "$next" --show-depends "$name" >/dev/null || { echo "modprobe does not find $name for kernel $next"; exit 1; }`,
				`rules=$(modprobe -c 2>/dev/null)"`,
				`"`,
				`for m in `+sh.Join(blocked...)+`; do`,
				`	case $rules in *"blacklist $m`,
				`"*) ;; *) echo "$m is not blocked"; exit 1 ;; esac`,
				`done`,
				`echo "no GPU in the guest: module, flavor, kernel and blocklist are proved, CUDA is not"`)
		},
	})
}
