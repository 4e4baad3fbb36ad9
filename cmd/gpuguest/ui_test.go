package main

import (
	"bytes"
	"strings"
	"testing"

	"gpuguest/internal/engine"
)

// loggedBar is a bar that writes down what was done to it.
type loggedBar struct{ w *bytes.Buffer }

func (b loggedBar) Describe(string)    {}
func (b loggedBar) RenderBlank() error { b.w.WriteString("[bar]"); return nil }
func (b loggedBar) ChangeMax(int)      {}
func (b loggedBar) Set(int) error      { b.w.WriteString("[bar]"); return nil }
func (b loggedBar) Clear() error       { b.w.WriteString("[clear]"); return nil }

func TestBarStaysAwayFromAPromptAndANotice(t *testing.T) {
	var out bytes.Buffer
	u := &ui{w: &out, host: "vm", width: 80, bar: loggedBar{&out}}
	a := &app{console: console{err: &out}, screen: u}
	u.tell(engine.Event{Kind: engine.Connected})
	out.Reset()
	a.notice("vm: new host key")
	if got := out.String(); got != "[clear]gpuguest: vm: new host key\n[bar]" {
		t.Errorf("a notice is %q", got)
	}
	out.Reset()
	back := a.aside()
	out.WriteString("password: ")
	u.mu.Lock()
	u.draw() // the pulse's
	u.mu.Unlock()
	u.tell(engine.Event{Kind: engine.StepEnded, Step: "headers", State: engine.Met, Index: 1, Of: 2})
	u.tell(engine.Event{Kind: engine.Notice, Text: "cloud-init is at work"})
	a.notice("somebody holds it")
	if got := out.String(); got != "[clear]password: " {
		t.Errorf("beside the prompt stands %q", got)
	}
	back()
	if got := strings.TrimPrefix(out.String(), "[clear]password: "); got != "vm: cloud-init is at work\ngpuguest: somebody holds it\n[bar]" {
		t.Errorf("after it comes %q", got)
	}
}
