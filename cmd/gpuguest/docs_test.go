package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"gpuguest/internal/inventory"
)

func doc(t *testing.T, name string) (path, text string) {
	t.Helper()
	path = filepath.Join("..", "..", "docs", name)
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return path, string(raw)
}

// parses says what is wrong with an inventory as --inventory would.
func parses(t *testing.T, name, text string) []inventory.Guest {
	t.Helper()
	b := &batch{app: &app{}}
	got, err := inventory.Parse(inventory.Source{Name: name, Text: []byte(text), Check: b.checkOption()})
	if err != nil {
		t.Fatal(err)
	}
	return got.Guests
}

func TestExampleInventoryIsOne(t *testing.T) {
	t.Parallel()
	_, text := doc(t, "hosts.yaml")
	guests := parses(t, "hosts.yaml", text)
	if len(guests) != 24 {
		t.Errorf("%d guests", len(guests))
	}
}

// TestKubernetesJobIsWhole: it is YAML, its numbers of shares agree, its inventory and its flags are gpuguest's.
func TestKubernetesJobIsWhole(t *testing.T) {
	t.Parallel()
	_, text := doc(t, "kubernetes-job.yaml")
	var job struct {
		Kind string
		Data map[string]string
		Spec struct {
			CompletionMode           string `yaml:"completionMode"`
			Completions, Parallelism int
			Template                 struct {
				Spec struct {
					RestartPolicy string `yaml:"restartPolicy"`
					Containers    []struct{ Args []string }
				}
			}
		}
	}
	kinds := ""
	for dec := yaml.NewDecoder(strings.NewReader(text)); ; {
		job.Data = nil
		err := dec.Decode(&job)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		kinds += job.Kind + " "
		for name, text := range job.Data {
			if guests := parses(t, name, text); len(guests) != 40 {
				t.Errorf("%d guests", len(guests))
			}
		}
	}
	if kinds != "ConfigMap Job " || job.Spec.CompletionMode != "Indexed" || job.Spec.Template.Spec.RestartPolicy != "Never" || len(job.Spec.Template.Spec.Containers) != 1 {
		t.Fatalf("%s%+v", kinds, job)
	}
	args := job.Spec.Template.Spec.Containers[0].Args
	c, rest, err := newRoot(&app{}).Find(args)
	if err != nil || c.Name() != "install" {
		t.Fatalf("%v is %v, %v", args, c, err)
	}
	if err := c.ParseFlags(rest); err != nil {
		t.Fatal(err)
	}
	if n := c.Flags().Lookup("shards").Value.String(); n != strconv.Itoa(job.Spec.Completions) || job.Spec.Parallelism != job.Spec.Completions {
		t.Errorf("%s shares, %d completions, %d at once", n, job.Spec.Completions, job.Spec.Parallelism)
	}
}

// slurmTask runs the script as Slurm would, with a program in the place of gpuguest install.
func slurmTask(t *testing.T, program string) (cmd *exec.Cmd, results string, said *bytes.Buffer) {
	t.Helper()
	path, _ := doc(t, "slurm-array.sh")
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	real, fake := filepath.Join(dir, "gpuguest"), filepath.Join(dir, "fake")
	if err := errors.Join(os.Symlink(self, real), // which TestMain takes for the program
		os.WriteFile(fake, fmt.Appendf(nil, "#!/bin/sh\n[ \"$1\" = install ] || exec '%s' \"$@\"\n%s", real, program), 0o755)); err != nil {
		t.Fatal(err)
	}
	results = filepath.Join(dir, "results")
	cmd = exec.CommandContext(t.Context(), "sh", path)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "SLURM_ARRAY_TASK_ID=3", "INVENTORY=/shared/hosts file", "RESULTS=" + results,
		"GPUGUEST=" + fake, "FLAGS=--canary 1"}
	said = &bytes.Buffer{}
	cmd.Stdout, cmd.Stderr = said, said
	return cmd, filepath.Join(results, "share-3.json"), said
}

func TestSlurmTaskKeepsResultAndCode(t *testing.T) {
	t.Parallel()
	path, _ := doc(t, "slurm-array.sh")
	if out, err := exec.CommandContext(t.Context(), "sh", "-n", path).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	cmd, result, said := slurmTask(t, `printf '%s|' "$@" >"$HOME/args"; printf '`+sharedResult+`'; exit 5`)
	err := cmd.Run()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 5 {
		t.Fatalf("%v: %s", err, said)
	}
	got, err := os.ReadFile(result)
	args, aerr := os.ReadFile(filepath.Join(filepath.Dir(result), "..", "args"))
	if want := "install|--inventory|/shared/hosts file|--json|--canary|1|"; err != nil || aerr != nil || string(got) != sharedResult || string(args) != want {
		t.Errorf("%q, %v, by %q, %v", got, err, args, aerr)
	}
}

const sharedResult = `{"version":1,"guests":[{"host":"a","result":"done","steps":[]}]}`

// TestSlurmTaskWithoutAResultKeepsTheEarlierOne: a wrong flag, a program that was killed before it said anything, half
// a result.
func TestSlurmTaskWithoutAResultKeepsTheEarlierOne(t *testing.T) {
	t.Parallel()
	for code, left := range map[int]string{1: `{"error":{"message":"unknown flag: --canari"},"host":"","result":"failed"}`, 130: "", 137: sharedResult[:20]} {
		cmd, result, said := slurmTask(t, fmt.Sprintf("printf '%%s' '%s'; exit %d", left, code))
		if err := errors.Join(os.MkdirAll(filepath.Dir(result), 0o755), os.WriteFile(result, []byte(sharedResult), 0o644)); err != nil {
			t.Fatal(err)
		}
		err := cmd.Run()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != code {
			t.Errorf("%v: %s", err, said)
		}
		got, err := os.ReadFile(result)
		kept, kerr := os.ReadFile(result + ".new")
		if err != nil || string(got) != sharedResult || kerr != nil || string(kept) != left || !strings.Contains(said.String(), "no result of a guest") {
			t.Errorf("after %d: %q, %v, kept %q, %v: %s", code, got, err, kept, kerr, said)
		}
	}
}

// TestSlurmMergeReadsWhereTheTasksWrite: the comment's own command, and the folder that is taken when none is given.
func TestSlurmMergeReadsWhereTheTasksWrite(t *testing.T) {
	t.Parallel()
	_, text := doc(t, "slurm-array.sh")
	_, folder, _ := strings.Cut(text, `: "${RESULTS:=`)
	folder, _, _ = strings.Cut(folder, "}")
	if want := "gpuguest report merge " + folder + "/*.json'\n"; folder == "" || !strings.Contains(text, want) {
		t.Errorf("no %q in\n%s", want, text)
	}
}

func TestSlurmTaskThatIsToldToEndLetsGpuguestSayFarewell(t *testing.T) {
	t.Parallel()
	cmd, result, said := slurmTask(t, `trap 'echo '\''`+sharedResult+`'\''; exit 130' TERM
echo ready >&2
while :; do sleep 0.05; done`)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	began := filepath.Dir(result)
	for range 200 {
		if files, _ := os.ReadDir(began); len(files) > 0 {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	time.Sleep(300 * time.Millisecond) // for the trap to be set
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	err := cmd.Wait()
	var exit *exec.ExitError
	got, rerr := os.ReadFile(result)
	if !errors.As(err, &exit) || exit.ExitCode() != 130 || rerr != nil || string(got) != sharedResult+"\n" {
		t.Errorf("%v, %q, %v: %s", err, got, rerr, said)
	}
}
