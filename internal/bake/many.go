package bake

import (
	"context"
	"errors"
	"runtime"
	"sync"

	"golang.org/x/sync/semaphore"

	"gpuguest/internal/cgroup"
)

// Result is what became of one image.
type Result struct {
	Image    Image
	Manifest Manifest
	Baked    bool // false without an error: it was there already
	Err      error
}

// All bakes the images of a configuration, as many at once as the budget allows, and returns what became of each,
// in their order. ended is called for each as it ends, by one goroutine at a time; nil: nobody waits. One image's
// failure is none of the others'.
func (b *Baker) All(ctx context.Context, c Config, ended func(Result)) []Result {
	if c.Memory == 0 {
		c.Memory = freeMemory()
	}
	if c.CPUs == 0 {
		c.CPUs = runtime.NumCPU()
	}
	memory, cpus := semaphore.NewWeighted(int64(c.Memory)), semaphore.NewWeighted(int64(c.CPUs))
	results := make([]Result, len(c.Images))
	var mu sync.Mutex
	var all sync.WaitGroup
	for i, im := range c.Images {
		if im.CPUs == 0 {
			im.CPUs = min(DefaultCPUs, c.CPUs)
		}
		all.Go(func() {
			// More than there is, one image alone may have; every image takes the two in the same order.
			m, n := int64(min(im.memory(), c.Memory)), int64(min(im.CPUs, c.CPUs))
			r := Result{Image: im}
			if r.Err = memory.Acquire(ctx, m); r.Err == nil {
				if r.Err = cpus.Acquire(ctx, n); r.Err == nil {
					r.Manifest, r.Baked, r.Err = b.Bake(ctx, im)
					cpus.Release(n)
				}
				memory.Release(m)
			}
			if errors.Is(r.Err, ctx.Err()) && ctx.Err() != nil {
				r.Err = &Error{Image: im.Name, Err: context.Cause(ctx)}
			}
			mu.Lock()
			defer mu.Unlock()
			results[i] = r
			if ended != nil {
				ended(r)
			}
		})
	}
	all.Wait()
	return results
}

// freeMemory is what the machine, or the control group that gpuguest is in, has free, in MiB, less a quarter for
// everything else; what two images take where neither tells.
func freeMemory() int {
	if free := cgroup.FreeMemory("/"); free > 0 {
		return max(int(free>>20)*3/4, 1)
	}
	return 2 * DefaultMemory
}
