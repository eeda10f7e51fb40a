package layerstore

import (
	"encoding/json"
	"errors"
	"io/fs"

	"github.com/opencontainers/go-digest"
)

// A Descent says what an image was made of, if it was made in this store: by which
// step from which image. It is kept in the image's record, and so goes with the image.
type Descent struct {
	// Parent is the image below, "" if there is none. It stays as long as the image does, unless
	// it is removed with the force of other means than Remove: what reads a Descent does without.
	Parent digest.Digest `json:"parent,omitempty"`
	// Step stands for what was done to the parent, so that who is about to do the same
	// finds the image; "" is nothing that could be done again.
	Step digest.Digest `json:"step,omitempty"`
}

// validate says what is wrong with a Descent that somebody else wrote.
func (d Descent) validate() error {
	for _, id := range []digest.Digest{d.Parent, d.Step} {
		if id == "" {
			continue
		}
		if err := id.Validate(); err != nil {
			return err
		}
	}
	return nil
}

// children returns how many images have been made from each image. Damaged ones are none.
func (d Dir) children() (map[digest.Digest]int, error) {
	ids, err := d.imageIDs()
	if err != nil {
		return nil, err
	}
	n := make(map[digest.Digest]int)
	for _, id := range ids {
		r, err := d.readImageRecord(id)
		if _, bad := errors.AsType[*FormatError](err); bad || errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if r.Parent != "" {
			n[r.Parent]++
		}
	}
	return n, nil
}

// readImageRecord reads an image's record alone.
func (d Dir) readImageRecord(id digest.Digest) (imageRecord, error) {
	var r imageRecord
	dir := d.image(id)
	b, err := readBounded(dir+"/"+imageFile, storedLimit)
	if err != nil {
		return r, damagedIfPartial(dir, err)
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return r, formatErrorf(dir, imageFile, "%v", err)
	}
	if err := r.Descent.validate(); err != nil {
		return r, formatErrorf(dir, imageFile, "%v", err)
	}
	return r, nil
}
