package bench

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"

	"vic/bench/corpus"
)

// Growth says at which sizes of images to measure vic's pull.
type Growth struct {
	// Layers are numbers of layers, of FilesPerLayer files each.
	Layers []int
	// Files are numbers of files in one layer.
	Files []int
	// Seed is what they are generated from.
	Seed uint64
}

// FilesPerLayer is how many files a layer has while their number grows.
const FilesPerLayer = 100

// A Curve is how the time of a pull depends on one number.
type Curve struct {
	Of     string  `json:"of"`    // what is counted: "layers" or "files"
	Shape  string  `json:"shape"` // of the image of the first point
	Points []Point `json:"points"`
	Fit    Fit     `json:"fit"`    // of the wall time
	CPUFit Fit     `json:"cpuFit"` // noise has less of a hold on it
}

// A Point is how long a pull takes, in seconds.
type Point struct {
	N    int    `json:"n"`
	Wall Figure `json:"wall"`
	CPU  Figure `json:"cpu"`
	// PerNLogN is the wall time over n·log2(n+1).
	PerNLogN float64 `json:"perNLogN"`
}

// nLogN is n·log2(n+1): 1 for 1.
func nLogN(n int) float64 { return float64(n) * math.Log2(float64(n)+1) }

// grow measures the curves.
func (b *bench) grow(ctx context.Context) error {
	for _, g := range []struct {
		of     string
		counts []int
		shape  func(n int) corpus.Shape
	}{
		{"layers", b.Growth.Layers, b.Growth.layers},
		{"files", b.Growth.Files, b.Growth.files},
	} {
		if len(g.counts) == 0 {
			continue
		}
		curve := Curve{Of: g.of, Shape: g.shape(g.counts[0]).String()}
		for _, n := range slices.Compact(slices.Sorted(slices.Values(g.counts))) {
			p, err := b.point(ctx, fmt.Sprintf("growth: %d %s", n, g.of), g.shape(n))
			if err != nil {
				return fmt.Errorf("growth, %d %s: %w", n, g.of, err)
			}
			p.N, p.PerNLogN = n, p.Wall.Median/nLogN(n)
			curve.Points = append(curve.Points, p)
		}
		curve.Fit = fit(curve.Points, func(p Point) float64 { return p.Wall.Median })
		curve.CPUFit = fit(curve.Points, func(p Point) float64 { return p.CPU.Median })
		b.report.Growth = append(b.report.Growth, curve)
	}
	return nil
}

func (g Growth) layers(n int) corpus.Shape { return g.shape(n, n*FilesPerLayer) }
func (g Growth) files(n int) corpus.Shape  { return g.shape(1, n) }

// shape is an image of small files, so that their number counts and not their bytes.
func (g Growth) shape(layers, files int) corpus.Shape {
	return corpus.Shape{Seed: g.Seed, Layers: layers, Files: files, Sizes: corpus.Fixed(1 << 10), Compressible: 0.6}
}

// point makes an image and measures vic's pull of it.
func (b *bench) point(ctx context.Context, title string, s corpus.Shape) (_ Point, err error) {
	b.say("%s: generating the image", title)
	path := filepath.Join(b.work, "corpus")
	defer func() { err = errors.Join(err, os.RemoveAll(path)) }()
	dir, err := corpus.Write(ctx, path, s)
	if err != nil {
		return Point{}, err
	}
	img, err := serve(ctx, dir, "")
	if err != nil {
		return Point{}, err
	}
	defer func() { err = errors.Join(err, img.close()) }()
	c := &contestant{engine: b.engines[0].engine}
	for run := range b.Runs {
		b.say("%s: run %d of %d", title, run+1, b.Runs)
		if err := b.run(ctx, c, img); err != nil {
			return Point{}, err
		}
	}
	wall, cpu, _ := c.figures()
	return Point{Wall: wall, CPU: cpu}, nil
}

// A Fit is a time of a pull as Constant + NLogN·n·log2(n+1) + Square·n², in seconds: of all such sums without
// a negative term the one whose relative errors have the least squares.
type Fit struct {
	Constant float64 `json:"constant"`
	NLogN    float64 `json:"nLogN"`
	Square   float64 `json:"square"`
	// SquareShare is what part of the time at the largest n the square makes. Around 0 means that nothing grows
	// faster than n log n.
	SquareShare float64 `json:"squareShare"`
}

func (f Fit) at(n int) float64 {
	return f.Constant + f.NLogN*nLogN(n) + f.Square*float64(n)*float64(n)
}

// fit tries all subsets of the terms, of which there are seven, for one time of the points. Times of 0, which are too
// short for the kernel to count, are left out.
func fit(points []Point, time func(Point) float64) Fit {
	points = slices.DeleteFunc(slices.Clone(points), func(p Point) bool { return time(p) <= 0 })
	if len(points) == 0 {
		return Fit{}
	}
	best, least := Fit{}, math.Inf(1)
	for _, terms := range [][]int{{0}, {1}, {2}, {0, 1}, {0, 2}, {1, 2}, {0, 1, 2}} {
		if len(terms) > len(points) {
			continue
		}
		var coef [3]float64
		x, ok := leastSquares(points, time, terms)
		for i, t := range terms {
			coef[t] = x[i]
			ok = ok && x[i] >= 0
		}
		if !ok {
			continue
		}
		f := Fit{Constant: coef[0], NLogN: coef[1], Square: coef[2]}
		var errs float64
		for _, p := range points {
			e := f.at(p.N)/time(p) - 1
			errs += e * e
		}
		if errs < least-1e-9 { // of equals the shorter
			best, least = f, errs
		}
	}
	if n := points[len(points)-1].N; best.at(n) > 0 {
		best.SquareShare = best.Square * float64(n) * float64(n) / best.at(n)
	}
	return best
}

// leastSquares solves for the factors of some terms, relative to the measured times.
func leastSquares(points []Point, time func(Point) float64, terms []int) ([]float64, bool) {
	n := len(terms)
	m := make([][]float64, n) // the normal equations, and their right side
	for i := range m {
		m[i] = make([]float64, n+1)
	}
	for _, p := range points {
		row := []float64{1, nLogN(p.N), float64(p.N) * float64(p.N)}
		for i, t := range terms {
			for k, u := range terms {
				m[i][k] += row[t] / time(p) * row[u] / time(p)
			}
			m[i][n] += row[t] / time(p)
		}
	}
	for i := range m { // Gauss, Jordan; the matrix is symmetric and positive
		pivot := m[i][i]
		if !(pivot > 1e-300) {
			return make([]float64, n), false
		}
		for k := range m[i] {
			m[i][k] /= pivot
		}
		for r := range m {
			if factor := m[r][i]; r != i {
				for k := range m[r] {
					m[r][k] -= factor * m[i][k]
				}
			}
		}
	}
	x := make([]float64, n)
	for i := range x {
		x[i] = m[i][n]
	}
	return x, true
}
