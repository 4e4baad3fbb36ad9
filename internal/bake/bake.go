// Package bake makes disk images that have the driver in them.
//
// It boots a copy of a base image in an oven, has the engine install in it what it installs in any guest, seals
// it, turns it off and puts it beside its manifest, whole or not at all. It decides nothing about drivers and
// installs nothing by itself; the base is only ever read.
package bake

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"gpuguest/assets"
	"gpuguest/internal/choice"
	"gpuguest/internal/engine"
	"gpuguest/internal/facts"
	"gpuguest/internal/guest"
	"gpuguest/internal/oven"
	"gpuguest/internal/plan"
	"gpuguest/internal/sh"
	"gpuguest/steps"
)

// Recipe is what is to be done in an image's guest: what install would do there.
type Recipe struct {
	// Engine is install's configuration without Host, Dial, Reboot and Tell, which are the baker's to fill in.
	Engine engine.Config
	// First are runs before it, in order, each of which keeps the modules of another flavor in the image; nil none.
	// They are configured as Engine is.
	First []engine.Config
	// Verify makes the plan that leaves the first boot's verification in the image.
	Verify func(facts.Facts) (plan.Plan, error)
	// Close removes what was made for the recipe; nil nothing.
	Close func() error
}

// Baker bakes images. It may bake several at once.
type Baker struct {
	Ovens []oven.Oven // that there are, the fastest first
	Disks Disks
	Made  Maker
	Again bool // bake also what is there already
	// Prepare makes the recipe of an image. locked is what the image's lock says of the driver.
	Prepare func(im Image, locked Planned) (Recipe, error)
	Free    func(dir string) (Space, error) // of the file system that a folder is in; nil: not known
	Tell    func(Event)                     // is called by several goroutines; nil: nobody listens
	// Console opens what an image's console is written to while it is baked; nil nowhere.
	Console func(im Image) (io.WriteCloser, error)

	mu       sync.Mutex
	hashed   map[string]*hashing
	promises []*promise
	freed    chan struct{} // closed when one of them ends, nil: nobody waits
}

// hashing is one base that is read once for all images made from it.
type hashing struct {
	once sync.Once
	sum  string
	err  error
}

// Event is one moment of baking one image.
type Event struct {
	Image  string
	Phase  string        // that begins, "" none
	Engine *engine.Event // what the engine tells, nil nothing
	Text   string        // a notice
}

// The phases of baking, in order.
const (
	PhaseBase     = "check the base"
	PhaseCopy     = "make a disk over it"
	PhaseBoot     = "boot"
	PhaseInstall  = "install"
	PhaseVerify   = "leave the first boot's verification"
	PhaseInspect  = "list what is in it"
	PhaseSeal     = "seal"
	PhaseOff      = "power off"
	PhaseCompact  = "compact"
	PhaseComplete = "complete"
)

// ErrLock is matched by the error of an image whose packages cannot be those of its lock.
var ErrLock = errors.New("its packages are not those of the lock")

// Error says which image could not be baked, and in which phase.
type Error struct {
	Image, Phase string
	Console      string // the last lines of the guest's console, where that says something
	Err          error
}

func (e *Error) Error() string {
	if e.Phase == "" {
		return e.Image + ": " + e.Err.Error()
	}
	return e.Image + ": " + e.Phase + ": " + e.Err.Error()
}

// Unwrap returns Err.
func (e *Error) Unwrap() error { return e.Err }

// baking is one image on its way.
type baking struct {
	*Baker
	im      Image
	recipe  Recipe
	lock    *Lock
	early   []Package // that were there when Recipe.First had run
	w       *work
	began   time.Time
	phase   string
	m       Manifest
	plan    json.RawMessage // of the first look at the guest
	last    plan.Plan
	boot    string // boot_id of the guest as it is sealed
	guest   oven.Guest
	console io.Writer // nil: nowhere
	left    error     // why the work folder could not be removed
	room    *promise  // nil: none
}

// Bake bakes one image, or finds that it is there: then the second value is false. The error is *Error.
func (b *Baker) Bake(ctx context.Context, im Image) (Manifest, bool, error) {
	k := &baking{Baker: b, im: im}
	m, baked, err := k.run(ctx)
	var refusal *plan.Refusal
	if errors.As(err, &refusal) && refusal.Step == "room" && refusal.Hint == "" {
		refusal.Hint = "disk-size of the image in the file makes its disk, and the root on it, larger: disk-size: 20G"
	}
	if err != nil && ctx.Err() != nil {
		// Nothing goes on in a guest that was ended, whatever the engine says of jobs.
		return m, false, &Error{Image: im.Name, Phase: k.phase, Err: errors.Join(context.Cause(ctx), k.left)}
	}
	if err != nil {
		e := &Error{Image: im.Name, Phase: k.phase, Err: err}
		if k.guest != nil {
			e.Console = lastLines(k.guest.Console(), 15)
		}
		return m, false, e
	}
	return m, baked, nil
}

func lastLines(text string, n int) string {
	l := strings.Split(strings.TrimRight(text, "\r\n"), "\n")
	return strings.Join(l[max(0, len(l)-n):], "\n")
}

func (k *baking) tell(e Event) {
	if k.Tell != nil {
		e.Image = k.im.Name
		k.Tell(e)
	}
}

func (k *baking) notice(format string, args ...any) {
	k.tell(Event{Text: fmt.Sprintf(format, args...)})
}

// begin ends the phase before and begins one.
func (k *baking) begin(ctx context.Context, phase string) error {
	k.end()
	k.phase, k.began = phase, time.Now()
	k.tell(Event{Phase: phase})
	return context.Cause(ctx)
}

func (k *baking) end() {
	if k.phase != "" {
		k.m.Phases = append(k.m.Phases, Phase{k.phase, time.Since(k.began).Seconds()})
	}
}

func (k *baking) cleaners() []Cleaner {
	var all []Cleaner
	for _, o := range k.Ovens {
		if c, ok := o.(Cleaner); ok {
			all = append(all, c)
		}
	}
	return all
}

func (k *baking) run(ctx context.Context) (m Manifest, baked bool, err error) {
	if k.lock, err = readLock(k.im.Lock); err != nil {
		return m, false, err
	}
	if k.lock != nil && k.lock.BaseSHA256 != k.im.SHA256 {
		return m, false, fmt.Errorf("lock %s was made for the base with SHA-256 %s, and this one's is %s; without the file a new one is written", k.im.Lock, k.lock.BaseSHA256, k.im.SHA256)
	}
	planned, err := k.lock.planned()
	if err != nil {
		return m, false, err
	}
	if k.recipe, err = k.Prepare(k.im, planned); err != nil {
		return m, false, err
	}
	if k.recipe.Close != nil {
		defer func() { err = errors.Join(err, k.recipe.Close()) }()
	}
	digest, err := k.digest()
	if err != nil {
		return m, false, err
	}
	if err := os.MkdirAll(filepath.Dir(k.im.Output), 0o755); err != nil {
		return m, false, err
	}
	if k.w, err = openWork(k.im.Output); err != nil {
		return m, false, err
	}
	// What is removed at the end is removed also when the user does not want to go on.
	defer func() {
		k.left = k.w.close(context.WithoutCancel(ctx), k.cleaners())
		k.unreserve()
		err = errors.Join(err, k.left)
	}()
	if left, ok := k.w.finished(); ok && left.Recipe == digest && !k.Again {
		k.notice("an earlier run had come to its end but for the image's name")
		return left, true, k.w.publish()
	}
	if err := k.w.clean(ctx, k.cleaners()); err != nil {
		return m, false, err
	}
	if there, ok, err := k.there(digest); ok || err != nil {
		return there, false, err
	}
	k.m = Manifest{
		Schema: 1, Name: k.im.Name, File: filepath.Base(k.im.Output), Format: k.im.Format, Gpuguest: k.Made, Recipe: digest,
		Base:            BaseImage{File: filepath.Base(k.im.Base), Format: k.im.BaseFormat, SHA256: k.im.SHA256},
		FirstBootVerify: k.im.FirstBootVerify, Baked: time.Now().UTC().Truncate(time.Second),
	}
	if err := k.bake(ctx); err != nil {
		return k.m, false, err
	}
	return k.m, true, nil
}

// digest is of all that an image depends on and that is known beforehand: what was asked for, and the files that
// are sent.
func (k *baking) digest() (string, error) {
	type option struct {
		Name   string
		Values []string
	}
	var options []option
	for _, o := range k.im.Options {
		options = append(options, option{o.Name, o.Values})
	}
	raw, err := json.Marshal(struct {
		Base, BaseFormat, Format, Firmware string
		Compress, FirstBootVerify          bool
		Options                            []option
		Files                              []string
		DiskSize                           int `json:",omitempty"` // images of before it are as good as they were
	}{k.im.SHA256, k.im.BaseFormat, k.im.Format, k.im.Firmware, k.im.Compress, k.im.FirstBootVerify, options, slices.Sorted(maps.Keys(k.recipe.Engine.Files)), k.im.DiskSize})
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:]), err
}

// there tells whether the image is in its place already. One that gpuguest did not bake is not written over.
func (k *baking) there(digest string) (Manifest, bool, error) {
	if k.Again {
		return Manifest{}, false, nil
	}
	if _, err := os.Stat(k.im.Output); errors.Is(err, fs.ErrNotExist) {
		return Manifest{}, false, nil
	} else if err != nil {
		return Manifest{}, false, err
	}
	m, err := ReadManifest(manifestOf(k.im.Output))
	if err != nil {
		return m, false, fmt.Errorf("%s is there, and no manifest of gpuguest beside it: it is not written over without --again", k.im.Output)
	}
	if m.Recipe != digest || k.lock != nil && len(differences(k.lock.Packages, m.Packages, 1)) > 0 {
		return Manifest{}, false, nil
	}
	sum, err := fileSHA256(k.im.Output)
	return m, err == nil && sum == m.SHA256, err
}

func (k *baking) bake(ctx context.Context) (err error) {
	if err := k.begin(ctx, PhaseBase); err != nil {
		return err
	}
	base := Disk{k.im.Base, k.im.BaseFormat}
	if err := k.checkBase(); err != nil {
		return err
	}
	info, err := k.Disks.Info(ctx, base)
	if err != nil {
		return err
	}
	if info.Backing != "" {
		return fmt.Errorf("%s reads from another file too, %s, which its SHA-256 says nothing of: convert it to one that stands alone", k.im.Base, info.Backing)
	}
	if want := int64(k.im.DiskSize) << 20; want > 0 && want < info.Virtual {
		return fmt.Errorf("%v: disk-size: %d MiB is less than the %d MiB that %s has, and no disk is made smaller", k.im.Where, want>>20, info.Virtual>>20, k.im.Base)
	}
	// An overlay names its base for qemu-img, which would look for a relative name beside the overlay.
	if base.Path, err = filepath.Abs(base.Path); err != nil {
		return err
	}
	if k.Console != nil {
		log, err := k.Console(k.im)
		if err != nil {
			return err
		}
		defer log.Close()
		k.console = log
	}
	disk, o, err := k.start(ctx, base, info)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, k.guest.Close()) }()
	// A guest whose kernel panics answers nobody any more, which whoever waits for an answer would wait out.
	watched, unwatch := oven.Watched(ctx, k.guest)
	err = k.inGuest(watched, o)
	if err == nil {
		err = k.begin(watched, PhaseOff)
	}
	if err == nil {
		err = k.guest.PowerOff(watched)
	}
	if err := cmp.Or(unwatch(), err); err != nil {
		return err
	}
	if err := k.guest.Close(); err != nil {
		return err
	}
	return k.complete(ctx, disk)
}

// checkBase reads a base once, also when several images are made from it.
func (k *baking) checkBase() error {
	k.mu.Lock()
	if k.hashed == nil {
		k.hashed = make(map[string]*hashing)
	}
	h := k.hashed[k.im.Base]
	if h == nil {
		h = &hashing{}
		k.hashed[k.im.Base] = h
	}
	k.mu.Unlock()
	h.once.Do(func() { h.sum, h.err = fileSHA256(k.im.Base) })
	if h.err != nil {
		return h.err
	}
	if h.sum != k.im.SHA256 {
		return fmt.Errorf("%s: its SHA-256 is %s, and %v says %s", k.im.Base, h.sum, k.im.Where, k.im.SHA256)
	}
	return nil
}

// Growth is what installing a driver may add to a disk, in bytes: headers, compiler, modules of several kernels
// and the libraries took 1.8 GB on Debian 12.
const Growth = 3 << 30

// hostKernel is an oven whose guests run on this machine's kernel. It takes raw disks, its guests are not
// rebooted, and nothing that the running kernel tells says anything about the image's.
type hostKernel interface{ HostKernel() bool }

func sharesKernel(o oven.Oven) bool {
	h, ok := o.(hostKernel)
	return ok && h.HostKernel()
}

// start boots a disk over the base in the first oven that can do it.
func (k *baking) start(ctx context.Context, base Disk, info DiskInfo) (Disk, oven.Oven, error) {
	var refused []error
	for _, o := range k.Ovens {
		if k.im.Oven != OvenAuto && k.im.Oven != o.Name() {
			continue
		}
		if err := o.Usable(ctx); err != nil {
			refused = append(refused, fmt.Errorf("oven %s: %w", o.Name(), err))
			continue
		}
		disk, err := k.disk(ctx, o, base, info)
		if err != nil {
			return Disk{}, nil, err
		}
		if err := k.begin(ctx, PhaseBoot); err != nil {
			return Disk{}, nil, err
		}
		g, err := o.Start(ctx, oven.Spec{
			Disk: disk.Path, Format: disk.Format, Scratch: k.w.path(workOven), Firmware: k.im.Firmware,
			Memory: k.im.memory(), CPUs: k.im.CPUs, User: k.im.User, Grow: k.size(info) > info.Virtual, Log: k.console,
		})
		if err == nil {
			if err = k.grown(g, info); err == nil {
				k.guest, k.m.Oven = g, o.Name()
				return disk, o, nil
			}
			err = errors.Join(err, g.Close())
		}
		if ctx.Err() != nil {
			return Disk{}, nil, err
		}
		refused = append(refused, fmt.Errorf("oven %s: %w", o.Name(), err))
		if err := k.w.clean(ctx, k.cleaners()); err != nil {
			return Disk{}, nil, errors.Join(append(refused, err)...)
		}
		if k.im.Oven == OvenAuto {
			k.notice("%v", refused[len(refused)-1])
		}
	}
	if len(refused) == 0 {
		return Disk{}, nil, fmt.Errorf("there is no oven %s", k.im.Oven)
	}
	return Disk{}, nil, errors.Join(refused...)
}

// size is how many bytes the image's disk is to have.
func (k *baking) size(info DiskInfo) int64 {
	return max(info.Virtual, int64(cmp.Or(k.im.DiskSize, DefaultDisk))<<20)
}

// grown says that a root does not fill its disk: an error where the file has a disk-size, else it may do as it is.
func (k *baking) grown(g oven.Guest, info DiskInfo) error {
	why := g.Ungrown()
	switch {
	case why == "":
		return nil
	case k.im.DiskSize > 0:
		return fmt.Errorf("disk-size: the root file system was not grown: %s", why)
	}
	k.notice("its disk is %s larger, and its root file system is as it was: %s", gib(k.size(info)-info.Virtual), why)
	return nil
}

// disk makes what is baked: an overlay where the oven reads one, else a copy.
func (k *baking) disk(ctx context.Context, o oven.Oven, base Disk, info DiskInfo) (Disk, error) {
	if err := k.begin(ctx, PhaseCopy); err != nil {
		return Disk{}, err
	}
	// What is needed at the worst moment: what is baked, and the copy of it that becomes the image.
	need := info.Allocated + 2*Growth
	if sharesKernel(o) {
		need += info.Allocated
	}
	if err := k.reserve(ctx, need); err != nil {
		return Disk{}, err
	}
	if err := os.Mkdir(k.w.path(workOven), 0o700); err != nil {
		return Disk{}, err
	}
	disk := Disk{k.w.path(workDisk), oven.FormatQcow2}
	var err error
	if sharesKernel(o) {
		disk.Format = oven.FormatRaw
		err = k.Disks.Copy(ctx, base, disk, false)
	} else {
		err = k.Disks.Overlay(ctx, base, disk.Path)
	}
	if size := k.size(info); err == nil && size > info.Virtual {
		err = k.Disks.Resize(ctx, disk, size)
	}
	return disk, err
}

func gib(n int64) string { return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30)) }

// inGuest does all that is done while the guest runs.
func (k *baking) inGuest(ctx context.Context, o oven.Oven) error {
	if err := k.begin(ctx, PhaseInstall); err != nil {
		return err
	}
	if k.lock != nil {
		if _, err := k.sh(ctx, "lock_packages", strings.NewReader(k.lock.tabbed())); err != nil {
			return err
		}
	}
	for _, first := range k.recipe.First {
		report, err := engine.Run(ctx, k.engine(o, first, first.Plan))
		k.m.Report = report
		if err != nil {
			return err
		}
		there, err := k.packages(ctx)
		if err != nil {
			return err
		}
		k.early = append(k.early, there...)
	}
	report, err := engine.Run(ctx, k.engine(o, k.recipe.Engine, k.remembering(k.recipe.Engine.Plan)))
	k.m.Report = report
	if err != nil {
		return err
	}
	if k.im.FirstBootVerify {
		if err := k.begin(ctx, PhaseVerify); err != nil {
			return err
		}
		cfg := k.engine(o, k.recipe.Engine, k.recipe.Verify)
		cfg.Remedies = engine.NoRemedies
		if _, err := engine.Run(ctx, cfg); err != nil {
			return err
		}
	}
	if err := k.begin(ctx, PhaseInspect); err != nil {
		return err
	}
	if err := k.inspect(ctx); err != nil {
		return err
	}
	if err := k.begin(ctx, PhaseSeal); err != nil {
		return err
	}
	return k.seal(ctx)
}

// engine is the configuration of one run in the guest, as cfg but for the plan.
func (k *baking) engine(o oven.Oven, cfg engine.Config, makePlan func(facts.Facts) (plan.Plan, error)) engine.Config {
	cfg.Host, cfg.Dial = k.im.Name, k.dial
	cfg.Reboot = choice.RebootIfNeeded
	cfg.Plan = makePlan
	if sharesKernel(o) {
		cfg.Reboot = choice.RebootNever
		cfg.Plan = func(f facts.Facts) (plan.Plan, error) {
			p, err := makePlan(f)
			return withoutRunning(p), err
		}
	}
	cfg.Tell = func(e engine.Event) { k.tell(Event{Engine: &e}) }
	return cfg
}

// withoutRunning is a plan without the proofs that are of the running kernel's command line: that kernel is the
// machine's, and the image's was never started. What its bootloader will give it is proved by kernel-args.
func withoutRunning(p plan.Plan) plan.Plan {
	for i, s := range p.Segments {
		p.Segments[i].Items = slices.DeleteFunc(slices.Clone(s.Items), func(it plan.Item) bool { return it.ID == steps.ID("verify-cmdline") })
	}
	return p
}

// remembering keeps the plan: the first as the lock's, the last for what it decided.
func (k *baking) remembering(makePlan func(facts.Facts) (plan.Plan, error)) func(facts.Facts) (plan.Plan, error) {
	return func(f facts.Facts) (plan.Plan, error) {
		p, err := makePlan(f)
		if err != nil {
			return p, err
		}
		k.last = p
		if k.plan == nil {
			var b bytes.Buffer
			if err := p.JSON(&b, f, nil); err != nil {
				return p, err
			}
			k.plan = b.Bytes()
		}
		return p, nil
	}
}

func (k *baking) dial(ctx context.Context) (*guest.Conn, error) {
	host, port := k.guest.Address()
	cfg := oven.Login{Host: host, Port: port, User: k.guest.User(), Identity: k.guest.Identity(), KnownHosts: k.guest.KnownHosts()}.Config()
	cfg.Home = k.w.dir
	cfg.Notice = func(s string) { k.notice("%s", s) }
	return guest.Dial(ctx, cfg)
}

// sh runs a call of assets/bake.sh in the guest and returns what it printed.
func (k *baking) sh(ctx context.Context, call string, stdin io.Reader) (string, error) {
	conn, err := k.dial(ctx)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	res, err := conn.Run(ctx, guest.Command{Script: "set -eu\n" + assets.Bake + call + "\n", Stdin: stdin, Timeout: 20 * time.Minute})
	if err != nil {
		return "", err
	}
	if res.Exit != 0 {
		return "", fmt.Errorf("exit %d: %s", res.Exit, lastLines(string(res.Stdout)+string(res.Stderr), 15))
	}
	return string(res.Stdout), nil
}

// inspect puts into the manifest what the guest is now, and holds its packages against the lock.
func (k *baking) inspect(ctx context.Context) error {
	conn, err := k.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	res, err := conn.Run(ctx, guest.Command{Script: assets.Facts, Timeout: 5 * time.Minute})
	if err != nil {
		return err
	}
	f, err := facts.Parse(res.Stdout)
	if err != nil {
		return fmt.Errorf("facts: %w", err)
	}
	k.boot = f.BootID
	c := k.last.Choice
	k.m.Distro, k.m.Arch, k.m.Kernel, k.m.KernelArgs = k.last.Distro.Name, f.Arch, f.Kernel.Next, f.Kernel.NextCmdline
	k.m.Driver, k.m.Signer = cmp.Or(f.Driver.Next.Version, c.Version), f.Driver.Next.Signer
	k.m.Flavor, k.m.Source, k.m.By = c.Flavor, c.Source, c.Modules
	for _, g := range c.GPUs {
		k.m.Targets = append(k.m.Targets, strings.TrimSpace(g.Title()))
	}
	k.m.Journal = journalLines(f.State.Journal)
	if k.m.Packages, err = k.packages(ctx); err != nil {
		return err
	}
	text, err := k.sh(ctx, "modules "+sh.Quote(f.Kernel.Next), nil)
	if err != nil {
		return err
	}
	if k.m.Modules, err = parseModules(text); err != nil {
		return err
	}
	if text, err = k.sh(ctx, "flavors "+sh.Quote(f.Kernel.Next), nil); err != nil {
		return err
	}
	if k.m.Flavors, err = parseFlavors(text); err != nil {
		return err
	}
	if err := sameVersion(k.m.Flavors, len(k.recipe.First)); err != nil || k.lock == nil {
		return err
	}
	if d := differences(k.lock.Packages, k.m.Packages, 10); len(d) > 0 {
		return fmt.Errorf("%w, %s: %s", ErrLock, k.im.Lock, strings.Join(d, "; "))
	}
	return nil
}

// packages are those that the guest has now.
func (k *baking) packages(ctx context.Context) ([]Package, error) {
	text, err := k.sh(ctx, "packages", nil)
	if err != nil {
		return nil, err
	}
	return parsePackages(text)
}

// seal is the last that is done in the guest.
func (k *baking) seal(ctx context.Context) error {
	raw, err := os.ReadFile(k.guest.Identity())
	if err != nil {
		return err
	}
	signer, err := ssh.ParsePrivateKey(raw)
	if err != nil {
		return fmt.Errorf("one-time key: %w", err)
	}
	words := strings.Fields(string(ssh.MarshalAuthorizedKey(signer.PublicKey())))
	_, err = k.sh(ctx, "seal "+sh.Join(words[1], k.boot), nil)
	return err
}

// complete makes the image of the baked disk and puts it in its place.
func (k *baking) complete(ctx context.Context, disk Disk) error {
	if err := k.begin(ctx, PhaseCompact); err != nil {
		return err
	}
	image := Disk{k.w.path(workImage + ".part"), k.im.Format}
	if err := k.Disks.Copy(ctx, disk, image, k.im.Compress); err != nil {
		return err
	}
	info, err := k.Disks.Info(ctx, image)
	if err != nil {
		return err
	}
	if k.m.SHA256, err = fileSHA256(image.Path); err != nil {
		return err
	}
	st, err := os.Stat(image.Path)
	if err != nil {
		return err
	}
	k.m.Bytes, k.m.Virtual = st.Size(), info.Virtual
	if err := os.Chmod(image.Path, 0o644); err != nil {
		return err
	}
	if err := syncPath(image.Path); err != nil {
		return err
	}
	if err := k.begin(ctx, PhaseComplete); err != nil {
		return err
	}
	if k.im.Lock != "" && k.lock == nil {
		if err := writeJSON(k.im.Lock, Lock{Schema: 1, BaseSHA256: k.im.SHA256, Plan: k.plan, Packages: k.m.Packages, Gone: gone(k.early, k.m.Packages)}); err != nil {
			return err
		}
	}
	if err := os.Rename(image.Path, k.w.path(workImage)); err != nil {
		return err
	}
	k.end()
	k.phase = ""
	if err := writeJSON(k.w.path(workManifest), k.m); err != nil {
		return err
	}
	return k.w.publish()
}
