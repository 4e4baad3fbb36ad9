package fleet

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"
)

// Shard is one of several shares of a batch, each for a machine of its own. The zero value is the whole batch.
type Shard struct {
	Index int // from 1
	Count int
}

func (s Shard) String() string { return fmt.Sprintf("%d/%d", s.Index, s.Count) }

// Has tells whether a guest belongs to the share, by its name alone: whoever asks, on whatever machine and of
// whatever inventory, gets the same answer. The function is part of the interface, for shares of one batch may be
// run by different versions: the first eight bytes of the name's SHA-256 as a big-endian number, modulo Count.
func (s Shard) Has(name string) bool {
	if s.Count <= 1 {
		return true
	}
	sum := sha256.Sum256([]byte(name))
	return binary.BigEndian.Uint64(sum[:8])%uint64(s.Count) == uint64(s.Index-1)
}

// ParseShard reads "2/8": the second of eight.
func ParseShard(s string) (Shard, error) {
	i, n, ok := strings.Cut(s, "/")
	index, err1 := strconv.Atoi(i)
	count, err2 := strconv.Atoi(n)
	if !ok || err1 != nil || err2 != nil || index < 1 || count < 1 || index > count {
		return Shard{}, fmt.Errorf("%q: it is I/N, the I-th of N shares, as in 1/8", s)
	}
	return Shard{index, count}, nil
}

// EnvShard is the share that a batch system's environment tells of: a task of a Slurm job array, or a pod of a
// Kubernetes Indexed Job, which does not know how many there are and takes it from shards. from names what it was
// read from; "" means that there is nothing to read, and the share is the whole batch.
func EnvShard(getenv func(string) string, shards int) (s Shard, from string, err error) {
	number := func(name string) int {
		n, cerr := strconv.Atoi(getenv(name))
		if cerr != nil && err == nil {
			err = fmt.Errorf("%s=%q is no number", name, getenv(name))
		}
		return n
	}
	if index := "JOB_COMPLETION_INDEX"; shards > 0 && getenv(index) != "" {
		s = Shard{number(index) + 1, shards}
		from = index
	} else if id := "SLURM_ARRAY_TASK_ID"; getenv(id) != "" {
		from = id
		first, last, step, count := number("SLURM_ARRAY_TASK_MIN"), number("SLURM_ARRAY_TASK_MAX"), 1, number("SLURM_ARRAY_TASK_COUNT")
		if getenv("SLURM_ARRAY_TASK_STEP") != "" {
			step = max(number("SLURM_ARRAY_TASK_STEP"), 1)
		}
		at := number(id) - first
		// Of --array=1,3,7 a task knows its number and not which of them it is.
		if err == nil && ((last-first)/step+1 != count || at%step != 0) {
			return Shard{}, from, fmt.Errorf("the job array has gaps (%d tasks from %d to %d): number them without, as in --array=1-%d, or give --shard", count, first, last, count)
		}
		s = Shard{at/step + 1, count}
		if err == nil && shards > 0 && shards != count {
			return Shard{}, from, fmt.Errorf("--shards %d, and the job array has %d tasks", shards, count)
		}
	} else if shards > 0 {
		return Shard{}, "", fmt.Errorf("--shards %d: which of them? neither JOB_COMPLETION_INDEX nor SLURM_ARRAY_TASK_ID is set", shards)
	} else {
		return Shard{}, "", nil
	}
	if err == nil && (s.Index < 1 || s.Index > s.Count) {
		err = fmt.Errorf("%s=%s is none of %d shares", from, getenv(from), s.Count)
	}
	if err != nil {
		return Shard{}, from, err
	}
	return s, from, nil
}
