package main

import (
	"bytes"
	"context"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"gpuguest/internal/guest"
	"gpuguest/internal/guest/guesttest"
)

func TestMistypedPasswordIsAskedForAgainAndARightOneOnce(t *testing.T) {
	s := guesttest.New(t, guesttest.Options{Password: "right", Exec: func(context.Context, string, io.Reader, io.Writer, io.Writer) int { return 99 }})
	typed := []string{"rihgt", "right"}
	asked := 0
	cfg, good := remembered(guest.Config{
		Host: s.Host(), Port: s.Port(), User: "root", SSHConfig: "none", Home: t.TempDir(), KnownHosts: filepath.Join(t.TempDir(), "known_hosts"),
		Password: func(context.Context, string) ([]byte, error) {
			asked++
			return []byte(typed[min(asked, len(typed))-1]), nil
		},
	})
	for n := range 2 {
		conn, err := guest.Dial(t.Context(), cfg)
		if err != nil {
			t.Fatalf("login %d: %v", n+1, err)
		}
		good()
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	}
	if asked != 2 {
		t.Errorf("asked %d times", asked)
	}
	// A guest that is booting refuses the right password, and nobody is there to type it.
	s.Change(func(o *guesttest.Options) { o.Password = "none yet" })
	if _, err := guest.Dial(t.Context(), cfg); err == nil || asked != 2 {
		t.Errorf("asked %d times, %v", asked, err)
	}
}

func TestPowerCycleCommandIsGivenTheGuestAndNoSecret(t *testing.T) {
	t.Setenv(sudoPasswordVariable, "hunter2")
	t.Setenv(proxyVariable, "http://alice:hunter2@proxy.example:3128")
	t.Setenv("SITE", "kept")
	var out bytes.Buffer
	a := &app{console: console{out: &out, err: &out}, reach: reach{host: "vm:5022"}}
	if err := a.powerCycle("env")(t.Context()); err != nil {
		t.Fatal(err)
	}
	env := strings.Split(out.String(), "\n")
	if strings.Contains(out.String(), "hunter2") || !slices.Contains(env, "GPUGUEST_HOST=vm:5022") || !slices.Contains(env, "SITE=kept") {
		t.Errorf("its environment is %q", env)
	}
}
