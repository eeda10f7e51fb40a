package vsphere

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path"
	"strings"
	"time"

	"github.com/vmware/govmomi/object"

	"vic/vmdk"
)

// The trials.
const (
	trialFiles      = "write and read files"
	trialChunked    = "write a file of unknown length"
	trialTicket     = "read from a host, by ticket"
	trialBase       = "make a base disk"
	trialDelta      = "upload a delta"
	trialOnDelta    = "a VM's disk over an uploaded delta"
	trialDeltaOn    = "power on over an uploaded delta"
	trialDepth      = "power on over a chain of 29 deltas"
	trialChild      = "a VM's disk over the base disk"
	trialChildOn    = "power on over the base disk"
	trialHotAdd     = "hot-add a child and remove it"
	trialTogether   = "hot-add three at once"
	trialLend       = "lend the disk of a VM that is off"
	trialCreate     = "make a child without a VM"
	trialImport     = "import a disk by NFC"
	trialOnImport   = "a VM's disk over the imported one"
	trialWrite      = "write a child's blocks from this machine"
	trialDelete     = "delete a disk that was a parent"
	probeDepth      = 29 // with the base disk and a container's one more than the store has
	probeRepetition = 3
)

// run makes all trials.
func (p *prober) run(ctx context.Context) {
	base := p.d.Path("base.vmdk")
	p.try(ctx, trialFiles, nil, func() (string, error) { return p.files(ctx) })
	p.try(ctx, trialChunked, []string{trialFiles}, func() (string, error) { return "", p.chunked(ctx) })
	p.try(ctx, trialTicket, []string{trialFiles}, func() (string, error) { return p.ticket(ctx) })
	p.try(ctx, trialBase, []string{trialFiles}, func() (string, error) {
		if err := p.d.CreateDisk(ctx, "base.vmdk", probeCapacity); err != nil {
			return "", err
		}
		return p.formatOf(ctx, "base")
	})
	p.try(ctx, trialDelta, []string{trialBase}, func() (string, error) { return "", p.upload(ctx, "base", "delta1") })
	p.try(ctx, trialOnDelta, []string{trialDelta}, func() (string, error) { return p.createVM(ctx, "delta", p.d.Path("delta1.vmdk")) })
	p.try(ctx, trialDeltaOn, []string{trialOnDelta}, func() (string, error) { return "", p.powerCycle(ctx, "delta") })
	p.try(ctx, trialDepth, []string{trialDeltaOn}, func() (string, error) { return "", p.depth(ctx) })
	p.try(ctx, trialChild, []string{trialBase}, func() (string, error) { return p.createVM(ctx, "child", base) })
	p.try(ctx, trialChildOn, []string{trialChild}, func() (string, error) { return "", p.power(ctx, "child", true) })
	p.try(ctx, trialHotAdd, []string{trialChildOn}, func() (string, error) { return p.hotAdd(ctx, base, 1) })
	p.try(ctx, trialTogether, []string{trialHotAdd}, func() (string, error) { return p.hotAdd(ctx, base, 3) })
	p.try(ctx, trialLend, []string{trialHotAdd}, func() (string, error) { return "", p.lend(ctx, base) })
	p.try(ctx, trialCreate, []string{trialBase}, func() (string, error) {
		err := p.d.s.Do(ctx, func() (*object.Task, error) {
			return object.NewVirtualDiskManager(p.d.s.client).CreateChildDisk(ctx, base, p.d.dc, p.d.Path("made.vmdk"), p.d.dc, true)
		})
		if err != nil {
			return "", err
		}
		return p.formatOf(ctx, "made")
	})
	p.try(ctx, trialImport, []string{trialFiles}, func() (string, error) { return p.importStream(ctx) })
	p.try(ctx, trialOnImport, []string{trialImport}, func() (string, error) { return p.createVM(ctx, "import", p.d.Path("imported.vmdk")) })
	p.try(ctx, trialWrite, []string{trialBase}, func() (string, error) { return p.writeChild(ctx, base) })
	p.try(ctx, trialDelete, []string{trialOnImport}, func() (string, error) {
		if err := p.destroyVM(ctx, p.machine("import")); err != nil {
			return "", err
		}
		return "", p.d.deleteDisk(ctx, "imported.vmdk")
	})
}

// choose says which encoding to use.
func (p *prober) choose() (Encoding, string) {
	works := func(trials ...string) bool { return p.missing(trials) == "" }
	switch {
	case !works(trialFiles, trialBase):
		return "", fmt.Sprintf("%q does not work", p.missing([]string{trialFiles, trialBase}))
	case works(trialDelta, trialOnDelta, trialDeltaOn, trialDepth):
		return VMFSSparse, "hosts take uploaded deltas: the fastest way"
	case works(trialWrite), p.o.Own == nil && works(trialChild, trialHotAdd):
		return BlockWriter, "an appliance can write disks over others; hosts do not take uploaded deltas"
	case works(trialImport, trialOnImport):
		return Flattened, "only whole disks can be brought; images share nothing"
	}
	return "", "no way to bring disks works"
}

// files writes a file, and looks whether it is there as it was written.
func (p *prober) files(ctx context.Context) (string, error) {
	if err := p.d.MakeFolder(ctx, "."); err != nil {
		return "", err
	}
	data := make([]byte, 8<<20)
	rand.Read(data) // never fails (crypto/rand)
	begun := time.Now()
	if err := p.put(ctx, "file", data); err != nil {
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

func (p *prober) put(ctx context.Context, name string, data []byte) error {
	return p.d.Put(ctx, name, int64(len(data)), func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }, nil)
}

// chunked writes a file without saying how long it is.
func (p *prober) chunked(ctx context.Context) error {
	text := "a file of unknown length\n"
	res, err := p.d.send(ctx, http.MethodPut, "chunked", strings.NewReader(text), -1, nil)
	if err != nil {
		return err
	}
	res.Body.Close()
	if res.StatusCode != http.StatusOK && res.StatusCode != http.StatusCreated {
		return &statusError{res.StatusCode, res.Status}
	}
	if got, err := p.d.ReadFile(ctx, "chunked", 1<<10); err != nil || string(got) != text {
		return errors.Join(fmt.Errorf("%d bytes of %d are there", len(got), len(text)), err)
	}
	return nil
}

// ticket reads a file from one of the hosts, past vCenter.
func (p *prober) ticket(ctx context.Context) (string, error) {
	if !p.d.s.client.IsVC() {
		return "the server is the host", nil
	}
	hosts, err := p.d.ds.AttachedHosts(ctx)
	if err != nil {
		return "", err
	}
	if len(hosts) == 0 {
		return "", errors.New("no host has the datastore")
	}
	u, cookie, err := p.d.ds.ServiceTicket(p.d.ds.HostContext(ctx, hosts[0]), path.Join(p.d.root, "file"), http.MethodGet)
	if err != nil {
		return "", err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return "", err
	}
	req.Header.Set("Range", "bytes=0-0")
	if cookie != nil {
		req.AddCookie(cookie)
	}
	res, err := p.d.s.client.Client.Client.Do(req)
	if err != nil {
		return "", err
	}
	res.Body.Close()
	return u.Host, fileStatus(res, http.StatusPartialContent)
}

// upload sends a vmfsSparse delta over another disk.
func (p *prober) upload(ctx context.Context, parent, name string) error {
	text, err := p.d.ReadFile(ctx, parent+".vmdk", recordLimit)
	if err != nil {
		return err
	}
	below, err := vmdk.ParseDescriptor(text)
	if err != nil {
		return err
	}
	cowd, err := p.disk.COWD(1)
	if err != nil {
		return err
	}
	extent := make([]byte, cowd.Size())
	if _, err := cowd.ReadAt(extent, 0); err != nil && err != io.EOF {
		return err
	}
	desc, err := below.COWDChild(name+"-delta.vmdk", parent+".vmdk", vmdk.CIDFor(p.name+name)).Marshal()
	if err != nil {
		return err
	}
	if err := p.put(ctx, name+"-delta.vmdk", extent); err != nil {
		return err
	}
	if err := p.put(ctx, name+".vmdk", desc); err != nil {
		return err
	}
	if got, err := p.d.ReadFile(ctx, name+".vmdk", recordLimit); err != nil || !bytes.Equal(got, desc) {
		return errors.Join(errors.New("the descriptor is not as it was written"), err)
	}
	if n, err := p.d.Stat(ctx, name+"-delta.vmdk"); err != nil || n != cowd.Size() {
		return errors.Join(fmt.Errorf("the extent has %d bytes, %d were written", n, cowd.Size()), err)
	}
	return nil
}

// depth powers a virtual machine on over as many deltas as a store may have.
func (p *prober) depth(ctx context.Context) error {
	for i := 2; i <= probeDepth; i++ {
		if err := p.upload(ctx, fmt.Sprintf("delta%d", i-1), fmt.Sprintf("delta%d", i)); err != nil {
			return err
		}
	}
	if _, err := p.createVM(ctx, "deep", p.d.Path(fmt.Sprintf("delta%d.vmdk", probeDepth))); err != nil {
		return err
	}
	return p.powerCycle(ctx, "deep")
}

// importStream imports a disk, and reads it back if it is a file.
func (p *prober) importStream(ctx context.Context) (string, error) {
	bound, err := p.disk.StreamBound()
	if err != nil {
		return "", err
	}
	err = p.d.importDisk(ctx, p.o.Place, imported{
		name: "imported.vmdk", capacity: probeCapacity, bound: bound, progress: func(int64) {},
		write: func(w io.Writer) error { return p.disk.WriteStream(w, "imported.vmdk", vmdk.CIDFor(p.name)) },
	})
	if err != nil {
		return "", err
	}
	got, want := make([]byte, vmdk.DefaultGrainSize), make([]byte, vmdk.DefaultGrainSize)
	for _, off := range []int64{0, probeCapacity - vmdk.DefaultGrainSize} {
		err := p.d.ReadRange(ctx, "imported-flat.vmdk", got, off)
		if err != nil { // it is no file there, or in another format
			break
		}
		if _, err := p.disk.ReadAt(want, off); err != nil {
			return "", err
		}
		if !bytes.Equal(got, want) {
			return "", fmt.Errorf("what is read at byte %d is not what was sent", off)
		}
	}
	return p.formatOf(ctx, "imported")
}

// writeChild writes a disk as BlockWriter does.
func (p *prober) writeChild(ctx context.Context, base string) (string, error) {
	if p.o.Own == nil {
		return "", errSkip
	}
	err := p.o.Own.write(ctx, p.d.Path("written.vmdk"), base, probeCapacity, func(dev Device) error {
		for b, err := range p.disk.Blocks(p.disk.Depth(), vmdk.DefaultGrainSize) {
			if err != nil {
				return err
			}
			if _, err := dev.WriteAt(b.Data, b.Off); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	return p.formatOf(ctx, "written")
}

// formatOf tells what kind of disk the server made.
func (p *prober) formatOf(ctx context.Context, name string) (string, error) {
	text, err := p.d.ReadFile(ctx, name+".vmdk", recordLimit)
	if err != nil {
		return "", err
	}
	desc, err := vmdk.ParseDescriptor(text)
	if err != nil {
		return "", err
	}
	out := desc.CreateType
	for _, e := range desc.Extents {
		out += ", " + e.Type
	}
	return out, nil
}
