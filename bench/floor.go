package bench

import (
	"math"
	"slices"
)

// A Floor is the time in seconds below which no pull of the image can come on the machine, given the speed of
// the parts: the largest of CPU over Cores, Disk and Path.
type Floor struct {
	// CPU is the CPU time of decompressing, hashing blob and tar, copying each byte of the tar once, and
	// writing.
	CPU float64 `json:"cpu"`
	// Disk is the length of the extent files over the speed of the medium, sync included.
	Disk float64 `json:"disk"`
	// Path is the longest time that one of these parts takes for one layer: it is done by one thread.
	Path    float64 `json:"path"`
	Cores   int     `json:"cores"`
	Seconds float64 `json:"seconds"`
	Bound   string  `json:"bound"` // which of the three it is: "cpu", "disk" or "path"
}

// A mediumCost is what it takes to write a byte, in seconds.
type mediumCost struct{ wall, cpu float64 }

// floorOf works out the floor for layers, given their costs, those of writing, and the cores that there are.
func floorOf(layers []layerCost, medium mediumCost, cores int) Floor {
	f := Floor{Cores: cores, Bound: "cpu"}
	for _, l := range layers {
		for _, s := range []Stage{StageBlobHash, StageInflate, StageTarHash, StageCopy} {
			t := l.spent[s].cpu.Seconds()
			f.CPU += t
			f.Path = max(f.Path, t)
		}
		f.CPU += float64(l.stored) * medium.cpu
		f.Disk += float64(l.stored) * medium.wall
	}
	f.Seconds = f.CPU / float64(cores)
	if f.Disk > f.Seconds {
		f.Seconds, f.Bound = f.Disk, "disk"
	}
	if f.Path > f.Seconds {
		f.Seconds, f.Bound = f.Path, "path"
	}
	return f
}

// medianCosts returns for each layer the median of each stage over several passes.
func medianCosts(passes [][]layerCost) []layerCost {
	layers := slices.Clone(passes[0])
	for i := range layers {
		for s := range layers[i].spent {
			wall, cpu := make([]float64, len(passes)), make([]float64, len(passes))
			for k, p := range passes {
				wall[k], cpu[k] = p[i].spent[s].wall.Seconds(), p[i].spent[s].cpu.Seconds()
			}
			layers[i].spent[s] = usage{seconds(Median(wall)), seconds(Median(cpu))}
		}
	}
	return layers
}

// A Figure is one thing measured in several runs.
type Figure struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
	// Deviation is the standard deviation over the mean.
	Deviation float64   `json:"deviation"`
	Runs      []float64 `json:"runs"`
}

func figureOf(runs []float64) Figure {
	f := Figure{Median: Median(runs), Min: slices.Min(runs), Max: slices.Max(runs), Runs: runs}
	var mean, squares float64
	for _, r := range runs {
		mean += r / float64(len(runs))
	}
	for _, r := range runs {
		squares += (r - mean) * (r - mean)
	}
	if len(runs) > 1 && mean > 0 {
		f.Deviation = math.Sqrt(squares/float64(len(runs)-1)) / mean
	}
	return f
}

// Median returns the middle one, or the mean of the two in the middle.
func Median(list []float64) float64 {
	list = slices.Sorted(slices.Values(list))
	n := len(list)
	return (list[(n-1)/2] + list[n/2]) / 2
}
