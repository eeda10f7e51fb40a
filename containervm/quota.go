package containervm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/docker/go-units"
)

// A Quota bounds the containers of a Manager: Create refuses one more that would exceed it, with ErrForbidden. Those that are there stay
// as they are, and what they write is not bounded.
type Quota struct {
	// Containers is how many there may be, whatever they do. 0 is any number.
	Containers int
	// Storage is how many bytes images and containers may take up, as a Charge counts them. 0 is any number.
	Storage int64
}

// A Charge is what counts against Quota.Storage, in bytes as they are occupied: what is thin costs what is in it. Volumes are not in it.
type Charge struct {
	// Images is what the layers of all images take up, those that images share once.
	Images int64
	// Containers is what the files of containers take up, their disks and logs. Where VMs have swap files (Meter), each
	// container is charged with its memory as well, whether it runs or not.
	Containers int64
}

// A Meter is Disks that keep what containers take up elsewhere than in the containers' folders, and where a VM that runs has a swap file
// as large as its memory.
type Meter interface {
	// ContainerBytes is what the files of containers take up, without swap files, by the containers' IDs. It is of one container, or if
	// the ID is "" of all. One that has no files is not among them.
	ContainerBytes(ctx context.Context, id string) (map[string]Bytes, error)
}

// Bytes are what files of a container take up.
type Bytes struct {
	Disk int64 // what it has written to its root disk
	Rest int64 // its logs, and what else there is
}

// Quota returns that of the Options.
func (m *Manager) Quota() Quota { return m.o.Quota }

// Charge finds out what counts against the quota of storage.
func (m *Manager) Charge(ctx context.Context) (c Charge, err error) {
	if c.Images, err = m.o.Volumes.Stored(); err != nil {
		return c, fmt.Errorf("measure images: %w", err)
	}
	if meter, ok := m.o.Disks.(Meter); ok {
		var all map[string]Bytes
		all, err = meter.ContainerBytes(ctx, "")
		for _, b := range all {
			c.Containers += b.Disk + b.Rest
		}
		c.Containers += m.memory()
	} else {
		c.Containers, err = occupied(m.dir)
	}
	if err != nil {
		return c, fmt.Errorf("measure containers: %w", err)
	}
	return c, nil
}

// DiskBytes is what containers' root disks take up without their images', by the containers' IDs. One whose disk is not there takes up nothing.
func (m *Manager) DiskBytes(ctx context.Context) (map[string]int64, error) {
	return m.diskBytes(ctx, "", m.List())
}

// DiskBytes is what the container's root disk takes up without its image's.
func (c *Container) DiskBytes(ctx context.Context) (int64, error) {
	all, err := c.m.diskBytes(ctx, c.id, []*Container{c})
	return all[c.id], err
}

// diskBytes is of containers, which are all if the ID is "".
func (m *Manager) diskBytes(ctx context.Context, id string, of []*Container) (map[string]int64, error) {
	out := map[string]int64{}
	if meter, ok := m.o.Disks.(Meter); ok {
		all, err := meter.ContainerBytes(ctx, id)
		if err != nil {
			return nil, fmt.Errorf("measure containers: %w", err)
		}
		for id, b := range all {
			out[id] = b.Disk
		}
		return out, nil
	}
	for _, c := range of {
		disk := c.Info().DiskPath
		var st syscall.Stat_t
		if syscall.Stat(strings.TrimSuffix(disk, filepath.Ext(disk))+"-delta.vmdk", &st) == nil {
			out[c.id] = st.Blocks * 512
		}
	}
	return out, nil
}

// memory is that of all containers together, those that are being made among them.
func (m *Manager) memory() (n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range m.names {
		c.mu.Lock()
		n += cmp.Or(c.spec.Memory, DefaultMemory)
		c.mu.Unlock()
	}
	return n
}

// occupied is what the files below a folder take up. Those that go meanwhile are nothing.
func occupied(dir string) (n int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			var fi fs.FileInfo
			if fi, err = e.Info(); err == nil {
				n += fi.Sys().(*syscall.Stat_t).Blocks * 512
			}
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	return n, err
}

// admit reserves the container's name if the quotas have room for it. What is measured is measured for one container after another.
func (m *Manager) admit(ctx context.Context, c *Container) error {
	if m.o.Quota.Storage == 0 {
		return m.reserve(c)
	}
	select {
	case m.admitting <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-m.admitting }()
	if err := m.reserve(c); err != nil {
		return err
	}
	charge, err := m.Charge(ctx)
	if most := m.o.Quota.Storage; err == nil && charge.Images+charge.Containers > most {
		size := func(n int64) string { return units.BytesSize(float64(n)) }
		err = refuse(ErrForbidden, "Storage quota exceeds limit %s: images take up %s, containers with this one %s", size(most), size(charge.Images), size(charge.Containers))
	}
	if err != nil {
		m.forget(c)
	}
	return err
}

// full is an error if there is no place for one more container. Call it with mu held.
func (m *Manager) full() error {
	if most := m.o.Quota.Containers; most > 0 && len(m.names) >= most {
		return refuse(ErrForbidden, "Container count exceeds limit %d", most)
	}
	return nil
}
