package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"gpuguest/internal/choice"
	"gpuguest/internal/engine"
	"gpuguest/internal/guest"
	"gpuguest/internal/oven"
	"gpuguest/steps"
)

// console is where a command reads and writes. Results go to out, all else to err.
type console struct {
	in       io.Reader
	out, err io.Writer
	cache    string // folder of the user's where facts are kept from one run to the next, "" for nowhere
	terminal *terminal
}

// reach holds the flags that say how to reach a guest.
type reach struct {
	host         string   // the guest that is worked on; of several the first
	hosts        []string // all that were given
	port         int
	user         string
	identities   []string
	sshConfig    string
	knownHosts   string
	hostKeyCheck string
	timeout      time.Duration
}

// sudoPasswordVariable is the environment variable that gives the guest's sudo password.
const sudoPasswordVariable = "GPUGUEST_SUDO_PASSWORD"

// app is one invocation.
type app struct {
	console
	reach
	json   bool
	logDir string
	// member is what this app's guest has of its own as one of many; nil: it is the only one.
	member *member
	// booted is the image that this app works on in place of a guest that flags name; nil: there is none.
	booted oven.Guest
	files  reportFiles
	// screen shows the run that is under way; nil: there is none, or it is one of many.
	screen *ui
	// reported: the command's JSON is written already, with its error in it.
	reported bool
}

// run carries out one command line and returns its exit code.
func run(ctx context.Context, args []string, c console) int {
	a := &app{console: c}
	root := newRoot(a)
	root.SetArgs(args)
	root.SetIn(c.in)
	root.SetOut(c.out)
	root.SetErr(c.err)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitDone
	}
	a.complain(err)
	return exitCode(err)
}

// complain writes an error for a person, and as JSON where that was asked for and no report holds it.
func (a *app) complain(err error) {
	var step *engine.StepError
	fmt.Fprintf(a.err, "gpuguest: error: %s\n", a.prefixed(err))
	var boot *oven.BootError
	tail := ""
	if errors.As(err, &step) && !strings.Contains(step.What, step.Tail) {
		tail = step.Tail
	} else if errors.As(err, &boot) {
		tail = boot.Tail
	}
	for line := range strings.Lines(tail) {
		fmt.Fprintf(a.err, "  %s\n", strings.TrimRight(line, "\n"))
	}
	if h := hint(err); h != "" {
		fmt.Fprintf(a.err, "gpuguest: hint: %s\n", h)
	}
	if step != nil {
		for _, line := range step.Advice {
			fmt.Fprintf(a.err, "  %s\n", line)
		}
	}
	if a.json && !a.reported {
		problem := engine.Problem{Message: err.Error(), Hint: hint(err)}
		_ = json.NewEncoder(a.out).Encode(map[string]any{"result": "failed", "host": a.host, "error": problem})
	}
}

// prefixed names the guest in front of an error that does not name it already.
func (a *app) prefixed(err error) string {
	text := err.Error()
	if a.host == "" || strings.HasPrefix(text, a.host+":") {
		return text
	}
	if t, perr := guest.ParseTarget(a.host); perr != nil || strings.HasPrefix(text, t.Host+":") {
		return text
	}
	return a.host + ": " + text
}

func newRoot(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:   "gpuguest",
		Short: "Install the NVIDIA driver in Linux guests that have a GPU passed through",
		Long: `gpuguest installs the NVIDIA driver inside a Linux guest that has a GPU passed through. It works from
outside, over SSH: it looks at the guest, decides, says what it will do, does it, reboots and goes on, and
ends by proving that the driver works. The same command again changes nothing; after a failure or a lost
connection it goes on where the guest is.`,
		Example: `  gpuguest facts --host vm:5022
  gpuguest plan --host vm:5022
  gpuguest install --host vm:5022`,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.CompletionOptions.HiddenDefaultCmd = false
	root.PersistentFlags().BoolVar(&a.json, "json", false, "print the result as JSON")
	for _, c := range []*cobra.Command{
		newFacts(a), newPlan(a), a.forMany(newInstall), a.forMany(newVerify), newBake(a), newSmoke(a), newStatus(a), a.forMany(newUninstall), newDiagnose(a), newCollect(a), newBundle(a),
		newReport(a), newHypervisor(a), newDistros(a), newVersion(a),
	} {
		root.AddCommand(c)
	}
	root.SetHelpTemplate(root.HelpTemplate() + exitStatusHelp + "\n")
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return fmt.Errorf("%w (see %s --help)", err, c.CommandPath())
	})
	return root
}

// addReach adds the flags that say how to reach a guest.
func (a *app) addReach(c *cobra.Command) {
	f := c.Flags()
	f.Var(hostFlag{a}, "host", "`GUEST` to work on: [user@]name[:port], or a Host of your ssh configuration")
	f.IntVarP(&a.port, "port", "p", 0, "SSH `PORT` (default: the ssh configuration's, else 22)")
	f.StringVarP(&a.user, "user", "l", "", "`USER` to log in as (default: the ssh configuration's, else yours)")
	f.StringArrayVarP(&a.identities, "identity", "i", nil, "private key `FILE`; may be given more than once")
	f.StringVarP(&a.sshConfig, "ssh-config", "F", "", "ssh configuration `FILE` (default ~/.ssh/config, \"none\" for none)")
	f.StringVar(&a.knownHosts, "known-hosts", "", "known hosts `FILE` (default: the ssh configuration's, else ~/.ssh/known_hosts)")
	f.StringVar(&a.hostKeyCheck, "host-key-check", "accept-new", "what to do with an unknown host key, `WORD`: accept-new or strict; a changed key is always refused")
	f.DurationVar(&a.timeout, "connect-timeout", 0, "time limit for connecting (default 10s)")
	f.StringVar(&a.logDir, "log-dir", "", "`FOLDER` that every step's whole output is kept in")
}

// guestConfig turns flags into how to reach the guest.
func (a *app) guestConfig() (guest.Config, error) {
	if a.booted != nil {
		return a.bootedConfig(), nil
	}
	if a.host == "" {
		return guest.Config{}, errors.New("--host is missing: which guest?")
	}
	if len(a.hosts) > 1 {
		return guest.Config{}, errors.New("--host was given more than once, and this command works on one guest")
	}
	t, err := guest.ParseTarget(a.host)
	if err != nil {
		return guest.Config{}, err
	}
	c := guest.Config{
		Host: t.Host, Port: t.Port, User: t.User, Identities: a.identities, SSHConfig: a.sshConfig, KnownHosts: a.knownHosts,
		Agent: os.Getenv("SSH_AUTH_SOCK"), ConnectTimeout: a.timeout,
		Notice: a.notice,
	}
	if a.port != 0 {
		c.Port = a.port
	}
	if a.user != "" {
		c.User = a.user
	}
	switch a.hostKeyCheck {
	case "accept-new":
		c.HostKeyCheck = guest.AcceptNew
	case "strict":
		c.HostKeyCheck = guest.Strict
	default:
		return guest.Config{}, fmt.Errorf("--host-key-check %q: it is accept-new or strict", a.hostKeyCheck)
	}
	if home, err := os.UserHomeDir(); err == nil {
		c.Home = home
	}
	if in, ok := a.in.(*os.File); ok && term.IsTerminal(int(in.Fd())) {
		c.Password = func(_ context.Context, prompt string) ([]byte, error) { return a.askSecret(in, prompt) }
		c.SudoPassword = func(context.Context) ([]byte, error) {
			return a.askSecret(in, "sudo password for "+a.host+": ")
		}
	}
	if p, ok := os.LookupEnv(sudoPasswordVariable); ok {
		c.SudoPassword = func(context.Context) ([]byte, error) { return []byte(p), nil }
	}
	if a.member != nil {
		a.member.complete(&c, t)
	}
	return c, nil
}

// hostFlag is --host, which commands for many guests take more than once.
type hostFlag struct{ a *app }

func (h hostFlag) Set(s string) error {
	h.a.hosts = append(h.a.hosts, s)
	h.a.host = h.a.hosts[0]
	return nil
}

func (h hostFlag) String() string {
	if h.a == nil {
		return ""
	}
	return h.a.host
}

func (h hostFlag) Type() string { return "string" }

// notice prints a line that stays.
func (a *app) notice(s string) {
	if a.screen == nil {
		fmt.Fprintf(a.err, "gpuguest: %s\n", s)
		return
	}
	a.screen.mu.Lock()
	defer a.screen.mu.Unlock()
	a.screen.print("gpuguest: " + s)
}

// aside takes the bar off the terminal, where there is one, until back is called.
func (a *app) aside() (back func()) {
	if a.screen == nil {
		return func() {}
	}
	return a.screen.aside()
}

func (a *app) askSecret(in *os.File, prompt string) ([]byte, error) {
	defer a.aside()()
	defer a.terminal.keep(int(in.Fd()))()
	fmt.Fprint(a.err, prompt)
	secret, err := term.ReadPassword(int(in.Fd()))
	fmt.Fprintln(a.err)
	return secret, err
}

// dial reaches the guest.
func (a *app) dial(ctx context.Context) (*guest.Conn, error) {
	c, err := a.guestConfig()
	if err != nil {
		return nil, err
	}
	return guest.Dial(ctx, c)
}

// owner names this run for whoever finds the guest held.
func owner() string {
	name, host := "somebody", "unknown host"
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	if h, err := os.Hostname(); err == nil {
		host = h
	}
	return fmt.Sprintf("%s@%s, process %d", name, host, os.Getpid())
}

// addWant adds the flags that say what is wanted.
func addWant(c *cobra.Command, w *choice.Want) {
	f := c.Flags()
	f.StringVar(&w.Driver, "driver", "", "driver `BRANCH` or version: 580, 580.95.05 (default: the best for the GPU)")
	f.StringVar(&w.Flavor, "flavor", "", "kernel module `FLAVOR`: open or proprietary (default: what the GPU needs)")
	f.StringVar(&w.Source, "source", "", "where the driver comes from, `SOURCE`: nvidia or distro for packages, runfile for NVIDIA's installer (default: nvidia where it can serve)")
	f.StringVar(&w.Modules, "modules", "", "how kernel modules come, `HOW`: dkms or precompiled, kmp on SUSE (default: signed ones where Secure Boot is on, else dkms)")
	f.StringVar(&w.Mirror, "repo-mirror", "", "`URL` that stands for the source's own: for .../compute/cuda/repos of NVIDIA, or, for apt, for the distribution's archive with --source distro")
	f.StringVar(&w.Mirror, "mirror", "", "`URL`: the same as --repo-mirror")
	f.StringVar(&w.KeyringSHA256, "keyring-sha256", "", "SHA-256, `HEX`, of the mirror's keyring package, when it is not NVIDIA's own")
	f.StringArrayVar(&w.KernelArgs, "kernel-arg", nil, "extra kernel `ARGUMENT`, as in pci=realloc; may be given more than once")
	f.StringArrayVar(&w.DropArgs, "drop-kernel-arg", nil, "take an extra kernel `ARGUMENT` of an earlier run away again")
	f.BoolVar(&w.HoldKernel, "hold-kernel", false, "put the guest's kernel packages on hold")
	f.BoolVar(&w.NoGPU, "no-gpu", false, "the guest has no GPU now: install and prove what can be proved")
	f.StringArrayVar(&w.Devices, "device", nil, "with --no-gpu: a GPU to decide for, `ID`, as in 10de:1eb8; may be given more than once")
	f.Var(targetGPUs{w}, "target-gpu", "with no GPU in the guest now: a `GPU` to decide for, by its name, \"Tesla T4\", or id, 10de:1eb8; may be given more than once")
	f.BoolVar(&w.WithoutCUDA, "without-cuda", false, "leave the proof of CUDA out, and its probe: for a guest that shall only have a driver")
	f.Float64Var(&w.LinkFraction, "link-fraction", 0, "part of the PCIe link's bandwidth that pinned copies must reach, `FRACTION` (default 0.5)")
	f.StringVar(&w.As, "as", "", "treat the guest as this `DISTRIBUTION`: debian:12")
	f.DurationVar(&w.LockWait, "lock-wait", 0, "how long to wait for cloud-init and the package manager's lock (default 10m)")
	for name, words := range map[string][]string{
		"flavor":  {choice.FlavorOpen, choice.FlavorProprietary},
		"source":  {choice.SourceNVIDIA, choice.SourceDistro, choice.SourceRunfile},
		"modules": {choice.ModulesDKMS, choice.ModulesPrecompiled, choice.ModulesKMP},
	} {
		_ = c.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp))
	}
}

// settle fills in what one flag says of another: a keyring's checksum names NVIDIA's repository, so a mirror
// beside it is that repository's and never the distribution's.
func settle(w choice.Want) choice.Want {
	if w.KeyringSHA256 != "" && w.Source == "" {
		w.Source = choice.SourceNVIDIA
	}
	return w
}

// checkWant refuses words that no choice is made of, before anybody is dialled.
func checkWant(w choice.Want) error {
	for _, v := range []struct {
		flag, value string
		words       []string
	}{
		{"flavor", w.Flavor, []string{choice.FlavorOpen, choice.FlavorProprietary}},
		{"source", w.Source, []string{choice.SourceNVIDIA, choice.SourceDistro, choice.SourceRunfile}},
		{"modules", w.Modules, []string{choice.ModulesDKMS, choice.ModulesPrecompiled, choice.ModulesKMP}},
		{"cuda-source", w.CUDASource, []string{choice.SourceNVIDIA, choice.SourceRunfile}},
	} {
		if last := len(v.words) - 1; v.value != "" && !slices.Contains(v.words, v.value) {
			return fmt.Errorf("--%s %q: it is %s or %s", v.flag, v.value, strings.Join(v.words[:last], ", "), v.words[last])
		}
	}
	for _, arg := range slices.Concat(w.KernelArgs, w.DropArgs) {
		if arg == "" || strings.ContainsAny(arg, " \t\n\"'\\$`") {
			return fmt.Errorf("--kernel-arg %q: one word without quotes, blanks, backslashes or $", arg)
		}
	}
	for _, tool := range w.With {
		if !slices.Contains(steps.Samples(), tool) {
			return fmt.Errorf("--with %q: it is any of %s", tool, strings.Join(steps.Samples(), ", "))
		}
	}
	if w.LinkFraction < 0 || w.LinkFraction > 1 {
		return fmt.Errorf("--link-fraction %g: it is between 0 and 1", w.LinkFraction)
	}
	if w.KeyringSHA256 != "" && w.Source == choice.SourceDistro && (w.CUDA == "" || w.CUDA == choice.CUDANone) {
		return errors.New("--keyring-sha256 goes with NVIDIA's repository, --source distro does without it")
	}
	if len(w.Devices) > 0 && !w.NoGPU {
		return errors.New("--device needs --no-gpu: a guest with a GPU tells its own")
	}
	return nil
}

func noArgs(c *cobra.Command, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("%s takes no argument, got %q (the guest goes behind --host)", c.CommandPath(), args[0])
	}
	return nil
}

func (a *app) writeJSON(v any) error {
	enc := json.NewEncoder(a.out)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	a.reported = true
	return enc.Encode(v)
}
