package api

import (
	"reflect"
	"testing"
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/types/container"

	"vic/containervm"
)

func TestHealthcheck(t *testing.T) {
	image := &dockerspec.HealthcheckConfig{Test: []string{"CMD", "a"}, Interval: time.Second, Retries: 7}
	const sec = int64(time.Second)
	for _, tt := range []struct {
		name        string
		user, image *container.HealthConfig
		shell       []string
		want        *containervm.HealthCheck
		err         string
	}{
		{"none", nil, nil, nil, nil, ""},
		{"the image's", nil, image, nil, &containervm.HealthCheck{Args: []string{"a"}, Interval: sec, Timeout: 30 * sec, StartInterval: 5 * sec, Retries: 7}, ""},
		{"switched off", &container.HealthConfig{Test: []string{"NONE"}}, image, nil, nil, ""},
		{"of both", &container.HealthConfig{Timeout: 2 * time.Second}, image, nil, &containervm.HealthCheck{Args: []string{"a"}, Interval: sec, Timeout: 2 * sec, StartInterval: 5 * sec, Retries: 7}, ""},
		{"by a shell", &container.HealthConfig{Test: []string{"CMD-SHELL", "a b"}}, nil, []string{"/bin/bash", "-ec"},
			&containervm.HealthCheck{Args: []string{"/bin/bash", "-ec", "a b"}, Interval: 30 * sec, Timeout: 30 * sec, StartInterval: 5 * sec, Retries: 3}, ""},
		{"interval", &container.HealthConfig{Interval: 1}, nil, nil, nil, "Interval in Healthcheck cannot be less than 1ms"},
		{"start period", &container.HealthConfig{StartPeriod: -1}, nil, nil, nil, "StartPeriod in Healthcheck cannot be less than 1ms"},
		{"retries", &container.HealthConfig{Retries: -1}, nil, nil, nil, "Retries in Healthcheck cannot be negative"},
		{"type", &container.HealthConfig{Test: []string{"HTTP", "x"}}, nil, nil, nil, "Unknown healthcheck type 'HTTP' (expected 'CMD')"},
		{"no command", &container.HealthConfig{Test: []string{"CMD"}}, nil, nil, nil, "a health check has no command"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			body := &createBody{Config: &container.Config{Healthcheck: mergeHealthcheck(tt.user, tt.image), Shell: tt.shell}}
			var s containervm.Spec
			err := setHealth(&s, body)
			if tt.err != "" {
				if err == nil || err.Error() != tt.err {
					t.Errorf("got %v, want %s", err, tt.err)
				}
				return
			}
			if err != nil || !reflect.DeepEqual(s.Health, tt.want) {
				t.Errorf("got %+v, %v, want %+v", s.Health, err, tt.want)
			}
		})
	}
}
