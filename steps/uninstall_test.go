package steps

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"gpuguest/internal/action"
	"gpuguest/internal/facts"
)

func TestFoldersThatWereOnlyForOurFilesGoWithThem(t *testing.T) {
	i := slices.IndexFunc(remove, func(s Step) bool { return s.ID == "restore-files" })
	for name, theirs := range map[string]string{"empty": "", "with somebody's file": "notes.txt"} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			dir := filepath.Join(root, "usr/local/lib/gpuguest")
			file := filepath.Join(dir, "verify.sh")
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			for _, f := range []string{"verify.sh", theirs} {
				if f == "" {
					continue
				}
				if err := os.WriteFile(filepath.Join(dir, f), nil, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			in := Input{Facts: facts.Facts{State: facts.State{Absent: []string{file}}}}
			if code, text, _ := ask(t, remove[i].Check(in)); code != 1 {
				t.Errorf("before: exit %d: %s", code, text)
			}
			for _, a := range remove[i].Apply(in) {
				if code, text, _ := ask(t, a.(action.Run).Script); code != 0 {
					t.Fatalf("exit %d: %s", code, text)
				}
			}
			if code, text, _ := ask(t, remove[i].Check(in)); code != 0 {
				t.Errorf("after: exit %d: %s", code, text)
			}
			if _, err := os.Stat(dir); (err == nil) != (theirs != "") {
				t.Errorf("its folder: %v", err)
			}
			// An earlier gpuguest left the folder; that counts as not done.
			if theirs == "" {
				if err := os.Mkdir(dir, 0o755); err != nil {
					t.Fatal(err)
				}
				if code, text, _ := ask(t, remove[i].Check(in)); code != 1 {
					t.Errorf("with the empty folder: exit %d: %s", code, text)
				}
			}
		})
	}
	absent := []string{"/etc/modprobe.d/gpuguest.conf", "/etc/systemd/system/nvidia-persistenced.service.d/gpuguest.conf", "/usr/local/lib/gpuguest/a", "/usr/local/lib/gpuguest/b",
		"/etc/systemd/system/multi-user.target.wants/gpuguest-verify.service", "/etc/apt/preferences.d/gpuguest"}
	if got, want := emptied(absent), []string{"/etc/systemd/system/nvidia-persistenced.service.d", "/usr/local/lib/gpuguest"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}
