package containervm

import (
	"path"
	"strings"
)

// DefaultMemory is that of a VM whose Spec does not say, in bytes.
const DefaultMemory = 256 << 20

const (
	defaultCPUs = 1
	minMemory   = 96 << 20
	maxExtra    = 1 << 20
)

// check refuses a Spec that makes no sense, in docker's words.
func (s *Spec) check() error {
	if s.Name != "" {
		if err := checkName(s.Name); err != nil {
			return err
		}
	}
	switch {
	case len(s.Args) == 0:
		return refuse(ErrInvalid, "no command specified")
	case s.Dir != "" && !path.IsAbs(s.Dir):
		return refuse(ErrInvalid, "the working directory '%s' is invalid, it needs to be an absolute path", s.Dir)
	case s.Memory != 0 && s.Memory < minMemory:
		return refuse(ErrInvalid, "Minimum memory limit allowed is %dMB: a container is a virtual machine with a kernel of its own", minMemory>>20)
	case s.CPUs < 0:
		return refuse(ErrInvalid, "%d CPUs", s.CPUs)
	case s.StopSignal < 0 || s.StopSignal > 64:
		return refuse(ErrInvalid, "Invalid signal: %d", s.StopSignal)
	case s.Log.Room < 0:
		return refuse(ErrInvalid, "a log of %d bytes", s.Log.Room)
	case len(s.Extra) > maxExtra:
		return refuse(ErrInvalid, "the container's configuration is larger than %d bytes", maxExtra)
	case s.AutoRemove && s.Restart.any():
		return refuse(ErrInvalid, "can't create 'AutoRemove' container with restart policy")
	}
	if err := s.Restart.check(); err != nil {
		return err
	}
	for _, kv := range s.Env {
		if key, _, _ := strings.Cut(kv, "="); key == "" || strings.Contains(kv, "\x00") {
			return refuse(ErrInvalid, "invalid environment variable: %s", kv)
		}
	}
	for _, t := range s.Tmpfs {
		if !path.IsAbs(t.Target) {
			return refuse(ErrInvalid, "invalid mount path: '%s' mount path must be absolute", t.Target)
		}
	}
	if err := s.checkVolumes(); err != nil {
		return err
	}
	return s.Network.check()
}
