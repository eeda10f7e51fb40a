package layerstore

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A Saving is some images on their way out of the store: a tar that is an OCI image layout
// (image-spec image-layout.md), and that docker load and older tools read as well, by its
// manifest.json. Layers are the tars that they were made from: not compressed, and then manifests,
// which name compressed blobs, are new; or compressed as they were, so far as that can be found
// out. Images keep their IDs either way.
//
//	oci-layout, index.json              the layout, one entry for each name
//	manifest.json                       docker's: names, and files of the same layout
//	blobs/sha256/<hex>                  manifests, configs, layers, each once
//
// Equal images give equal bytes. Layers stay in the store until Close.
type Saving struct {
	// Repacked is, after Write, how many layers are compressed otherwise than they were, since
	// how they were could not be found out.
	Repacked int

	s      *Store
	o      SaveOptions
	images []savedImage
	lease  *lease
}

// SaveOptions are how Save goes about it.
type SaveOptions struct {
	// Compress wants layers compressed as they were in the registry or archive that they came
	// from: an image whose layers all can be has its own manifest, byte for byte. See Push.
	Compress bool
}

type savedImage struct {
	*Image
	names  []reference.Named // tags that the tar gives it
	layers []*Layer
}

// Save finds the images that refs, as Image understands them, refer to. A repository without
// a tag stands for all its tags. The error is ErrNotFound, ErrAmbiguous, ErrNoRecipe or the
// datastore's.
func (s *Store) Save(refs []string, o SaveOptions) (_ *Saving, err error) {
	sv := &Saving{s: s, o: o}
	byID := make(map[digest.Digest]*savedImage)
	var order []digest.Digest
	add := func(img *Image, name reference.Named) {
		si := byID[img.ID]
		if si == nil {
			si = &savedImage{Image: img}
			byID[img.ID] = si
			order = append(order, img.ID)
		}
		if name != nil && !slices.ContainsFunc(si.names, func(x reference.Named) bool { return x.String() == name.String() }) {
			si.names = append(si.names, name)
		}
	}
	all, err := s.Images()
	if err != nil {
		return nil, fmt.Errorf("save images: %w", err)
	}
	for _, ref := range refs {
		if repo, err := reference.ParseNormalizedNamed(ref); err == nil && reference.IsNameOnly(repo) {
			found := false
			for _, img := range all {
				for _, n := range img.Names {
					if n.Name() == repo.Name() && !isDigest(n) {
						add(img, n)
						found = true
					}
				}
			}
			if found {
				continue
			}
		}
		img, err := s.Image(ref)
		if err != nil {
			return nil, fmt.Errorf("save: %w", err)
		}
		var name reference.Named
		if named, ok := parseName(ref); ok && !isDigest(named) && slices.ContainsFunc(img.Names, func(x reference.Named) bool { return x.String() == named.String() }) {
			name = named
		}
		add(img, name)
	}
	var chains []digest.Digest
	for _, id := range order {
		chains = append(chains, byID[id].chains()...)
	}
	if sv.lease, err = s.dir.lease(chains); err != nil {
		return nil, fmt.Errorf("save images: %w", err)
	}
	defer func() {
		if err != nil {
			sv.Close()
		}
	}()
	for _, id := range order {
		si := byID[id]
		if err := si.prepare(s); err != nil {
			return nil, fmt.Errorf("save image %s: %w", id, err)
		}
		sv.images = append(sv.images, *si)
	}
	return sv, nil
}

// Images returns the images that are saved.
func (sv *Saving) Images() []*Image {
	var images []*Image
	for _, si := range sv.images {
		images = append(images, si.Image)
	}
	return images
}

// Close lets go of the layers.
func (sv *Saving) Close() { sv.lease.release() }

// size returns the length of the layer's tar.
func (l *Layer) size() int64 {
	if n, ok := emptyDiffIDs[l.DiffID]; ok {
		return int64(n)
	}
	return l.TarSize
}

// prepare reads the layers' records.
func (si *savedImage) prepare(s *Store) error {
	for _, il := range si.Layers {
		l, err := s.Layer(il.Chain)
		if err != nil {
			return err
		}
		if _, empty := emptyDiffIDs[l.DiffID]; l.Recipe == nil && !empty {
			return fmt.Errorf("layer %s: %w", l.Chain, ErrNoRecipe)
		}
		si.layers = append(si.layers, l)
	}
	return nil
}

// archiveEntry is an image in docker's manifest.json.
type archiveEntry struct {
	Config   string
	RepoTags []string
	Layers   []string
}

func blobPath(d digest.Digest) string { return "blobs/sha256/" + d.Encoded() }

// Write writes the tar. A layer that is damaged is an error in the middle of it.
func (sv *Saving) Write(ctx context.Context, w io.Writer) error {
	out := saveWriter{w: tar.NewWriter(w), done: make(map[digest.Digest]bool), packed: make(map[digest.Digest]ocispec.Descriptor)}
	for _, dir := range []string{"blobs/", "blobs/sha256/"} {
		if err := out.w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755, ModTime: time.Unix(0, 0)}); err != nil {
			return err
		}
	}
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	var archive []archiveEntry
	for _, si := range sv.images {
		write := sv.writePlain
		if sv.o.Compress {
			write = sv.writeCompressed
		}
		desc, manifest, blobs, err := write(ctx, &out, &si)
		if err == nil {
			err = errors.Join(out.bytes(si.ID, si.RawConfig), out.bytes(desc.Digest, manifest))
		}
		if err != nil {
			return fmt.Errorf("save image %s: %w", si.ID, err)
		}
		a := archiveEntry{Config: blobPath(si.ID), Layers: []string{}}
		for _, b := range blobs {
			a.Layers = append(a.Layers, blobPath(b.Digest))
		}
		for _, n := range si.names {
			a.RepoTags = append(a.RepoTags, reference.FamiliarString(n))
			named := desc
			named.Annotations = map[string]string{"io.containerd.image.name": n.String()}
			if tagged, ok := n.(reference.Tagged); ok {
				named.Annotations[ocispec.AnnotationRefName] = tagged.Tag()
			}
			index.Manifests = append(index.Manifests, named)
		}
		if len(si.names) == 0 {
			index.Manifests = append(index.Manifests, desc)
		}
		archive = append(archive, a)
	}
	files := map[string]any{
		ocispec.ImageIndexFile:  index,
		ocispec.ImageLayoutFile: ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion},
		"manifest.json":         archive,
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		b, err := json.Marshal(files[name])
		if err == nil {
			err = out.file(name, int64(len(b)), func(w io.Writer) error { _, err := w.Write(b); return err })
		}
		if err != nil {
			return fmt.Errorf("save %s: %w", name, err)
		}
	}
	return out.w.Close()
}

// writePlain writes an image's layers as they are, and returns a manifest for them.
func (sv *Saving) writePlain(ctx context.Context, out *saveWriter, si *savedImage) (_ ocispec.Descriptor, manifest []byte, blobs []ocispec.Descriptor, err error) {
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: si.ID, Size: int64(len(si.RawConfig))},
		Layers: []ocispec.Descriptor{},
	}
	for _, l := range si.layers {
		d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: l.DiffID, Size: l.size()}
		m.Layers = append(m.Layers, d)
		err := out.blob(d.Digest, d.Size, func(w io.Writer) error { return sv.s.dir.writeTar(ctx, l, w) })
		if err != nil {
			return ocispec.Descriptor{}, nil, nil, fmt.Errorf("layer %s: %w", l.Chain, err)
		}
	}
	manifest, err = json.Marshal(m)
	return ocispec.Descriptor{MediaType: m.MediaType, Digest: digest.FromBytes(manifest), Size: int64(len(manifest))}, manifest, m.Layers, err
}

// writeCompressed writes an image's layers as its manifest has them, and returns that, or what is
// next to it if some cannot be written so.
func (sv *Saving) writeCompressed(ctx context.Context, out *saveWriter, si *savedImage) (_ ocispec.Descriptor, manifest []byte, blobs []ocispec.Descriptor, err error) {
	own, err := sv.s.dir.manifestOf(si.Image)
	if err != nil {
		return ocispec.Descriptor{}, nil, nil, err
	}
	for i, l := range si.layers {
		b, err := sv.writeBlob(ctx, out, l, own.Layers[i])
		if err != nil {
			return ocispec.Descriptor{}, nil, nil, fmt.Errorf("layer %s: %w", l.Chain, err)
		}
		blobs = append(blobs, b)
	}
	desc, manifest, n, err := si.repacked(own, blobs)
	sv.Repacked += n
	return desc, manifest, blobs, err
}

// writeBlob writes a layer's blob, unless it is written, and returns what it is.
func (sv *Saving) writeBlob(ctx context.Context, out *saveWriter, l *Layer, original ocispec.Descriptor) (ocispec.Descriptor, error) {
	if was, ok := out.packed[original.Digest]; ok {
		return was, nil
	}
	p, err := sv.s.dir.repack(ctx, l, original)
	if err != nil {
		return original, err
	}
	defer p.close()
	out.packed[original.Digest] = p.desc
	return p.desc, out.blob(p.desc.Digest, p.desc.Size, func(w io.Writer) error {
		blob, err := p.open(ctx)
		if err != nil {
			return err
		}
		defer blob.Close()
		_, err = io.Copy(w, blob)
		return err
	})
}

// A saveWriter writes files into a tar, blobs once.
type saveWriter struct {
	w      *tar.Writer
	done   map[digest.Digest]bool
	packed map[digest.Digest]ocispec.Descriptor // what became of blobs, by their own digests
}

func (o *saveWriter) file(name string, size int64, write func(io.Writer) error) error {
	err := o.w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o644, ModTime: time.Unix(0, 0)})
	if err != nil {
		return err
	}
	return write(o.w)
}

func (o *saveWriter) blob(d digest.Digest, size int64, write func(io.Writer) error) error {
	if o.done[d] {
		return nil
	}
	o.done[d] = true
	return o.file(blobPath(d), size, write)
}

func (o *saveWriter) bytes(d digest.Digest, b []byte) error {
	return o.blob(d, int64(len(b)), func(w io.Writer) error { _, err := w.Write(b); return err })
}
