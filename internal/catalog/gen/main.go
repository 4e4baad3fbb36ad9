// Command gen writes assets/gpus.tsv, assets/vgpus.tsv and the tables of installers and toolkits from the
// collected tables.
//
// It leaves out what repeats: a subsystem row stays only when its name differs from its device's, since
// everything else is the same for all subsystems of a device (it fails when that is not so).
package main

import (
	"bufio"
	"cmp"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("gen: ")
	from := flag.String("from", "", "directory with the collected gpus.tsv and gpus_vgpu_subsystems.tsv")
	to := flag.String("to", "assets", "directory to write to")
	flag.Parse()
	if *from == "" {
		log.Fatal("-from is needed")
	}
	if err := run(*from, *to); err != nil {
		log.Fatal(err)
	}
}

func run(from, to string) error {
	gpus, err := read(filepath.Join(from, "gpus.tsv"))
	if err != nil {
		return err
	}
	vgpus, err := read(filepath.Join(from, "gpus_vgpu_subsystems.tsv"))
	if err != nil {
		return err
	}
	text, err := gpuTable(gpus)
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(filepath.Join(to, "gpus.tsv"), []byte(text), 0o644),
		os.WriteFile(filepath.Join(to, "vgpus.tsv"), []byte(vgpuTable(vgpus)), 0o644),
		methodTables(from, to),
	)
}

type row map[string]string

func read(path string) ([]row, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var head []string
	var rows []row
	for s := bufio.NewScanner(f); s.Scan(); {
		fields := strings.Split(s.Text(), "\t")
		if head == nil {
			head = fields
			continue
		}
		r := row{}
		for i, name := range head {
			if i < len(fields) {
				r[name] = fields[i]
			}
		}
		rows = append(rows, r)
	}
	return rows, nil
}

func gpuTable(rows []row) (string, error) {
	slices.SortFunc(rows, func(a, b row) int {
		return cmp.Or(cmp.Compare(a["pci_id"], b["pci_id"]), cmp.Compare(a["subsystem"], b["subsystem"]))
	})
	var out strings.Builder
	out.WriteString("device\tsubsystem\tname\tarch\topen\tproprietary\tfirst\tlast\tsource\n")
	var base row
	for _, r := range rows {
		device := strings.TrimPrefix(r["pci_id"], "10de:")
		if r["subsystem"] != "" {
			if base == nil || base["pci_id"] != r["pci_id"] {
				return "", fmt.Errorf("%s %s has no row of its own device", r["pci_id"], r["subsystem"])
			}
			for _, c := range []string{"arch", "open_modules", "proprietary_modules", "last_branch"} {
				if r[c] != base[c] {
					return "", fmt.Errorf("%s %s: %s differs from its device's", r["pci_id"], r["subsystem"], c)
				}
			}
			if r["name"] != base["name"] {
				fmt.Fprintf(&out, "%s\t%s\t%s\n", device, r["subsystem"], r["name"])
			}
			continue
		}
		base = r
		first := first(rows, r)
		last := r["last_branch"]
		if last == "current" {
			last = ""
		}
		fmt.Fprintf(&out, "%s\t\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", device, r["name"], cmp.Or(r["arch"], "unknown"),
			r["open_modules"], proprietary(r["proprietary_modules"]), first, last, r["source"])
	}
	return out.String(), nil
}

// proprietary keeps yes, no and unknown; the branch in "yes(<=580)" repeats last_branch, and the one in
// "yes(<=615)" is what the branch table says of 620.
func proprietary(s string) string {
	s, _, _ = strings.Cut(s, "(")
	return s
}

// first returns the oldest branch that drives a GPU: by its architecture's first branch (branches.tsv,
// arch columns), or, for a GPU that only the open modules drive, by the first of their READMEs that lists it.
func first(rows []row, r row) string {
	byArch := map[string]int{"Fermi": 340, "Kepler": 340, "Maxwell": 340, "Pascal": 375, "Volta": 384, "Turing": 410,
		"Ampere": 455, "Ada": 520, "Hopper": 520, "Blackwell": 570, "Rubin": 616}
	n := byArch[r["arch"]]
	if r["chip"] == "GA100" {
		n = 450
	}
	if r["open_modules"] == "required" {
		listed := 0
		for _, o := range rows {
			major, _, _ := strings.Cut(o["first_open_tag"], ".")
			if m, err := strconv.Atoi(major); err == nil && o["pci_id"] == r["pci_id"] && (listed == 0 || m < listed) {
				listed = m
			}
		}
		n = max(n, listed)
	}
	if n == 0 {
		return ""
	}
	return strconv.Itoa(n)
}

func vgpuTable(rows []row) string {
	type subs struct{ gsp, noGSP []string }
	devices := map[string]*subs{}
	for _, r := range rows {
		d := strings.TrimPrefix(r["pci_id"], "10de:")
		if devices[d] == nil {
			devices[d] = &subs{}
		}
		if strings.Contains(r["installer_flags"], "VGPU_NO_GSP") {
			devices[d].noGSP = append(devices[d].noGSP, r["subsystem"])
		} else {
			devices[d].gsp = append(devices[d].gsp, r["subsystem"])
		}
	}
	var names []string
	for d := range devices {
		names = append(names, d)
	}
	slices.Sort(names)
	var out strings.Builder
	out.WriteString("device\tsubsystems\tsubsystems_without_gsp\n")
	for _, d := range names {
		slices.Sort(devices[d].gsp)
		slices.Sort(devices[d].noGSP)
		fmt.Fprintf(&out, "%s\t%s\t%s\n", d, strings.Join(devices[d].gsp, " "), strings.Join(devices[d].noGSP, " "))
	}
	return out.String()
}
