package steps

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"gpuguest/internal/choice"
	"gpuguest/internal/facts"
)

func serviceFor(t *testing.T, init string) service {
	t.Helper()
	in := Input{Facts: facts.Facts{Init: facts.Init{Name: init}}}
	in.Choice.Source = choice.SourceRunfile
	in.Choice.Persistence.User = "nvidia-persistenced"
	s, own := ownService(in)
	if !own {
		t.Fatalf("%s has no service", init)
	}
	return s
}

// Whatever starts it: started by root, for its own user, and the runtime folder goes with it.
func TestEveryServiceDropsRootAndRemovesItsRuntimeFolder(t *testing.T) {
	for init := range services {
		s := serviceFor(t, init)
		if !strings.Contains(s.text, "--user nvidia-persistenced") || strings.Contains(s.text, "{user}") {
			t.Errorf("%s: no user of its own:\n%s", init, s.text)
		}
		if !strings.Contains(s.text, "rm -rf") || !strings.Contains(s.text, "run/nvidia-persistenced") {
			t.Errorf("%s: its runtime folder stays:\n%s", init, s.text)
		}
		if s.enable == "" || s.off == "" || s.enabled == "" {
			t.Errorf("%s: %+v", init, s)
		}
	}
	in := Input{Facts: facts.Facts{Init: facts.Init{Name: "systemd"}}}
	in.Choice.Source, in.Choice.Persistence.User = choice.SourceNVIDIA, "nvpd"
	if _, own := ownService(in); own {
		t.Error("a package brings a service, and gpuguest writes another")
	}
}

// TestSysVScriptStartsAndStopsTheDaemon runs the script with a daemon that only keeps a pid file, in folders of
// the test's.
func TestSysVScriptStartsAndStopsTheDaemon(t *testing.T) {
	if _, err := os.Stat("/proc/self"); err != nil {
		t.Skip("the script looks at processes as Linux has them")
	}
	dir := t.TempDir()
	daemon, run, script := filepath.Join(dir, "daemon"), filepath.Join(dir, "run"), filepath.Join(dir, "init")
	write := func(path, text string) {
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(daemon, `#!/bin/sh
[ "$*" = "--verbose --user nvidia-persistenced" ] || exit 2
mkdir -p "`+run+`"
sleep 60 >/dev/null 2>&1 </dev/null &
echo $! >"`+run+`/nvidia-persistenced.pid"
`)
	write(script, strings.NewReplacer("/usr/bin/nvidia-persistenced", daemon, "/var/run/nvidia-persistenced", run).Replace(serviceFor(t, "sysv").text))
	call := func(word string, want int) string {
		t.Helper()
		cmd := exec.Command("/bin/sh", script, word)
		out, err := cmd.CombinedOutput()
		if cmd.ProcessState == nil {
			t.Fatal(err)
		}
		if got := cmd.ProcessState.ExitCode(); got != want {
			t.Fatalf("%s: exit %d, want %d: %s", word, got, want, out)
		}
		return string(out)
	}
	call("status", 3)
	call("start", 0)
	defer call("stop", 0)
	first := call("status", 0)
	call("start", 0)
	if again := call("status", 0); again != first {
		t.Errorf("a second start started another: %q, %q", first, again)
	}
	call("restart", 0)
	if again := call("status", 0); again == first {
		t.Errorf("restart left the old one: %q", again)
	}
	call("stop", 0)
	call("status", 3)
	if _, err := os.Stat(run); !os.IsNotExist(err) {
		t.Errorf("the runtime folder is left: %v", err)
	}
	call("nonsense", 2)
}

// TestServicesPassShellcheck reads the one that is a script.
func TestServicesPassShellcheck(t *testing.T) {
	bin, err := exec.LookPath("shellcheck")
	if err != nil {
		t.Skip("no shellcheck on this machine")
	}
	cmd := exec.Command(bin, "-s", "sh", "-")
	cmd.Stdin = strings.NewReader(serviceFor(t, "sysv").text)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestSeedPersistencedInAllItsForms is NVIDIA's write-up of its daemon, form by form: started by root and told its user,
// it makes its runtime folder; stopped, it cannot remove it, as its user may not, so that what stopped it does.
// What each init system runs is taken from its file and run by sh; no init system is at work here. A package's
// own unit is left as it is.
func TestSeedPersistencedInAllItsForms(t *testing.T) {
	if _, err := os.Stat("/proc/self"); err != nil {
		t.Skip("the scripts look at processes as Linux has them")
	}
	// word is what follows the first line that begins so.
	word := func(text, begin string) string {
		for line := range strings.Lines(text) {
			if rest, ok := strings.CutPrefix(strings.TrimSpace(line), begin); ok {
				return rest
			}
		}
		t.Fatalf("no line begins with %q:\n%s", begin, text)
		return ""
	}
	for init, forms := range map[string]func(text, file string) (start, stop string){
		"systemd": func(text, _ string) (string, string) {
			return word(text, "ExecStart="), word(text, "ExecStopPost=")
		},
		"upstart": func(text, _ string) (string, string) { return word(text, "exec "), word(text, "post-stop exec ") },
		"sysv":    func(_, file string) (string, string) { return "sh " + file + " start", "sh " + file + " stop" },
	} {
		t.Run(init, func(t *testing.T) {
			dir := t.TempDir()
			daemon, run, file := filepath.Join(dir, "daemon"), filepath.Join(dir, "run"), filepath.Join(dir, "file")
			text := strings.NewReplacer("/usr/bin/nvidia-persistenced", daemon, "/var/run/nvidia-persistenced", run, "/run/nvidia-persistenced", run).Replace(serviceFor(t, init).text)
			for path, content := range map[string]string{
				file: text,
				// It goes on in the background, as the real one does, and leaves its folder when it is ended.
				daemon: `#!/bin/sh
case " $* " in *" --user nvidia-persistenced "*) ;; *) echo "it would run as root"; exit 2 ;; esac
mkdir -p "` + run + `"
sleep 60 >/dev/null 2>&1 </dev/null &
echo $! >"` + run + `/nvidia-persistenced.pid"
`,
			} {
				if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			start, stop := forms(text, file)
			sh := func(script string) {
				t.Helper()
				if out, err := exec.Command("/bin/sh", "-c", script).CombinedOutput(); err != nil {
					t.Fatalf("%s: %v: %s", script, err, out)
				}
			}
			sh(start)
			sh(`kill -0 "$(cat ` + run + `/nvidia-persistenced.pid)"`)
			if init != "sysv" {
				sh(`kill "$(cat ` + run + `/nvidia-persistenced.pid)"`) // the init system's part
			}
			sh(stop)
			if _, err := os.Stat(run); !os.IsNotExist(err) {
				t.Errorf("the runtime folder is left: %v", err)
			}
		})
	}
	// A package's daemon has a unit of its own, which is not written over.
	found := 0
	for _, p := range Install() {
		if p.ID != "persistence-service" && p.ID != "persistence-start" {
			continue
		}
		found++
		for _, init := range []string{"systemd", "upstart", "sysv"} {
			for source, own := range map[string]bool{choice.SourceNVIDIA: false, choice.SourceDistro: false, choice.SourceRunfile: true} {
				in := Input{Facts: facts.Facts{Init: facts.Init{Name: init}}}
				in.Choice.Source = source
				in.Choice.Persistence.Unit, in.Choice.Persistence.User = "nvidia-persistenced.service", "nvidia-persistenced"
				if want := own && (p.ID == "persistence-service" || init != "systemd"); p.Wanted(in) != want {
					t.Errorf("%s, a driver from %s under %s: wanted %v", p.ID, source, init, !want)
				}
			}
		}
	}
	if found != 2 {
		t.Errorf("%d of the two steps", found)
	}
}
