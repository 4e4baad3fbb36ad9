package fleet

import (
	"os"
	"strconv"
	"strings"
)

// What a guest at work takes here, at most: a connection is below 0.1 MB, its facts, plan and last output below
// half a MB. While a guest reboots, eight probes are open at once; add the connection, a log and known_hosts.
const (
	bytesPerGuest = 512 << 10
	filesPerGuest = 12
	filesKept     = 64     // for gpuguest itself
	unknownMost   = 256    // where the system does not tell what there is
	mostParallel  = 10_000 // more than that nobody waits for
)

// Capacity is how many guests this machine can have at work at once, by its free memory, of which half is left for
// others, and by how many files the process may open.
func Capacity() int { return capacity(freeMemory("/"), openFiles()) }

// capacity works it out; 0 is a quantity that is not known.
func capacity(memory, files uint64) int {
	most := uint64(mostParallel)
	if memory == 0 && files == 0 {
		return unknownMost
	}
	if memory > 0 {
		most = min(most, memory/2/bytesPerGuest)
	}
	if files > 0 {
		most = min(most, (max(files, filesKept)-filesKept)/filesPerGuest)
	}
	return int(max(most, 1))
}

// freeMemory is what the machine has free, or the control group that the process is in as a container sees it, in
// bytes; 0 unknown.
func freeMemory(root string) uint64 {
	var free uint64
	if text, err := os.ReadFile(root + "proc/meminfo"); err == nil {
		for line := range strings.Lines(string(text)) {
			f := strings.Fields(line)
			if len(f) == 3 && f[0] == "MemAvailable:" {
				kb, err := strconv.ParseUint(f[1], 10, 64)
				if err == nil {
					free = kb << 10
				}
			}
		}
	}
	limit, used := number(root+"sys/fs/cgroup/memory.max"), number(root+"sys/fs/cgroup/memory.current")
	if limit > used && (free == 0 || limit-used < free) {
		free = limit - used
	}
	return free
}

// number reads a file that holds one; 0 for any other word, as "max", and for none.
func number(file string) uint64 {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		return 0
	}
	return n
}
