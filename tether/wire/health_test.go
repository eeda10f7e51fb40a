package wire

import (
	"strings"
	"testing"
	"time"
)

func TestHealthState(t *testing.T) {
	h := Health{Retries: 2, StartPeriod: int64(time.Minute), Interval: 7, StartInterval: 3}
	s := HealthState{Status: Starting}
	for i, x := range []struct {
		code   int
		ran    time.Duration
		status string
		streak int
	}{
		{1, time.Second, Starting, 0}, // in its start period
		{1, time.Hour, Starting, 1},
		{-1, time.Hour, Unhealthy, 2},
		{0, time.Hour, Healthy, 0},
		{1, time.Second, Healthy, 1}, // it has been well: every failure counts
		{1, time.Hour, Unhealthy, 2},
	} {
		s = s.After(h, Probe{Code: x.code, Output: strings.Repeat("x", 5000)}, x.ran)
		if s.Status != x.status || s.FailingStreak != x.streak {
			t.Errorf("after probe %d: %s, %d failures; want %s, %d", i, s.Status, s.FailingStreak, x.status, x.streak)
		}
	}
	if len(s.Probes) != maxProbes || s.Probes[4].Output != strings.Repeat("x", 4096)+"..." {
		t.Errorf("%d probes, the last with %d bytes", len(s.Probes), len(s.Probes[4].Output))
	}
	if d := (HealthState{Status: Starting}).Wait(h, time.Second); d != 3 {
		t.Errorf("waits %d in its start period", d)
	}
	if d := s.Wait(h, time.Second); d != 7 {
		t.Errorf("waits %d", d)
	}
	hostile := HealthState{Status: "fine", Probes: make([]Probe, 100)}
	hostile.Probes[99].Output = strings.Repeat("x", 1<<20)
	hostile.bound()
	if hostile.Status != Starting || len(hostile.Probes) != maxProbes || len(hostile.Probes[4].Output) != maxOutput+3 {
		t.Errorf("bound to %s, %d probes", hostile.Status, len(hostile.Probes))
	}
}

func TestRestart(t *testing.T) {
	for _, tt := range []struct {
		r    Restart
		code int
		want bool
	}{
		{Restart{}, 1, false},
		{Restart{Policy: "no"}, 1, false},
		{Restart{Policy: "always", Done: 1000}, 0, true},
		{Restart{Policy: "unless-stopped"}, 0, true},
		{Restart{Policy: "on-failure"}, 0, false},
		{Restart{Policy: "on-failure", Done: 1000}, 1, true},
		{Restart{Policy: "on-failure", Max: 3, Done: 2}, 1, true},
		{Restart{Policy: "on-failure", Max: 3, Done: 3}, 1, false},
	} {
		if got := tt.r.Wants(tt.code); got != tt.want {
			t.Errorf("%+v wants a restart after %d: %v", tt.r, tt.code, got)
		}
	}
	var d time.Duration
	for range 5 {
		d = BackOff(d, time.Second)
	}
	if d != 1600*time.Millisecond || BackOff(d, 10*time.Second) != 100*time.Millisecond || BackOff(50*time.Second, 0) != time.Minute {
		t.Errorf("the fifth wait is %v", d)
	}
}
