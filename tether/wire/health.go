package wire

import (
	"context"
	"time"
)

// Health says how the guest finds out whether the container is well.
type Health struct {
	Args []string `json:"args"` // of the probe, which runs as an exec would
	// In ns. Interval lies between the end of a probe and the next; StartInterval takes its place during
	// StartPeriod as long as no probe has succeeded, and failures do not count then.
	Interval      int64 `json:"interval"`
	Timeout       int64 `json:"timeout"`
	StartPeriod   int64 `json:"startPeriod,omitempty"`
	StartInterval int64 `json:"startInterval"`
	Retries       int   `json:"retries"` // failures in a row that make it unhealthy
}

// The states of health, as docker calls them.
const (
	Starting  = "starting"
	Healthy   = "healthy"
	Unhealthy = "unhealthy"
)

const (
	maxProbes = 5       // that are remembered
	maxOutput = 4 << 10 // bytes of a probe's output
)

// HealthState is what came of the probes since the process was started.
type HealthState struct {
	Status        string  `json:"status"`
	FailingStreak int     `json:"failingStreak"`
	Probes        []Probe `json:"probes,omitempty"` // the last ones, oldest first
}

// Probe is one that has ended.
type Probe struct {
	Start  time.Time `json:"start"`
	End    time.Time `json:"end"`
	Code   int       `json:"code"` // -1 if it did not end by itself, or never ran
	Output string    `json:"output"`
}

// After is the state after another probe, of a process that had run for so long when it began.
func (s HealthState) After(h Health, p Probe, ran time.Duration) HealthState {
	if len(p.Output) > maxOutput {
		p.Output = p.Output[:maxOutput] + "..."
	}
	s.Probes = append(s.Probes[max(0, len(s.Probes)-maxProbes+1):len(s.Probes):len(s.Probes)], p)
	switch {
	case p.Code == 0:
		s.Status, s.FailingStreak = Healthy, 0
	case s.Status == Starting && ran < time.Duration(h.StartPeriod):
	default:
		if s.FailingStreak++; s.FailingStreak >= h.Retries {
			s.Status = Unhealthy
		}
	}
	return s
}

// Wait is how long to wait for the next probe, of a process that has run for so long.
func (s HealthState) Wait(h Health, ran time.Duration) time.Duration {
	if s.Status == Starting && ran < time.Duration(h.StartPeriod) {
		return time.Duration(h.StartInterval)
	}
	return time.Duration(h.Interval)
}

// bound cuts off what no honest guest sends.
func (s *HealthState) bound() {
	if s.Status != Healthy && s.Status != Unhealthy {
		s.Status = Starting
	}
	s.Probes = s.Probes[max(0, len(s.Probes)-maxProbes):]
	for i := range s.Probes {
		if p := &s.Probes[i]; len(p.Output) > maxOutput+3 {
			p.Output = p.Output[:maxOutput] + "..."
		}
	}
}

// WatchHealth returns the state of health and has the guest tell of each that follows, by
// ConnectOptions.Health. The error is NotFound if it has no probe.
func (c *Conn) WatchHealth(ctx context.Context) (HealthState, error) {
	r, err := c.call(ctx, Request{Op: OpHealth})
	if err != nil {
		return HealthState{}, err
	}
	if r.Health == nil {
		return HealthState{}, &Error{Kind: NotFound, Message: "the guest told of no health"}
	}
	r.Health.bound()
	return *r.Health, nil
}

// Health tells the host of the container's health.
func (g *GuestSession) Health(h HealthState) error { return g.write(answer{Reply: Reply{Health: &h}}) }
