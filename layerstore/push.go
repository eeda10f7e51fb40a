package layerstore

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// A Target is where an image can be pushed to. Its methods may be called concurrently.
type Target interface {
	// HasBlob tells whether the target has a blob.
	HasBlob(ctx context.Context, d ocispec.Descriptor) (bool, error)
	// MountBlob has the target take a blob from elsewhere, and returns from where; "" if it
	// cannot.
	MountBlob(ctx context.Context, d ocispec.Descriptor) (string, error)
	// PutBlob stores a blob. Open returns its bytes and may be called again for another attempt.
	PutBlob(ctx context.Context, d ocispec.Descriptor, open func(context.Context) (io.ReadCloser, error)) error
	// PutManifest stores a manifest whose blobs are all there, and names it.
	PutManifest(ctx context.Context, d ocispec.Descriptor, b []byte) error
}

// PushOptions are how Push goes about it.
type PushOptions struct {
	// Name is what the target names the image; the image gets its repository's name with the
	// manifest's digest. nil gives it no name.
	Name reference.Named
	// Progress is told of what happens, by several goroutines. nil is silent.
	Progress func(PushEvent)
}

// A PushStage is how far a layer of a push has come.
type PushStage int

// The stages of a layer that is pushed. One of the last three ends it.
const (
	PushPreparing PushStage = iota // it is asked for, and how it was compressed is found out
	PushSending                    // its blob is made and sent
	PushSent
	PushExists  // the target had it
	PushMounted // the target took it from another repository
)

// A PushEvent tells of one layer.
type PushEvent struct {
	DiffID digest.Digest
	Blob   digest.Digest // "" while it is not known
	Size   int64         // of the blob in bytes, 0 while it is not known
	Stage  PushStage
	From   string // the repository, for PushMounted
}

// A Pushed is what a push came to.
type Pushed struct {
	Image *Image
	// Manifest is the one that the target has now: the image's own, if Repacked is 0.
	Manifest ocispec.Descriptor
	// Repacked is how many layers have other blobs than in the image's own manifest, since how
	// they were compressed could not be found out. Their tars, and the image's ID, are the same.
	Repacked int
}

// pushParallel is how many layers are compressed and sent at once.
const pushParallel = 3

// Push pushes the image that ref refers to, as Image understands it. Blobs that the target has are
// not sent; others are the layers' tars, made again from the disks, and compressed so that their
// digests are those of the image's manifest, which is pushed byte for byte then. If that does not
// succeed for a layer, it is compressed anew and the manifest is written anew, of the same type.
func (s *Store) Push(ctx context.Context, ref string, to Target, o PushOptions) (*Pushed, error) {
	pushed, err := s.push(ctx, ref, to, o)
	if err != nil {
		return nil, fmt.Errorf("push image: %w", err)
	}
	return pushed, nil
}

func (s *Store) push(ctx context.Context, ref string, to Target, o PushOptions) (*Pushed, error) {
	img, err := s.Image(ref)
	if err != nil {
		return nil, err
	}
	manifest, err := s.dir.manifestOf(img)
	if err != nil {
		return nil, err
	}
	chains := img.chains()
	lease, err := s.dir.lease(chains)
	if err != nil {
		return nil, err
	}
	defer lease.release()
	p := &push{dir: s.dir, to: to, progress: o.Progress}
	blobs, err := p.layers(ctx, chains, manifest.Layers)
	if err != nil {
		return nil, err
	}
	pushed := &Pushed{Image: img}
	var body []byte
	if pushed.Manifest, body, pushed.Repacked, err = img.repacked(manifest, blobs); err != nil {
		return nil, err
	}
	if err := p.put(ctx, manifest.Config, func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(img.RawConfig)), nil }); err != nil {
		return nil, err
	}
	if err := to.PutManifest(ctx, pushed.Manifest, body); err != nil {
		return nil, err
	}
	return pushed, s.nameByDigest(img.ID, o.Name, pushed.Manifest.Digest)
}

// manifestOf returns an image's own manifest.
func (d Dir) manifestOf(img *Image) (*ocispec.Manifest, error) {
	var m ocispec.Manifest
	if err := json.Unmarshal(img.RawManifest, &m); err != nil {
		return nil, formatErrorf(d.image(img.ID), manifestFile, "%v", err)
	}
	if len(m.Layers) != len(img.Layers) {
		return nil, formatErrorf(d.image(img.ID), manifestFile, "%d layers, but the image has %d", len(m.Layers), len(img.Layers))
	}
	return &m, nil
}

// repacked returns the manifest of an image with these blobs, its own byte for byte if they are
// its own, and how many are not.
func (img *Image) repacked(own *ocispec.Manifest, blobs []ocispec.Descriptor) (_ ocispec.Descriptor, body []byte, n int, err error) {
	m := *own
	m.Layers = slices.Clone(own.Layers)
	for i, b := range blobs {
		if b.Digest != m.Layers[i].Digest {
			m.Layers[i] = b
			n++
		}
	}
	if n == 0 {
		return img.Manifest, img.RawManifest, 0, nil
	}
	if body, err = json.Marshal(m); err != nil {
		return ocispec.Descriptor{}, nil, n, err
	}
	return ocispec.Descriptor{MediaType: img.Manifest.MediaType, Digest: digest.FromBytes(body), Size: int64(len(body))}, body, n, nil
}

// nameByDigest gives an image the name of a manifest in a repository.
func (s *Store) nameByDigest(id digest.Digest, name reference.Named, d digest.Digest) error {
	if name == nil {
		return nil
	}
	byDigest, err := reference.WithDigest(reference.TrimNamed(name), d)
	if err != nil {
		return err
	}
	lock, err := s.dir.lockShared()
	if err != nil {
		return err
	}
	defer lock.unlock()
	if _, err := s.dir.readImage(id); err != nil {
		return nil // removed meanwhile
	}
	_, err = s.dir.setName(byDigest, id)
	return err
}

// A push is one call of Push.
type push struct {
	dir      Dir
	to       Target
	progress func(PushEvent)
}

// layers pushes layers, each of them once, and returns their blobs.
func (p *push) layers(ctx context.Context, chains []digest.Digest, originals []ocispec.Descriptor) ([]ocispec.Descriptor, error) {
	blobs := make([]ocispec.Descriptor, len(chains))
	first := make(map[digest.Digest]int) // by the original blob
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(pushParallel)
	for i, chain := range chains {
		if _, twice := first[originals[i].Digest]; twice {
			continue
		}
		first[originals[i].Digest] = i
		group.Go(func() error {
			l, err := p.dir.readLayer(chain)
			if err == nil {
				blobs[i], err = p.layer(ctx, l, originals[i])
			}
			if err != nil {
				return fmt.Errorf("layer %s: %w", chain, err)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	for i := range blobs {
		blobs[i] = blobs[first[originals[i].Digest]]
	}
	return blobs, nil
}

// layer pushes a layer and returns what its blob is.
func (p *push) layer(ctx context.Context, l *Layer, original ocispec.Descriptor) (ocispec.Descriptor, error) {
	tell := func(d ocispec.Descriptor, st PushStage, from string) {
		if p.progress != nil {
			p.progress(PushEvent{DiffID: l.DiffID, Blob: d.Digest, Size: d.Size, Stage: st, From: from})
		}
	}
	tell(ocispec.Descriptor{}, PushPreparing, "")
	there, from, err := p.find(ctx, original)
	if err != nil {
		return original, err
	}
	blob := original
	if !there {
		made, err := p.dir.repack(ctx, l, original)
		if err != nil {
			return original, err
		}
		defer made.close()
		if blob = made.desc; blob.Digest != original.Digest { // perhaps pushed before
			if there, from, err = p.find(ctx, blob); err != nil {
				return blob, err
			}
		}
		if !there {
			tell(blob, PushSending, "")
			if err := p.to.PutBlob(ctx, blob, made.open); err != nil {
				return blob, err
			}
			tell(blob, PushSent, "")
			return blob, nil
		}
	}
	if from != "" {
		tell(blob, PushMounted, from)
	} else {
		tell(blob, PushExists, "")
	}
	return blob, nil
}

// find tells whether the target has a blob, or has got it from elsewhere.
func (p *push) find(ctx context.Context, d ocispec.Descriptor) (there bool, from string, err error) {
	if there, err = p.to.HasBlob(ctx, d); there || err != nil {
		return there, "", err
	}
	from, err = p.to.MountBlob(ctx, d)
	return from != "", from, err
}

// put pushes a blob, unless the target has it.
func (p *push) put(ctx context.Context, d ocispec.Descriptor, open func(context.Context) (io.ReadCloser, error)) error {
	there, _, err := p.find(ctx, d)
	if err != nil || there {
		return err
	}
	return p.to.PutBlob(ctx, d, open)
}
