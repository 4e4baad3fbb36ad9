// Package cgroup makes control groups for system containers on a machine whose init is not systemd, which would give
// each a scope of its own. Without them two guests would share one, and each guest's init would take the other's services
// for its own leftovers.
//
// It limits nothing that it is not told to, and moves no process: whoever starts a guest writes its process into cgroup.procs of every group.
package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Make makes a group of that name below this process's own, in the hierarchy of the second kind and in systemd's of the
// first, where they are, and returns their directories, also those made before an error.
func Make(name string) ([]string, error) {
	dirs, err := places(name)
	if err != nil {
		return nil, err
	}
	var made []string
	for _, dir := range dirs {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return made, err
		}
		made = append(made, dir)
	}
	return made, nil
}

// Kill ends every process in the groups of that name, where they are. Its caller is the only one who may use the name:
// what a killed owner left running there would keep the groups busy for the next.
func Kill(name string) error {
	dirs, err := places(name)
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.Name() != "cgroup.procs" {
				return err
			}
			raw, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			for _, word := range strings.Fields(string(raw)) {
				if pid, err := strconv.Atoi(word); err == nil && pid > 0 {
					_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended
				}
			}
			return nil
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// places are the directories of a group of that name.
func places(name string) ([]string, error) {
	raw, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	var dirs []string
	for line := range strings.Lines(string(raw)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 || f[0] != "0" && f[1] != "name=systemd" {
			continue
		}
		for _, mount := range []string{"/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd", "/sys/fs/cgroup"} {
			if _, err := os.Stat(filepath.Join(mount, "cgroup.procs")); err != nil || (f[0] == "0") != (mount != "/sys/fs/cgroup/systemd") {
				continue
			}
			dirs = append(dirs, filepath.Join(mount, f[2], name))
			break
		}
	}
	return dirs, nil
}

// Remove removes a group and those below it. One may be busy for a moment after its last process died: it is tried again
// until ctx ends. A group that is not there is removed.
func Remove(ctx context.Context, dir string) error {
	below, err := filepath.Glob(filepath.Join(dir, "*", "cgroup.procs"))
	if err != nil {
		return err
	}
	for _, b := range below {
		if err := Remove(ctx, filepath.Dir(b)); err != nil {
			return err
		}
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := os.Remove(dir)
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", dir, err)
		case <-tick.C:
		}
	}
}
