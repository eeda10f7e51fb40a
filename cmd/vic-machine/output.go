package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"vic/containervm/vch"
)

// jsonFlag adds --json to a command.
func jsonFlag(cmd *cobra.Command) { cmd.Flags().Bool("json", false, "print JSON") }

func wantsJSON(cmd *cobra.Command) bool {
	f := cmd.Flags().Lookup("json")
	return f != nil && f.Value.String() == "true"
}

func printJSON(cmd *cobra.Command, v any) error {
	e := json.NewEncoder(cmd.OutOrStdout())
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// A progress shows how a plan goes: a line for each step, and on a terminal how much of an upload has gone.
type progress struct {
	w        io.Writer
	terminal bool
	step     int
	drawn    time.Time
}

func newProgress(w io.Writer) *progress {
	f, ok := w.(*os.File)
	return &progress{w: w, terminal: ok && term.IsTerminal(int(f.Fd()))}
}

// eraseLine goes to the beginning of a terminal's line and empties it.
const eraseLine = "\r\x1b[K"

// report is told what happens.
func (p *progress) report(e vch.Event) {
	switch {
	case e.Note != "":
		p.line("        " + e.Note)
	case e.Total > 0:
		if now := time.Now(); p.terminal && now.Sub(p.drawn) > 100*time.Millisecond {
			p.drawn = now
			fmt.Fprintf(p.w, "%s        %s of %s", eraseLine, units.HumanSize(float64(e.Sent)), units.HumanSize(float64(e.Total)))
		}
	case strings.HasPrefix(e.Text, "undo: "):
		p.line(e.Text)
	case e.Step != p.step:
		p.step = e.Step
		p.line(fmt.Sprintf("[%d/%d] %s", e.Step, e.Of, e.Text))
	}
}

func (p *progress) line(text string) {
	if p.terminal {
		fmt.Fprint(p.w, eraseLine)
	}
	fmt.Fprintln(p.w, text)
}

// planFlags are how a plan is carried out.
type planFlags struct {
	dryRun bool
	keep   bool
}

func (f *planFlags) add(cmd *cobra.Command, undone bool) {
	cmd.Flags().BoolVar(&f.dryRun, "dry-run", false, "only print what would be done")
	if undone {
		cmd.Flags().BoolVar(&f.keep, "keep-failed", false, "leave what was made if something fails: the same command goes on from there")
	}
}

// run carries a plan out, or prints it, and says whether it was carried out.
func (f *planFlags) run(cmd *cobra.Command, plan *vch.Plan) (done bool, err error) {
	for _, w := range plan.Warnings {
		fmt.Fprintln(cmd.ErrOrStderr(), "warning:", w)
	}
	if f.dryRun {
		if wantsJSON(cmd) {
			return false, printJSON(cmd, map[string]any{"steps": append([]string{}, plan.Steps()...), "warnings": append([]string{}, plan.Warnings...)})
		}
		for _, s := range plan.Steps() {
			if _, err := fmt.Fprintln(cmd.OutOrStdout(), s); err != nil {
				return false, err
			}
		}
		return false, nil
	}
	p := newProgress(cmd.ErrOrStderr())
	if err := plan.Run(cmd.Context(), vch.RunOptions{Report: p.report, Keep: f.keep}); err != nil {
		return false, err
	}
	return true, nil
}
