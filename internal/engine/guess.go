package engine

import (
	"bytes"

	"gpuguest/assets"
	"gpuguest/internal/facts"
	"gpuguest/internal/plan"
	"gpuguest/internal/sh"
)

// guess is what the guest is asked along with its facts: the checks that follow if it still is as it was when it
// was last seen. They run beside the facts script, under the same lock and in the same command, and their answers
// count only when the facts of now lead to the very same checks. A wrong guess costs the guest some reading and
// is forgotten; a right one saves a command and the round trips that go with it.
type guess struct {
	nonce          string
	before, beside string // the script of the checks: what it asks first, and the rest
	answer         []byte
}

// question is what a guest is asked first, on a new connection.
type question struct {
	script string
	guess  *guess // what of it is a guess, nil nothing
}

// question is made of what is known before the guest is reached, and changes nothing of the run.
func (r *run) question() question {
	q := question{script: sh.Lean(assets.Facts), guess: r.foresee()}
	if q.guess != nil {
		q.script = q.guess.with(q.script)
	}
	return q
}

// guessSize is the longest script that is sent on a guess, in bytes. Linux takes no argument of 128 KiB
// (MAX_ARG_STRLEN), and the facts script goes in the same one.
const guessSize = 64 << 10

// foresee makes a guess from what the guest said in an earlier run, nil when there is nothing to go by.
func (r *run) foresee() *guess {
	if r.Recall == nil || r.First != nil {
		return nil
	}
	f, err := facts.Parse(r.Recall())
	if err != nil {
		return nil
	}
	p, err := r.Plan(f)
	if err != nil {
		return nil
	}
	g := &guess{}
	if g.nonce, err = newNonce(); err != nil {
		return nil
	}
	g.before, g.beside = plan.Before(p.Distro, p.Items()), plan.Beside(p.Items(), g.nonce)
	if len(g.before)+len(g.beside) > guessSize {
		return nil
	}
	return g
}

// with returns a script that runs the facts script and the guessed checks at the same time, and prints the answers of
// the one and then of the other. What both ask for is asked once.
func (g *guess) with(factsScript string) string {
	return "gpuguest_before() {\n" + g.before + "}\ngpuguest_beside() {\n" + g.beside + "}\n" + factsScript
}

// factsEnd ends what the facts script prints, and nothing within it can forge it.
var factsEnd = []byte("\n== end\n")

// cut takes the answers to the guessed checks off an answer, and leaves the facts.
func (g *guess) cut(out []byte) []byte {
	at := bytes.Index(out, factsEnd)
	if at < 0 {
		return out
	}
	at += len(factsEnd)
	g.answer = out[at:]
	return out[:at]
}

// fits tells whether the guess was right: the plan of now asks for the very same checks.
func (g *guess) fits(p plan.Plan) bool {
	return g != nil && g.answer != nil && g.before == plan.Before(p.Distro, p.Items()) && g.beside == plan.Beside(p.Items(), g.nonce)
}
