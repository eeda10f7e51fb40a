package vsphere

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"strings"

	"github.com/opencontainers/go-digest"
)

// TopDisk is the datastore path of the disk that shows an image that this VCH has published. The error is fs.ErrNotExist if it
// has not.
func (s *Store) TopDisk(ctx context.Context, image digest.Digest) (string, error) {
	rec, err := s.imageRecord(ctx, image)
	if err != nil {
		return "", err
	}
	return s.DiskPath(rec.Disks[0]), nil
}

// imageFile is the record of an image of this VCH.
func (s *Store) imageFile(id digest.Digest) string { return s.own("images", id.Encoded()+".json") }

// ownImages are the images of which this VCH has records, whole or not.
func (s *Store) ownImages(ctx context.Context) ([]digest.Digest, error) {
	list, err := s.d.List(ctx, s.own("images"))
	var ids []digest.Digest
	for _, e := range list {
		hexDigits, ok := strings.CutSuffix(e.Name, ".json")
		if id := digest.NewDigestFromEncoded(digest.SHA256, hexDigits); ok && id.Validate() == nil {
			ids = append(ids, id)
		}
	}
	return ids, err
}

// imageRecord reads the record of an image of this VCH. The error is fs.ErrNotExist if it has none.
func (s *Store) imageRecord(ctx context.Context, image digest.Digest) (*imageRecord, error) {
	if err := image.Validate(); err != nil {
		return nil, fmt.Errorf("image %q: %w", image, err)
	}
	file := s.imageFile(image)
	text, err := s.d.ReadFile(ctx, file, recordLimit)
	if err != nil {
		return nil, err
	}
	var rec imageRecord
	if err := json.Unmarshal(text, &rec); err != nil || rec.ID != image || len(rec.Disks) == 0 {
		return nil, fmt.Errorf("%s is cut off: %w", s.d.Path(file), fs.ErrNotExist)
	}
	return &rec, nil
}
