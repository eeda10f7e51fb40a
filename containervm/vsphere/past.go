package vsphere

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
)

// mostPast is how many earlier runs a record tells of. Files of others stay until the container goes.
const mostPast = 64

// retire is what is past when another run begins whose log begins at base in the local one.
func (r record) retire(base int64) []past {
	if r.Run == 0 {
		return nil
	}
	all := append(slices.Clone(r.Past), past{r.Run, base - r.Base})
	return all[max(0, len(all)-mostPast):]
}

// clear removes the files of earlier runs, once the VM has those of this one. What does not succeed is done after the next start.
func (m *machine) clear() {
	m.hardware.Lock()
	all := m.rec.Past
	m.hardware.Unlock()
	if len(all) == 0 {
		return
	}
	gone := map[past]bool{}
	err := syncFile(m.vm.Log) // what it has was nowhere else but there
	for _, p := range all {
		if err == nil {
			err = m.d.clear(m.ctx, m.vm.ID, p)
			gone[p] = err == nil
		}
	}
	if err != nil && m.ctx.Err() == nil {
		m.d.log.Warn("remove the log of an earlier run", "container", m.vm.ID, "error", err)
	}
	m.hardware.Lock()
	defer m.hardware.Unlock()
	rec := m.rec
	rec.Past = slices.DeleteFunc(slices.Clone(rec.Past), func(p past) bool { return gone[p] })
	if err := rec.write(m.vm.Dir); err != nil {
		m.d.log.Warn("record that logs of earlier runs are gone", "container", m.vm.ID, "error", err)
		return
	}
	m.rec = rec
}

// clear removes a run's files. A log of which the local one does not have all, as of a VM that somebody ran past the VCH, stays.
func (d *Driver) clear(ctx context.Context, id string, p past) error {
	for _, name := range []string{logName(p.Run), consoleName(p.Run)} {
		file := path.Join(id, name)
		if name == logName(p.Run) {
			size, err := d.o.Containers.Stat(ctx, file)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return err
			}
			if size > p.Log {
				d.log.Warn("a log of an earlier run stays: it has more than was taken over", "container", id, "log", d.o.Containers.Path(file), "bytes", size, "taken", p.Log)
				continue
			}
		}
		if err := d.o.Containers.RemoveAll(ctx, file); err != nil {
			return err
		}
	}
	return nil
}

func syncFile(name string) error {
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("sync log: %w", err)
	}
	return nil
}
