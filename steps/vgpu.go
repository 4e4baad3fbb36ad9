package steps

import (
	"path"
	"slices"

	"gpuguest/internal/action"
	"gpuguest/internal/choice"
	"gpuguest/internal/sh"
)

const (
	vgpuTokenSent = "/var/lib/gpuguest/vgpu-token"
	vgpuConfPath  = "/etc/nvidia/gridd.conf"
	vgpuUnit      = "nvidia-gridd.service"
)

// The licence's type is the virtual GPU's own: 1 stands for it (nvml.h, nvmlGridLicenseFeatureCode_t), and the driver
// asks for what its profile needs. The types of other numbers are for whole GPUs that are passed through.
const vgpuConf = "# Written by gpuguest.\nFeatureType=1\n"

func virtual(in Input) bool {
	return in.Want.License.Given() && slices.ContainsFunc(in.Choice.GPUs, func(g choice.GPU) bool { return g.Virtual })
}

// vgpuToken is where the licence client looks for tokens (NVIDIA's client licensing user guide, "Configuring a Licensed
// Client on Linux", with mode 744).
func vgpuToken(in Input) string {
	return "/etc/nvidia/ClientConfigToken/" + path.Base(in.Want.License.Name)
}

func init() {
	register(Step{
		ID:     "vgpu-license",
		Title:  "give the virtual GPU its licence token",
		After:  []ID{"ready", "rescue", "driver"},
		Late:   needsFreeGPU,
		Wanted: virtual,
		Refuse: func(in Input) string {
			if in.Facts.Init.Name != "systemd" && in.Facts.Init.Name != "" {
				return "the licence client is run by systemd, and the guest's init system is " + in.Facts.Init.Name
			}
			return ""
		},
		Check: func(in Input) string {
			token := sh.Quote(vgpuToken(in))
			return lines(
				`echo `+sh.Quote(in.Want.License.SHA256+"  "+vgpuToken(in))+` | sha256sum -c --status 2>/dev/null || { echo "the token is not there"; exit 1; }`,
				`[ "$(stat -c '%a %U' `+token+`)" = "744 root" ] || { echo "the token's mode is $(stat -c %a `+token+`)"; exit 1; }`,
				`printf %s `+sh.Quote(vgpuConf)+` | cmp -s - `+vgpuConfPath+` || { echo "`+vgpuConfPath+` is not as planned"; exit 1; }`)
		},
		Apply: func(in Input) []action.Action {
			return []action.Action{
				action.Send{Path: vgpuTokenSent, SHA256: in.Want.License.SHA256},
				action.Run{Title: "put the token into its place", Script: lines(
					`put `+sh.Quote(vgpuToken(in))+` 0744 <`+vgpuTokenSent,
					`rm -f `+vgpuTokenSent)},
				action.Write{Path: vgpuConfPath, Data: []byte(vgpuConf)},
			}
		},
	})
	register(Step{
		ID:     "vgpu-licensed",
		Title:  "have the virtual GPU licensed",
		After:  []ID{"module", "vgpu-license", "persistence"},
		Fresh:  true,
		Wanted: func(in Input) bool { return virtual(in) && hasGPU(in) },
		Check: func(Input) string {
			return lines(
				private,
				limited(),
				`limited 60 nvidia-smi -q || :`,
				`status=$(sed -n 's/^ *License Status *: *//p' "$t/said" | sort -u)`,
				`[ -n "$status" ] || { echo "nvidia-smi tells no license status: this is no vGPU driver"; exit 1; }`,
				`[ -z "$(printf '%s\n' "$status" | grep -v '^Licensed')" ] || { echo "license status: $status"; journalctl -u `+vgpuUnit+` -b -q --no-pager -o cat -n 5 2>/dev/null; exit 1; }`,
				`echo "license status: $status"`)
		},
		Apply: func(Input) []action.Action {
			return []action.Action{action.Run{Title: "have " + vgpuUnit + " ask for the licence", Script: lines(
				`systemctl enable `+vgpuUnit+` || :`,
				`systemctl restart `+vgpuUnit,
				// It asks the licence server, which takes a few seconds.
				`(`,
				private,
				limited(),
				`n=0`,
				`until { limited 60 nvidia-smi -q && grep -q '^ *License Status *: *Licensed' "$t/said"; } || [ "$n" -ge 30 ]; do`,
				`	n=$((n + 1))`,
				`	sleep 2`,
				`done`,
				`)`)}}
		},
		Hint: "see that the guest reaches the licence server that the token names, and that its clock is right",
	})
}
