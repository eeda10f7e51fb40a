package bench

import (
	"strings"
	"time"
)

// A Report is what was measured. Times are in seconds, sizes in bytes.
type Report struct {
	// Command repeats the measuring, with the Version of vic that it was done with. The caller of Run knows them.
	Command string    `json:"command"`
	Version string    `json:"version"`
	Source  string    `json:"source"` // of the image, for people
	Time    time.Time `json:"time"`
	Machine Machine   `json:"machine"`
	Runs    int       `json:"runs"`

	Image   *ImageFacts    `json:"image,omitempty"`
	Stages  []StageResult  `json:"stages,omitempty"`
	Medium  *MediumResult  `json:"medium,omitempty"`
	Floor   *Floor         `json:"floor,omitempty"`
	Engines []EngineResult `json:"engines,omitempty"`
	Missing []MissingPeer  `json:"missing,omitempty"`
	Growth  []Curve        `json:"growth,omitempty"`
}

// ImageFacts describe the image.
type ImageFacts struct {
	Layers  int   `json:"layers"`
	Entries int   `json:"entries"` // of the tars
	Blobs   int64 `json:"blobs"`
	Tars    int64 `json:"tars"`
}

// A StageResult is one stage alone, over all layers.
type StageResult struct {
	Name    string `json:"name"`
	Through int64  `json:"through"` // how much went through it
	Unit    string `json:"unit"`    // of Through: "bytes", or "entries" of the tars
	Wall    Figure `json:"wall"`
	// CPU is nil where it cannot be told apart from that of the server.
	CPU *Figure `json:"cpu,omitempty"`
	// Rate is Through per second of wall time.
	Rate float64 `json:"rate"`
}

// A MediumResult is how fast the medium below the stores takes bytes, sync included.
type MediumResult struct {
	Bytes int64   `json:"bytes"`
	Wall  Figure  `json:"wall"`
	CPU   Figure  `json:"cpu"`
	Rate  float64 `json:"rate"`
}

// An EngineResult is an engine's time from its start until everything is durable.
type EngineResult struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	Does    string `json:"does"`
	Wall    Figure `json:"wall"`
	CPU     Figure `json:"cpu"`
	Stored  int64  `json:"stored"`
	// WallRatio and CPURatio are over those of the first engine, vic.
	WallRatio float64 `json:"wallRatio"`
	CPURatio  float64 `json:"cpuRatio"`
	// WallOverFloor is over Floor.Seconds, CPUOverFloor over Floor.CPU.
	WallOverFloor float64 `json:"wallOverFloor"`
	CPUOverFloor  float64 `json:"cpuOverFloor"`
}

// maxWhy is how much of an error is told, in bytes.
const maxWhy = 500

// A MissingPeer was not measured.
type MissingPeer struct {
	Name string `json:"name"`
	Why  string `json:"why"`
}

// add puts what was measured of the image into the report.
func (r *Report) add(m *measured, engines []*contestant, cores int) {
	layers := medianCosts(m.passes)
	facts := &ImageFacts{Layers: len(layers)}
	var stored int64
	for _, l := range layers {
		facts.Entries += l.entries
		facts.Blobs += l.blob
		facts.Tars += l.tar
		stored += l.stored
	}
	r.Image = facts
	for s := StageFetch; s < numStages; s++ {
		through, unit := facts.Tars, "bytes"
		switch s {
		case StageFetch, StageBlobHash:
			through = facts.Blobs
		case StageChecksum, StageWrite, StageSync:
			through = stored
		case StageBind:
			through, unit = int64(facts.Entries), "entries"
		}
		res := stageResult(s, m.passes)
		res.Through, res.Unit, res.Rate = through, unit, ratio(float64(through), res.Wall.Median)
		r.Stages = append(r.Stages, res)
	}
	medium := mediumResult(m)
	r.Medium = &medium
	floor := floorOf(layers, mediumCost{medium.Wall.Median / float64(medium.Bytes), medium.CPU.Median / float64(medium.Bytes)}, cores)
	r.Floor = &floor
	for _, c := range engines {
		if c.failed != nil {
			why := strings.Join(strings.Fields(c.failed.Error()), " ")
			r.Missing = append(r.Missing, MissingPeer{c.name(), why[:min(len(why), maxWhy)]})
			continue
		}
		e := EngineResult{Name: c.name(), Version: c.version, Does: c.does()}
		e.Wall, e.CPU, e.Stored = c.figures()
		e.WallOverFloor, e.CPUOverFloor = ratio(e.Wall.Median, floor.Seconds), ratio(e.CPU.Median, floor.CPU)
		r.Engines = append(r.Engines, e)
	}
	for i := range r.Engines {
		e := &r.Engines[i]
		e.WallRatio, e.CPURatio = ratio(e.Wall.Median, r.Engines[0].Wall.Median), ratio(e.CPU.Median, r.Engines[0].CPU.Median)
	}
}

// ratio is a over b, or 0 if there is none.
func ratio(a, b float64) float64 {
	if b == 0 {
		return 0
	}
	return a / b
}

func stageResult(s Stage, passes [][]layerCost) StageResult {
	var wall, cpu []float64
	for _, p := range passes {
		var sum usage
		for _, l := range p {
			sum.wall += l.spent[s].wall
			sum.cpu += l.spent[s].cpu
		}
		wall, cpu = append(wall, sum.wall.Seconds()), append(cpu, sum.cpu.Seconds())
	}
	res := StageResult{Name: s.String(), Wall: figureOf(wall)}
	if s != StageFetch { // the server is in this process
		f := figureOf(cpu)
		res.CPU = &f
	}
	return res
}

func mediumResult(m *measured) MediumResult {
	var wall, cpu []float64
	for _, u := range m.medium {
		wall, cpu = append(wall, u.wall.Seconds()), append(cpu, u.cpu.Seconds())
	}
	res := MediumResult{Bytes: m.mediumBytes, Wall: figureOf(wall), CPU: figureOf(cpu)}
	res.Rate = ratio(float64(res.Bytes), res.Wall.Median)
	return res
}

// figures returns an engine's wall and CPU time, and the bytes that its store takes.
func (c *contestant) figures() (wall, cpu Figure, stored int64) {
	var walls, cpus, sizes []float64
	for _, s := range c.samples {
		walls, cpus, sizes = append(walls, s.wall.Seconds()), append(cpus, s.cpu.Seconds()), append(sizes, float64(s.stored))
	}
	return figureOf(walls), figureOf(cpus), int64(Median(sizes))
}
