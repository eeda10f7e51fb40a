package layerstore

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Errors that callers tell apart with errors.Is.
var (
	// ErrNotFound is the error for an image that the store does not have.
	ErrNotFound = errors.New("no such image")
	// ErrAmbiguous is the error for the beginning of several images' IDs.
	ErrAmbiguous = errors.New("more than one image has an ID that begins so")
)

// An Image is an image of the store, as it was when it was read. Its fields are
// not to be changed.
type Image struct {
	// ID is the digest of the config.
	ID digest.Digest
	// Digest is what the reference resolved to when the image was first pulled:
	// the digest of its manifest or of an index.
	Digest digest.Digest
	// Manifest describes RawManifest.
	Manifest ocispec.Descriptor
	// Config is the parsed config. Docker's configs say more than the type has
	// room for: see RawConfig.
	Config *ocispec.Image
	// RawConfig and RawManifest are the bytes that the digests are of.
	RawConfig, RawManifest []byte
	// Layers are the image's layers, bottom first.
	Layers []ImageLayer
	// Pulled is when the image was first pulled into this store.
	Pulled time.Time
	// Names are the references to the image: tags, ascending, then digests.
	Names []reference.Named
	// Descent is what the image was made of.
	Descent Descent
}

// An ImageLayer is one layer of an image.
type ImageLayer struct {
	Chain digest.Digest `json:"chain"`
	// Size is the number of bytes that the layer's disk took on the datastore
	// when the image was pulled, next to nothing for an empty layer.
	Size int64 `json:"size"`
	// TarSize is the length of the layer's tar.
	TarSize int64 `json:"tarSize"`
}

// Chain returns the chain ID of the image's top layer, "" if it has no layers.
func (img *Image) Chain() digest.Digest {
	if len(img.Layers) == 0 {
		return ""
	}
	return img.Layers[len(img.Layers)-1].Chain
}

// chains returns the chain IDs of the image's layers, bottom first; not nil, for records.
func (img *Image) chains() []digest.Digest {
	chains := make([]digest.Digest, len(img.Layers))
	for i, l := range img.Layers {
		chains[i] = l.Chain
	}
	return chains
}

// Size returns the bytes that the image's disks take on the datastore, those
// that it shares with other images included.
func (img *Image) Size() int64 {
	var n int64
	for _, l := range img.Layers {
		n += l.Size
	}
	return n
}

// Created returns when the image was built, the zero time if it does not say.
func (img *Image) Created() time.Time {
	if img.Config.Created == nil {
		return time.Time{}
	}
	return *img.Config.Created
}

// RepoTags returns the image's tags as docker prints them: debian:12.
func (img *Image) RepoTags() []string { return img.familiar(false) }

// RepoDigests returns the image's names by digest as docker prints them.
func (img *Image) RepoDigests() []string { return img.familiar(true) }

func (img *Image) familiar(digests bool) []string {
	var names []string
	for _, ref := range img.Names {
		if isDigest(ref) == digests {
			names = append(names, reference.FamiliarString(ref))
		}
	}
	return names
}

// An imageRecord is the content of an image's image.json.
type imageRecord struct {
	Digest   digest.Digest      `json:"digest"`
	Manifest ocispec.Descriptor `json:"manifest"`
	Layers   []ImageLayer       `json:"layers"`
	Pulled   time.Time          `json:"pulled"`
	Descent
}

// Files of an image's folder.
const (
	manifestFile = "manifest.json"
	configFile   = "config.json"
	imageFile    = "image.json"
)

// storedLimit bounds what readImage reads of one file. It is above what any
// Limits that a store is opened with should allow, so that an image pulled under
// generous limits opens under narrow ones.
const storedLimit = 64 << 20

// readImage reads the files of an image and verifies them, without its names.
// The error is fs.ErrNotExist if there is no such image, a *FormatError if it
// is damaged.
func (d Dir) readImage(id digest.Digest) (*Image, error) {
	dir := d.image(id)
	r, err := d.readImageRecord(id)
	if err != nil {
		return nil, err
	}
	img := &Image{ID: id, Digest: r.Digest, Manifest: r.Manifest, Layers: r.Layers, Pulled: r.Pulled, Descent: r.Descent}
	if img.RawConfig, err = readDigested(dir+"/"+configFile, id); err != nil {
		return nil, damagedIfPartial(dir, err)
	}
	if img.RawManifest, err = readDigested(dir+"/"+manifestFile, r.Manifest.Digest); err != nil {
		return nil, damagedIfPartial(dir, err)
	}
	if img.Config, err = parseConfig(dir, img.RawConfig); err != nil {
		return nil, err
	}
	chains := chainIDs(img.Config.RootFS.DiffIDs)
	if !slices.EqualFunc(chains, r.Layers, func(c digest.Digest, l ImageLayer) bool { return c == l.Chain }) {
		return nil, formatErrorf(dir, imageFile, "layers are not those of %s", configFile)
	}
	return img, nil
}

// readDigested reads a file whose content must have a digest.
func readDigested(path string, want digest.Digest) ([]byte, error) {
	if err := want.Validate(); err != nil {
		return nil, formatErrorf(path, "digest", "%q: %v", want, err)
	}
	b, err := readBounded(path, storedLimit)
	if err != nil {
		return nil, err
	}
	if got := want.Algorithm().FromBytes(b); got != want {
		return nil, formatErrorf(path, "digest", "is %s, not %s", got, want)
	}
	return b, nil
}

// damagedIfPartial makes a missing file a *FormatError if the image's folder is
// there: a folder appears and disappears whole.
func damagedIfPartial(dir string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		if _, e := os.Lstat(dir); e == nil {
			return formatErrorf(dir, "image", "%v", err)
		}
	}
	return err
}

// imageIDs returns the IDs of all images, damaged ones too, ascending.
func (d Dir) imageIDs() ([]digest.Digest, error) {
	names, err := listDir(d.images())
	if err != nil {
		return nil, err
	}
	var ids []digest.Digest
	for _, name := range names {
		if id, ok := parseHex(name); ok {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// Images returns all images of the store, also those without a name, ascending
// by ID. An image that is damaged is left out and logged; Check tells what is
// wrong with it.
func (s *Store) Images() ([]*Image, error) {
	names, err := s.dir.allNames(s.logDamage)
	if err != nil {
		return nil, err
	}
	ids, err := s.dir.imageIDs()
	if err != nil {
		return nil, err
	}
	var images []*Image
	for _, id := range ids {
		img, err := s.dir.readImage(id)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed meanwhile
		}
		if err != nil {
			s.logDamage(err)
			continue
		}
		img.Names = names[id]
		images = append(images, img)
	}
	return images, nil
}

// ImageIDs returns the IDs of all images, ascending, without looking into them: some may
// be damaged.
func (s *Store) ImageIDs() ([]digest.Digest, error) { return s.dir.imageIDs() }

// ImageByID returns an image by its whole ID, without its names. The error is
// fs.ErrNotExist, a *FormatError if the image is damaged, or that of the datastore.
func (s *Store) ImageByID(id digest.Digest) (*Image, error) {
	if err := id.Validate(); err != nil {
		return nil, fmt.Errorf("image %q: %w", id, err)
	}
	return s.dir.readImage(id)
}

func (s *Store) logDamage(err error) { s.log.Warn("damaged file of the store", "error", err) }

// Image returns the image that ref refers to: a name as docker reads it (no tag
// is latest), an ID with or without sha256:, a beginning of one, or the digest of
// a manifest or index. A name goes before an ID. The error is ErrNotFound,
// ErrAmbiguous, a *FormatError if the image is damaged, or that of the datastore.
func (s *Store) Image(ref string) (*Image, error) {
	id, err := s.dir.resolve(ref)
	if err != nil {
		return nil, fmt.Errorf("image %q: %w", ref, err)
	}
	img, err := s.dir.readImage(id)
	if errors.Is(err, fs.ErrNotExist) {
		err = ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("image %q: %w", ref, err)
	}
	names, err := s.dir.allNames(s.logDamage)
	if err != nil {
		return nil, err
	}
	img.Names = names[id]
	return img, nil
}

// resolve finds the ID of the image that ref refers to. The image itself may
// turn out to be gone or damaged.
func (d Dir) resolve(ref string) (digest.Digest, error) {
	if named, ok := parseName(ref); ok {
		r, _, err := d.readName(escapeName(named.String()))
		if err == nil {
			return r.Image, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
	}
	ids, err := d.imageIDs()
	if err != nil {
		return "", err
	}
	var found digest.Digest
	for _, id := range ids {
		if !isIDPrefix(id, ref) {
			continue
		}
		if found != "" {
			return "", ErrAmbiguous
		}
		found = id
	}
	if found != "" {
		return found, nil
	}
	if want := digest.Digest(ref); want.Validate() == nil {
		for _, id := range ids {
			img, err := d.readImage(id)
			if err == nil && (img.Digest == want || img.Manifest.Digest == want) {
				return id, nil
			}
		}
	}
	return "", ErrNotFound
}

// parseName returns the form in which the name that ref may be is kept.
func parseName(ref string) (reference.Named, bool) {
	named, err := reference.ParseDockerRef(ref)
	if err != nil {
		return nil, false
	}
	named, err = storedName(named)
	return named, err == nil
}

// isIDPrefix tells whether ref is an ID or the beginning of one, with or without
// its algorithm.
func isIDPrefix(id digest.Digest, ref string) bool {
	hex, _ := strings.CutPrefix(ref, id.Algorithm().String()+":")
	return hex != "" && strings.HasPrefix(id.Encoded(), hex)
}

// commitImage makes an image and its names visible, and tells whether anything
// was not there before. All its layers are, under the caller's lease.
func (s *Store) commitImage(p *plan, names []reference.Named) (updated bool, err error) {
	lock, err := s.dir.lockShared()
	if err != nil {
		return false, err
	}
	defer lock.unlock()
	_, err = s.dir.readImage(p.id)
	if err != nil {
		if err := s.dir.writeImage(p); err != nil {
			return false, fmt.Errorf("write image %s: %w", p.id, err)
		}
		updated = true
	}
	for _, name := range names {
		changed, err := s.dir.setName(name, p.id)
		if err != nil {
			return false, err
		}
		updated = updated || changed
	}
	return updated, nil
}

// writeImage writes an image's folder in tmp and then renames it into its place,
// so that it appears whole, in place of a damaged one.
func (d Dir) writeImage(p *plan) error {
	r := imageRecord{Digest: p.digest, Manifest: p.desc, Layers: []ImageLayer{}, Pulled: time.Now().UTC().Truncate(time.Second), Descent: p.descent}
	for _, pl := range p.layers {
		l, err := d.readLayer(pl.chain)
		if err != nil {
			return err
		}
		il := ImageLayer{Chain: l.Chain, TarSize: l.TarSize, Size: d.storedLayer(l.Chain)}
		r.Layers = append(r.Layers, il)
	}
	tmp, err := os.MkdirTemp(d.tmp(), "image-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp) // finds nothing after the rename
	for _, f := range []struct {
		name string
		data []byte
	}{{manifestFile, p.manifest}, {configFile, p.config}, {imageFile, marshalRecord(r)}} {
		if err := writeSynced(tmp+"/"+f.name, f.data, 0o600); err != nil {
			return err
		}
	}
	if err := syncDir(tmp); err != nil {
		return err
	}
	err = os.Rename(tmp, d.image(p.id))
	if errors.Is(err, fs.ErrExist) {
		if _, damage := d.readImage(p.id); damage == nil {
			return nil // another pull was faster
		}
		var trash string
		if trash, err = d.discard(d.image(p.id)); err == nil {
			defer os.RemoveAll(trash)
			err = os.Rename(tmp, d.image(p.id))
		}
	}
	if err != nil {
		return err
	}
	return syncDir(d.images())
}
