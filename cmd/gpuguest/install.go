package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"gpuguest/internal/choice"
	"gpuguest/internal/engine"
	"gpuguest/internal/facts"
	"gpuguest/internal/guest"
	"gpuguest/internal/plan"
	"gpuguest/internal/report"
	"gpuguest/steps"
)

// bootFlags are the flags of commands that may reboot the guest.
type bootFlags struct {
	reboot        string
	maxReboots    int
	rebootTimeout time.Duration
	powerCycle    string
	busyWait      time.Duration
}

func (b *bootFlags) add(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&b.reboot, "reboot", choice.RebootIfNeeded, "when to reboot the guest, `WHEN`: if-needed, never or always")
	f.IntVar(&b.maxReboots, "max-reboots", 5, "`N` reboots in one run; one more is an error, and no remedy is tried that could take one more")
	f.DurationVar(&b.rebootTimeout, "reboot-timeout", 10*time.Minute, "how long the guest may take to come back")
	f.StringVar(&b.powerCycle, "power-cycle-cmd", "", "`COMMAND` run here when the guest does not come back from a reboot")
	f.DurationVar(&b.busyWait, "busy-wait", 75*time.Second, "how long to wait while another gpuguest works on the guest")
}

func (b *bootFlags) check() error {
	switch b.reboot {
	case choice.RebootIfNeeded, choice.RebootNever, choice.RebootAlways:
		return nil
	}
	return fmt.Errorf("--reboot %q: it is if-needed, never or always", b.reboot)
}

func newInstall(a *app) *cobra.Command {
	var w choice.Want
	var b bootFlags
	var m methods
	var keyring string
	var noFix bool
	c := &cobra.Command{
		Use:   "install --host GUEST",
		Short: "Install and verify the NVIDIA driver in a guest",
		Long: `Install the NVIDIA driver in a guest, reboot it when something that was changed needs that, and prove
that the driver works. What is done already is left alone, so the same command may be run again at any
time: after it succeeded it changes nothing, after it failed or was cut off it goes on.

When a proof fails for a cause that gpuguest knows and can do something about safely, it does: it tries the
remedy, reboots if that takes it, looks again, keeps what helped and takes back what did not. "gpuguest plan"
says what it would try; --no-fix switches it off.`,
		Example: `  gpuguest install --host vm:5022
  gpuguest install --host root@vm --driver 580 --flavor open
  gpuguest install --host vm --kernel-arg pci=realloc
  gpuguest install --host vm --html vm.html --junit vm.xml
  gpuguest install --host vm --cuda auto --with deviceQuery
  gpuguest install --host vm --runfile NVIDIA-Linux-x86_64-390.42.run --cuda 9.1 --cuda-source runfile
  gpuguest install --host image-builder --no-gpu --device 10de:1eb8 --reboot never`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) (err error) {
			if err := checkWant(w); err != nil {
				return err
			}
			w.Reboot = b.reboot
			files, err := a.keyringFile(keyring, &w)
			if err != nil {
				return err
			}
			closeFiles, err := m.settle(a.member, &w, files)
			defer func() { err = errors.Join(err, closeFiles()) }()
			if err != nil {
				return err
			}
			w = settle(w)
			policy := engine.SafeRemedies
			if noFix {
				policy = engine.NoRemedies
			}
			return a.writeCert(&m, a.converge(c.Context(), b, files, installing(w), mending(policy, &w)))
		},
	}
	a.addReach(c)
	addWant(c, &w)
	m.add(c, &w)
	b.add(c)
	a.files.add(c)
	addKeyring(c, &keyring)
	c.Flags().BoolVar(&noFix, "no-fix", false, "when a proof fails, say why and try no remedy")
	return c
}

// installing makes the plan that brings about what is wanted.
func installing(w choice.Want) func(facts.Facts) (plan.Plan, error) {
	return func(f facts.Facts) (plan.Plan, error) {
		in, err := plan.Input(f, w)
		if err != nil {
			return plan.Plan{}, err
		}
		return plan.Build(in, steps.Install())
	}
}

func addKeyring(c *cobra.Command, keyring *string) {
	c.Flags().StringVar(keyring, "keyring", "", "NVIDIA's keyring package, `FILE`: send it instead of having the guest fetch it")
}

// keyringFile returns the files that the plan may send, by SHA-256, and tells w of the keyring.
func (a *app) keyringFile(name string, w *choice.Want) (map[string]string, error) {
	files := make(map[string]string)
	if name == "" {
		return files, nil
	}
	sum, err := once(a.member, "SHA-256 of "+name, func() (string, error) { return sha256File(name) })
	if err != nil {
		return nil, err
	}
	files[sum], w.KeyringSent = name, true
	return files, nil
}

func sha256File(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", fmt.Errorf("%s: %w", name, err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// converge brings the guest to what makePlan says and prints the report. files are those that the plan
// may send, by SHA-256.
func (a *app) converge(ctx context.Context, b bootFlags, files map[string]string, makePlan func(facts.Facts) (plan.Plan, error), tune ...func(*engine.Config)) error {
	if err := b.check(); err != nil {
		return err
	}
	if err := a.files.check(); err != nil {
		return err
	}
	if _, err := a.guestConfig(); err != nil {
		return err
	}
	cfg := a.engineConfig(b, files, makePlan)
	cfg.Dial = a.dialer()
	cfg.Recall, cfg.Remember = a.recall()
	for _, f := range tune {
		f(&cfg)
	}
	if a.member != nil {
		return a.member.run(ctx, cfg)
	}
	ui := newUI(a.err, a.host)
	cfg.Tell, a.screen = ui.tell, ui
	result, err := engine.Run(ctx, cfg)
	ui.close()
	a.screen = nil
	return a.tellResult(report.New(result, exitCode(err), time.Now()), err)
}

// engineConfig is the configuration of a run, but for how its guest is reached and what is shown of it.
func (a *app) engineConfig(b bootFlags, files map[string]string, makePlan func(facts.Facts) (plan.Plan, error)) engine.Config {
	cfg := engine.Config{
		Host: a.host, Plan: makePlan, Files: files, Hint: knownCause, Advice: advice,
		Owner: owner(), LockWait: b.busyWait,
		Reboot: b.reboot, MaxReboots: b.maxReboots, RebootDeadline: b.rebootTimeout, PowerCycle: a.powerCycle(b.powerCycle),
		Patience: 5 * time.Minute,
	}
	if a.logDir != "" {
		cfg.Logs = a.openLog
	}
	return cfg
}

// dialer asks for each secret once and dials again with it.
func (a *app) dialer() func(context.Context) (*guest.Conn, error) {
	var cfg guest.Config
	var good func()
	return func(ctx context.Context) (*guest.Conn, error) {
		if good == nil {
			c, err := a.guestConfig()
			if err != nil {
				return nil, err
			}
			cfg, good = remembered(c)
		}
		conn, err := guest.Dial(ctx, cfg)
		if err == nil {
			good()
		}
		return conn, err
	}
}

// remembered makes a configuration whose secrets are asked for once, so that a run that dials again after
// a reboot does not stop at a prompt nobody watches. Until good is called, after a login, each question is put
// again: an answer that is asked for twice was mistyped. After it none is, as a guest that is still booting refuses
// right passwords too.
func remembered(c guest.Config) (cfg guest.Config, good func()) {
	var mu sync.Mutex
	said, answers := make(map[string][]byte), make(map[string][]byte)
	if ask := c.Password; ask != nil {
		c.Password = func(ctx context.Context, prompt string) ([]byte, error) {
			mu.Lock()
			known, ok := answers[prompt]
			mu.Unlock()
			if ok {
				return known, nil
			}
			secret, err := ask(ctx, prompt)
			if err == nil {
				mu.Lock()
				said[prompt] = secret
				mu.Unlock()
			}
			return secret, err
		}
	}
	if ask := c.SudoPassword; ask != nil {
		var secret []byte
		c.SudoPassword = func(ctx context.Context) ([]byte, error) {
			if secret != nil {
				return secret, nil
			}
			got, err := ask(ctx)
			if err == nil {
				secret = got
			}
			return got, err
		}
	}
	return c, func() {
		mu.Lock()
		defer mu.Unlock()
		maps.Copy(answers, said)
	}
}

// powerCycle runs the user's command, which finds in GPUGUEST_HOST which guest it is about, and no secret of
// gpuguest's.
func (a *app) powerCycle(command string) func(context.Context) error {
	if command == "" {
		return nil
	}
	return func(ctx context.Context) error {
		c := exec.CommandContext(ctx, "/bin/sh", "-c", command)
		c.Env = append(slices.DeleteFunc(os.Environ(), func(v string) bool {
			name, _, _ := strings.Cut(v, "=")
			return name == sudoPasswordVariable || name == proxyVariable
		}), "GPUGUEST_HOST="+a.host)
		c.Stdout, c.Stderr = a.err, a.err
		defer a.aside()()
		return c.Run()
	}
}

// openLog opens the file that one job's whole output goes to. A job that is followed again is written
// again from its first byte.
func (a *app) openLog(job string) (io.WriteCloser, error) {
	dir := filepath.Join(a.logDir, filepath.Base(a.host))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	return os.OpenFile(filepath.Join(dir, job+".log"), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
}
