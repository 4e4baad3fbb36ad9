package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"gpuguest/internal/bake"
	"gpuguest/internal/catalog"
	"gpuguest/internal/choice"
	"gpuguest/internal/engine"
	"gpuguest/internal/facts"
	"gpuguest/internal/guest"
	"gpuguest/internal/oven"
	"gpuguest/internal/oven/nspawn"
	"gpuguest/internal/plan"
	"gpuguest/internal/report"
	"gpuguest/steps"
)

// baking are bake's flags.
type baking struct {
	file, oven string
	only       []string
	again      bool
}

func newBake(a *app) *cobra.Command {
	var b baking
	c := &cobra.Command{
		Use:   "bake -f FILE",
		Short: "Make disk images that have the driver in them",
		Long: `Make disk images that have the driver in them. Each image of the file is made from a base that is known by its
SHA-256 and never written to: a disk over it is booted, what install does is done in it, with the GPUs that are named
in place of those that are seen, what must not be in an image is taken away, and the disk is turned off, compacted and
put in its place, with a manifest of what is in it beside it. That happens whole or not at all: what a killed run left
the next one cleans, and an image that is there as it was asked for is left alone.

An image is booted in an oven. "nspawn" starts its system as a container, at this machine's own speed; it needs root.
"qemu" starts a virtual machine, on KVM where that works. "auto" takes the first of the two that can do it.

docs/bake.md has every key of the file.`,
		Example: `  gpuguest bake -f bake.yaml
  gpuguest bake -f bake.yaml --image debian-12 --again
  gpuguest bake -f bake.yaml --oven qemu --json`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error { return a.bake(c.Context(), b) },
	}
	f := c.Flags()
	f.StringVarP(&b.file, "file", "f", "", "`FILE` that says which images (\"-\": standard input)")
	f.StringArrayVar(&b.only, "image", nil, "only the image of this `NAME`; may be given more than once")
	f.StringVar(&b.oven, "oven", "", "`OVEN` for all images, whatever the file says: auto, nspawn or qemu")
	f.BoolVar(&b.again, "again", false, "bake also images that are there already, and over those that gpuguest did not make")
	f.StringVar(&a.logDir, "log-dir", "", "`FOLDER` that every step's whole output, and each image's console, are kept in")
	_ = c.RegisterFlagCompletionFunc("oven", cobra.FixedCompletions([]string{bake.OvenAuto, bake.OvenNspawn, bake.OvenQEMU}, cobra.ShellCompDirectiveNoFileComp))
	return c
}

// wish are the flags of install that an image may have.
type wish struct {
	want    choice.Want
	methods methods
	keyring string
	flags   *pflag.FlagSet
}

func newWish() *wish {
	w := &wish{}
	c := &cobra.Command{Use: "image"}
	addWant(c, &w.want)
	w.methods.add(c, &w.want)
	addKeyring(c, &w.keyring)
	w.flags = c.Flags()
	return w
}

// noOptions are flags of install's that an image does not choose.
var noOptions = []string{"no-gpu", "device"}

func (w *wish) set(name string, values []string) error {
	flag := w.flags.Lookup(name)
	if flag == nil || slices.Contains(noOptions, name) {
		return fmt.Errorf("unknown key %q: an image has the keys of docs/bake.md, and the flags of gpuguest install that say what is wanted, without their dashes", name)
	}
	list, ok := flag.Value.(pflag.SliceValue)
	switch {
	case ok:
		if err := list.Replace(values); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		return nil
	case len(values) != 1:
		return fmt.Errorf("%s: one value, not %d", name, len(values))
	}
	return setFlag(w.flags, name, values)
}

// images reads the file.
func (b baking) images(in io.Reader) (bake.Config, error) {
	if b.file == "" {
		return bake.Config{}, errors.New("--file is missing: which images?")
	}
	src := bake.Source{Name: b.file, Check: newWish().set}
	var err error
	if b.file == "-" {
		src.Text, err = io.ReadAll(in)
	} else {
		src.Text, err = os.ReadFile(b.file)
	}
	if err != nil {
		return bake.Config{}, err
	}
	c, err := bake.Parse(src)
	if err != nil {
		return c, err
	}
	switch b.oven {
	case "", bake.OvenAuto, bake.OvenNspawn, bake.OvenQEMU:
	default:
		return c, fmt.Errorf("--oven %q: it is auto, nspawn or qemu", b.oven)
	}
	for _, name := range b.only {
		if !slices.ContainsFunc(c.Images, func(im bake.Image) bool { return im.Name == name }) {
			return c, fmt.Errorf("--image %s: %s has none of that name", name, b.file)
		}
	}
	c.Images = slices.DeleteFunc(c.Images, func(im bake.Image) bool { return len(b.only) > 0 && !slices.Contains(b.only, im.Name) })
	for i := range c.Images {
		c.Images[i].Oven = cmp.Or(b.oven, c.Images[i].Oven)
	}
	return c, nil
}

// bakedImage is one image's line of bake's JSON. Its names are part of the interface.
type bakedImage struct {
	Name     string          `json:"name"`
	Result   string          `json:"result"` // "baked", "there", "failed"
	Output   string          `json:"output,omitempty"`
	Manifest string          `json:"manifest,omitempty"`
	SHA256   string          `json:"sha256,omitempty"`
	Bytes    int64           `json:"bytes,omitempty"`
	Oven     string          `json:"oven,omitempty"`
	Driver   string          `json:"driver,omitempty"`
	Flavor   string          `json:"flavor,omitempty"`
	Kernel   string          `json:"kernel,omitempty"`
	Phases   []bake.Phase    `json:"phases,omitempty"`
	Exit     int             `json:"exit_code"`
	Error    *engine.Problem `json:"error,omitempty"`
}

func (a *app) bake(ctx context.Context, b baking) error {
	c, err := b.images(a.in)
	if err != nil {
		return err
	}
	version, commit := buildVersion()
	var mu sync.Mutex
	a.err = &lockedWriter{w: a.err}
	shown := make(map[string]*ui)
	show := func(name string) *ui {
		mu.Lock()
		defer mu.Unlock()
		if shown[name] == nil {
			// Bars of several images would write over each other.
			shown[name] = &ui{w: a.err, host: name}
		}
		return shown[name]
	}
	baker := &bake.Baker{
		Ovens: []oven.Oven{nspawn.New(), &oven.QEMU{}}, Disks: bake.QEMUImg{}, Made: bake.Maker{Version: version, Commit: commit},
		Again: b.again, Free: bake.FreeSpace,
		Prepare: func(im bake.Image, locked bake.Planned) (bake.Recipe, error) { return a.recipe(b.file, im, locked) },
		Tell: func(e bake.Event) {
			u := show(e.Image)
			switch {
			case e.Engine != nil:
				u.tell(*e.Engine)
			case e.Phase != "":
				u.say("%s", e.Phase)
			default:
				u.say("%s", printable(e.Text))
			}
		},
	}
	if a.logDir != "" {
		baker.Console = func(im bake.Image) (io.WriteCloser, error) {
			one := &app{reach: reach{host: im.Name}, logDir: a.logDir}
			return one.openLog("console")
		}
	}
	results := baker.All(ctx, c, func(r bake.Result) { a.tellImage(r) })
	var all []bakedImage
	failed, worst := 0, exitDone
	for _, r := range results {
		one := bakedImage{Name: r.Image.Name, Result: "baked", Exit: exitCode(r.Err)}
		if slices.Index(severity, one.Exit) < slices.Index(severity, worst) {
			worst = one.Exit
		}
		switch m := r.Manifest; {
		case r.Err != nil:
			failed++
			one.Result, one.Error, one.Phases = "failed", &engine.Problem{Message: r.Err.Error(), Hint: hint(r.Err)}, m.Phases
		default:
			if !r.Baked {
				one.Result = "there"
			}
			one.Output, one.Manifest, one.SHA256, one.Bytes = r.Image.Output, r.Image.Output+".json", m.SHA256, m.Bytes
			one.Oven, one.Driver, one.Flavor, one.Kernel, one.Phases = m.Oven, m.Driver, m.Flavor, m.Kernel, m.Phases
		}
		all = append(all, one)
	}
	if failed > 0 {
		err = &manyError{worst, fmt.Sprintf("%d of %s could not be baked", failed, report.Count(len(results), "image")),
			"the same command again leaves alone the images that are there; a base is never written to"}
	}
	if a.json {
		return errors.Join(err, a.writeJSON(map[string]any{"images": all, "exit_code": worst}))
	}
	for _, one := range all {
		if one.Result == "failed" {
			continue
		}
		seconds := 0.0
		for _, p := range one.Phases {
			seconds += p.Seconds
		}
		fmt.Fprintf(a.out, "%s: %s, %s, driver %s %s for kernel %s, %.2f GB, %s in oven %s\n",
			one.Name, one.Result, one.Output, one.Driver, one.Flavor, one.Kernel, float64(one.Bytes)/1e9, report.Seconds(seconds), one.Oven)
	}
	return err
}

// tellImage says at once how an image ended.
func (a *app) tellImage(r bake.Result) {
	if r.Err == nil {
		return
	}
	reported := a.reported
	a.reported = true // the JSON is one document, at the end
	a.complain(r.Err)
	a.reported = reported
	var e *bake.Error
	if errors.As(r.Err, &e) && e.Console != "" && (errors.Is(r.Err, guest.ErrDisconnected) || errors.Is(r.Err, guest.ErrUnreachable) || errors.Is(r.Err, guest.ErrNoReboot)) {
		fmt.Fprintf(a.err, "gpuguest: %s: its console ends:\n", r.Image.Name)
		for line := range strings.Lines(e.Console) {
			fmt.Fprintf(a.err, "  %s\n", printable(strings.TrimSpace(line)))
		}
	}
}

// recipe is what install would do with the flags that an image has, in a guest without a GPU. What was left open is
// as the lock says.
func (a *app) recipe(file string, im bake.Image, locked bake.Planned) (bake.Recipe, error) {
	w := newWish()
	for _, o := range im.Options {
		if err := w.set(o.Name, w.beside(file, o.Name, o.Values)); err != nil {
			return bake.Recipe{}, fmt.Errorf("%v: %w", o.Where, err)
		}
	}
	w.want.NoGPU, w.want.Reboot = true, choice.RebootIfNeeded
	if locked.Branch != 0 && w.want.Driver == "" {
		w.want.Driver = fmt.Sprint(locked.Branch)
	}
	for to, from := range map[*string]string{&w.want.Source: locked.Source, &w.want.Modules: locked.Modules} {
		*to = cmp.Or(*to, from)
	}
	if err := checkWant(w.want); err != nil {
		return bake.Recipe{}, err
	}
	files, err := a.keyringFile(w.keyring, &w.want)
	if err != nil {
		return bake.Recipe{}, err
	}
	closeFiles, err := w.methods.settle(nil, &w.want, files)
	both := false
	if err == nil {
		both, err = together(w.want)
	}
	if err != nil {
		return bake.Recipe{}, errors.Join(err, closeFiles())
	}
	w.want.BothFlavors, w.want.Flavor = both, cmp.Or(w.want.Flavor, locked.Flavor)
	if both {
		w.want.Flavor = choice.FlavorOpen
	}
	want := settle(w.want)
	// What a flag of install says by default.
	boots := bootFlags{reboot: choice.RebootIfNeeded, maxReboots: 5, rebootTimeout: 20 * time.Minute, busyWait: 75 * time.Second}
	one := &app{console: a.console, reach: reach{host: im.Name}, logDir: a.logDir}
	configure := func(makePlan func(facts.Facts) (plan.Plan, error)) engine.Config {
		cfg := one.engineConfig(boots, files, makePlan)
		mending(engine.SafeRemedies, &want)(&cfg)
		return cfg
	}
	var first []engine.Config
	last := installing(want)
	if both {
		// The branch that the first run decides on is the second's too: there is one set of libraries.
		branch := want.Driver
		first = append(first, configure(func(f facts.Facts) (plan.Plan, error) {
			other := want
			other.Flavor = choice.FlavorProprietary
			p, err := installing(other)(f)
			if want.Driver == "" && err == nil {
				branch = fmt.Sprint(p.Choice.Branch)
			}
			return p, err
		}))
		last = func(f facts.Facts) (plan.Plan, error) {
			same := want
			same.Driver = branch
			return installing(same)(f)
		}
	}
	return bake.Recipe{
		Engine: configure(last), First: first, Close: closeFiles,
		Verify: func(f facts.Facts) (plan.Plan, error) {
			in, err := installed(f, want)
			if err != nil {
				return plan.Plan{}, err
			}
			return plan.ProofsWithUnit(in, steps.Install())
		},
	}, nil
}

// beside makes the files that options name relative to the file that they stand in.
func (w *wish) beside(file, name string, values []string) []string {
	word := ""
	if flag := w.flags.Lookup(name); flag != nil {
		word, _ = pflag.UnquoteUsage(flag)
	}
	if word != "FILE" {
		return values
	}
	values = slices.Clone(values)
	for i, v := range values {
		if !filepath.IsAbs(v) && !strings.HasPrefix(v, "~/") && !strings.Contains(v, "://") {
			values[i] = filepath.Join(filepath.Dir(file), v)
		}
	}
	return values
}

// together tells whether GPUs need both flavors of the modules, which are then both put in: the proprietary ones first,
// so that the packages in the image are those of the open ones, which are the flavor that goes on. It refuses GPUs that no
// one branch drives, and a wish that leaves no room for both flavors.
func together(w choice.Want) (both bool, err error) {
	var open, proprietary, newest, oldest *catalog.GPU
	for _, id := range w.Devices {
		f := strings.Split(strings.ToLower(id), ":")
		if len(f) != 2 && len(f) != 4 {
			continue // what is wrong with it is said where the driver is chosen
		}
		f = append(f, "", "")
		g, known := catalog.Lookup(f[0], f[1], f[2], f[3])
		if !known {
			continue
		}
		switch g.Open {
		case catalog.Required:
			open = &g
		case catalog.No:
			proprietary = &g
		}
		if g.First != 0 && (newest == nil || g.First > newest.First) {
			newest = &g
		}
		if g.Last != 0 && (oldest == nil || g.Last < oldest.Last) {
			oldest = &g
		}
	}
	name := func(g *catalog.GPU) string { return fmt.Sprintf("%s (%s:%s)", g.Name, catalog.NVIDIA, g.Device) }
	refuse := func(a, b *catalog.GPU, format string, args ...any) (bool, error) {
		return false, &choice.Refusal{What: "one image for " + name(a) + " and " + name(b), Reason: fmt.Sprintf(format, args...) + ": make an image for each"}
	}
	if newest != nil && oldest != nil && newest.First > oldest.Last {
		return refuse(newest, oldest, "the first needs branch %d or newer, and no branch after %d drives the second", newest.First, oldest.Last)
	}
	if open == nil || proprietary == nil {
		return false, nil
	}
	switch {
	case w.Flavor != "":
		return refuse(open, proprietary, "the first needs the open kernel modules, which do not drive the second, and flavor says %s", w.Flavor)
	case w.Source == choice.SourceRunfile || w.Modules != "" && w.Modules != choice.ModulesDKMS:
		return refuse(open, proprietary, "the first needs the open kernel modules, which do not drive the second, and both are put in only from packages that DKMS builds")
	}
	return true, nil
}

// lockedWriter lets several goroutines write to one writer.
type lockedWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}
