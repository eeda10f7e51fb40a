package bench

import (
	"math"
	"testing"
	"time"
)

// costOf is a layer whose parts took so many milliseconds of CPU time.
func costOf(blobHash, inflate, tarHash, copied int, stored int64) layerCost {
	c := layerCost{stored: stored}
	for s, ms := range map[Stage]int{StageBlobHash: blobHash, StageInflate: inflate, StageTarHash: tarHash, StageCopy: copied} {
		c.spent[s].cpu = time.Duration(ms) * time.Millisecond
	}
	c.spent[StageTar].cpu = time.Hour // what can be left out does not count
	c.spent[StageFetch].wall = time.Hour
	return c
}

func near(a, b float64) bool { return math.Abs(a-b) < 1e-9*max(1, math.Abs(a), math.Abs(b)) }

func TestFloor(t *testing.T) {
	fast := mediumCost{wall: 1e-9, cpu: 0.5e-9} // 1 GB/s
	for _, tt := range []struct {
		name   string
		layers []layerCost
		medium mediumCost
		cores  int
		want   Floor
	}{
		{"no layers", nil, fast, 2, Floor{Cores: 2, Bound: "cpu"}},
		{
			"many equal layers keep all cores busy",
			[]layerCost{costOf(100, 400, 300, 200, 0), costOf(100, 400, 300, 200, 0), costOf(100, 400, 300, 200, 0)}, fast, 2,
			Floor{CPU: 3, Path: 0.4, Cores: 2, Seconds: 1.5, Bound: "cpu"},
		},
		{
			"writing costs CPU time",
			[]layerCost{costOf(0, 1000, 0, 0, 2e9)}, fast, 1,
			Floor{CPU: 2, Disk: 2, Path: 1, Cores: 1, Seconds: 2, Bound: "cpu"},
		},
		{
			"one large layer is one thread",
			[]layerCost{costOf(100, 900, 300, 100, 0), costOf(10, 20, 30, 40, 0)}, fast, 16,
			Floor{CPU: 1.5, Path: 0.9, Cores: 16, Seconds: 0.9, Bound: "path"},
		},
		{
			"hashing may take longest",
			[]layerCost{costOf(100, 200, 700, 100, 0)}, fast, 64,
			Floor{CPU: 1.1, Path: 0.7, Cores: 64, Seconds: 0.7, Bound: "path"},
		},
		{
			"a slow disk",
			[]layerCost{costOf(100, 400, 300, 200, 1e9), costOf(0, 0, 0, 0, 1e9)}, mediumCost{wall: 5e-9, cpu: 0}, 4,
			Floor{CPU: 1, Disk: 10, Path: 0.4, Cores: 4, Seconds: 10, Bound: "disk"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := floorOf(tt.layers, tt.medium, tt.cores)
			if !near(got.CPU, tt.want.CPU) || !near(got.Disk, tt.want.Disk) || !near(got.Path, tt.want.Path) || !near(got.Seconds, tt.want.Seconds) ||
				got.Cores != tt.want.Cores || got.Bound != tt.want.Bound {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

func TestMedianCosts(t *testing.T) {
	passes := [][]layerCost{
		{costOf(0, 10, 0, 0, 5), costOf(0, 1, 0, 0, 6)},
		{costOf(0, 30, 0, 0, 5), costOf(0, 2, 0, 0, 6)},
		{costOf(0, 20, 0, 0, 5), costOf(0, 9, 0, 0, 6)},
	}
	got := medianCosts(passes)
	if len(got) != 2 || got[0].spent[StageInflate].cpu != 20*time.Millisecond || got[1].spent[StageInflate].cpu != 2*time.Millisecond || got[1].stored != 6 {
		t.Errorf("got %+v", got)
	}
	if passes[0][0].spent[StageInflate].cpu != 10*time.Millisecond {
		t.Error("the passes were changed")
	}
}

func TestFigure(t *testing.T) {
	for _, tt := range []struct {
		runs                   []float64
		median, least, most, d float64
	}{
		{[]float64{3}, 3, 3, 3, 0},
		{[]float64{1, 3}, 2, 1, 3, math.Sqrt2 / 2},
		{[]float64{9, 1, 5}, 5, 1, 9, 4.0 / 5},
		{[]float64{0, 0}, 0, 0, 0, 0},
	} {
		f := figureOf(tt.runs)
		if !near(f.Median, tt.median) || f.Min != tt.least || f.Max != tt.most || !near(f.Deviation, tt.d) {
			t.Errorf("%v: %+v", tt.runs, f)
		}
	}
}

func TestFit(t *testing.T) {
	counts := []int{1, 10, 50, 127, 1000, 100_000}
	for _, tt := range []struct {
		name  string
		time  func(n int) float64
		want  Fit
		exact bool
	}{
		{"constant", func(int) float64 { return 2 }, Fit{Constant: 2}, true},
		{"n log n", func(n int) float64 { return 0.1 + 3e-6*nLogN(n) }, Fit{Constant: 0.1, NLogN: 3e-6}, true},
		{"square", func(n int) float64 { return 0.1 + 3e-6*nLogN(n) + 1e-8*float64(n*n) }, Fit{Constant: 0.1, NLogN: 3e-6, Square: 1e-8}, true},
		{"linear is no square", func(n int) float64 { return 0.1 + 3e-6*float64(n) }, Fit{}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var points []Point
			for _, n := range counts {
				points = append(points, Point{N: n, CPU: Figure{Median: tt.time(n)}})
			}
			cpu := func(p Point) float64 { return p.CPU.Median }
			got := fit(points, cpu)
			if !tt.exact {
				if got.SquareShare != 0 {
					t.Errorf("a square: %v", got)
				}
				return
			}
			if math.Abs(got.Constant-tt.want.Constant) > 1e-6 || math.Abs(got.NLogN/max(tt.want.NLogN, 1e-9)-min(1, tt.want.NLogN/1e-9)) > 1e-3 || math.Abs(got.Square-tt.want.Square) > 1e-12 {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
			if wantShare := tt.want.Square > 0; (got.SquareShare > 0.5) != wantShare {
				t.Errorf("the square's share is %v", got.SquareShare)
			}
		})
	}
	if got := fit([]Point{{N: 1}}, func(p Point) float64 { return p.Wall.Median }); got != (Fit{}) {
		t.Errorf("of no time: %+v", got)
	}
}
