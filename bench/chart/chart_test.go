package chart

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"math"
	"strings"
	"testing"
)

// parse reads an SVG and counts its elements.
func parse(t *testing.T, c Chart) (map[string]int, string) {
	t.Helper()
	var b bytes.Buffer
	if err := c.Write(&b); err != nil {
		t.Fatal(err)
	}
	text := b.String()
	count := make(map[string]int)
	for d := xml.NewDecoder(&b); ; {
		tok, err := d.Token()
		if errors.Is(err, io.EOF) {
			return count, text
		}
		if err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		if e, ok := tok.(xml.StartElement); ok {
			count[e.Name.Local]++
			for _, a := range e.Attr {
				if strings.Contains(a.Value, "NaN") || strings.Contains(a.Value, "Inf") {
					t.Errorf("%s has %s=%q", e.Name.Local, a.Name.Local, a.Value)
				}
			}
		}
	}
}

func TestChart(t *testing.T) {
	count, text := parse(t, Chart{Title: `a < b & "c"`, Notes: []string{"one", "two"}, Panels: []Panel{
		Bars{Title: "bars", Unit: "s", Bars: []Bar{{Label: "x", Value: 1, Note: "<n>"}, {Label: "y", Value: 2, Loud: true}, {Label: "z"}}},
		Curves{Title: "curves", X: "n", Y: "s", Curves: []Curve{
			{Label: "measured", Points: []Point{{1, 0.1}, {1000, 5}}},
			{Label: "fitted", Dashed: true, Points: []Point{{1, 0.2}, {1000, 5}}},
		}},
	}})
	if count["rect"] != 1+3 || count["polyline"] != 2 || count["circle"] != 2 || count["title"] != 1+2 {
		t.Errorf("elements: %v", count)
	}
	for _, want := range []string{"a &lt; b &amp; &#34;c&#34;", "&lt;n&gt;", ">100<", "stroke-dasharray"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
}

func TestChartOfNothing(t *testing.T) {
	parse(t, Chart{})
	parse(t, Chart{Panels: []Panel{Bars{}, Curves{}, Curves{Curves: []Curve{{Points: []Point{{5, 5}}}}}}})
}

func TestTicks(t *testing.T) {
	for _, tt := range []struct {
		min, max float64
		want     string
	}{
		{1, 127, "1 2 5 10 20 50 100"},
		{0.03, 4, "0.05 0.1 0.2 0.5 1 2"},
		{1000, 1e6, "1000 10000 1e5 1e6"},
		{1e-6, 1e-2, "1e-6 1e-5 1e-4 0.001 0.01"},
	} {
		a := axis{min: tt.min, max: tt.max, to: 100}
		var texts []string
		for _, tick := range a.ticks() {
			if at := a.at(tick.v); at < -1e-9 || at > 100+1e-9 || math.IsNaN(at) {
				t.Errorf("%v is at %v", tick.v, at)
			}
			texts = append(texts, tick.text)
		}
		if got := strings.Join(texts, " "); got != tt.want {
			t.Errorf("from %g to %g: %s, want %s", tt.min, tt.max, got, tt.want)
		}
	}
}
