package main

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// methodTables writes the tables of what NVIDIA ships besides packages: installers with their checksums and
// options, CUDA toolkits, and the compute capability of each GPU. A table whose collected form is not there is
// left as it is.
func methodTables(from, to string) error {
	for _, t := range []struct {
		from, to string
		text     func([]row) (string, error)
	}{
		{"cuda.tsv", "toolkits.tsv", toolkitTable},
		{"cuda_runfiles.tsv", "toolkit_runfiles.tsv", toolkitRunfileTable},
		{"driver_run_sha256.tsv", "driver_runfiles.tsv", driverRunfileTable},
		{"checksums_misc.tsv", "cuda_samples.tsv", sampleTable},
		{"installer_options.tsv", "installer_options.tsv", optionTable},
		{"gpus.tsv", "capabilities.tsv", capabilityTable},
	} {
		rows, err := read(filepath.Join(from, t.from))
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			return err
		}
		text, err := t.text(rows)
		if err != nil {
			return fmt.Errorf("%s: %w", t.from, err)
		}
		if err := os.WriteFile(filepath.Join(to, t.to), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// byVersion sorts rows by a column that holds a version, oldest first, and then by another.
func byVersion(rows []row, version, then string) {
	slices.SortStableFunc(rows, func(a, b row) int {
		return cmp.Or(slices.Compare(numbers(a[version]), numbers(b[version])), cmp.Compare(a[then], b[then]))
	})
}

func numbers(version string) []int {
	var out []int
	for _, s := range strings.Split(strings.TrimPrefix(version, "<="), ".") {
		n, _ := strconv.Atoi(s)
		out = append(out, n)
	}
	return out
}

// lacks are compute capabilities that lie between a toolkit's oldest and newest and that it does not know:
// 10.3 came with 12.9 and 10.7 with 13.4, after larger numbers (CUDA release notes).
func lacks(version string) string {
	v := numbers(version)
	switch {
	case slices.Compare(v, []int{12, 8}) >= 0 && slices.Compare(v, []int{12, 9}) < 0:
		return "10.3"
	case slices.Compare(v, []int{12, 9}) >= 0 && slices.Compare(v, []int{13, 4}) < 0:
		return "10.7"
	}
	return ""
}

func toolkitTable(rows []row) (string, error) {
	byVersion(rows, "cuda", "")
	var out strings.Builder
	out.WriteString("toolkit\tdriver\tmin_driver\tgcc_min\tgcc_max\tcc_min\tcc_max\tcc_lacks\tsamples\tstate\tsource\n")
	for _, r := range rows {
		state, source := "released", "CUDA toolkit release notes; compilers and capabilities: spack cuda/package.py, build_systems/cuda.py"
		if strings.Contains(r["notes"], "preview") {
			state = "preview"
		}
		if strings.Contains(r["notes"], "runfile name") && !strings.Contains(r["notes"], "bundles") {
			source = "its runfile's name; compilers and capabilities: spack cuda/package.py, build_systems/cuda.py"
		}
		driver := r["toolkit_driver_linux"]
		// A toolkit works with the driver in its own runfile, which for 9.1.85 is older than the notes ask for.
		if _, bundled, ok := strings.Cut(r["notes"], "runfile bundles "); ok && slices.Compare(numbers(bundled), numbers(driver)) < 0 {
			driver = bundled
			source += "; the driver in its runfile"
		}
		ccMax, _, _ := strings.Cut(r["cc_max"], " ")
		gccMax, _, _ := strings.Cut(r["gcc_max"], ".")
		fmt.Fprintf(&out, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", r["cuda"], driver, r["minor_compat_min_driver"],
			r["gcc_min"], gccMax, r["cc_min"], ccMax, lacks(r["cuda"]), r["samples_in_toolkit"], state, source)
	}
	return out.String(), nil
}

func toolkitRunfileTable(rows []row) (string, error) {
	byVersion(rows, "cuda", "arch")
	var out strings.Builder
	out.WriteString("toolkit\tarch\tdriver\tsha256\turl\tsource\n")
	for _, r := range rows {
		fmt.Fprintf(&out, "%s\t%s\t%s\t%s\t%s\tspack/spack-packages cuda/package.py\n", r["cuda"], r["arch"], r["bundled_driver"], r["sha256"], r["url"])
	}
	return out.String(), nil
}

// sampleTable takes the archives of cuda-samples from among other checksums.
func sampleTable(rows []row) (string, error) {
	rows = slices.DeleteFunc(rows, func(r row) bool { return r["kind"] != "cuda-samples tarball" })
	for _, r := range rows {
		r["key"] = strings.TrimPrefix(r["key"], "v")
	}
	byVersion(rows, "key", "")
	var out strings.Builder
	out.WriteString("cuda\tsha256\turl\tsource\n")
	for _, r := range rows {
		fmt.Fprintf(&out, "%s\t%s\t%s\tGoogleCloudPlatform/compute-gpu-installation config.py\n", r["key"], r["sha256"], r["url"])
	}
	return out.String(), nil
}

// driverRunfileTable leaves out the drivers of virtual GPUs: they come with the host's, under licence, and from
// nowhere that everybody may fetch them from.
func driverRunfileTable(rows []row) (string, error) {
	byVersion(rows, "version", "arch")
	var out strings.Builder
	out.WriteString("version\tarch\tsha256\turl\tsource\n")
	for _, r := range rows {
		if r["variant"] == "" {
			source, _, _ := strings.Cut(r["source"], "@")
			fmt.Fprintf(&out, "%s\t%s\t%s\t%s\t%s\n", r["version"], r["arch"], r["sha256"], r["url_guess"], source)
		}
	}
	return out.String(), nil
}

func optionTable(rows []row) (string, error) {
	slices.SortFunc(rows, func(a, b row) int { return cmp.Compare(a["option"], b["option"]) })
	var out strings.Builder
	out.WriteString("option\tshort\tkind\tfirst\tlast\tuninstall\tsource\n")
	for _, r := range rows {
		uninstall := "no"
		if r["applies_to_nvidia_uninstall"] != "" {
			uninstall = "yes"
		}
		fmt.Fprintf(&out, "%s\t%s\t%s\t%s\t%s\t%s\tNVIDIA/nvidia-installer option_table.h, tags 302.07 to 590.48.01\n",
			r["option"], r["short"], r["kind"], strings.TrimPrefix(r["first_tag"], "<="), r["last_tag_if_dropped"], uninstall)
	}
	return out.String(), nil
}

// capabilityTable joins devices that follow one another in the table of GPUs and have one capability. Only a
// device of that table may be looked up in it: what lies between two of a range is nobody's word.
func capabilityTable(rows []row) (string, error) {
	slices.SortStableFunc(rows, func(a, b row) int { return cmp.Compare(a["pci_id"], b["pci_id"]) })
	var out strings.Builder
	out.WriteString("first\tlast\tcapability\tsource\n")
	first, last, cc := "", "", ""
	flush := func() {
		if cc != "" {
			fmt.Fprintf(&out, "%s\t%s\t%s\tchip names of pci.ids; developer.nvidia.com cuda-gpus and cuda-legacy-gpus\n", first, last, cc)
		}
	}
	for _, r := range rows {
		device := strings.TrimPrefix(r["pci_id"], "10de:")
		if device == last {
			if r["cc"] != cc {
				return "", fmt.Errorf("%s %s: its capability differs from its device's", r["pci_id"], r["subsystem"])
			}
			continue
		}
		if r["cc"] != cc {
			flush()
			first, cc = device, r["cc"]
		}
		last = device
	}
	flush()
	return out.String(), nil
}
