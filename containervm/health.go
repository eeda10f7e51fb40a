package containervm

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"

	"vic/tether/wire"
)

// Health is what is known of a container's health.
type Health = wire.HealthState

// HealthCheck says how the guest finds out.
type HealthCheck = wire.Health

// watchHealth asks a guest for its container's health, and has it tell of each change.
func (c *Container) watchHealth(ctx context.Context, r *run, conn *wire.Conn) {
	ctx, cancel := context.WithTimeout(ctx, answerPatience)
	defer cancel()
	h, err := conn.WatchHealth(ctx)
	if err != nil {
		if !errors.Is(err, wire.ErrLost) && !errors.Is(err, context.Canceled) {
			c.m.o.Log.Warn("ask for health", "container", c.id, "error", err)
		}
		return
	}
	c.takeHealth(r, h)
}

// takeHealth takes in what a guest says of its container's health.
func (c *Container) takeHealth(r *run, h Health) {
	c.mu.Lock()
	if c.run != r || c.state.Health == nil || c.spec.Health == nil {
		c.mu.Unlock()
		return
	}
	before := *c.state.Health
	c.state.Health = &h
	c.notifyLocked()
	c.mu.Unlock()
	c.keepState()
	command := strings.Join(c.spec.Health.Args, " ")
	for _, p := range h.Probes {
		if slices.ContainsFunc(before.Probes, func(b wire.Probe) bool { return b.Start.Equal(p.Start) }) {
			continue
		}
		id := map[string]string{"execID": newID()}
		c.emit("exec_create: "+command, id)
		c.emit("exec_start: "+command, id)
		c.emit("exec_die", map[string]string{"execID": id["execID"], "exitCode": strconv.Itoa(p.Code)})
	}
	if h.Status != before.Status {
		c.emit("health_status: "+h.Status, nil)
	}
}

// freshHealth is the health of a container whose process is started. Call it with mu held.
func (c *Container) freshHealth() *Health {
	if c.spec.Health == nil {
		return nil
	}
	return &Health{Status: wire.Starting}
}

// ended is the health of a container whose process has ended: nobody finds it well any more.
func ended(h *Health) *Health {
	if h == nil {
		return nil
	}
	last := *h
	last.Status = wire.Unhealthy
	return &last
}
