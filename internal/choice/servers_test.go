package choice

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"gpuguest/internal/facts"
)

func engines(names ...string) func(*facts.Facts) {
	return func(f *facts.Facts) {
		f.Init.Name = "systemd"
		f.Tools = map[string]string{"gcc": ""}
		for _, n := range names {
			f.Tools[n] = ""
		}
	}
}

func TestLayoutsOfMIG(t *testing.T) {
	for _, c := range []struct {
		mig  string
		gpus []string
		want string // address, profiles and whether a reset is needed, of each GPU
		says string // of the refusal
	}{
		{"3g.20gb,1g.5gb*2", []string{a100}, "0000:01:00.0 3g.20gb,1g.5gb,1g.5gb true", ""},
		{"1g.5gb+me", []string{a100, a100}, "0000:01:00.0 1g.5gb+me true; 0000:02:00.0 1g.5gb+me true", ""},
		{"0=7g.180gb; 0000:02:00.0=off", []string{b300, b300}, "0000:01:00.0 7g.180gb false; 0000:02:00.0  false", ""},
		{"1=1g.24gb+gfx,1g.24gb+me.all,1g.24gb-me", []string{b300, b300}, "0000:02:00.0 1g.24gb+gfx,1g.24gb+me.all,1g.24gb-me false", ""},
		{"off", []string{a100}, "0000:01:00.0  true", ""},
		{"19", []string{a100}, "", `"19" is no profile`},
		{"1g.5gb*8", []string{a100}, "", "one to seven"},
		{"1g.5gb*0", []string{a100}, "", "one to seven"},
		{"1g.5gb*4,1g.5gb*4", []string{a100}, "", "8 instances"},
		{"1g.5gb,off", []string{a100}, "", `"off" is no profile`},
		{"; rm -rf /", []string{a100}, "", `"" is no profile`},
		{"1g.5gb;rm -rf /", []string{a100}, "", `"rm -rf /" is no profile`},
		{"4=1g.5gb", []string{a100}, "", "no GPU 4"},
		{"0=1g.5gb;1g.5gb", []string{a100}, "", "two layouts"},
		{"1g.5gb", []string{t4}, "", "cannot be divided"},
		{"1g.5gb", []string{l40s}, "", "cannot be divided"},
		{"0=1g.5gb", []string{a100, t4}, "0000:01:00.0 1g.5gb true", ""},
	} {
		f, d := guest(t, "ubuntu:22.04", c.gpus...)
		got, err := Make(f, d, Want{MIG: c.mig})
		var r *Refusal
		switch {
		case c.says == "" && err != nil:
			t.Errorf("%q: %v", c.mig, err)
		case c.says != "":
			if !errors.As(err, &r) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%q: %v, want %q", c.mig, err, c.says)
			}
		default:
			var all []string
			for _, p := range got.MIG {
				all = append(all, fmt.Sprint(p.Address, " ", strings.Join(p.Profiles, ","), " ", p.Reset))
			}
			if s := strings.Join(all, "; "); s != c.want {
				t.Errorf("%q: %s, want %s", c.mig, s, c.want)
			}
		}
	}
}

func TestWhatServersAddIsPlannedOrRefusedWithAReason(t *testing.T) {
	grid := Runfile{Name: "NVIDIA-Linux-x86_64-550.54.14-grid.run", SHA256: "ab", Version: "550.54.14", Arch: "x86_64"}
	plain := Runfile{Name: "NVIDIA-Linux-x86_64-550.54.14.run", SHA256: "ab", Version: "550.54.14", Arch: "x86_64"}
	token := Token{Name: "t.tok", SHA256: "cd"}
	const vgpu = "10de:2236:10de:14b6" // an A10's
	for _, c := range []struct {
		name, as, gpu string
		want          Want
		edit          func(*facts.Facts)
		says          string // of the refusal, "" none
		nearest, warn string
	}{
		{name: "docker", as: "ubuntu:22.04", gpu: t4, want: Want{ContainerToolkit: EngineDocker}, edit: engines("docker"), warn: "docker is restarted"},
		{name: "podman is not restarted", as: "rocky:9", gpu: t4, want: Want{ContainerToolkit: EnginePodman}, edit: engines("podman")},
		{name: "another engine", as: "ubuntu:22.04", gpu: t4, want: Want{ContainerToolkit: "crio"}, says: "one of docker, containerd, podman"},
		{name: "no docker", as: "ubuntu:22.04", gpu: t4, want: Want{ContainerToolkit: EngineDocker}, edit: engines("containerd"), says: "no docker: install it first"},
		{name: "no systemd", as: "ubuntu:22.04", gpu: t4, want: Want{ContainerToolkit: EngineDocker}, edit: func(f *facts.Facts) { f.Init.Name = "sysv" }, says: "init system is sysv"},
		{name: "tdnf", as: "azurelinux:3.0", gpu: t4, want: Want{ContainerToolkit: EngineContainerd}, edit: engines("containerd"), says: "does not check the signature"},
		{name: "tdnf with the package there", as: "azurelinux:3.0", gpu: t4, want: Want{ContainerToolkit: EnginePodman},
			edit: func(f *facts.Facts) {
				f.Packages = map[string]string{"nvidia-container-toolkit": "1.18.0-1.azl3"}
			}},

		{name: "MIG without systemd", as: "ubuntu:22.04", gpu: a100, want: Want{MIG: "1g.5gb"}, edit: func(f *facts.Facts) { f.Init.Name = "sysv" }, says: "init system is sysv"},
		{name: "MIG on an older driver", as: "ubuntu:22.04", gpu: b300, want: Want{MIG: "1g.34gb", Source: SourceRunfile, Driver: "570"}, says: "needs branch 580 or newer"},
		{name: "MIG warns of CUDA", as: "ubuntu:22.04", gpu: a100, want: Want{MIG: "1g.5gb"}, warn: "CUDA lists instances"},

		{name: "GDS", as: "ubuntu:22.04", gpu: a100, want: Want{GDS: true}},
		{name: "GDS and Volta", as: "ubuntu:22.04", gpu: v100, want: Want{GDS: true}, says: "which do not drive Tesla V100"},
		{name: "GDS and the proprietary modules", as: "ubuntu:22.04", gpu: a100, want: Want{GDS: true, Flavor: FlavorProprietary}, says: "goes with the open modules", nearest: "--flavor open"},
		{name: "GDS beside the distribution's driver", as: "ubuntu:22.04", gpu: a100, want: Want{GDS: true, Source: SourceDistro, Flavor: FlavorOpen}, says: "in NVIDIA's repository alone", nearest: "--source nvidia"},

		{name: "peermem", as: "ubuntu:22.04", gpu: a100, want: Want{Peermem: true}},
		{name: "peermem before there was one", as: "debian:11", gpu: gtx480, want: Want{Peermem: true, Source: SourceRunfile}, says: "from branch 470 on"},

		{name: "a virtual GPU", as: "ubuntu:22.04", gpu: vgpu, says: "give both by --runfile and --vgpu-license-token"},
		{name: "a virtual GPU without a token", as: "ubuntu:22.04", gpu: vgpu, want: Want{Runfile: grid}, says: "give the token by"},
		{name: "a virtual GPU without a driver", as: "ubuntu:22.04", gpu: vgpu, want: Want{License: token}, says: "give the driver by --runfile"},
		{name: "a virtual GPU with both", as: "ubuntu:22.04", gpu: vgpu, want: Want{Runfile: grid, License: token}},
		{name: "a virtual GPU with a driver for whole ones", as: "ubuntu:22.04", gpu: vgpu, want: Want{Runfile: plain, License: token}, warn: "not named like a vGPU guest's driver"},
		{name: "a virtual GPU without a GSP", as: "ubuntu:22.04", gpu: vgpu, want: Want{Runfile: grid, License: token, Flavor: FlavorOpen}, says: "which has no GSP"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, d := guest(t, c.as, c.gpu)
			if c.edit != nil {
				c.edit(&f)
			}
			got, err := Make(f, d, c.want)
			var r *Refusal
			if errors.As(err, &r) {
				if c.says == "" || !strings.Contains(err.Error(), c.says) || c.nearest != "" && r.Nearest != c.nearest {
					t.Errorf("%v, want %q, nearest %q", err, c.says, c.nearest)
				}
				return
			}
			if err != nil || c.says != "" {
				t.Fatalf("error %v, want a refusal with %q", err, c.says)
			}
			warned := strings.Join(got.Warnings, "\n")
			if c.warn != "" && !strings.Contains(warned, c.warn) {
				t.Errorf("warnings %q, want %q", warned, c.warn)
			}
			if c.warn == "" && (strings.Contains(warned, "restarted") || strings.Contains(warned, "vGPU")) {
				t.Errorf("warnings %q", warned)
			}
		})
	}
}

func FuzzLayout(f *testing.F) {
	for _, s := range []string{"3g.20gb,1g.5gb*4", "0=7g.80gb;1=off", "off", "0000:01:00.0=1g.5gb+me.all", "1g.5gb*7;", "=,*"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r := request{w: Want{MIG: s}, gpus: []GPU{{Address: "0000:01:00.0"}, {Address: "0000:02:00.0"}}}
		layout, err := r.parseMIG()
		if err != nil {
			return
		}
		for _, profiles := range layout {
			for _, p := range profiles {
				if !profile.MatchString(p) {
					t.Errorf("%q: profile %q", s, p)
				}
			}
			if len(profiles) > 7 {
				t.Errorf("%q: %d instances", s, len(profiles))
			}
		}
	})
}
