package oven

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const throwawayEnv = "GPUGUEST_TEST_THROWAWAY"

// TestThrowawayOfAKilledProcess is no test by itself: it is killed with a folder in its hands.
func TestThrowawayOfAKilledProcess(t *testing.T) {
	if os.Getenv(throwawayEnv) == "" {
		t.Skip(throwawayEnv + " is not set")
	}
	dir, _, err := Throwaway("gpuguest-test-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "id_ed25519"), []byte("a key"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, _ = os.Stdout.WriteString("\n" + dir + "\n")
	_, _ = os.Stdin.Read(make([]byte, 1)) // until it is killed
}

// TestFoldersOfKilledProcessesAreRemoved: and none of one that lives, of another prefix, or that is another thing.
func TestFoldersOfKilledProcessesAreRemoved(t *testing.T) {
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	cmd := exec.Command(os.Args[0], "-test.run=^TestThrowawayOfAKilledProcess$")
	cmd.Env = append(os.Environ(), throwawayEnv+"=1")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	for !strings.Contains(said.String(), tmp) || !strings.HasSuffix(said.String(), "\n") {
		b := make([]byte, 256)
		n, err := out.Read(b)
		if err != nil {
			t.Fatal(err, said.String())
		}
		said.Write(b[:n])
	}
	theirs := strings.TrimSpace(said.String())
	other, link, file := filepath.Join(tmp, "gpuguest-other"), filepath.Join(tmp, "gpuguest-test-link"), filepath.Join(tmp, "gpuguest-test-file")
	if err := errors.Join(os.Mkdir(other, 0o700), os.Symlink(other, link), os.WriteFile(file, nil, 0o600)); err != nil {
		t.Fatal(err)
	}

	mine, remove, err := Throwaway("gpuguest-test-")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{theirs, mine, other, link, file} {
		if _, err := os.Lstat(path); err != nil {
			t.Errorf("while both live: %v", err)
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
	second, removeSecond, err := Throwaway("gpuguest-test-")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(theirs); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the folder of the killed process: %v", err)
	}
	for _, path := range []string{mine, second, other, link, file} {
		if _, err := os.Lstat(path); err != nil {
			t.Errorf("after the kill: %v", err)
		}
	}
	if err := errors.Join(remove(), removeSecond()); err != nil {
		t.Error(err)
	}
	if left, err := filepath.Glob(filepath.Join(tmp, "*")); err != nil || len(left) != 3 {
		t.Errorf("left: %q, %v", left, err)
	}
}
