package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"gpuguest/internal/engine"
	"gpuguest/internal/lab"
)

// fleetSize is how many guests the one command has, and of them badGuests have a fault.
const fleetSize = 20

// badGuests are faults by the guest's number: what is done to it, what it must be named with, and its own exit code,
// 0 for any. The one that reboots by itself every few seconds is lost again and again, at whatever step: that step is cut
// off each time, or its connection is lost for good.
var badGuests = map[int]struct {
	fault string
	spoil string // as root in the guest; "": it is switched off
	spec  lab.ContainerSpec
	says  string // a regular expression
	code  int
	flags string // of its own in the inventory
}{
	3: {fault: "unreachable", code: exitUnreachable, says: "refused"},
	8: {fault: "held lock", code: exitStep, says: "apt-get", flags: ", lock-wait: 20s",
		spoil: `setsid apt-get -q -y -o DPkg::Pre-Invoke::='sleep 3000' install --no-install-recommends hello >/run/holder.log 2>&1 </dev/null &
sleep 2; pgrep -x apt-get >/dev/null`},
	12: {fault: "reboots for ever", says: "does not stay|connection lost|did not come back|refused|no answer", spoil: `cat >/etc/systemd/system/again.service <<'END'
[Unit]
After=ssh.service
[Service]
Type=simple
ExecStart=/bin/sh -c 'sleep 5; systemctl reboot --force'
[Install]
WantedBy=multi-user.target
END
systemctl enable again.service; systemctl start again.service`},
	17: {fault: "full disk", spec: lab.ContainerSpec{DiskMB: 900}, code: exitStep, says: "MB free"},
}

// testFleet installs in twenty guests by one command, four of which have a fault. It is killed when the first are
// done and run again: the good ones all end in the same state, no work is done twice, the others are named.
func testFleet(t *testing.T, w *world) {
	t.Parallel()
	guests := w.startMany(t, w.root(t, "bookworm", lists, headers), fleetSize)
	var inv, known strings.Builder
	fmt.Fprintf(&inv, "defaults: {user: root, ssh-config: none, connect-timeout: 5s}\nhosts:\n")
	for i, g := range guests {
		known.WriteString(g.KnownHosts())
		fmt.Fprintf(&inv, "  guest%02d: {address: %s, identity: %s%s}\n", i, g.Host, g.KeyFile, badGuests[i].flags)
		if bad, ok := badGuests[i]; ok {
			if bad.spoil != "" {
				g.in(t, bad.spoil)
			} else if bad.spec == (lab.ContainerSpec{}) {
				if err := g.PowerCut(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	dir := t.TempDir()
	hosts, keys := filepath.Join(dir, "hosts.yaml"), filepath.Join(dir, "known_hosts")
	for name, text := range map[string]string{hosts: inv.String(), keys: known.String()} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	args := append([]string{"install", "--inventory", hosts, "--known-hosts", keys, "--json", "--parallel", "8", "--serial-reboots", "2",
		"--log-dir", filepath.Join(dir, "logs")}, guests[0].want()...)

	killed := w.fleet(t, args, ": done")
	if killed.code != -1 {
		t.Fatalf("the first run ended before it was killed: %s", killed)
	}
	r := w.fleet(t, args, "")
	t.Log(r.stderr)
	if r.code != exitStep {
		t.Errorf("exit %d, a step failed is the worst", r.code)
	}
	var doc struct {
		Guests []struct {
			engine.Report
			Exit int `json:"exit_code"`
		}
	}
	if err := json.Unmarshal([]byte(r.out), &doc); err != nil || len(doc.Guests) != fleetSize {
		t.Fatalf("%d guests, %v in\n%s", len(doc.Guests), err, r)
	}
	var want []string
	for i, report := range doc.Guests {
		bad, isBad := badGuests[i]
		switch {
		case isBad && (report.Result != "failed" || report.Error == nil || bad.code != 0 && report.Exit != bad.code || !regexp.MustCompile(bad.says).MatchString(report.Error.Message)):
			t.Errorf("%s, %s: exit %d, %+v", report.Host, bad.fault, report.Exit, report.Error)
		case !isBad && report.Result != "done":
			t.Errorf("%s: exit %d, %+v", report.Host, report.Exit, report.Error)
		case !isBad:
			got := guests[i].endState(t)
			if want == nil {
				want = got
			}
			if d := differences(want, got); d != "" {
				t.Errorf("%s ended otherwise than the first:\n%s", report.Host, d)
			}
			checkOnce(t, guests[i].journal(t))
		}
		if isBad && !strings.Contains(r.stderr, fmt.Sprintf("guest%02d: FAILED", i)) {
			t.Errorf("guest%02d, %s, is not named on standard error", i, bad.fault)
		}
	}
}

// startMany boots guests, a few at a time: booting is work for the processors that all of them share.
func (w *world) startMany(t *testing.T, root lab.ContainerRoot, n int) []*testGuest {
	t.Helper()
	guests := make([]*testGuest, n)
	errs := make([]error, n)
	places := make(chan struct{}, 4)
	var booting sync.WaitGroup
	for i := range n {
		booting.Go(func() {
			places <- struct{}{}
			defer func() { <-places }()
			spec := badGuests[i].spec
			spec.Forward = w.port
			c, err := lab.StartContainer(t.Context(), root, spec)
			if err != nil {
				errs[i] = err
				return
			}
			t.Cleanup(func() {
				if err := c.Close(context.WithoutCancel(t.Context())); err != nil {
					t.Error(err)
				}
			})
			guests[i] = &testGuest{Container: c, w: w, suite: root.Suite, device: "10de:1c82"}
		})
	}
	booting.Wait()
	for i, err := range errs {
		if err != nil {
			t.Fatalf("guest %d: %v", i, err)
		}
	}
	return guests
}

// fleet runs the program, and kills it at the first line of standard error that has a word, "" for never.
func (w *world) fleet(t *testing.T, args []string, word string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 25*time.Minute)
	defer cancel()
	began := time.Now()
	c, err := w.client(ctx, nil, args...)
	if err != nil {
		t.Fatal(err)
	}
	for line := range c.lines {
		if word != "" && strings.Contains(line, word) {
			if err := c.cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	r, err := c.end()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("exit %d after %.0f s", r.code, time.Since(began).Seconds())
	return r
}
