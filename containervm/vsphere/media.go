package vsphere

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"time"

	"vic/containervm"
)

// A medium is an ISO on this machine, as long as nobody writes to it.
type medium struct {
	path string
	size int64
	time time.Time
}

// mediaFolder is where ISOs are, beside the folders of containers, each named by a hash of its content.
const mediaFolder = "boot"

// boot returns the datastore path of the boot medium, which is uploaded unless it is there.
func (d *Driver) boot(ctx context.Context, b containervm.Boot) (string, error) {
	if b.ISO == "" {
		return "", errors.New("there is no ISO to boot from")
	}
	fi, err := os.Stat(b.ISO)
	if err != nil {
		return "", fmt.Errorf("look at the boot medium: %w", err)
	}
	m := medium{b.ISO, fi.Size(), fi.ModTime()}
	d.uploading.Lock()
	defer d.uploading.Unlock()
	d.mu.Lock()
	at := d.media[m]
	d.mu.Unlock()
	if at != "" {
		return at, nil
	}
	name, err := d.upload(ctx, m)
	if err != nil {
		return "", fmt.Errorf("bring the boot medium to the datastore: %w", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.media[m] = d.o.Containers.Path(name)
	return d.media[m], nil
}

// upload uploads an ISO unless it is there, whole.
func (d *Driver) upload(ctx context.Context, m medium) (name string, err error) {
	f, err := os.Open(m.path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	name = path.Join(mediaFolder, hex.EncodeToString(h.Sum(nil)[:16])+".iso")
	size, err := d.o.Containers.Stat(ctx, name)
	if err == nil && size == m.size { // a broken upload has left less
		return name, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	if err := d.o.Containers.MakeFolder(ctx, mediaFolder); err != nil {
		return "", err
	}
	d.log.Info("bring the boot medium to the datastore", "path", d.o.Containers.Path(name), "size", m.size)
	return name, d.o.Containers.Put(ctx, name, m.size, func() (io.ReadCloser, error) {
		return io.NopCloser(io.NewSectionReader(f, 0, m.size)), nil
	}, nil)
}

// Prepare implements containervm.Hypervisor: it brings the boot medium to the datastore.
func (d *Driver) Prepare(_ context.Context, vm containervm.VM) error {
	d.wg.Go(func() {
		if _, err := d.boot(d.ctx, vm.Boot); err != nil && d.ctx.Err() == nil {
			d.log.Warn("prepare starts", "error", err)
		}
	})
	return nil
}
