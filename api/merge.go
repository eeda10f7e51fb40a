package api

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"path"
	"strings"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
)

// imageConfig reads the part of an image's configuration that containers take over, with Docker's
// additions to what OCI knows.
func imageConfig(raw []byte) (*dockerspec.DockerOCIImageConfig, error) {
	var img dockerspec.DockerOCIImage
	if err := json.Unmarshal(raw, &img); err != nil {
		return nil, fmt.Errorf("parse image config: %w", err)
	}
	return &img.Config, nil
}

// merge completes what a client asked for with what the image says, as Docker does, and refuses what
// makes no sense. c is changed and must not share maps or slices with anything else.
func merge(c *container.Config, img *dockerspec.DockerOCIImageConfig) error {
	if c.User == "" {
		c.User = img.User
	}
	if c.WorkingDir == "" {
		c.WorkingDir = img.WorkingDir
	}
	if c.StopSignal == "" {
		c.StopSignal = img.StopSignal
	}
	if len(c.Entrypoint) == 0 {
		if len(c.Cmd) == 0 {
			c.Cmd = img.Cmd
		}
		if c.Entrypoint == nil {
			c.Entrypoint = img.Entrypoint
		}
	}
	// docker run --entrypoint "" takes the image's away.
	if len(c.Entrypoint) == 1 && c.Entrypoint[0] == "" {
		c.Entrypoint = nil
	}
	if len(c.Entrypoint)+len(c.Cmd) == 0 {
		return badRequest("no command specified")
	}
	c.Healthcheck = mergeHealthcheck(c.Healthcheck, img.Healthcheck)
	if len(c.Shell) == 0 {
		c.Shell = img.Shell
	}
	env, err := mergeEnv(c.Env, img.Env)
	if err != nil {
		return err
	}
	c.Env = env
	labels := maps.Clone(img.Labels)
	if labels == nil {
		labels = make(map[string]string)
	}
	maps.Copy(labels, c.Labels)
	c.Labels = labels
	for target := range img.Volumes {
		if c.Volumes == nil {
			c.Volumes = make(map[string]struct{})
		}
		c.Volumes[target] = struct{}{}
	}
	if c.ExposedPorts == nil {
		c.ExposedPorts = make(network.PortSet)
	}
	for p := range img.ExposedPorts {
		r, err := network.ParsePortRange(p)
		if err != nil {
			return badRequest("the image exposes port %q: %w", p, err)
		}
		for port := range r.All() {
			c.ExposedPorts[port] = struct{}{}
		}
	}
	for port := range c.ExposedPorts {
		if err := checkPort(port); err != nil {
			return err
		}
	}
	if len(c.ExposedPorts) == 0 {
		c.ExposedPorts = nil
	}
	if c.WorkingDir != "" {
		if !path.IsAbs(c.WorkingDir) {
			return badRequest("the working directory '%s' is invalid, it needs to be an absolute path", c.WorkingDir)
		}
		c.WorkingDir = path.Clean(c.WorkingDir)
	}
	return nil
}

// mergeHealthcheck completes the client's with the image's.
func mergeHealthcheck(user, image *container.HealthConfig) *container.HealthConfig {
	if image == nil {
		return user
	}
	if user == nil {
		user = new(container.HealthConfig)
	}
	h := *user
	if len(h.Test) == 0 {
		h.Test = image.Test
	}
	h.Interval, h.Timeout = cmp.Or(h.Interval, image.Interval), cmp.Or(h.Timeout, image.Timeout)
	h.StartPeriod, h.StartInterval = cmp.Or(h.StartPeriod, image.StartPeriod), cmp.Or(h.StartInterval, image.StartInterval)
	h.Retries = cmp.Or(h.Retries, image.Retries)
	return &h
}

// mergeEnv puts the image's variables behind the client's, as Docker does, but for those that the client names. Of
// the same name the client's last counts, in the place of its first. NAME without a value takes the image's away.
func mergeEnv(user, image []string) ([]string, error) {
	env, place := []string{}, map[string]int{}
	for _, v := range user {
		name, _, _ := strings.Cut(v, "=")
		if name == "" || strings.ContainsRune(v, 0) {
			return nil, badRequest("invalid environment variable: %s", v)
		}
		if at, ok := place[name]; ok {
			env[at] = v
			continue
		}
		place[name] = len(env)
		env = append(env, v)
	}
	for _, v := range image {
		name, _, _ := strings.Cut(v, "=")
		if _, ok := place[name]; !ok {
			place[name] = len(env)
			env = append(env, v)
		}
	}
	return env, nil
}

// command is the process to run, with its arguments.
func command(c *container.Config) []string {
	return append(append([]string{}, c.Entrypoint...), c.Cmd...)
}
