package cgroup

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// LimitMemory gives those of the groups that have the memory controller of the second kind so many bytes, and tells
// whether there was one. What takes more is ended by the kernel.
func LimitMemory(dirs []string, bytes int64) (bool, error) {
	limited := false
	for _, dir := range dirs {
		// Never made: without the controller there is no such file.
		f, err := os.OpenFile(filepath.Join(dir, "memory.max"), os.O_WRONLY, 0)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return limited, err
		}
		_, err = f.WriteString(strconv.FormatInt(bytes, 10))
		if err = errors.Join(err, f.Close()); err != nil {
			return limited, err
		}
		limited = true
	}
	return limited, nil
}

// FreeMemory is how many bytes this process and its children may still take: what the machine has available, or less
// where a control group that it is in, or one above that, has a limit. Files that a group has read and may forget are
// free. 0 is unknown. root is "/", or a recorded tree.
func FreeMemory(root string) int64 {
	free := int64(0)
	take := func(n int64) {
		if free == 0 || n < free {
			free = max(n, 1)
		}
	}
	if kb, ok := field(filepath.Join(root, "proc/meminfo"), "MemAvailable:"); ok {
		take(kb << 10)
	}
	raw, err := os.ReadFile(filepath.Join(root, "proc/self/cgroup"))
	if err != nil {
		return free
	}
	for line := range strings.Lines(string(raw)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 {
			continue
		}
		mounts, limit, usage, files := []string{"sys/fs/cgroup", "sys/fs/cgroup/unified"}, "memory.max", "memory.current", "inactive_file"
		switch {
		case f[0] == "0":
		case f[1] == "memory":
			mounts, limit, usage, files = []string{"sys/fs/cgroup/memory"}, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
		default:
			continue
		}
		for _, mount := range mounts {
			// In a container the path may be that of the machine's hierarchy, of which the container sees its own part.
			for dir := filepath.Clean("/" + f[2]); ; dir = filepath.Dir(dir) {
				group := filepath.Join(root, mount, dir)
				most, ok := number(filepath.Join(group, limit))
				used, also := number(filepath.Join(group, usage))
				if ok && also {
					forgets, _ := field(filepath.Join(group, "memory.stat"), files)
					take(most - max(used-forgets, 0))
				}
				if dir == "/" {
					break
				}
			}
		}
	}
	return free
}

// number reads a file that holds one; any other word, as "max", is none.
func number(file string) (int64, bool) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(raw)), 10, 64)
	return n, err == nil
}

// field reads the number behind a name at the beginning of a line.
func field(file, name string) (int64, bool) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return 0, false
	}
	for line := range strings.Lines(string(raw)) {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == name {
			n, err := strconv.ParseInt(f[1], 10, 64)
			return n, err == nil
		}
	}
	return 0, false
}
