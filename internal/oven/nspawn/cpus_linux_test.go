package nspawn

import (
	"slices"
	"strings"
	"testing"
)

func TestGuestsShareTheProcessors(t *testing.T) {
	t.Parallel()
	var c cpus
	all := []int{0, 1, 2, 3, 8}
	pick := func(n int) []int { return c.pick(slices.Clone(all), n) }
	if got := pick(2); !slices.Equal(got, []int{0, 1}) {
		t.Errorf("the first: %v", got)
	}
	second := pick(2)
	if !slices.Equal(second, []int{2, 3}) {
		t.Errorf("the second: %v", second)
	}
	if got := pick(3); !slices.Equal(got, []int{0, 1, 8}) {
		t.Errorf("the third, of which none are left: %v", got)
	}
	c.give(second)
	if got := pick(2); !slices.Equal(got, []int{2, 3}) {
		t.Errorf("after the second: %v", got)
	}
	for _, n := range []int{0, 5, 6} {
		if got := pick(n); got != nil {
			t.Errorf("%d of 5: %v", n, got)
		}
	}
	if mine, err := c.take(1); err != nil || len(mine) > 1 {
		t.Errorf("of this machine: %v, %v", mine, err)
	}
}

func TestGuestIsHeldToItsBudget(t *testing.T) {
	t.Parallel()
	g := &Guest{dir: "/scratch", name: "one", memory: 2048, processors: []int{1, 3}}
	for systemd, want := range map[bool]string{true: "--property=MemoryMax=2048M", false: "--keep-unit"} {
		args := g.nspawn(systemd)
		if got := strings.Join(args[:4], " "); got != "taskset --cpu-list 1,3 systemd-nspawn" || !slices.Contains(args, want) {
			t.Errorf("with systemd %v: %q", systemd, args)
		}
	}
	g = &Guest{dir: "/scratch", name: "one"}
	if args := g.nspawn(true); args[0] != "systemd-nspawn" || strings.Contains(strings.Join(args, " "), "MemoryMax") {
		t.Errorf("without a budget: %q", args)
	}
}

// losetup --list --json --output NAME,BACK-FILE
const loops = `{
   "loopdevices": [
      {
         "name": "/dev/loop0",
         "back-file": "/images/.one.qcow2.bake/disk"
      },{
         "name": "/dev/loop1",
         "back-file": "/images/.two.qcow2.bake/disk"
      },{
         "name": "/dev/loop3",
         "back-file": "/images/.one.qcow2.bake/disk (deleted)"
      },{
         "name": "/dev/loop4",
         "back-file": "/images/.one.qcow2.bake/oven/seed"
      },{
         "name": "/dev/loop5",
         "back-file": null
      }
   ]
}
`

func TestDevicesOfAFolderAreFound(t *testing.T) {
	t.Parallel()
	got, err := attached([]byte(loops), "/images/.one.qcow2.bake")
	if err != nil || !slices.Equal(got, []string{"/images/.one.qcow2.bake/disk"}) {
		t.Errorf("%q, %v", got, err)
	}
	if got, err := attached(nil, "/"); err != nil || got != nil {
		t.Errorf("of none: %q, %v", got, err)
	}
	if _, err := attached([]byte("losetup: unrecognized option"), "/"); err == nil {
		t.Error("what is no list is taken for one")
	}
}
