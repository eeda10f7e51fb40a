package bench

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/docker/go-units"
)

// Print writes the report for people.
func (r *Report) Print(out io.Writer) error {
	w := &printer{Writer: tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)}
	r.printHead(w)
	if r.Image != nil {
		r.printStages(w)
		r.printEngines(w)
	}
	for _, c := range r.Growth {
		c.print(w)
	}
	w.line("")
	w.line("again: %s", r.Command)
	if w.err != nil {
		return w.err
	}
	return w.Flush()
}

// A printer remembers its first error.
type printer struct {
	*tabwriter.Writer
	err error
}

func (p *printer) line(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.Writer, format+"\n", args...)
	}
}

func size(n int64) string {
	return units.CustomSize("%.3g %s", float64(n), 1000, []string{"B", "kB", "MB", "GB", "TB"})
}

// spread says by how much runs differed: the standard deviation.
func (f Figure) spread() string {
	if len(f.Runs) < 2 {
		return "± ?"
	}
	return fmt.Sprintf("± %.0f %%", 100*f.Deviation)
}

func (r *Report) howOften() string {
	if r.Runs == 1 {
		return "measured once"
	}
	return fmt.Sprintf("medians of %d runs", r.Runs)
}

func (r *Report) printHead(w *printer) {
	m := r.Machine
	virtual := ""
	if m.Virtual {
		virtual = ", virtual"
	}
	w.line("vic %s, %s, %s", r.Version, r.Time.Format("2006-01-02"), r.howOften())
	w.line("machine: %d cores%s, %s, %s, %s, stores on %s", m.Cores, virtual, m.CPU, units.BytesSize(float64(m.Memory)), m.Kernel, m.FileSystem)
	if i := r.Image; i != nil {
		w.line("image: %s", r.Source)
		w.line("%d layers, %d entries, %s of blobs, %s of tars", i.Layers, i.Entries, size(i.Blobs), size(i.Tars))
	}
}

func (r *Report) printStages(w *printer) {
	w.line("")
	w.line("STAGE, ALONE\tTHROUGH\tWALL s\tCPU s\tA SECOND\t")
	var sum float64
	for _, s := range r.Stages {
		through, rate, cpu := size(s.Through), size(int64(s.Rate)), "-"
		if s.Unit != "bytes" {
			through, rate = fmt.Sprintf("%d %s", s.Through, s.Unit), fmt.Sprintf("%.0f", s.Rate)
		}
		if s.CPU != nil {
			cpu = fmt.Sprintf("%.3f", s.CPU.Median)
			sum += s.CPU.Median
		}
		w.line("%s\t%s\t%.3f\t%s\t%s\t%s", s.Name, through, s.Wall.Median, cpu, rate, s.Wall.spread())
	}
	w.line("all but fetch\t\t\t%.3f\t\t", sum)
	w.line("the medium\t%s\t%.3f\t%.3f\t%s\t%s", size(r.Medium.Bytes), r.Medium.Wall.Median, r.Medium.CPU.Median, size(int64(r.Medium.Rate)), r.Medium.Wall.spread())
	f := r.Floor
	w.line("")
	w.line("floor: %.3f s, set by the %s (CPU %.3f s over %d cores %.3f, disk %.3f, path %.3f)", f.Seconds, f.Bound, f.CPU, f.Cores, f.CPU/float64(f.Cores), f.Disk, f.Path)
}

func (r *Report) printEngines(w *printer) {
	w.line("")
	w.line("ENGINE\tWALL s\tCPU s\tON DISK\t× VIC'S WALL\t× VIC'S CPU\t× FLOOR\t× FLOOR'S CPU\t\tRUNS s")
	for _, e := range r.Engines {
		runs := ""
		for _, s := range e.Wall.Runs {
			runs += fmt.Sprintf("%.2f ", s)
		}
		w.line("%s\t%.2f\t%.2f\t%s\t%.2f\t%.2f\t%.2f\t%.2f\t%s\t%s", e.Name, e.Wall.Median, e.CPU.Median, size(e.Stored), e.WallRatio, e.CPURatio, e.WallOverFloor, e.CPUOverFloor, e.Wall.spread(), runs)
	}
	for _, m := range r.Missing {
		w.line("%s\tnot measured: %s", m.Name, m.Why)
	}
	w.line("")
	for _, e := range r.Engines {
		w.line("%s: %s (%s)", e.Name, e.Does, e.Version)
	}
}

func (c Curve) print(w *printer) {
	w.line("")
	w.line("PULL OF N %s\tWALL s\tCPU s\tµs A N LOG2(N+1)\tFIT s\t", strings.ToUpper(c.Of))
	for _, p := range c.Points {
		w.line("%d\t%.3f\t%.3f\t%.2f\t%.3f\t%s", p.N, p.Wall.Median, p.CPU.Median, 1e6*p.PerNLogN, c.Fit.at(p.N), p.Wall.spread())
	}
	w.line("fit: %s", c.Fit)
	w.line("CPU: %s", c.CPUFit)
}

func (f Fit) String() string {
	return fmt.Sprintf("%.3f s + %.3g µs · n·log2(n+1) + %.3g µs · n²; the square makes %.1f %% of the last", f.Constant, 1e6*f.NLogN, 1e6*f.Square, 100*f.SquareShare)
}
