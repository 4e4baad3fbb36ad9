package cgroup

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"
)

// TestContainerThatWasLeftEnds: what runs on in the groups of a name ends when the name is taken anew, and the groups can
// be removed then. It makes control groups, which takes root.
func TestContainerThatWasLeftEnds(t *testing.T) {
	if os.Getenv("GPUGUEST_CONTAINER") == "" {
		t.Skip("GPUGUEST_CONTAINER is not set")
	}
	name := fmt.Sprintf("gpuguest-left-%d", os.Getpid())
	groups, err := Make(name)
	if err != nil || len(groups) == 0 {
		t.Fatal(groups, err)
	}
	left := exec.Command("sleep", "600")
	if err := left.Start(); err != nil {
		t.Fatal(err)
	}
	for _, dir := range groups {
		below := filepath.Join(dir, "payload")
		if err := os.Mkdir(below, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(below, "cgroup.procs"), []byte(strconv.Itoa(left.Process.Pid)), 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := Kill(name); err != nil {
		t.Error(err)
	}
	if err := left.Wait(); err == nil || left.ProcessState.ExitCode() != -1 {
		t.Errorf("it ended by itself: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, dir := range groups {
		if err := Remove(ctx, dir); err != nil {
			t.Error(err)
		}
	}
	if err := Kill(name); err != nil {
		t.Errorf("with nothing there: %v", err)
	}
}
