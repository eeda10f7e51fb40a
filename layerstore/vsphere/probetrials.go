package vsphere

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"time"
)

// The trials, by what depends on them.
const (
	trialFiles = "files"
	trialBase  = "base disk"
)

// probeCapacity is that of the disks that are tried.
const probeCapacity = 64 << 20

// run makes all trials.
func (p *prober) run(ctx context.Context) {
	p.try(ctx, trialFiles, nil, func() (string, error) { return p.files(ctx) })
	p.try(ctx, trialBase, []string{trialFiles}, func() (string, error) { return "", p.d.CreateDisk(ctx, "base.vmdk", probeCapacity) })
}

// files writes a file, and looks whether it is there as it was written.
func (p *prober) files(ctx context.Context) (string, error) {
	if err := p.d.MakeFolder(ctx, "."); err != nil {
		return "", err
	}
	data := make([]byte, 8<<20)
	rand.Read(data) // never fails (crypto/rand)
	begun := time.Now()
	if err := p.d.Put(ctx, "file", int64(len(data)), func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }, nil); err != nil {
		return "", err
	}
	took := time.Since(begun)
	got, err := p.d.ReadFile(ctx, "file", int64(len(data)))
	if err != nil {
		return "", err
	}
	if !bytes.Equal(got, data) {
		return "", errors.New("what is read is not what was written")
	}
	return fmt.Sprintf("%.0f MB/s up", float64(len(data))/1e6/took.Seconds()), nil
}

// choose says which encoding to use.
func (p *prober) choose() (Encoding, string) {
	if need := p.missing([]string{trialFiles, trialBase}); need != "" {
		return "", fmt.Sprintf("%q does not work", need)
	}
	if p.space.SparseDeltas {
		return VMFSSparse, "the datastore's own deltas are vmfsSparse"
	}
	return "", "the datastore's own deltas are not vmfsSparse"
}

// clean removes what the probe made.
func (p *prober) clean(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), probeEnd)
	defer cancel()
	name := p.name
	parent := &Datastore{p.d.s, p.d.ds, p.d.dc, path.Dir(p.d.root)}
	if err := parent.Remove(ctx, name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		p.report.Left = append(p.report.Left, fmt.Sprintf("%s: %v", parent.Path(name), err))
	}
}
