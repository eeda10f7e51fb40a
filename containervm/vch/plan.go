package vch

import (
	"context"
	"errors"
	"fmt"
)

// A Plan is what is to be done, in order.
type Plan struct {
	// Warnings are what does not stand against it, and should be known.
	Warnings []string
	steps    []step
}

// A step is one thing that a plan does.
type step struct {
	text string // as an order: make this
	do   func(ctx context.Context, report func(Event)) error
	undo func(ctx context.Context) error // also after do has failed half way; nil if there is nothing to undo
}

// An Event tells how far a Plan is.
type Event struct {
	Step, Of    int    `json:"-"`
	Text        string `json:"text"`           // what begins
	Note        string `json:"note,omitempty"` // what happened in this step
	Sent, Total int64  `json:"-"`              // bytes of an upload
}

// RunOptions are how a Plan is carried out.
type RunOptions struct {
	Report func(Event) // called from one goroutine at a time; nil is nobody
	// Keep leaves what was done before a step that failed.
	Keep bool
}

// Steps are what the plan does, in words.
func (p *Plan) Steps() []string {
	var out []string
	for _, s := range p.steps {
		out = append(out, s.text)
	}
	return out
}

func (p *Plan) add(text string, do func(ctx context.Context, report func(Event)) error, undo func(ctx context.Context) error) {
	p.steps = append(p.steps, step{text, do, undo})
}

// keep has what the last step does stay if a later one fails.
func (p *Plan) keep() { p.steps[len(p.steps)-1].undo = nil }

// simple is a step without anything to report or undo.
func simple(do func(ctx context.Context) error) func(context.Context, func(Event)) error {
	return func(ctx context.Context, _ func(Event)) error { return do(ctx) }
}

// Run carries the plan out. If a step fails or ctx ends, what was done is undone, unless o.Keep is set.
func (p *Plan) Run(ctx context.Context, o RunOptions) error {
	report := o.Report
	if report == nil {
		report = func(Event) {}
	}
	for i, s := range p.steps {
		e := Event{Step: i + 1, Of: len(p.steps), Text: s.text}
		report(e)
		err := s.do(ctx, func(in Event) {
			in.Step, in.Of, in.Text = e.Step, e.Of, e.Text
			report(in)
		})
		if err == nil {
			continue
		}
		err = fmt.Errorf("%s: %w", s.text, err)
		if !o.Keep {
			err = errors.Join(err, p.undo(context.WithoutCancel(ctx), i, report))
		}
		return err
	}
	return nil
}

// undo undoes the steps up to one, last first.
func (p *Plan) undo(ctx context.Context, last int, report func(Event)) error {
	var errs error
	for i := last; i >= 0; i-- {
		s := p.steps[i]
		if s.undo == nil {
			continue
		}
		report(Event{Step: i + 1, Of: len(p.steps), Text: "undo: " + s.text})
		if err := s.undo(ctx); err != nil {
			errs = errors.Join(errs, fmt.Errorf("undo: %s: %w", s.text, err))
		}
	}
	return errs
}
