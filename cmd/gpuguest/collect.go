package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"gpuguest/assets"
	"gpuguest/internal/bundle"
	"gpuguest/internal/choice"
	"gpuguest/internal/diagnosis"
	"gpuguest/internal/facts"
	"gpuguest/internal/guest"
	"gpuguest/internal/plan"
	"gpuguest/internal/remedy"
	"gpuguest/internal/report"
	"gpuguest/internal/sh"
	"gpuguest/steps"
)

func newCollect(a *app) *cobra.Command {
	var output string
	c := &cobra.Command{
		Use:   "collect --host GUEST -o FILE.tar.gz",
		Short: "Make a support bundle: what a guest is, what was done to it and what it said",
		Long: `Make a support bundle: facts, plan, gpuguest's journal and the logs of its jobs, the kernel's log, those of the
package manager, DKMS and NVIDIA's installers, lspci, nvidia-smi -q, units, and what diagnose makes of it all,
with a manifest. Nothing is changed in the guest.

Serial numbers, UUIDs, MAC addresses, SSH keys, host and user names, mail addresses, keys, certificates, tokens
and passwords are masked before anything is written, the same one by the same word everywhere. IP addresses
stay. Look into the file before you give it away. It is written whole or not at all, readable by you alone.

"gpuguest diagnose --log FILE.tar.gz" reads it, and "gpuguest plan --facts" its facts.txt.`,
		Example: `  gpuguest collect --host vm:5022 -o vm.tar.gz
  gpuguest diagnose --log vm.tar.gz`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if output == "" {
				return errors.New("-o is missing: which file?")
			}
			return a.collect(c.Context(), output)
		},
	}
	a.addReach(c)
	c.Flags().StringVarP(&output, "output", "o", "", "bundle to write, `FILE`, a .tar.gz")
	return c
}

// maxBundle is how much a guest may say in all. Every section of the script is bounded well below it.
const maxBundle = 64 << 20

// collect asks the guest for its facts and then for all the rest, over one connection.
func (a *app) collect(ctx context.Context, output string) error {
	conn, err := a.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	raw, f, err := ask(ctx, conn)
	if err != nil {
		return err
	}
	target, err := guest.ParseTarget(a.host)
	if err != nil {
		return err
	}
	short, _, _ := strings.Cut(f.Host, ".")
	mask := bundle.NewMasker(f.Host, short, target.Host, target.User, a.user)
	hostless(mask, &raw, f.Host)
	masked := mask.File(raw)
	files := []bundle.File{{Name: "facts.txt", Data: masked}}
	add := func(name string, data []byte, notes ...string) {
		files = append(files, bundle.File{Name: name, Data: mask.File(data), Notes: notes})
	}
	// What is worked out from masked facts holds nothing that they do not.
	if f, err = facts.Parse(masked); err != nil {
		return fmt.Errorf("facts, masked: %w", err)
	}
	if text, err := json.MarshalIndent(f, "", "  "); err == nil {
		add("facts.json", append(text, '\n'))
	}
	mark, script := "--gpuguest-collect-checks", assets.Collect
	p, perr := collectPlan(f)
	if perr == nil {
		// The checks go before the end mark, as one more section.
		checks := "printf '== guest/checks.txt\\n'\n( sh -c " + sh.Quote(plan.Checks(p.Distro, p.Items(), mark)) + " ) 2>&1 </dev/null | tail -c 1000000 | sed 's/^/|/'\n"
		script = strings.Replace(script, "echo '== end'\n", checks+"echo '== end'\n", 1)
	}
	said, err := askAll(ctx, conn, script)
	if err != nil {
		return err
	}
	var outcomes map[steps.ID]plan.Outcome
	var found []diagnosis.Verdict
	for _, name := range slices.Sorted(maps.Keys(said)) {
		data := mask.File(text(said[name]))
		if name == "guest/checks.txt" {
			outcomes = plan.ParseChecks(string(data), mark)
		}
		files = append(files, bundle.File{Name: name, Data: data, Notes: said[name].Reasons})
		if bundle.IsLog(name) {
			v, err := readSection(name, name, bytes.NewReader(data))
			if err != nil {
				return err
			}
			found = append(found, v...)
		}
	}
	if perr != nil {
		add("plan.txt", []byte("no plan: "+perr.Error()+"\n"))
	} else {
		var asText, asJSON bytes.Buffer
		if err := errors.Join(p.Text(&asText, f, outcomes), p.JSON(&asJSON, f, outcomes)); err != nil {
			return err
		}
		add("plan.txt", asText.Bytes())
		add("plan.json", asJSON.Bytes())
	}
	ranked := diagnosis.Rank(found)
	for i, v := range ranked {
		ranked[i] = remedy.After(v, f)
	}
	var verdicts bytes.Buffer
	for _, v := range ranked {
		fmt.Fprintln(&verdicts, v)
	}
	if len(ranked) == 0 {
		fmt.Fprintln(&verdicts, "nothing known is wrong")
	}
	add("verdicts.txt", verdicts.Bytes())
	if text, err := json.MarshalIndent(map[string]any{"verdicts": append([]diagnosis.Verdict{}, ranked...)}, "", "  "); err == nil {
		add("verdicts.json", append(text, '\n'))
	}
	v, commit := buildVersion()
	m := bundle.Manifest{Version: v + " (commit " + commit + ")", Made: time.Now().UTC().Truncate(time.Second), Masked: mask.Counts()}
	if err := writeBundle(output, &m, files); err != nil {
		return err
	}
	return a.printManifest(output, m)
}

// hostless takes the guest's name out of the facts by its place, for a name that is an everyday word too.
func hostless(mask *bundle.Masker, raw *[]byte, host string) {
	if host == "" {
		return
	}
	line := "|host\t" + host + "\n"
	*raw = bytes.Replace(*raw, []byte(line), []byte("|host\t"+mask.Word("host", host)+"\n"), 1)
}

// collectPlan is what install would do in the guest, with what its journal says was planned for it.
func collectPlan(f facts.Facts) (plan.Plan, error) {
	w := asPlanned(f, choice.Want{NoGPU: len(f.GPUs) == 0})
	in, err := plan.Input(f, w)
	if err != nil {
		return plan.Plan{}, err
	}
	p, err := plan.Build(in, steps.Install())
	if err != nil {
		return p, err
	}
	p.Remedies, err = remedy.Promises(w, f)
	return p, err
}

// maxAsking is how long a guest may take to say everything. Each section has its own limit, which is far below it.
const maxAsking = 15 * time.Minute

// askAll runs the script that prints everything and cuts what it printed into its sections. What came before a guest
// fell silent counts; the last section then says that it, and what would follow, is missing.
func askAll(ctx context.Context, conn *guest.Conn, script string) (map[string]facts.Section, error) {
	const head = "gpuguest-collect 1"
	all := &bounded{left: maxBundle}
	_, err := conn.Run(ctx, guest.Command{Script: script, Stdout: all, Timeout: maxAsking})
	raw := all.buf.Bytes()
	if err != nil {
		if ctx.Err() != nil || !errors.Is(err, guest.ErrTimeout) {
			return nil, err
		}
		whole := bytes.LastIndexByte(raw, '\n') + 1
		raw = append(raw[:whole:whole], "== rest\n!"+err.Error()+"\n== end\n"...)
	}
	said, err := facts.Sections(raw, head)
	if err != nil {
		return nil, fmt.Errorf("collect: %w", err)
	}
	return said, nil
}

// bounded keeps what is written to it, up to a limit.
type bounded struct {
	buf  bytes.Buffer
	left int
}

func (b *bounded) Write(p []byte) (int, error) {
	if len(p) > b.left {
		return 0, fmt.Errorf("the guest says more than %d MB", maxBundle>>20)
	}
	b.left -= len(p)
	return b.buf.Write(p)
}

func text(s facts.Section) []byte {
	var b bytes.Buffer
	for _, l := range s.Lines {
		b.WriteString(l.Text)
		b.WriteByte('\n')
	}
	return b.Bytes()
}

// writeBundle writes a bundle whole or not at all, for its owner's eyes only.
func writeBundle(output string, m *bundle.Manifest, files []bundle.File) error {
	return report.Write(output, report.Private, func(w io.Writer) error { return bundle.Write(w, m, files) })
}

func (a *app) printManifest(output string, m bundle.Manifest) error {
	if a.json {
		return a.writeJSON(map[string]any{"file": output, "manifest": m})
	}
	for _, e := range m.Files {
		fmt.Fprintf(a.out, "  %s (%d bytes)\n", e.Name, e.Size)
	}
	var masked []string
	for _, kind := range slices.Sorted(maps.Keys(m.Masked)) {
		masked = append(masked, report.Count(m.Masked[kind], kind))
	}
	fmt.Fprintf(a.out, "%s: %s, masked: %s\n", output, report.Count(len(m.Files), "file"), listOr(masked, "nothing"))
	return nil
}

// readBundle reads the logs of a bundle; false when the file is none.
func readBundle(name string, f io.Reader) ([]diagnosis.Verdict, bool, error) {
	var found []diagnosis.Verdict
	ok, err := bundle.Logs(f, func(entry string, text io.Reader) error {
		v, err := readSection(entry, name+":"+entry, text)
		found = append(found, v...)
		return err
	})
	return found, ok, err
}
