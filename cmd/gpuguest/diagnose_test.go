package main

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"gpuguest/internal/diagnosis"
)

// recordedLog is a log of testdata/logs as text.
func recordedLog(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("../../testdata/logs", name))
	if err != nil {
		t.Fatal(err)
	}
	if strings.HasSuffix(name, ".gz") {
		zip, err := gzip.NewReader(bytes.NewReader(data))
		if err != nil {
			t.Fatal(err)
		}
		if data, err = io.ReadAll(zip); err != nil {
			t.Fatal(err)
		}
	}
	return string(data)
}

// diagnosed are the ids that diagnose finds in the pretend guest, over SSH.
func (g *inProcess) diagnosed(t *testing.T) []string {
	t.Helper()
	code, out, progress := command(t, append([]string{"diagnose", "--json"}, g.flags...)...)
	var said struct{ Verdicts []diagnosis.Verdict }
	if err := json.Unmarshal([]byte(out), &said); err != nil {
		t.Fatalf("%v: exit %d: %s%s", err, code, out, progress)
	}
	ids := []string{}
	for _, v := range said.Verdicts {
		if v.Severity != diagnosis.Info {
			ids = append(ids, v.ID)
		}
	}
	return ids
}

// quietGuest is a pretend guest whose kernel and tools have nothing to tell.
func quietGuest(t *testing.T) *inProcess {
	t.Helper()
	g := newInProcess(t)
	for _, quiet := range []string{"dmesg", "journalctl", "nvidia-smi"} {
		g.shell.Tool(quiet, "exit 0")
	}
	return g
}

// A package manager's log keeps every run. What counts is the last that was to change something: an earlier failure
// may be put right, and a question or a timer's run that came after says nothing of it.
func TestThePackageManagersLastRunIsReadOverSSH(t *testing.T) {
	t.Parallel()
	dnf, good := recordedLog(t, "dnf-no-dkms.dnf.log"), recordedLog(t, "clean-dnf.log")
	asked := strings.ReplaceAll(strings.ReplaceAll(recordedLog(t, "clean-dnf.log"), " install ", " repoquery "), "Base command: install", "Base command: repoquery")
	const dnf5 = `2026-11-22T21:14:02+0000 [2210] INFO --- DNF5 launched with arguments: "dnf -y install kmod-nvidia-open-dkms" ---
2026-11-22T21:14:03+0000 [2210] ERROR Problem: nothing provides dkms needed by kmod-nvidia-open-dkms-3:595.71.05-1.fc43.noarch from cuda-fedora43-x86_64
`
	const dnf5Good = `2026-11-22T21:15:02+0000 [2311] INFO --- DNF5 launched with arguments: "dnf -y install kmod-nvidia-open-dkms" ---
2026-11-22T21:15:03+0000 [2311] INFO DNF5 finished
`
	history, historyGood := recordedLog(t, "zypper-disk-full.history.txt"), recordedLog(t, "clean-zypp-history.txt")
	zypper, zypperGood := recordedLog(t, "zypper-needs.zypper.log.gz"), recordedLog(t, "clean-zypper.log.gz")
	noEPEL := []string{"dnf-dkms", "rpm-nothing-provides", "rpm-unresolved"}
	for _, c := range []struct {
		name, file, log string
		want            []string
	}{
		{"dnf failed", "dnf.log", dnf, noEPEL},
		{"dnf failed after it had been well", "dnf.log", good + dnf, noEPEL},
		{"dnf failed and was asked something since", "dnf.log", dnf + asked, noEPEL},
		{"dnf failed and was well since", "dnf.log", dnf + good, nil},
		{"dnf was only asked", "dnf.log", asked, nil},
		{"a script failed", "dnf.rpm.log", recordedLog(t, "dnf-post-script.rpm.log"), []string{"dkms-bad-return", "rpm-scriptlet-warned"}},
		{"dnf 5 failed", "dnf5.log", dnf5, []string{"dnf-dkms", "rpm-nothing-provides"}},
		{"dnf 5 failed and was well since", "dnf5.log", dnf5 + dnf5Good, nil},
		{"zypper failed", "zypper.log", zypperGood + zypper, []string{"rpm-nothing-provides"}},
		{"zypper failed and was well since", "zypper.log", zypper + zypperGood, nil},
		{"zypper installed on a full disk", "zypp/history", historyGood + history, []string{"rpm-no-space"}},
		{"and was well since", "zypp/history", history + historyGood, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			g := quietGuest(t)
			g.write(t, map[string]string{"var/log/" + c.file: c.log})
			if got := g.diagnosed(t); !slices.Equal(got, c.want) {
				t.Errorf("%v, want %v", got, c.want)
			}
		})
	}
}
