package engine

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"gpuguest/internal/diagnosis"
	"gpuguest/steps"
)

// What became of a step.
const (
	Met     = "met"     // it was so already
	Changed = "changed" // it was brought about in this run
	Failed  = "failed"
)

// Report is the result of one run on one guest. Its names are part of the interface.
type Report struct {
	Host        string              `json:"host"`
	Result      string              `json:"result"` // "done", "failed"
	Distro      string              `json:"distro,omitempty"`
	Kernel      string              `json:"kernel,omitempty"`
	GPUs        []string            `json:"gpus,omitempty"`
	Driver      string              `json:"driver,omitempty"`
	Flavor      string              `json:"flavor,omitempty"`
	Source      string              `json:"source,omitempty"`
	Modules     string              `json:"modules,omitempty"`
	Warnings    []string            `json:"warnings,omitempty"`
	Steps       []StepReport        `json:"steps"`
	Reboots     int                 `json:"reboots"`
	Owed        []steps.ID          `json:"reboot_owed_by,omitempty"`
	Connections int                 `json:"connections"`
	Execs       int                 `json:"execs"`              // commands run over SSH
	Seconds     float64             `json:"seconds"`            // wall time of the run
	GuestTime   float64             `json:"guest_seconds"`      // of that, commands at work in the guest and the guest booting
	Found       []diagnosis.Verdict `json:"found,omitempty"`    // what a diagnosis before the run found
	Remedies    []RemedyReport      `json:"remedies,omitempty"` // what was tried, in order
	Error       *Problem            `json:"error,omitempty"`
}

// StepReport is what became of one step.
type StepReport struct {
	ID      steps.ID `json:"id"`
	Title   string   `json:"title"`
	State   string   `json:"state"`
	Detail  string   `json:"detail,omitempty"`
	Seconds float64  `json:"seconds,omitempty"`

	// Data is what the step found, for programs: of verify-cuda and of NVIDIA's own programs a cuda.Report, of
	// verify-smi an smi.Log.
	Data json.RawMessage `json:"data,omitempty"`
}

// Problem is an error as JSON.
type Problem struct {
	Message string             `json:"message"`
	Step    steps.ID           `json:"step,omitempty"`
	Hint    string             `json:"hint,omitempty"`
	Tail    string             `json:"tail,omitempty"`
	Verdict *diagnosis.Verdict `json:"verdict,omitempty"` // the cause, and where it lies
	Tried   []string           `json:"tried,omitempty"`   // remedies that did not help, all taken back
	Advice  []string           `json:"advice,omitempty"`  // lines that say what to change where gpuguest cannot
}

// StepError says that a step failed, or, for one that verifies, that its proof did.
type StepError struct {
	Step   steps.ID
	What   string // "exit 100", "applied, but …"
	Tail   string // the end of what it printed
	Hint   string
	Verify bool // a proof failed, no work did
	// Unsupported: what is wanted cannot be had in this guest, which was not changed.
	Unsupported bool

	Verdict *diagnosis.Verdict // the cause, and where it lies after what was tried; nil unknown
	Tried   []string           // remedies that did not help, all taken back
	Advice  []string           // lines that say what to change where gpuguest cannot

	text string // what failed and all it printed, as far as it is kept
}

func (e *StepError) Error() string { return fmt.Sprintf("%s: %s", e.Step, e.What) }

// HintText returns what a person should do next.
func (e *StepError) HintText() string { return e.Hint }

// ErrBootLoop is matched by the error of a guest that was booted as often as the run may and still owes one.
var ErrBootLoop = errors.New("too many reboots")

// ErrDetached is matched by the error of a run that was interrupted while a job goes on in the guest.
var ErrDetached = errors.New("detached")

// tail returns the last n lines of text.
func tail(text string, n int) string {
	l := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(l[max(0, len(l)-n):], "\n")
}
