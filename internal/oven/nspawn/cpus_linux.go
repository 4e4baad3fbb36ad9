package nspawn

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// cpus shares out the processors of this machine among guests. A guest is held to its own by affinity, by which it also
// counts them: a build that started a compiler for each of the machine's would not fit into the guest's memory.
type cpus struct {
	mu   sync.Mutex
	used map[int]int // processor → how many guests have it
}

// take picks n of the processors that this process may run on, those that the fewest guests have. It is nil, and
// nothing is to be given back, where the guest may have them all, or n is 0.
func (c *cpus) take(n int) ([]int, error) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return nil, fmt.Errorf("processors: %w", err)
	}
	var all []int
	for i := 0; len(all) < set.Count(); i++ {
		if set.IsSet(i) {
			all = append(all, i)
		}
	}
	return c.pick(all, n), nil
}

func (c *cpus) pick(all []int, n int) []int {
	if n <= 0 || n >= len(all) {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.used == nil {
		c.used = make(map[int]int)
	}
	slices.SortStableFunc(all, func(a, b int) int { return cmp.Compare(c.used[a], c.used[b]) })
	mine := all[:n]
	for _, i := range mine {
		c.used[i]++
	}
	slices.Sort(mine)
	return mine
}

func (c *cpus) give(mine []int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, i := range mine {
		c.used[i]--
	}
}

// cpuList is processors as taskset(1) reads them.
func cpuList(mine []int) string {
	var words []string
	for _, i := range mine {
		words = append(words, fmt.Sprint(i))
	}
	return strings.Join(words, ",")
}
