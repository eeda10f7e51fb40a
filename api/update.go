package api

import (
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/moby/moby/api/types/container"

	"vic/containervm"
)

// An updateBody is the body of POST /containers/{id}/update. What is zero does not change.
type updateBody struct {
	container.UpdateConfig
	KernelMemory    int64
	KernelMemoryTCP int64
}

// checkOptions refuses what create would refuse, and what is decided with a container's creation.
func (b *updateBody) checkOptions() error {
	h := &hostConfig{KernelMemory: b.KernelMemory, KernelMemoryTCP: b.KernelMemoryTCP}
	h.Resources, h.RestartPolicy = b.Resources, b.RestartPolicy
	if err := checkOptions(options, &createBody{HostConfig: h}); err != nil {
		return err
	}
	if len(b.Ulimits) > 0 {
		return badRequest("--ulimit cannot be updated: a container is created with it")
	}
	if err := container.ValidateRestartPolicy(b.RestartPolicy); err != nil {
		return badRequest("%w", err)
	}
	return nil
}

func (s *Server) updateContainer(w http.ResponseWriter, r *http.Request) error {
	var body updateBody
	if err := decodeBody(r, &body); err != nil {
		return err
	}
	if err := body.checkOptions(); err != nil {
		return err
	}
	c, err := s.container(r)
	if err != nil {
		return err
	}
	warnings := swapWarning(&body.Resources)
	most := s.containers.Resources()
	err = c.Update(finish(r), func(spec *containervm.Spec, running bool) error { return body.apply(spec, running, most) })
	if err != nil {
		return fmt.Errorf("Cannot update container %s: %w", c.ID(), err) // Docker's words
	}
	return writeJSON(w, http.StatusOK, container.UpdateResponse{Warnings: warnings})
}

// apply changes a container's spec, and what inspect shows of it.
func (b *updateBody) apply(s *containervm.Spec, running bool, most containervm.Resources) error {
	made := createdOf(containervm.Info{Spec: *s})
	h := made.HostConfig
	if b.RestartPolicy.Name != "" {
		if h.AutoRemove && !b.RestartPolicy.IsNone() {
			return conflict("Restart policy cannot be updated because AutoRemove is enabled for the container")
		}
		h.RestartPolicy = b.RestartPolicy
		s.Restart = containervm.RestartPolicy{Name: string(b.RestartPolicy.Name), MaxRetries: b.RestartPolicy.MaximumRetryCount}
	}
	if err := checkCPUs(&b.Resources, most); err != nil { // what does not change may be what a host had that is gone
		return err
	}
	if err := b.mergeInto(&h.Resources); err != nil {
		return err
	}
	var n containervm.Spec
	if err := setResources(&n, &h.Resources, most); err != nil {
		return err
	}
	if running && max(n.CPUs, 1) < max(s.CPUs, 1) { // the VM keeps its CPUs, and the guest holds the container to less
		n.CPUs = s.CPUs
		var err error
		if n.Limits.CPUQuota, n.Limits.CPUPeriod, err = cpuQuota(&h.Resources, most); err != nil {
			return err
		}
	}
	s.Memory, s.CPUs, s.CPUSet, s.Limits = n.Memory, n.CPUs, n.CPUSet, n.Limits
	extra, err := json.Marshal(made)
	if err != nil {
		return fmt.Errorf("encode container config: %w", err)
	}
	s.Extra = extra
	return nil
}

// mergeInto changes a container's resources as Docker does.
func (b *updateBody) mergeInto(r *container.Resources) error {
	switch {
	case b.NanoCPUs > 0 && r.CPUPeriod > 0:
		return conflict("Conflicting options: Nano CPUs cannot be updated as CPU Period has already been set")
	case b.NanoCPUs > 0 && r.CPUQuota > 0:
		return conflict("Conflicting options: Nano CPUs cannot be updated as CPU Quota has already been set")
	case b.CPUPeriod > 0 && r.NanoCPUs > 0:
		return conflict("Conflicting options: CPU Period cannot be updated as NanoCPUs has already been set")
	case b.CPUQuota > 0 && r.NanoCPUs > 0:
		return conflict("Conflicting options: CPU Quota cannot be updated as NanoCPUs has already been set")
	case r.MemorySwap > 0 && b.Memory > r.MemorySwap && b.MemorySwap == 0:
		return conflict("Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time")
	}
	for _, f := range []struct {
		to   *int64
		from int64
	}{
		{&r.NanoCPUs, b.NanoCPUs}, {&r.CPUPeriod, b.CPUPeriod}, {&r.CPUQuota, b.CPUQuota},
		{&r.Memory, b.Memory}, {&r.MemorySwap, b.MemorySwap}, {&r.MemoryReservation, b.MemoryReservation},
	} {
		if f.from != 0 {
			*f.to = f.from
		}
	}
	if b.CpusetCpus != "" {
		r.CpusetCpus = b.CpusetCpus
	}
	if p := b.PidsLimit; p != nil {
		r.PidsLimit = new(max(*p, 0)) // less than 0 is none, too
	}
	return nil
}
