package bench

import (
	"fmt"
	"io"

	"vic/bench/chart"
)

// WriteSVG draws the report.
func (r *Report) WriteSVG(w io.Writer) error {
	c := chart.Chart{
		Title: "vic " + r.Version + ": from a registry on loopback to disks, durable",
		Notes: []string{fmt.Sprintf("%s; %d cores, %s; stores on %s; %s", r.Time.Format("2006-01-02"), r.Machine.Cores, r.Machine.CPU, r.Machine.FileSystem, r.howOften())},
	}
	if i := r.Image; i != nil {
		c.Notes = append(c.Notes, r.Source, fmt.Sprintf("%d layers, %d entries, %s of blobs, %s of tars", i.Layers, i.Entries, size(i.Blobs), size(i.Tars)))
		c.Panels = append(c.Panels, r.engineBars(), r.stageBars())
	}
	for _, g := range r.Growth {
		c.Panels = append(c.Panels, g.curves())
	}
	return c.Write(w)
}

func (r *Report) engineBars() chart.Panel {
	b := chart.Bars{Title: "Time of the whole", Unit: "s", Bars: []chart.Bar{{Label: "floor", Value: r.Floor.Seconds, Note: "(" + r.Floor.Bound + ")"}}}
	for i, e := range r.Engines {
		note := fmt.Sprintf("%s, %.2f times vic's", e.Wall.spread(), e.WallRatio)
		b.Bars = append(b.Bars, chart.Bar{Label: e.Name, Value: e.Wall.Median, Note: note, Loud: i == 0})
	}
	return b
}

func (r *Report) stageBars() chart.Panel {
	b := chart.Bars{Title: "Time of each stage alone, one thread", Unit: "s"}
	for _, s := range r.Stages {
		note := fmt.Sprintf("%s/s", size(int64(s.Rate)))
		if s.Unit != "bytes" {
			note = fmt.Sprintf("%.0f %s/s", s.Rate, s.Unit)
		}
		b.Bars = append(b.Bars, chart.Bar{Label: s.Name, Value: s.Wall.Median, Note: note})
	}
	return b
}

func (c Curve) curves() chart.Panel {
	wall, cpu := chart.Curve{Label: "wall"}, chart.Curve{Label: "CPU"}
	wallFit, cpuFit := chart.Curve{Label: "a + b·n·log n + c·n²", Dashed: true}, chart.Curve{Label: "the same for CPU", Dashed: true}
	for _, p := range c.Points {
		for _, add := range []struct {
			to *chart.Curve
			y  float64
		}{{&wall, p.Wall.Median}, {&wallFit, c.Fit.at(p.N)}, {&cpu, p.CPU.Median}, {&cpuFit, c.CPUFit.at(p.N)}} {
			if add.y > 0 {
				add.to.Points = append(add.to.Points, chart.Point{X: float64(p.N), Y: add.y})
			}
		}
	}
	return chart.Curves{
		Title: fmt.Sprintf("Growth with %s; n² makes %.1f %% of the last point, of CPU %.1f %%", c.Of, 100*c.Fit.SquareShare, 100*c.CPUFit.SquareShare), X: c.Of, Y: "s",
		Curves: []chart.Curve{wall, wallFit, cpu, cpuFit},
	}
}
