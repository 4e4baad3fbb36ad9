package cgroup

import (
	"os"
	"path/filepath"
	"testing"
)

// tree writes files below a folder and returns it.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestFreeMemoryIsTheLeastOfMachineAndGroups(t *testing.T) {
	t.Parallel()
	const meminfo = "MemTotal:       16000000 kB\nMemAvailable:    8000000 kB\n"
	for name, test := range map[string]struct {
		files map[string]string
		want  int64
	}{
		"unknown":    {nil, 0},
		"no groups":  {map[string]string{"proc/meminfo": meminfo}, 8000000 << 10},
		"no limit":   {map[string]string{"proc/meminfo": meminfo, "proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n", "sys/fs/cgroup/memory.current": "5\n"}, 8000000 << 10},
		"container":  {map[string]string{"proc/meminfo": meminfo, "proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "4000000000\n", "sys/fs/cgroup/memory.current": "1000000000\n"}, 3000000000},
		"file cache": {map[string]string{"proc/meminfo": meminfo, "proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "4000000000\n", "sys/fs/cgroup/memory.current": "4000000000\n", "sys/fs/cgroup/memory.stat": "anon 1\ninactive_file 3000000000\n"}, 3000000000},
		"group above": {map[string]string{"proc/meminfo": meminfo, "proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/memory.max": "max\n", "sys/fs/cgroup/a/b/memory.current": "7\n",
			"sys/fs/cgroup/a/memory.max": "2000\n", "sys/fs/cgroup/a/memory.current": "500\n"}, 1500},
		"nothing left": {map[string]string{"proc/meminfo": meminfo, "proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "1000\n", "sys/fs/cgroup/memory.current": "2000\n"}, 1},
		"first kind": {map[string]string{"proc/meminfo": meminfo, "proc/self/cgroup": "4:memory:/x\n3:cpuset:/\n0::/\n", "sys/fs/cgroup/memory/x/memory.limit_in_bytes": "3000\n", "sys/fs/cgroup/memory/x/memory.usage_in_bytes": "2000\n",
			"sys/fs/cgroup/memory/x/memory.stat": "total_inactive_file 1000\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n", "sys/fs/cgroup/memory/memory.usage_in_bytes": "1\n"}, 2000},
	} {
		if got := FreeMemory(tree(t, test.files)); got != test.want {
			t.Errorf("%s: %d, want %d", name, got, test.want)
		}
	}
}

func TestMemoryIsLimitedWhereItsControllerIs(t *testing.T) {
	t.Parallel()
	root := tree(t, map[string]string{"unified/memory.max": "max\n", "systemd/cgroup.procs": ""})
	dirs := []string{filepath.Join(root, "systemd"), filepath.Join(root, "unified")}
	if limited, err := LimitMemory(dirs, 2<<30); err != nil || !limited {
		t.Fatal(limited, err)
	}
	if raw, err := os.ReadFile(filepath.Join(root, "unified/memory.max")); err != nil || string(raw) != "2147483648" {
		t.Errorf("%q, %v", raw, err)
	}
	if limited, err := LimitMemory(dirs[:1], 2<<30); err != nil || limited {
		t.Errorf("without a controller: %v, %v", limited, err)
	}
	if _, err := os.Stat(filepath.Join(root, "systemd/memory.max")); err == nil {
		t.Error("a file was made")
	}
}
