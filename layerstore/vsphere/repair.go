//go:build linux

package vsphere

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/vmware/govmomi/vim25/types"

	"vic/layerstore"
	"vic/vmdk"
)

// RepairOptions are how Repair mends. From must be set.
type RepairOptions struct {
	CheckOptions
	// From is a store with the same layers, which disks are made again from.
	From *layerstore.Store
	// Fetch brings an image that From lacks there, by a name that a VCH has noted; nil brings none.
	Fetch func(ctx context.Context, name string) error
}

// Repair checks the store and mends what it can; then it checks again, as far as it does not read everything once more, and returns what is still wrong.
//
//   - A disk that was uploaded gets the files again that it had: only if what From makes of its layer has the size and the checksum of its record, so
//     that it is for all VCHs and all virtual machines what it was, and only while no virtual machine runs on it.
//   - Disks that nobody needs, and what broken pulls have left, go as they do with a Sweep.
//
// A disk that the server made, and one without a record, is left: nobody can make it again as it was. Report is told what is wrong, done what was
// mended.
func (s *Store) Repair(ctx context.Context, o RepairOptions, report func(layerstore.Finding), done func(layerstore.Repaired)) (left []layerstore.Finding, checked *Checked, err error) {
	var found []layerstore.Finding
	var damaged []string // disks
	leftovers := false
	checked, err = s.Check(ctx, o.CheckOptions, func(f layerstore.Finding) {
		report(f)
		found = append(found, f)
		if name := strings.TrimSuffix(path.Base(f.Path), ".vmdk"); f.About == layerstore.AboutLayer && !slices.Contains(damaged, name) {
			damaged = append(damaged, name)
		}
		leftovers = leftovers || f.Harmless
	})
	if err != nil {
		return nil, nil, err
	}
	why := map[string]string{} // by path: why it was not mended
	mended := map[string]bool{}
	r := &repairing{s: s, o: o}
	for _, name := range r.order(ctx, damaged) {
		what, err := r.mend(ctx, name)
		var kept *keptError
		switch {
		case errors.As(err, &kept):
			why[s.DiskPath(name)] = kept.why
		case err != nil:
			return nil, nil, fmt.Errorf("repair image store %s: disk %s: %w", s.d.Path("."), name, err)
		default:
			mended[name] = true
			done(layerstore.Repaired{About: layerstore.AboutLayer, ID: ChainOf(name).Encoded(), Done: what})
		}
	}
	if leftovers {
		swept, err := s.Sweep(ctx)
		for _, name := range slices.Sorted(slices.Values(swept.Disks)) {
			done(layerstore.Repaired{About: layerstore.AboutFile, ID: name, Done: "removed disk " + s.DiskPath(name) + ", which nobody needs"})
		}
		if err != nil {
			return nil, nil, err
		}
	}
	again := o.CheckOptions
	again.only = mended // of what is read in full
	if _, err = s.Check(ctx, again, func(f layerstore.Finding) {
		f.Unrepaired = why[f.Path]
		left = append(left, f)
	}); err != nil {
		return nil, nil, err
	}
	for _, f := range found { // what only a full read shows, and was not mended
		if f.Unrepaired = why[f.Path]; f.Unrepaired != "" && !slices.ContainsFunc(left, func(x layerstore.Finding) bool { return x.Path == f.Path }) {
			left = append(left, f)
		}
	}
	return left, checked, nil
}

// A keptError says why a disk was left as it is.
type keptError struct{ why string }

func (e *keptError) Error() string { return e.why }

func kept(format string, args ...any) error { return &keptError{fmt.Sprintf(format, args...)} }

type repairing struct {
	s      *Store
	o      RepairOptions
	images []*Image
	tried  map[string]bool // names of images that Fetch was asked for
}

// order are disks with parents before their children, whose descriptors name what those have.
func (r *repairing) order(ctx context.Context, names []string) []string {
	depth := map[string]int{}
	for _, name := range names {
		for _, err := range r.s.stack(ctx, name) {
			if err != nil {
				break
			}
			depth[name]++
		}
	}
	names = slices.Clone(names)
	slices.SortStableFunc(names, func(a, b string) int { return depth[a] - depth[b] })
	return names
}

// mend writes a disk's files again, and says what it has done.
func (r *repairing) mend(ctx context.Context, name string) (string, error) {
	s := r.s
	rec, err := s.record(ctx, name)
	if errors.Is(err, fs.ErrNotExist) {
		return "", kept("its record is gone")
	}
	if err != nil {
		return "", err
	}
	if !s.encoding.uploaded() || rec.Sum == nil {
		return "", kept("the server has made it, and would not make the same again")
	}
	if rec.Chain != ChainOf(name) {
		return "", kept("its record is of another layer")
	}
	if err := r.idle(ctx, name); err != nil {
		return "", err
	}
	text, err := r.descriptor(ctx, name, rec)
	if err != nil {
		return "", err
	}
	local, err := r.local(ctx, name)
	if err != nil {
		return "", err
	}
	defer local.Close() // read only
	extent, err := s.extent(local)
	if err != nil {
		return "", err
	}
	crc := crc32.New(castagnoli)
	if _, err := io.Copy(crc, io.NewSectionReader(extent, 0, extent.Size())); err != nil {
		return "", err
	}
	if extent.Size() != rec.Size || crc.Sum32() != *rec.Sum {
		return "", kept("the local store has the layer in another form than was sent: one that was flattened, or is damaged itself")
	}
	file := path.Join(disksFolder, name)
	open := func() (io.ReadCloser, error) { return io.NopCloser(io.NewSectionReader(extent, 0, extent.Size())), nil }
	if err := s.d.Put(ctx, file+"-delta.vmdk", extent.Size(), open, nil); err != nil {
		return "", err
	}
	if err := s.put(ctx, file+".vmdk", text); err != nil {
		return "", err
	}
	return fmt.Sprintf("sent the files of disk %s again, as they were", s.DiskPath(name)), nil
}

// idle makes sure that no virtual machine runs on a disk.
func (r *repairing) idle(ctx context.Context, name string) error {
	vms, err := r.s.d.s.machines(ctx)
	if err != nil {
		return err
	}
	for _, vm := range vms {
		if vm.Runtime.PowerState == types.VirtualMachinePowerStatePoweredOff {
			continue
		}
		looked := map[string]bool{} // the server shows the parents of its own disks as well
		for _, disk := range r.s.disksIn(vm) {
			for d, err := range r.s.stack(ctx, disk) {
				if d.name == name {
					return kept("virtual machine %s runs on it: stop that first", vm.Name)
				}
				if looked[d.name] || errors.Is(err, fs.ErrNotExist) {
					break
				}
				if err != nil {
					return err
				}
				looked[d.name] = true
			}
		}
	}
	return nil
}

// descriptor is the text of a disk's descriptor, by its record and its parent's descriptor.
func (r *repairing) descriptor(ctx context.Context, name string, rec *diskRecord) ([]byte, error) {
	s := r.s
	below := s.base
	if rec.Parent != baseName {
		if _, err := s.record(ctx, rec.Parent); errors.Is(err, fs.ErrNotExist) {
			return nil, kept("the record of its parent %s is gone", rec.Parent)
		} else if err != nil {
			return nil, err
		}
		var err error
		var format *vmdk.FormatError
		below, err = s.descriptor(ctx, rec.Parent)
		if errors.Is(err, fs.ErrNotExist) || errors.As(err, &format) {
			return nil, kept("its parent %s is damaged, and was not mended", rec.Parent)
		}
		if err != nil {
			return nil, err
		}
	}
	cid := vmdk.CIDFor("vsphere " + rec.Chain.String())
	if fmt.Sprintf("%08x", cid) != rec.CID {
		return nil, kept("its record has the content ID %s, which is not its layer's", rec.CID)
	}
	return s.child(below, name+"-delta.vmdk", rec.Parent+".vmdk", cid).Marshal()
}

// local opens the layer of a disk in the local store, which gets it by an image's name if need be.
func (r *repairing) local(ctx context.Context, name string) (*layerstore.Disk, error) {
	chain := ChainOf(name)
	disk, err := r.o.From.OpenDisk(chain)
	if !errors.Is(err, fs.ErrNotExist) || r.o.Fetch == nil {
		return disk, r.lacking(err)
	}
	if r.images == nil {
		if r.images, err = r.s.Images(ctx); err != nil {
			return nil, err
		}
		r.tried = map[string]bool{}
	}
	var failed []string
	for _, img := range r.images {
		if !slices.Contains(img.Disks, name) {
			continue
		}
		for _, ref := range img.Names {
			if r.tried[ref] {
				continue
			}
			r.tried[ref] = true
			if err := r.o.Fetch(ctx, ref); err != nil {
				if ctx.Err() != nil {
					return nil, ctx.Err()
				}
				failed = append(failed, err.Error())
				continue
			}
			if disk, err := r.o.From.OpenDisk(chain); !errors.Is(err, fs.ErrNotExist) {
				return disk, err
			}
		}
	}
	disk, err = r.o.From.OpenDisk(chain)
	if err = r.lacking(err); err != nil && len(failed) > 0 {
		err = kept("its layer could not be had: %s", strings.Join(failed, "; "))
	}
	return disk, err
}

// lacking words that the local store does not have a layer.
func (r *repairing) lacking(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return kept("its layer is not in the local store, nor what the names of its images mean by now")
	}
	return err
}
