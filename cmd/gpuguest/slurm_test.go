package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"gpuguest/internal/engine"
	"gpuguest/internal/guest/guesttest"
	"gpuguest/internal/report"
)

// slurmConf is a cluster of one node, this machine, on ports of its own and with nothing of the system's.
const slurmConf = `ClusterName=gpuguest
SlurmctldHost=%[1]s(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=%[2]s/munge.sock
CredType=cred/munge
StateSaveLocation=%[2]s/state
SlurmdSpoolDir=%[2]s/spool
SlurmctldPidFile=%[2]s/slurmctld.pid
SlurmdPidFile=%[2]s/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
MpiDefault=none
NodeName=%[1]s NodeAddr=127.0.0.1 CPUs=2 RealMemory=2000 State=UNKNOWN
PartitionName=main Nodes=%[1]s Default=YES MaxTime=INFINITE State=UP
`

// TestSlurm runs the job array of docs/ in a real Slurm: every guest is worked on by one task, none by two. It needs
// root, and slurmctld, slurmd, slurm-client and munge of Debian.
func TestSlurm(t *testing.T) {
	if os.Getenv("GPUGUEST_SLURM") == "" {
		t.Skip("GPUGUEST_SLURM is not set")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	dir := t.TempDir()
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	host, _, _ = strings.Cut(host, ".")
	key := make([]byte, 128)
	if _, err := rand.Read(key); err != nil {
		t.Fatal(err)
	}
	write := func(name string, data []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, d := range []string{"state", "spool"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	conf := write("slurm.conf", fmt.Appendf(nil, slurmConf, host, dir))
	daemon(t, "munged", "--foreground", "--force", "--key-file="+write("munge.key", key), "--socket="+dir+"/munge.sock",
		"--pid-file="+dir+"/munge.pid", "--seed-file="+dir+"/munge.seed")
	until(t, ctx, "munged", func() bool { _, err := os.Stat(dir + "/munge.sock"); return err == nil })
	daemon(t, "slurmctld", "-D", "-f", conf)
	daemon(t, "slurmd", "-D", "-f", conf, "-N", host)
	slurm := func(name string, args ...string) (string, error) {
		cmd := exec.CommandContext(ctx, name, args...)
		cmd.Env = append(os.Environ(), "SLURM_CONF="+conf)
		out, err := cmd.CombinedOutput()
		return strings.TrimSpace(string(out)), err
	}
	until(t, ctx, "the node", func() bool { out, _ := slurm("sinfo", "-h", "-o", "%T"); return out == "idle" })

	program := filepath.Join(dir, "gpuguest")
	if out, err := exec.CommandContext(ctx, "go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	f := newFakeFleet(t, make([]string, 12)...)
	recording, err := os.ReadFile(filepath.Join("..", "..", "testdata", "guests", "ubuntu2404-l4-driver580.txt"))
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range f.guests {
		g.srv.Change(func(o *guesttest.Options) { o.Exec = convergedGuest(recording) })
	}
	script, _ := doc(t, "slurm-array.sh")
	results := filepath.Join(dir, "results")
	job, err := slurm("sbatch", "--parsable", "--array=1-3", "--mem=200M", "--output="+dir+"/task-%a.log",
		"--export=ALL,INVENTORY="+filepath.Join(f.dir, "fleet.yaml")+",RESULTS="+results+",GPUGUEST="+program, script)
	if err != nil {
		t.Fatalf("%v: %s", err, job)
	}
	until(t, ctx, "the job's end", func() bool { out, err := slurm("squeue", "-h", "-j", job); return err != nil || out == "" })
	var names []string
	for task := 1; task <= 3; task++ {
		log, _ := os.ReadFile(fmt.Sprintf("%s/task-%d.log", dir, task))
		raw, err := os.ReadFile(fmt.Sprintf("%s/share-%d.json", results, task))
		var share struct{ Guests []engine.Report }
		if err == nil {
			err = json.Unmarshal(raw, &share)
		}
		if err != nil || !strings.Contains(string(log), fmt.Sprintf("share %d/3 by SLURM_ARRAY_TASK_ID: %d of 12 guests", task, len(share.Guests))) {
			t.Errorf("task %d: %v\n%s", task, err, log)
		}
		t.Logf("task %d: %d guests", task, len(share.Guests))
		for _, g := range share.Guests {
			if g.Result != "done" {
				t.Errorf("%s: %+v", g.Host, g.Error)
			}
			names = append(names, g.Host)
		}
	}
	slices.Sort(names)
	if len(names) != 12 || len(slices.Compact(names)) != 12 {
		t.Errorf("the tasks worked on %v", names)
	}
	shares, _ := filepath.Glob(results + "/*")
	slices.Sort(shares)
	page := filepath.Join(dir, "all.html")
	merge := exec.CommandContext(ctx, program, append([]string{"report", "merge", "--json", "--html", page}, shares...)...)
	var said bytes.Buffer
	merge.Stderr = &said
	out, err := merge.Output()
	var all report.Document
	if err == nil {
		err = json.Unmarshal(out, &all)
	}
	if err != nil || len(shares) != 3 || len(all.Guests) != 12 || said.Len() > 0 {
		t.Fatalf("merge of %v: %v, %d guests\n%s", shares, err, len(all.Guests), &said)
	}
	for _, g := range all.Guests {
		if g.Result != "done" || g.Driver == "" || !slices.Contains(names, g.Host) {
			t.Errorf("merged: %+v", g.Report)
		}
	}
	if html, err := os.ReadFile(page); err != nil || !strings.Contains(string(html), "12 guests: 12 done") {
		t.Errorf("the page: %v, %d bytes", err, len(html))
	}
}

// daemon runs a program until the test's end.
func daemon(t *testing.T, name string, args ...string) {
	t.Helper()
	var said bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		select {
		case <-ended:
		case <-time.After(10 * time.Second):
			_ = cmd.Process.Kill()
			<-ended
		}
		if t.Failed() {
			t.Logf("%s said:\n%s", name, said.String())
		}
	})
}

func until(t *testing.T, ctx context.Context, what string, so func() bool) {
	t.Helper()
	for !so() {
		select {
		case <-ctx.Done():
			t.Fatalf("%s: not in time", what)
		case <-time.After(200 * time.Millisecond):
		}
	}
}
