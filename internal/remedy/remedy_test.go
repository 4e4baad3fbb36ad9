package remedy

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"gpuguest/internal/choice"
	"gpuguest/internal/diagnosis"
	"gpuguest/internal/facts"
)

func TestEveryFixOfTheCatalogueIsInTheTableAndEveryRowIsUsed(t *testing.T) {
	all, err := All()
	if err != nil {
		t.Fatal(err)
	}
	signatures, err := diagnosis.Signatures()
	if err != nil {
		t.Fatal(err)
	}
	used := make(map[string]bool)
	for _, s := range signatures {
		for _, fix := range s.Fixes {
			used[fix] = true
			m, ok := Lookup(fix)
			if !ok {
				t.Errorf("%s: no remedy %q", s.ID, fix)
			}
			if s.Where == diagnosis.Host || s.Where == diagnosis.Hardware {
				t.Errorf("%s lies at the %s, and %q works in the guest", s.ID, s.Where, m.Fix)
			}
		}
	}
	for _, m := range all {
		if !used[m.Fix] {
			t.Errorf("nothing is put right by %q", m.Fix)
		}
		if m.Does == "" || !slices.Contains([]string{KernelArg, ModuleOption, Initramfs, Flavor, Reboot, Step}, m.Kind()) {
			t.Errorf("%+v", m)
		}
		if m.Kind() == Step && !m.Safe {
			t.Errorf("%s is what every install does, and is not called safe", m.Fix)
		}
		if m.Kind() == Flavor && m.Safe {
			t.Errorf("%s exchanges packages and is called safe", m.Fix)
		}
	}
}

// record writes a journal of trials, "try kernel-arg pci=realloc" a line.
func record(events ...string) string {
	var b strings.Builder
	for _, e := range events {
		event, fix, _ := strings.Cut(e, " ")
		fmt.Fprintf(&b, `{"time":"2026-11-22T10:00:00Z","boot":"b","event":%q,"remedy":%q,"cause":"bar-zero","with":"driver , kernel "}`+"\n", event, fix)
	}
	return b.String()
}

func TestWantFollowsTheJournal(t *testing.T) {
	const on, off = "kernel-arg pci=realloc", "kernel-arg pci=realloc=off"
	const hmm = "module-option nvidia_uvm uvm_disable_hmm=1"
	for name, c := range map[string]struct {
		journal string
		want    choice.Want
		is      choice.Want
	}{
		"nothing was tried":       {"", choice.Want{Driver: "580"}, choice.Want{Driver: "580"}},
		"on trial":                {record("try " + on), choice.Want{KernelArgs: []string{"quiet"}}, choice.Want{KernelArgs: []string{"quiet", "pci=realloc"}}},
		"kept needs nothing":      {record("try "+on, "kept "+on), choice.Want{}, choice.Want{}},
		"to be taken back":        {record("try "+on, "undone "+on), choice.Want{}, choice.Want{DropArgs: []string{"pci=realloc"}}},
		"one after the other":     {record("try "+on, "undone "+on, "try "+off), choice.Want{}, choice.Want{DropArgs: []string{"pci=realloc"}, KernelArgs: []string{"pci=realloc=off"}}},
		"taken back":              {record("try "+on, "undone "+on, "back "+on), choice.Want{}, choice.Want{}},
		"what was kept gives way": {record("try "+on, "kept "+on, "try "+off), choice.Want{}, choice.Want{KernelArgs: []string{"pci=realloc=off"}, DropArgs: []string{"pci=realloc"}}},
		"and comes back":          {record("try "+on, "kept "+on, "try "+off, "undone "+off), choice.Want{}, choice.Want{KernelArgs: []string{"pci=realloc"}, DropArgs: []string{"pci=realloc=off"}}},
		"unless it was in vain":   {record("try "+on, "kept "+on, "try "+on, "undone "+on, "back "+on, "try "+off, "undone "+off), choice.Want{}, choice.Want{DropArgs: []string{"pci=realloc=off"}}},
		"tried a second time":     {record("try "+on, "undone "+on, "back "+on, "try "+on), choice.Want{}, choice.Want{KernelArgs: []string{"pci=realloc"}}},
		"an uninstall ends it":    {record("try "+on, "uninstalled"), choice.Want{}, choice.Want{}},
		"a torn line":             {record("try " + on)[:40] + "\n" + record("try "+off), choice.Want{}, choice.Want{KernelArgs: []string{"pci=realloc=off"}}},
		"a module's option":       {record("try " + hmm), choice.Want{}, choice.Want{ModuleOptions: []string{"nvidia_uvm uvm_disable_hmm=1"}}},
		"and its way back":        {record("try "+hmm, "undone "+hmm), choice.Want{}, choice.Want{DropOptions: []string{"nvidia_uvm uvm_disable_hmm=1"}}},
		"firmware":                {record("try initramfs firmware"), choice.Want{}, choice.Want{Firmware: true}},
		"no firmware":             {record("try initramfs firmware", "undone initramfs firmware"), choice.Want{}, choice.Want{DropFirmware: true}},
		"flavor":                  {record("try flavor open"), choice.Want{}, choice.Want{Flavor: "open"}},
		"the user's flavor":       {record("try flavor open"), choice.Want{Flavor: "proprietary"}, choice.Want{Flavor: "proprietary"}},
		"a boot is no wish":       {record("try reboot"), choice.Want{}, choice.Want{}},
	} {
		args := slices.Clone(c.want.KernelArgs)
		if got := Want(c.want, c.journal); !reflect.DeepEqual(got, c.is) {
			t.Errorf("%s: %+v, want %+v", name, got, c.is)
		}
		if !slices.Equal(args, c.want.KernelArgs) {
			t.Errorf("%s: what the user said was written over", name)
		}
	}
}

func TestNobodysArgumentIsContradicted(t *testing.T) {
	m, ok := Lookup("kernel-arg pci=realloc=off")
	if !ok {
		t.Fatal("no such remedy")
	}
	mine := record("try kernel-arg pci=realloc", "undone kernel-arg pci=realloc")
	for name, c := range map[string]struct {
		want    choice.Want
		facts   facts.Facts
		against bool
	}{
		"nothing there":         {choice.Want{}, facts.Facts{}, false},
		"other arguments":       {choice.Want{KernelArgs: []string{"iommu=pt"}}, facts.Facts{Kernel: facts.Kernel{Cmdline: []string{"quiet", "pcie_aspm=off"}}}, false},
		"the user's":            {choice.Want{KernelArgs: []string{"pci=realloc"}}, facts.Facts{}, true},
		"the user's of before":  {choice.Want{}, facts.Facts{State: facts.State{KernelArgs: []string{"pci=nocrs"}}}, true},
		"the guest's owner's":   {choice.Want{}, facts.Facts{Kernel: facts.Kernel{NextCmdline: []string{"pci=noaer"}}}, true},
		"gpuguest's own":        {choice.Want{}, facts.Facts{Kernel: facts.Kernel{Cmdline: []string{"pci=realloc"}}, State: facts.State{KernelArgs: []string{"pci=realloc"}, Journal: mine}}, false},
		"both":                  {choice.Want{KernelArgs: []string{"pci=realloc"}}, facts.Facts{State: facts.State{KernelArgs: []string{"pci=realloc"}, Journal: mine}}, true},
		"the user's after that": {choice.Want{}, facts.Facts{State: facts.State{KernelArgs: []string{"pci=realloc"}, Journal: mine + record("back kernel-arg pci=realloc")}}, true},
		"to be dropped":         {choice.Want{DropArgs: []string{"pci=realloc=off"}}, facts.Facts{}, true},
	} {
		if got := m.Against(c.want, c.facts); (got != "") != c.against {
			t.Errorf("%s: %q", name, got)
		}
	}
}

func TestWhatWasTriedInVainIsTriedAgainInAnotherSituation(t *testing.T) {
	f := facts.Facts{Kernel: facts.Kernel{Next: "6.1.0-50-amd64"}, Driver: facts.Driver{Next: facts.Module{Version: "580.95.05"}}}
	trials := []Trial{{Fix: "reboot", With: With(f), State: Back}}
	if !InVain(trials, "reboot", f) {
		t.Error("tried again in the same situation")
	}
	f.Driver.Next.Version = "595.71.05"
	if InVain(trials, "reboot", f) {
		t.Error("not tried again with another driver")
	}
	trials[0].With, trials[0].State = With(f), Kept
	if InVain(trials, "reboot", f) {
		t.Error("what helped counts as in vain")
	}
}

func TestPromisesAreThoseThatWouldBeKept(t *testing.T) {
	has := func(w choice.Want, f facts.Facts, cause, fix string) bool {
		t.Helper()
		all, err := Promises(w, f)
		if err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(all, func(p Promise) bool {
			return slices.Contains(p.Causes, cause) && slices.ContainsFunc(p.Fixes, func(m Remedy) bool { return m.Fix == fix })
		})
	}
	if !has(choice.Want{}, facts.Facts{}, "bar-zero", "kernel-arg pci=realloc=off") || !has(choice.Want{}, facts.Facts{}, "uvm-hmm", "module-option nvidia_uvm uvm_disable_hmm=1") {
		t.Error("a safe remedy is not told")
	}
	if has(choice.Want{KernelArgs: []string{"pci=nocrs"}}, facts.Facts{}, "bar-zero", "kernel-arg pci=realloc") {
		t.Error("what contradicts the user is promised")
	}
	if has(choice.Want{}, facts.Facts{State: facts.State{Journal: record("try kernel-arg pci=realloc", "undone kernel-arg pci=realloc")}}, "bar-zero", "kernel-arg pci=realloc") {
		t.Error("what was tried in vain is promised")
	}
	if has(choice.Want{}, facts.Facts{}, "requires-open", "flavor open") {
		t.Error("what is done only when asked is promised")
	}
}

// The recordings are of guests in which nothing was tried: their plans must not change for it.
func TestNoRecordedGuestIsOnTrial(t *testing.T) {
	files, err := filepath.Glob("../../testdata/guests/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("%d recordings, %v", len(files), err)
	}
	for _, name := range files {
		raw, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		f, err := facts.Parse(raw)
		if err != nil {
			t.Fatal(err)
		}
		if got := Trials(f.State.Journal); len(got) != 0 {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func FuzzTrials(f *testing.F) {
	f.Add(record("try kernel-arg pci=realloc", "undone kernel-arg pci=realloc", "try reboot"))
	f.Add(`{"event":"try"}` + "\n" + `{"event":"kept","remedy":""}` + "\n\x00{")
	f.Fuzz(func(t *testing.T, journal string) {
		trials := Trials(journal)
		if len(trials) > strings.Count(journal, "\n")+1 {
			t.Errorf("%d trials", len(trials))
		}
		w := Want(choice.Want{KernelArgs: []string{"quiet"}}, journal)
		if w.KernelArgs[0] != "quiet" {
			t.Errorf("%+v", w)
		}
		if left := Trials(journal + "\n" + `{"event":"uninstalled"}` + "\n"); len(left) != 0 {
			t.Errorf("an uninstall left %+v", left)
		}
	})
}
