package layerstore

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

// A nameRecord is the content of a file in the names folder.
type nameRecord struct {
	// Name is the reference in full: docker.io/library/debian:12, or with
	// @sha256:... in place of the tag for what a registry called the image.
	Name string `json:"name"`
	// Image is the ID of the image that it names.
	Image digest.Digest `json:"image"`
}

// nameLimit bounds the length of a reference in bytes.
const nameLimit = 4096

// plainName is the longest escaped name that is a file name as it stands; Linux
// allows 255 bytes.
const plainName = 200

// escapeName returns the file name of a reference. Letters, digits, '-', '_' and
// '.' stand for themselves, other bytes are %XX. A long one is cut, and '~' and
// the digest of the whole reference end it; the file has the reference in full.
func escapeName(name string) string {
	var b strings.Builder
	for _, c := range []byte(name) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '_', c == '.' && b.Len() > 0:
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	if b.Len() > plainName {
		return b.String()[:plainName-64] + "~" + digest.FromString(name).Encoded()
	}
	return b.String()
}

// readName reads a file of the names folder.
func (d Dir) readName(file string) (*nameRecord, reference.Named, error) {
	path := d.in("names", file)
	b, err := readBounded(path, recordLimit)
	if err != nil {
		return nil, nil, err
	}
	var r nameRecord
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, nil, formatErrorf(path, "name record", "%v", err)
	}
	if len(r.Name) > nameLimit || escapeName(r.Name) != file {
		return nil, nil, formatErrorf(path, "name", "%.80q is not the one of the file's name", r.Name)
	}
	ref, err := reference.ParseNamed(r.Name)
	if err != nil {
		return nil, nil, formatErrorf(path, "name", "%q: %v", r.Name, err)
	}
	if err := r.Image.Validate(); err != nil {
		return nil, nil, formatErrorf(path, "image", "%q: %v", r.Image, err)
	}
	return &r, ref, nil
}

// allNames returns every name of the store by the image that it names, sorted.
// Those that cannot be read go to bad.
func (d Dir) allNames(bad func(error)) (map[digest.Digest][]reference.Named, error) {
	files, err := listDir(d.names())
	if err != nil {
		return nil, err
	}
	names := make(map[digest.Digest][]reference.Named)
	for _, file := range files {
		r, ref, err := d.readName(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			bad(err)
			continue
		}
		names[r.Image] = append(names[r.Image], ref)
	}
	for _, refs := range names {
		sortNames(refs)
	}
	return names, nil
}

// Names returns every name of the store by the ID of the image that it names: tags,
// ascending, then digests. A name that is damaged is left out and logged.
func (s *Store) Names() (map[digest.Digest][]reference.Named, error) {
	return s.dir.allNames(s.logDamage)
}

// sortNames puts tags before digests, each ascending.
func sortNames(refs []reference.Named) {
	slices.SortFunc(refs, func(a, b reference.Named) int {
		if isDigest(a) != isDigest(b) {
			if isDigest(a) {
				return 1
			}
			return -1
		}
		return strings.Compare(a.String(), b.String())
	})
}

// isDigest tells a name by digest from a tag.
func isDigest(ref reference.Named) bool {
	_, ok := ref.(reference.Canonical)
	return ok
}

// storedName returns the form in which a reference is kept: a tag, latest if
// there is none, or if there is a digest, that without a tag.
func storedName(ref reference.Named) (reference.Named, error) {
	if len(ref.String()) > nameLimit {
		return nil, fmt.Errorf("reference of %d bytes, %d are allowed", len(ref.String()), nameLimit)
	}
	ref, err := reference.ParseNormalizedNamed(ref.String()) // whoever made it may not have
	if err != nil {
		return nil, err
	}
	if c, ok := ref.(reference.Canonical); ok {
		return reference.WithDigest(reference.TrimNamed(ref), c.Digest())
	}
	ref = reference.TagNameOnly(ref)
	if t, ok := ref.(reference.NamedTagged); ok && reference.FamiliarName(ref) == string(digest.Canonical) {
		return nil, fmt.Errorf("refusing the ambiguous name %s:%s: it reads as a digest", digest.Canonical, t.Tag())
	}
	return ref, nil
}

// tagName is storedName for a name that an image is given here: a digest is the registry's to give.
func tagName(ref reference.Named) (reference.Named, error) {
	if isDigest(ref) {
		return nil, errors.New("refusing to create a tag with a digest reference")
	}
	return storedName(ref)
}

// setName makes ref name an image and tells whether it did not before. The
// caller holds the store's lock and knows that the image is there.
func (d Dir) setName(ref reference.Named, id digest.Digest) (changed bool, err error) {
	if old, _, err := d.readName(escapeName(ref.String())); err == nil && old.Image == id {
		return false, nil
	}
	data := marshalRecord(nameRecord{Name: ref.String(), Image: id})
	if err := d.replaceFile(d.name(ref.String()), data); err != nil {
		return false, fmt.Errorf("name image %s: %w", ref, err)
	}
	return true, nil
}

// Tag gives the image that src refers to, as Image understands it, the further
// name dst, which loses the image that it had. A dst without tag gets latest;
// one with a digest is an error.
func (s *Store) Tag(src string, dst reference.Named) error {
	dst, err := tagName(dst)
	if err != nil {
		return err
	}
	lock, err := s.dir.lockShared()
	if err != nil {
		return err
	}
	defer lock.unlock()
	img, err := s.Image(src)
	if err != nil {
		return err
	}
	_, err = s.dir.setName(dst, img.ID)
	return err
}

// removeName removes a name durably.
func (d Dir) removeName(ref reference.Named) error {
	if err := os.Remove(d.name(ref.String())); err != nil {
		return fmt.Errorf("remove name %s: %w", reference.FamiliarString(ref), err)
	}
	return syncDir(d.names())
}
