package api

import (
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"github.com/moby/moby/api/types/container"

	"vic/containervm"
)

// statsInterval is how far samples are apart: clients compute rates from two.
const statsInterval = time.Second

// containerStats is docker stats: samples as long as the client listens and the container runs, or one.
// A container that does not run has zeros. Nothing is measured while nobody asks.
func (s *Server) containerStats(w http.ResponseWriter, r *http.Request) error {
	c, err := s.container(r)
	if err != nil {
		return err
	}
	m := meter{c: c}
	stream := !r.URL.Query().Has("stream") || boolParam(r, "stream")
	if !stream {
		if !boolParam(r, "one-shot") {
			// Only the second of two tells a rate.
			if _, err := m.sample(r); err != nil {
				return err
			}
			if m.running && !m.tick(r) {
				return nil
			}
		}
		st, err := m.sample(r)
		if err != nil {
			return err
		}
		return writeJSON(w, http.StatusOK, st)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	flush := http.NewResponseController(w)
	enc := json.NewEncoder(w)
	for ran := false; ; {
		st, err := m.sample(r)
		if err != nil || ran && !m.running {
			return nil // removed, or ended
		}
		ran = m.running
		if enc.Encode(st) != nil || flush.Flush() != nil {
			return nil // the client left
		}
		if !m.tick(r) {
			return nil
		}
	}
}

// A meter takes samples of one container.
type meter struct {
	c       *containervm.Container
	running bool // at the last sample
	last    container.StatsResponse
}

// tick waits for the time of the next sample, and says whether the client still does.
func (m *meter) tick(r *http.Request) bool {
	t := time.NewTimer(statsInterval)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-r.Context().Done():
		return false
	}
}

// sample measures, and adds what the sample before was.
func (m *meter) sample(r *http.Request) (container.StatsResponse, error) {
	info := m.c.Info()
	st := container.StatsResponse{ID: info.ID, Name: "/" + info.Name}
	u, err := m.c.Usage(r.Context())
	m.running = err == nil
	if errors.Is(err, containervm.ErrNotRunning) {
		return st, nil
	}
	if err != nil {
		return st, err
	}
	fillStats(&st, info, u)
	st.PreRead, st.PreCPUStats = m.last.Read, m.last.CPUStats
	m.last = st
	return st, nil
}

// fillStats translates what a guest has used. All time is the guest's: its CPUs' and what passed on
// them, so that the share that clients compute is that of the CPUs that the container has.
func fillStats(st *container.StatsResponse, info containervm.Info, u containervm.Usage) {
	st.OSType = "linux"
	st.Read = time.Unix(0, u.Time).UTC()
	st.CPUStats = container.CPUStats{
		CPUUsage: container.CPUUsage{TotalUsage: uint64(u.User + u.Kernel), UsageInUsermode: uint64(u.User), UsageInKernelmode: uint64(u.Kernel)},
		// Old clients multiply by the number of CPUs themselves.
		SystemUsage: uint64(u.Total), OnlineCPUs: uint32(u.CPUs),
	}
	limit := info.Spec.Memory
	if limit == 0 {
		limit = containervm.DefaultMemory
	}
	st.MemoryStats = container.MemoryStats{Usage: uint64(max(0, u.Memory["MemTotal"]-u.Memory["MemFree"])), Limit: uint64(limit),
		Stats: map[string]uint64{"pgfault": uint64(u.Faults), "pgmajfault": uint64(u.MajorFaults)}}
	for name, key := range map[string]string{
		"anon": "AnonPages", "file": "Cached", "file_mapped": "Mapped", "file_dirty": "Dirty", "file_writeback": "Writeback", "shmem": "Shmem",
		"active_anon": "Active(anon)", "inactive_anon": "Inactive(anon)", "active_file": "Active(file)", "inactive_file": "Inactive(file)",
		"unevictable": "Unevictable", "kernel_stack": "KernelStack", "slab": "Slab", "slab_reclaimable": "SReclaimable", "slab_unreclaimable": "SUnreclaim",
	} {
		st.MemoryStats.Stats[name] = uint64(max(0, u.Memory[key]))
	}
	st.PidsStats = container.PidsStats{Current: uint64(max(0, u.Tasks))}
	for _, n := range u.Networks {
		if st.Networks == nil {
			st.Networks = make(map[string]container.NetworkStats)
		}
		st.Networks[n.Name] = container.NetworkStats{
			RxBytes: n.RxBytes, RxPackets: n.RxPackets, RxErrors: n.RxErrors, RxDropped: n.RxDropped,
			TxBytes: n.TxBytes, TxPackets: n.TxPackets, TxErrors: n.TxErrors, TxDropped: n.TxDropped,
		}
	}
	for _, d := range u.Disks {
		entry := func(op string, value uint64) container.BlkioStatEntry {
			return container.BlkioStatEntry{Major: d.Major, Minor: d.Minor, Op: op, Value: value}
		}
		b := &st.BlkioStats
		b.IoServiceBytesRecursive = append(b.IoServiceBytesRecursive, entry("read", d.ReadBytes), entry("write", d.WrittenBytes))
		b.IoServicedRecursive = append(b.IoServicedRecursive, entry("read", d.Reads), entry("write", d.Writes))
	}
}
