package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const head = "pci_id\tsubsystem\tname\tchip\tarch\topen_modules\tproprietary_modules\tlast_branch\tfirst_open_tag\tsource\n"

func write(t *testing.T, dir, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestTablesAreSortedAndKeepOnlyWhatDiffers(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	write(t, from, "gpus.tsv", head+
		"10de:2b85\t\tRTX\tGB202\tBlackwell\trequired\tno\tcurrent\t\topen-README\n"+
		"10de:1eb8\t10de:12a2\tTesla T4\tTU104\tTuring\tyes\tyes(<=615)\tcurrent\t575.51.02\topen-README\n"+
		"10de:1eb8\t10de:ffff\tT4G\tTU104\tTuring\tyes\tyes(<=615)\tcurrent\t\topen-README\n"+
		"10de:1eb8\t\tTesla T4\tTU104\tTuring\tyes\tyes(<=615)\tcurrent\t575.51.02\topen-README\n"+
		"10de:3182\t\tB300\tGB110\tBlackwell\trequired\tno\tcurrent\t580.82.07\topen-README\n"+
		"10de:0046\t\tGeForce 6800 GT\t\t\tno\tyes(<=304)\t304\t\tnvGpus.h-legacy\n")
	write(t, from, "gpus_vgpu_subsystems.tsv", "pci_id\tsubsystem\tinstaller_flags\n10de:1eb8\t10de:2222\tVGPU_GUEST\n10de:1eb8\t10de:1111\tVGPU_GUEST|VGPU_NO_GSP\n10de:1e37\t10de:3333\tVGPU_GUEST\n")
	if err := run(from, to); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"gpus.tsv": "device\tsubsystem\tname\tarch\topen\tproprietary\tfirst\tlast\tsource\n" +
			"0046\t\tGeForce 6800 GT\tunknown\tno\tyes\t\t304\tnvGpus.h-legacy\n" +
			"1eb8\t\tTesla T4\tTuring\tyes\tyes\t410\t\topen-README\n" +
			"1eb8\t10de:ffff\tT4G\n" +
			"2b85\t\tRTX\tBlackwell\trequired\tno\t570\t\topen-README\n" +
			"3182\t\tB300\tBlackwell\trequired\tno\t580\t\topen-README\n",
		"vgpus.tsv": "device\tsubsystems\tsubsystems_without_gsp\n1e37\t10de:3333\t\n1eb8\t10de:2222\t10de:1111\n",
	} {
		got, err := os.ReadFile(filepath.Join(to, name))
		if err != nil || string(got) != want {
			t.Errorf("%s:\n%s\nwant\n%s%v", name, got, want, err)
		}
	}
}

func TestASubsystemThatDiffersFromItsDeviceIsAnError(t *testing.T) {
	for _, rows := range []string{
		"10de:1eb8\t\tTesla T4\tTU104\tTuring\tyes\tyes\tcurrent\t\tx\n10de:1eb8\t10de:12a2\tTesla T4\tTU104\tTuring\tno\tyes\tcurrent\t\tx\n",
		"10de:1eb8\t10de:12a2\tTesla T4\tTU104\tTuring\tno\tyes\tcurrent\t\tx\n",
	} {
		from := t.TempDir()
		write(t, from, "gpus.tsv", head+rows)
		write(t, from, "gpus_vgpu_subsystems.tsv", "pci_id\tsubsystem\tinstaller_flags\n")
		if err := run(from, t.TempDir()); err == nil || !strings.Contains(err.Error(), "10de:1eb8 10de:12a2") {
			t.Errorf("%q: %v", rows, err)
		}
	}
}
