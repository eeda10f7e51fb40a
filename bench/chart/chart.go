// Package chart draws bars and curves as SVG. It knows just what the benchmarks show: a plotting library
// would be more than half of the program that it is in (gonum.org/v1/plot: 11 MB and nine modules, fonts and
// PDF among them), for two kinds of charts.
package chart

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"io"
	"math"
	"strconv"
)

// A Chart is panels, one below the other.
type Chart struct {
	Title  string
	Notes  []string // lines below the title
	Panels []Panel
}

// A Panel is Bars or Curves.
type Panel interface {
	height() float64
	draw(c *canvas, top float64)
}

// Measures of a chart, in pixels.
const (
	width      = 860.0
	margin     = 24.0
	lineHeight = 18.0
	titleSize  = 15.0
	textSize   = 12.0
)

// Colours, readable in print and by those who see no red or green.
const (
	ink   = "#222222"
	faint = "#dddddd"
	quiet = "#8fa8c8"
	loud  = "#d55e00"
	cool  = "#0072b2"
)

// Write writes the chart as an SVG document.
func (ch Chart) Write(w io.Writer) error {
	height := 2*margin + titleSize + float64(len(ch.Notes))*lineHeight
	for _, p := range ch.Panels {
		height += p.height() + margin
	}
	c := new(canvas)
	c.printf("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n")
	c.printf("<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%.0f\" height=\"%.0f\" viewBox=\"0 0 %.0f %.0f\" font-family=\"sans-serif\">\n", width, height, width, height)
	c.printf("<title>%s</title>\n<rect width=\"100%%\" height=\"100%%\" fill=\"white\"/>\n", escape(ch.Title))
	y := margin + titleSize
	c.text(margin, y, titleSize, "start", "bold", ch.Title)
	for _, n := range ch.Notes {
		y += lineHeight
		c.text(margin, y, textSize, "start", "normal", n)
	}
	for _, p := range ch.Panels {
		y += margin
		p.draw(c, y)
		y += p.height()
	}
	c.printf("</svg>\n")
	_, err := w.Write(c.Bytes())
	return err
}

// A canvas is SVG on its way.
type canvas struct{ bytes.Buffer }

func (c *canvas) printf(format string, args ...any) { fmt.Fprintf(&c.Buffer, format, args...) }

func (c *canvas) text(x, y, size float64, anchor, weight, text string) {
	c.printf("<text x=\"%.1f\" y=\"%.1f\" font-size=\"%.0f\" text-anchor=\"%s\" font-weight=\"%s\" fill=\"%s\">%s</text>\n", x, y, size, anchor, weight, ink, escape(text))
}

func (c *canvas) line(x1, y1, x2, y2 float64, colour string) {
	c.printf("<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"%s\"/>\n", x1, y1, x2, y2, colour)
}

func escape(s string) string {
	var b bytes.Buffer
	if err := xml.EscapeText(&b, []byte(s)); err != nil {
		panic("chart: escape: " + err.Error()) // a Buffer does not fail
	}
	return b.String()
}

// Bars are numbers side by side.
type Bars struct {
	Title string
	Unit  string
	Bars  []Bar
}

// A Bar is one number. A loud one is what the others are compared with.
type Bar struct {
	Label string
	Value float64
	Note  string // behind the number
	Loud  bool
}

const (
	barHeight  = 16.0
	barStep    = 22.0
	barLeft    = 150.0 // where bars begin
	barMax     = 460.0 // length of the longest
	panelTitle = 24.0
)

func (b Bars) height() float64 { return panelTitle + float64(len(b.Bars))*barStep }

func (b Bars) draw(c *canvas, top float64) {
	c.text(margin, top+titleSize, textSize+1, "start", "bold", b.Title)
	longest := 0.0
	for _, bar := range b.Bars {
		longest = max(longest, bar.Value)
	}
	for i, bar := range b.Bars {
		y := top + panelTitle + float64(i)*barStep
		length, colour := 0.0, quiet
		if longest > 0 {
			length = bar.Value / longest * barMax
		}
		if bar.Loud {
			colour = loud
		}
		c.text(barLeft-8, y+barHeight-4, textSize, "end", "normal", bar.Label)
		c.printf("<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" fill=\"%s\"/>\n", barLeft, y, max(length, 1), barHeight, colour)
		c.text(barLeft+length+6, y+barHeight-4, textSize, "start", "normal", fmt.Sprintf("%.3g %s %s", bar.Value, b.Unit, bar.Note))
	}
}

// Curves are points joined by lines, on logarithmic axes. Numbers must be greater than 0.
type Curves struct {
	Title  string
	X, Y   string // what is counted, and its unit
	Curves []Curve
}

// A Curve is one row of points, ascending in X. A dashed one is not measured, and drawn in the colour of the
// one before.
type Curve struct {
	Label  string
	Dashed bool
	Points []Point
}

// A Point is a place on a curve.
type Point struct{ X, Y float64 }

const (
	plotLeft   = 80.0
	plotRight  = width - 200
	plotHeight = 240.0
	axisHeight = 44.0
)

func (Curves) height() float64 { return panelTitle + plotHeight + axisHeight }

func (cs Curves) draw(c *canvas, top float64) {
	c.text(margin, top+titleSize, textSize+1, "start", "bold", cs.Title)
	x, y := cs.axes(top + panelTitle)
	bottom := top + panelTitle + plotHeight
	for _, t := range x.ticks() {
		c.line(x.at(t.v), top+panelTitle, x.at(t.v), bottom, faint)
		c.text(x.at(t.v), bottom+lineHeight, textSize, "middle", "normal", t.text)
	}
	for _, t := range y.ticks() {
		c.line(plotLeft, y.at(t.v), plotRight, y.at(t.v), faint)
		c.text(plotLeft-6, y.at(t.v)+4, textSize, "end", "normal", t.text)
	}
	c.line(plotLeft, bottom, plotRight, bottom, ink)
	c.line(plotLeft, top+panelTitle, plotLeft, bottom, ink)
	c.text((plotLeft+plotRight)/2, bottom+2*lineHeight, textSize, "middle", "normal", cs.X)
	c.text(plotLeft+6, top+panelTitle+textSize, textSize, "start", "normal", cs.Y)
	colour, next := loud, loud
	for i, curve := range cs.Curves {
		style := ""
		if curve.Dashed {
			style = " stroke-dasharray=\"6 4\" stroke-opacity=\"0.6\""
		} else {
			colour, next = next, cool
		}
		c.printf("<polyline fill=\"none\" stroke=\"%s\" stroke-width=\"2\"%s points=\"", colour, style)
		for _, p := range curve.Points {
			c.printf("%.1f,%.1f ", x.at(p.X), y.at(p.Y))
		}
		c.printf("\"/>\n")
		for _, p := range curve.Points {
			if !curve.Dashed {
				c.printf("<circle cx=\"%.1f\" cy=\"%.1f\" r=\"4\" fill=\"%s\"><title>%g: %.3g</title></circle>\n", x.at(p.X), y.at(p.Y), colour, p.X, p.Y)
			}
		}
		legend := top + panelTitle + textSize + float64(i)*lineHeight
		c.printf("<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"%s\" stroke-width=\"2\"%s/>\n", plotRight+10, legend-4, plotRight+34, legend-4, colour, style)
		c.text(plotRight+40, legend, textSize, "start", "normal", curve.Label)
	}
}

// axes finds the ranges of what is shown. top is where the plot begins.
func (cs Curves) axes(top float64) (x, y axis) {
	x, y = axis{min: math.Inf(1), from: plotLeft, to: plotRight}, axis{min: math.Inf(1), from: top + plotHeight, to: top}
	for _, curve := range cs.Curves {
		for _, p := range curve.Points {
			x.min, x.max = min(x.min, p.X), max(x.max, p.X)
			y.min, y.max = min(y.min, p.Y), max(y.max, p.Y)
		}
	}
	x.widen()
	y.widen()
	return x, y
}

// An axis is a logarithmic range of numbers, and where on the canvas it is.
type axis struct{ min, max, from, to float64 }

// widen makes room on both sides, so that no point is on the edge and the axis spans a factor of four at least.
func (a *axis) widen() {
	if !(a.min > 0) || math.IsInf(a.min, 1) {
		a.min, a.max = 1, 10
	}
	room := max(1.3, 2/math.Sqrt(a.max/a.min))
	a.min, a.max = a.min/room, a.max*room
}

func (a *axis) at(v float64) float64 {
	return a.from + (a.to-a.from)*(math.Log(v)-math.Log(a.min))/(math.Log(a.max)-math.Log(a.min))
}

// A tick is a number on an axis, and how it is written.
type tick struct {
	v    float64
	text string
}

// ticks are the powers of ten, or if they are few also twice and five times them.
func (a *axis) ticks() []tick {
	steps := []int{1}
	if a.max/a.min < 1000 {
		steps = []int{1, 2, 5}
	}
	var ticks []tick
	for power := int(math.Floor(math.Log10(a.min))); power <= int(math.Ceil(math.Log10(a.max))); power++ {
		for _, s := range steps {
			text := fmt.Sprintf("%de%d", s, power)
			v, err := strconv.ParseFloat(text, 64)
			if err != nil || v < a.min || v > a.max {
				continue // no number that far out was given
			}
			if power > -4 && power < 5 {
				text = strconv.FormatFloat(v, 'f', -1, 64)
			}
			ticks = append(ticks, tick{v, text})
		}
	}
	return ticks
}
