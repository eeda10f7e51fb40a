package api

import (
	"cmp"
	"time"

	"github.com/moby/moby/api/types/container"

	"vic/containervm"
)

// setHealth reads the health check, merged with the image's; the shell is the one that CMD-SHELL names.
func setHealth(s *containervm.Spec, body *createBody) error {
	h := body.Healthcheck
	if h == nil {
		return nil
	}
	for _, f := range []struct {
		name string
		d    time.Duration
	}{{"Interval", h.Interval}, {"Timeout", h.Timeout}, {"StartPeriod", h.StartPeriod}, {"StartInterval", h.StartInterval}} {
		if f.d != 0 && f.d < time.Millisecond {
			return badRequest("%s in Healthcheck cannot be less than 1ms", f.name)
		}
	}
	if h.Retries < 0 {
		return badRequest("Retries in Healthcheck cannot be negative")
	}
	if len(h.Test) == 0 {
		return nil
	}
	var args []string
	switch h.Test[0] {
	case "NONE":
		return nil
	case "CMD":
		args = h.Test[1:]
	case "CMD-SHELL":
		shell := body.Shell
		if len(shell) == 0 {
			shell = []string{"/bin/sh", "-c"}
		}
		args = append(append([]string{}, shell...), h.Test[1:]...)
	default:
		return badRequest("Unknown healthcheck type '%s' (expected 'CMD')", h.Test[0])
	}
	if len(args) == 0 {
		return badRequest("a health check has no command")
	}
	s.Health = &containervm.HealthCheck{
		Args: args, Retries: cmp.Or(h.Retries, 3), StartPeriod: int64(h.StartPeriod),
		Interval: int64(cmp.Or(h.Interval, 30*time.Second)), Timeout: int64(cmp.Or(h.Timeout, 30*time.Second)),
		StartInterval: int64(cmp.Or(h.StartInterval, 5*time.Second)),
	}
	return nil
}

// healthOf is a container's health as inspect shows it, nil if it has no check.
func healthOf(h *containervm.Health) *container.Health {
	if h == nil {
		return nil
	}
	out := &container.Health{Status: container.HealthStatus(h.Status), FailingStreak: h.FailingStreak, Log: []*container.HealthcheckResult{}}
	for _, p := range h.Probes {
		out.Log = append(out.Log, &container.HealthcheckResult{Start: p.Start, End: p.End, ExitCode: p.Code, Output: p.Output})
	}
	return out
}

// healthStatus is the word that the filter health= looks for.
func healthStatus(h *containervm.Health) string {
	if h == nil {
		return string(container.NoHealthcheck)
	}
	return h.Status
}
