package layerstore

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// A lease keeps sweeps, of this process and of others, from removing layers:
// those of a pull in flight, which no image needs yet. It is a file of tmp with
// their chain IDs, and lives as long as the lock on that file.
type lease struct {
	path string
	lock *fileLock
}

// leasePrefix begins the names of lease files.
const leasePrefix = "lease-"

// lease protects layers, there or to be, until release.
func (d Dir) lease(chains []digest.Digest) (*lease, error) {
	use, err := d.lockShared()
	if err != nil {
		return nil, err
	}
	defer use.unlock()
	f, err := os.CreateTemp(d.tmp(), leasePrefix)
	if err != nil {
		return nil, fmt.Errorf("lease layers: %w", err)
	}
	l := &lease{path: f.Name()}
	_, err = f.Write(marshalRecord(chains))
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		l.lock, err = lockRange(l.path, unix.F_WRLCK, 0, 0, false)
	}
	if err != nil {
		os.Remove(l.path)
		return nil, fmt.Errorf("lease layers: %w", err)
	}
	return l, nil
}

// release ends the lease.
func (l *lease) release() {
	os.Remove(l.path)
	l.lock.unlock()
}

// leased adds the chain IDs of all leases to needed. The caller holds the
// store's lock exclusively.
func (d Dir) leased(needed map[digest.Digest]bool) error {
	names, err := listDir(d.tmp())
	if err != nil {
		return err
	}
	for _, name := range names {
		if !strings.HasPrefix(name, leasePrefix) {
			continue
		}
		path := d.in("tmp", name)
		if locked, err := isLocked(path); err != nil {
			return err
		} else if !locked {
			continue // of a process that died
		}
		b, err := readBounded(path, recordLimit)
		if errors.Is(err, fs.ErrNotExist) {
			continue // released just now
		}
		if err != nil {
			return err
		}
		var chains []digest.Digest
		if err := json.Unmarshal(b, &chains); err != nil {
			return formatErrorf(path, "lease", "%v", err)
		}
		for _, c := range chains {
			needed[c] = true
		}
	}
	return nil
}
