package guest

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"gpuguest/assets"
)

// JobState is what became of a job.
type JobState string

const (
	Running  JobState = "running"
	Exited   JobState = "exited"   // it ended by itself; Exit says how
	Lost     JobState = "lost"     // it ended in this boot and left no exit code: killed, or never started
	Rebooted JobState = "rebooted" // the guest was started anew while it ran
	Absent   JobState = "absent"   // the guest has no such job
)

// JobSpec is one piece of long work. The script runs with `sh`, as root, in /, with empty standard input,
// umask 022 and the variables that keep package managers from asking.
type JobSpec struct {
	Name   string // "driver-3f9a": letters, digits, dot, dash, underscore, at most 80; names the job in the guest
	Script string
	At     JobPosition // where an interrupted RunJob of this spec had come to; zero: from the beginning

	// Quiet is how long the log may stay silent before OnQuiet is told what the job's processes do; it is told
	// again after as long again. It costs an exec each time. 0 or nil: never.
	Quiet   time.Duration
	OnQuiet func(QuietJob)
}

// QuietJob is a job that has printed nothing for a while: perhaps it waits for an answer or a lock.
type QuietJob struct {
	Since     time.Duration // how long nothing was printed
	Processes string        // one line a process of the job: pid, parent, age, state, command line; "" unknown
}

// JobPosition is how far the reading of a job has come.
type JobPosition struct {
	Token   string // names the call that started the attempt, so that it is never started twice
	Attempt int    // 0: not known yet
	Offset  int64  // bytes of the log already given to the writer
}

// JobResult is a job's end.
type JobResult struct {
	State   JobState // Exited, Lost, Rebooted or Absent
	Exit    int      // with Exited
	Attempt int
	Tail    []byte // the end of what this call read of the log, at most 16 KiB
}

// JobInfo is one job in a guest, told by its last attempt.
type JobInfo struct {
	Name    string
	Attempt int
	State   JobState
	Exit    int // with Exited
}

// JobError is an interrupted reading of a job: the connection was lost (ErrDisconnected) or the context
// ended. The job itself runs on. With At in JobSpec the next call goes on at the next byte.
type JobError struct {
	At  JobPosition
	Err error
}

func (e *JobError) Error() string { return e.Err.Error() }

func (e *JobError) Unwrap() error { return e.Err }

// Hint is one sentence on what to do next, or "".
func (e *JobError) Hint() string {
	var h interface{ Hint() string }
	if errors.As(e.Err, &h) {
		return h.Hint()
	}
	return ""
}

const maxTail = 16 << 10

var jobName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)

// maxJobName is the longest name of a job, in bytes. A pattern that counts them would be compiled at every start.
const maxJobName = 80

func isJobName(s string) bool { return len(s) <= maxJobName && jobName.MatchString(s) }

// RunJob starts a new attempt of the job, or goes on with one that still runs, and copies the log to out
// until the job ends. It is one exec. With spec.At of an earlier *JobError it never starts the work again,
// even when that attempt has ended meanwhile. Errors while it runs are *JobError; ErrJobStart means that
// nothing was started.
func (c *Conn) RunJob(ctx context.Context, spec JobSpec, out io.Writer) (JobResult, error) {
	if !isJobName(spec.Name) {
		return JobResult{}, &Error{Kind: ErrJobStart, Host: c.host, Msg: fmt.Sprintf("%q is no job name", spec.Name)}
	}
	if strings.ContainsRune(spec.Script, 0) {
		return JobResult{}, &Error{Kind: ErrBadScript, Host: c.host, Msg: "a script cannot hold a NUL byte"}
	}
	at := spec.At
	if at.Attempt > 0 {
		return c.followJob(ctx, spec, out)
	}
	if at.Token == "" {
		at.Token = rand.Text()
	}
	k := call{
		script: assets.Job,
		args:   []string{"start", spec.Name, at.Token, strconv.FormatInt(at.Offset, 10), strconv.Itoa(len(spec.Script))},
		stdin:  strings.NewReader(spec.Script),
	}
	return c.follow(ctx, k, followed{spec: spec, at: at}, out)
}

// followed says which job a call follows, from where.
type followed struct {
	spec JobSpec
	at   JobPosition
}

// FollowJob copies the log of a job already started to out, from at.Offset of attempt at.Attempt (0: the
// last one) until the job ends. A job that the guest does not know gives the state Absent.
func (c *Conn) FollowJob(ctx context.Context, name string, at JobPosition, out io.Writer) (JobResult, error) {
	if !isJobName(name) {
		return JobResult{State: Absent}, nil
	}
	return c.followJob(ctx, JobSpec{Name: name, At: at}, out)
}

func (c *Conn) followJob(ctx context.Context, spec JobSpec, out io.Writer) (JobResult, error) {
	k := call{
		script: assets.Job,
		args:   []string{"follow", spec.Name, strconv.Itoa(spec.At.Attempt), strconv.FormatInt(spec.At.Offset, 10)},
	}
	return c.follow(ctx, k, followed{spec: spec, at: spec.At}, out)
}

// Jobs lists the guest's jobs. It changes nothing there.
func (c *Conn) Jobs(ctx context.Context) ([]JobInfo, error) {
	var stdout, stderr capture
	stdout.max, stderr.max = maxStdout, maxStderr
	res, err := c.exec(ctx, call{script: assets.Job, args: []string{"list"}, stdout: &stdout, stderr: &stderr})
	if err != nil {
		return nil, err
	}
	if res.Exit != 0 {
		return nil, fmt.Errorf("%s: list jobs: exit %d: %s", c.host, res.Exit, jobWords(stderr.bytes()))
	}
	var out []JobInfo
	for _, line := range strings.Split(string(stdout.bytes()), "\n") {
		f := strings.Fields(line)
		if len(f) != 4 {
			continue
		}
		n, err := strconv.Atoi(f[1])
		if err != nil {
			continue
		}
		j := JobInfo{Name: f[0], Attempt: n, State: JobState(f[2])}
		if j.State == Exited {
			if j.Exit, err = strconv.Atoi(f[3]); err != nil {
				j.State = Lost
			}
		}
		out = append(out, j)
	}
	return out, nil
}

func (c *Conn) follow(ctx context.Context, k call, f followed, out io.Writer) (JobResult, error) {
	at := f.at
	log := &jobLog{out: out, last: time.Now()}
	talk := &jobTalk{}
	k.stdout, k.stderr = log, &capture{max: maxStderr, recent: true, tee: talk}
	var watch sync.WaitGroup
	wctx, stop := context.WithCancel(ctx)
	if f.spec.Quiet > 0 && f.spec.OnQuiet != nil {
		watch.Go(func() { c.watchQuiet(wctx, f.spec, log, talk) })
	}
	res, err := c.exec(ctx, k)
	stop()
	watch.Wait()

	attempt, start, state, words := talk.heard()
	if attempt > 0 {
		at.Attempt = attempt
	}
	if n, tail := log.read(); n > 0 || attempt > 0 {
		if attempt > 0 {
			at.Offset = start
		}
		at.Offset += n
		log.tail = tail
	}
	if err != nil {
		return JobResult{}, &JobError{At: at, Err: err}
	}
	r := JobResult{Attempt: attempt, Tail: log.tail}
	name, arg, _ := strings.Cut(state, " ")
	switch s := JobState(name); {
	case res.Exit == 0 && s == Exited:
		if r.Exit, err = strconv.Atoi(arg); err != nil {
			s = Lost
		}
		r.State = s
		return r, nil
	case res.Exit == 0 && (s == Lost || s == Rebooted || s == Absent):
		r.State = s
		return r, nil
	case attempt == 0:
		if words == "" {
			words = jobWords(k.stderr.bytes())
		}
		return JobResult{}, &Error{Kind: ErrJobStart, Host: c.host, Err: oneLine(words),
			hint: "jobs live in the guest's /var/lib/gpuguest: is that writable, and is there space?"}
	default:
		// The follower in the guest was killed; the job may run on.
		return JobResult{}, &JobError{At: at, Err: c.lost(fmt.Errorf("the job's follower ended with exit %d: %s", res.Exit, jobWords(k.stderr.bytes())))}
	}
}

// processesScript prints the job's processes: the keeper, whose pid is in the file $1, and its descendants.
const processesScript = `ps -eo pid=,ppid=,etime=,stat=,args= | awk -v root="$(cat "${GPUGUEST_STATE:-/var/lib/gpuguest}/jobs/$1/pid")" '
{ line[NR] = $0; pid[NR] = $1; parent[NR] = $2 }
END {
	job[root] = 1
	for (more = 1; more; ) {
		more = 0
		for (i = 1; i <= NR; i++) if (job[parent[i]] && !job[pid[i]]) { job[pid[i]] = 1; more = 1 }
	}
	for (i = 1; i <= NR; i++) if (job[pid[i]] && pid[i] != root) print substr(line[i], 1, 200)
}'`

// watchQuiet tells of silences until ctx ends.
func (c *Conn) watchQuiet(ctx context.Context, spec JobSpec, log *jobLog, talk *jobTalk) {
	told := log.lastWrite()
	timer := time.NewTimer(spec.Quiet)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		last := log.lastWrite()
		if last.After(told) {
			told = last
		}
		if wait := spec.Quiet - time.Since(told); wait > 0 {
			timer.Reset(wait)
			continue
		}
		q := QuietJob{Since: time.Since(last)}
		if attempt, _, _, _ := talk.heard(); attempt > 0 {
			var stdout, stderr capture
			stdout.max, stderr.max = maxStderr, maxStderr
			_, err := c.exec(ctx, call{script: processesScript, args: []string{fmt.Sprintf("%s/%d", spec.Name, attempt)}, stdout: &stdout, stderr: &stderr})
			if err == nil {
				q.Processes = strings.TrimRight(string(stdout.bytes()), "\n")
			}
		}
		if ctx.Err() != nil {
			return
		}
		spec.OnQuiet(q)
		told = time.Now()
		timer.Reset(spec.Quiet)
	}
}

// jobLog passes the log on and keeps its end.
type jobLog struct {
	out  io.Writer
	mu   sync.Mutex
	n    int64
	tail []byte
	last time.Time // of the last write
}

func (l *jobLog) lastWrite() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last
}

func (l *jobLog) Write(p []byte) (int, error) {
	n, err := l.out.Write(p)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.n += int64(n)
	l.last = time.Now()
	l.tail = append(l.tail, p[:n]...)
	if len(l.tail) > 2*maxTail {
		l.tail = append(l.tail[:0], l.tail[len(l.tail)-maxTail:]...)
	}
	return n, err
}

func (l *jobLog) read() (int64, []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.n, bytes.Clone(l.tail[max(0, len(l.tail)-maxTail):])
}

// jobTalk reads job.sh's lines on stderr as they come: when the connection is lost, what was heard counts.
type jobTalk struct {
	mu      sync.Mutex
	rest    []byte
	attempt int
	start   int64
	state   string
	words   string
}

const jobMark = "gpuguest-job "

func (t *jobTalk) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.rest = append(t.rest, p...)
	for {
		i := bytes.IndexByte(t.rest, '\n')
		if i < 0 {
			return len(p), nil
		}
		line, ok := strings.CutPrefix(string(t.rest[:i]), jobMark)
		t.rest = t.rest[i+1:]
		if !ok {
			continue
		}
		verb, rest, _ := strings.Cut(line, " ")
		switch verb {
		case "attempt":
			if n, err := fmt.Sscanf(rest, "%d %d", &t.attempt, &t.start); n != 2 || err != nil {
				t.attempt, t.start = 0, 0
			}
		case "state":
			t.state = rest
		case "error":
			t.words = rest
		}
	}
}

func (t *jobTalk) heard() (attempt int, start int64, state, words string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.attempt, t.start, t.state, t.words
}

// jobWords is the last thing said on stderr that is not the protocol's.
func jobWords(stderr []byte) string {
	last := ""
	for _, s := range strings.Split(string(stderr), "\n") {
		if s = strings.TrimSpace(s); s != "" {
			last = strings.TrimPrefix(s, jobMark)
		}
	}
	return last
}
