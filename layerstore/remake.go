package layerstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"sync"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"vic/vmdk"
)

// mendLayers makes damaged layers again that images and containers need, and takes those
// that it could out of todo.
func (r *repairer) mendLayers(ctx context.Context, todo map[digest.Digest]bool) error {
	for _, id := range slices.Sorted(maps.Keys(r.images)) {
		src := &repairSource{r: r, img: r.images[id]}
		plan, err := makePlan(src, r.s.lim)
		if err != nil {
			return err
		}
		if err := r.mendChain(ctx, src, plan.layers, todo); err != nil {
			return err
		}
	}
	for _, p := range r.pins {
		if r.images[p.Image] != nil {
			continue
		}
		layers, err := r.d.recordedLayers(p.Layers)
		if err != nil {
			for _, chain := range p.Layers {
				if todo[chain] {
					r.failed[AboutLayer+chain.String()] = err
				}
			}
			continue
		}
		if err := r.mendChain(ctx, &repairSource{r: r}, layers, todo); err != nil {
			return err
		}
	}
	return nil
}

// recordedLayers makes a plan of what layers' records say.
func (d Dir) recordedLayers(chains []digest.Digest) ([]planLayer, error) {
	var layers []planLayer
	for _, c := range chains {
		l, err := d.readLayer(c)
		if err != nil {
			return nil, fmt.Errorf("no image of the store has the layer, and its record is lost: %w", err)
		}
		layers = append(layers, planLayer{chain: c, parent: l.Parent, diffID: l.DiffID,
			blob: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: l.Blob, Size: l.BlobSize}})
	}
	return layers, nil
}

// mendChain makes those layers of one image, bottom first, again that are to be, and takes
// them out of todo.
func (r *repairer) mendChain(ctx context.Context, src *repairSource, layers []planLayer, todo map[digest.Digest]bool) error {
	top := 0 // how many layers the highest is that can be made
	for i := range layers {
		l := &layers[i]
		if !todo[l.chain] {
			continue
		}
		id, err := r.running(l.chain)
		if err != nil {
			return err
		}
		if id != "" {
			for _, l := range layers[i:] { // those above it are made over it
				if todo[l.chain] {
					r.failed[AboutLayer+l.chain.String()] = &runningError{id}
				}
			}
			break
		}
		written, err := r.mendDescriptor(ctx, l.chain)
		if err != nil {
			return err
		}
		if written {
			r.did(AboutLayer, l.chain.String(), "wrote the descriptor of layer %s again", shortID(l.chain.Encoded()))
			if sound, err := r.isSound(ctx, l.chain); err != nil {
				return err
			} else if sound {
				delete(todo, l.chain)
				continue
			}
		}
		l.again, top = true, i+1
	}
	if top == 0 {
		return nil
	}
	layers = layers[:top]
	for i, l := range layers { // what is made over flattened layers needs their own disks
		if was, err := r.d.readLayer(l.chain); err == nil && was.In != "" {
			layers[i].again = true
		}
	}
	remakeErr := r.s.remake(ctx, src, layers, r.o.Pulled)
	for _, l := range layers {
		if !l.again {
			continue
		}
		sound := remakeErr == nil
		if !sound { // some may have been made
			var err error
			if sound, err = r.isSound(ctx, l.chain); err != nil {
				return err
			}
		}
		if !sound {
			r.failed[AboutLayer+l.chain.String()] = remakeErr
			continue
		}
		delete(todo, l.chain)
		r.did(AboutLayer, l.chain.String(), "made layer %s again, %s", shortID(l.chain.Encoded()), src.origin(l.blob.Digest))
	}
	return ctx.Err()
}

// remake is a Pull of layers only.
func (s *Store) remake(ctx context.Context, src Source, layers []planLayer, progress func(ProgressEvent)) error {
	p := &pull{wake: make(chan struct{}, 1)}
	ctx, err := s.begin(ctx, p)
	if err != nil {
		return err
	}
	defer s.end(p)
	chains := make([]digest.Digest, len(layers))
	for i, l := range layers {
		chains[i] = l.chain
	}
	lease, err := s.dir.lease(chains)
	if err != nil {
		return err
	}
	defer lease.release()
	return s.pullLayers(ctx, p, src, &plan{layers: layers}, progress)
}

// isSound checks one layer in full, without rebuilding its tar.
func (r *repairer) isSound(ctx context.Context, chain digest.Digest) (bool, error) {
	sound := true
	c := r.s.newChecker(CheckOptions{Deep: true}, func(Finding) { sound = false })
	c.census = r.census
	for at := chain; at != ""; {
		l, err := r.d.readLayer(at)
		if err != nil {
			return false, nil
		}
		c.records[at] = l
		at = l.Parent
	}
	err := c.checkLayer(ctx, c.records[chain])
	return sound, err
}

// sameAsBefore wants a layer that was made again to have the disk that its record tells of,
// or that is there, in case it is the record that is damaged: what stands on it was made over
// that.
func (d Dir) sameAsBefore(ctx context.Context, l *Layer) error {
	was, err := d.readLayer(l.Chain)
	if l.Empty() || err != nil || was.ExtentSize == l.ExtentSize && was.Sum == l.Sum {
		return ctx.Err()
	}
	if hasSum(ctx, d.extent(l.Chain), l.ExtentSize, l.Sum) {
		return nil
	}
	return fmt.Errorf("made again, the disk of layer %s is another: it has checksum %08x, not %08x", l.Chain, l.Sum, was.Sum)
}

// mendDescriptor writes a descriptor again if it is not what the layer's record and the
// disks around it want, and the rest of the disk is sound.
func (r *repairer) mendDescriptor(ctx context.Context, chain digest.Digest) (written bool, err error) {
	l, err := r.d.readLayer(chain)
	if err != nil || l.Empty() || l.In != "" {
		return false, nil
	}
	cid, err := r.d.cidWanted(chain, r.s.info.cidOf(chain))
	if err != nil {
		return false, err
	}
	var desc *vmdk.Descriptor
	if l.Flat != nil && hasSum(ctx, r.d.flat(chain), l.Flat.ExtentSize, l.Flat.Sum) {
		desc = vmdk.NewDescriptor(diskName(chain)+flatSuffix, r.s.info.Capacity, cid)
	} else if parent, below := r.diskBelow(l); below != nil && hasSum(ctx, r.d.extent(chain), l.ExtentSize, l.Sum) {
		desc = below.Child(diskName(chain)+extentSuffix, diskName(parent)+".vmdk", cid)
	} else {
		return false, ctx.Err()
	}
	text, err := desc.Marshal()
	if err != nil {
		return false, err
	}
	if there, err := readBounded(r.d.disk(chain), recordLimit); err == nil && bytes.Equal(there, text) {
		return false, nil
	}
	lock, err := r.d.lockChain(ctx, chain)
	if err != nil {
		return false, err
	}
	defer lock.unlock()
	if err := writeSynced(r.d.tmpDisk(chain), text, diskMode); err != nil {
		return false, err
	}
	if err := os.Rename(r.d.tmpDisk(chain), r.d.disk(chain)); err != nil {
		return false, err
	}
	return true, syncDir(r.d.disks())
}

// diskBelow returns the disk that a layer's stands on, and its descriptor, nil if that cannot
// be said for sure: of a disk that others are merged into, it depends on what was flattened.
func (r *repairer) diskBelow(l *Layer) (digest.Digest, *vmdk.Descriptor) {
	if parentIndex(l.Index, r.s.info.Depth) != l.Index-1 {
		return "", nil
	}
	disk := digest.Digest("")
	if l.Parent != "" {
		below, err := r.d.readLayer(l.Parent)
		if err != nil {
			return "", nil
		}
		disk = below.Disk
	}
	desc, err := r.d.readDescriptor(r.d.disk(disk))
	if err != nil {
		return "", nil
	}
	return disk, desc
}

// hasSum tells whether a file has a length and a checksum.
func hasSum(ctx context.Context, path string, size int64, want uint32) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil || fi.Size() != size {
		return false
	}
	sum, err := checksum(ctx, f, size)
	return err == nil && sum == want
}

// cidWanted returns the CID over which the disks above a layer's were made, usual if there
// are none or if it is among several.
func (d Dir) cidWanted(disk digest.Digest, usual uint32) (uint32, error) {
	chains, err := d.chains()
	if err != nil {
		return 0, err
	}
	var above []*vmdk.Descriptor
	for _, c := range chains {
		if desc, err := d.readDescriptor(d.disk(c)); err == nil {
			if parent, err := d.parentDisk(c, desc); err == nil && parent == disk {
				above = append(above, desc)
			}
		}
	}
	containers, err := listDir(d.containers())
	if err != nil {
		return 0, err
	}
	for _, id := range containers {
		p, err := d.readPin(id)
		if err != nil || p.Disk != disk {
			continue
		}
		if desc, err := d.readDescriptor(d.container(id) + "/" + containerDisk); err == nil {
			above = append(above, desc)
		}
	}
	if len(above) == 0 || slices.ContainsFunc(above, func(desc *vmdk.Descriptor) bool { return desc.ParentCID == usual }) {
		return usual, nil
	}
	return above[0].ParentCID, nil
}

// A repairSource is an image of the store as a Source: what it lacks are the blobs, which it
// looks for where the image's names say, once one is asked for. Or it is an image that has
// been fetched.
type repairSource struct {
	r    *repairer
	img  *Image          // of the store; nil: see src
	src  Source          // that has been fetched; nil too: no image is known that has the layers
	repo reference.Named // where src is

	mu    sync.Mutex
	repos map[string]repository    // guarded by mu: those that were asked, by name
	from  map[digest.Digest]string // guarded by mu: the repository that gave each blob
}

// A repository is what came of asking one for the image.
type repository struct {
	src Source
	err error
}

func (s *repairSource) Digest() digest.Digest {
	if s.src != nil {
		return s.src.Digest()
	}
	return s.img.Digest
}

func (s *repairSource) Manifest() ([]byte, ocispec.Descriptor) {
	if s.src != nil {
		return s.src.Manifest()
	}
	return s.img.RawManifest, s.img.Manifest
}

func (s *repairSource) Config() []byte {
	if s.src != nil {
		return s.src.Config()
	}
	return s.img.RawConfig
}

// Blob asks one repository after the other.
func (s *repairSource) Blob(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	if s.src != nil {
		blob, err := s.src.Blob(ctx, d)
		if err == nil {
			s.gave(s.repo, d.Digest)
		}
		return blob, err
	}
	if s.img == nil {
		return nil, errors.New("no image of the store has the layer, so no registry is known to have it")
	}
	if len(s.img.Names) == 0 {
		return nil, fmt.Errorf("image %s has no name, so no registry is known to have it", shortID(s.img.ID.Encoded()))
	}
	var errs []error
	asked := make(map[string]bool)
	for _, name := range s.img.Names {
		repo := reference.TrimNamed(name)
		if asked[repo.Name()] {
			continue
		}
		asked[repo.Name()] = true
		src, err := s.source(ctx, repo)
		if err == nil {
			var blob io.ReadCloser
			if blob, err = src.Blob(ctx, d); err == nil {
				s.gave(repo, d.Digest)
				return blob, nil
			}
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// source finds the image in one repository, and asks that once.
func (s *repairSource) source(ctx context.Context, repo reference.Named) (Source, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if was, ok := s.repos[repo.Name()]; ok {
		return was.src, was.err
	}
	ref, err := reference.WithDigest(repo, s.img.Manifest.Digest)
	if err != nil {
		return nil, err
	}
	src, err := s.r.fetch(ctx, ref)
	if s.repos == nil {
		s.repos = make(map[string]repository)
	}
	s.repos[repo.Name()] = repository{src, err}
	return src, err
}

func (s *repairSource) gave(repo reference.Named, blob digest.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.from == nil {
		s.from = make(map[digest.Digest]string)
	}
	s.from[blob] = reference.FamiliarName(repo)
}

// origin says where a layer came from.
func (s *repairSource) origin(blob digest.Digest) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if repo := s.from[blob]; repo != "" {
		return "fetched from " + repo
	}
	return "from what the store has"
}
