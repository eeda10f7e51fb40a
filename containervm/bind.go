package containervm

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"

	"vic/tether/wire"
)

// maxBinds is how many folders of the host a VM has room for.
const maxBinds = 8

// checkBinds refuses mounts of the host's files that make no sense or cannot be had.
func (m *Manager) checkBinds(binds []BindMount) error {
	if len(binds) == 0 {
		return nil
	}
	sharer, ok := m.o.Hypervisor.(Sharer)
	if !ok {
		return refuse(ErrNotImplemented, "mounting a folder of the host is not supported: this hypervisor cannot share one with a virtual machine; use a volume, and docker cp")
	}
	if err := sharer.CanShare(); err != nil {
		return refuse(ErrNotImplemented, "mounting a folder of the host is not possible: %v; or use a volume", err)
	}
	if len(binds) > maxBinds {
		return refuse(ErrInvalid, "%d folders of the host are more than the %d that a virtual machine has room for", len(binds), maxBinds)
	}
	for _, b := range binds {
		switch {
		case !path.IsAbs(b.Source):
			return refuse(ErrInvalid, "invalid mount path: '%s' mount path must be absolute", b.Source)
		case !path.IsAbs(b.Target):
			return refuse(ErrInvalid, "invalid mount path: '%s' mount path must be absolute", b.Target)
		case path.Clean(b.Target) == "/":
			return refuse(ErrInvalid, "invalid specification: destination can't be '/'")
		}
		if err := b.check(); err != nil {
			return err
		}
	}
	return nil
}

// check looks at the source.
func (b *BindMount) check() error {
	fi, err := os.Stat(b.Source)
	switch {
	case errors.Is(err, fs.ErrNotExist) && b.Create:
		return nil
	case errors.Is(err, fs.ErrNotExist):
		return refuse(ErrInvalid, `invalid mount config for type "bind": bind source path does not exist: %s`, b.Source)
	case err != nil:
		return refuse(ErrInvalid, `invalid mount config for type "bind": %v`, err)
	case !fi.IsDir() && !fi.Mode().IsRegular():
		return refuse(ErrInvalid, "mounting %s is not supported: it is neither a folder nor a regular file, and the host's sockets and devices mean nothing to another machine's kernel", b.Source)
	}
	return nil
}

// makeBinds makes folders that are to be there, and looks again at those that were.
func (c *Container) makeBinds() error {
	for _, b := range c.spec.Binds {
		if err := b.check(); err != nil {
			return err
		}
		if _, err := os.Stat(b.Source); errors.Is(err, fs.ErrNotExist) {
			if err := os.MkdirAll(b.Source, 0o755); err != nil {
				return fmt.Errorf("make the folder to be mounted: %w", err)
			}
		}
	}
	return nil
}

// shares are the container's bind mounts as its VM gets them.
func (c *Container) shares() []Share {
	var out []Share
	for i, b := range c.spec.Binds {
		out = append(out, Share{Path: b.Source, Tag: shareTag(i), ReadOnly: b.ReadOnly})
	}
	return out
}

func shareTag(i int) string { return fmt.Sprintf("bind%d", i) }

// bindMounts is what the guest mounts of them.
func (c *Container) bindMounts() []wire.Mount {
	var mounts []wire.Mount
	for i, b := range c.spec.Binds {
		m := wire.Mount{Type: "share", Serial: shareTag(i), Target: b.Target, ReadOnly: b.ReadOnly}
		if fi, err := os.Stat(b.Source); err == nil && !fi.IsDir() {
			m.Subpath = SharedFile
		}
		mounts = append(mounts, m)
	}
	return mounts
}
