package vsphere

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"

	"github.com/opencontainers/go-digest"
)

// TopDisk is the datastore path of the disk that shows an image that this VCH has published. The error is fs.ErrNotExist if it
// has not.
func (s *Store) TopDisk(ctx context.Context, image digest.Digest) (string, error) {
	if err := image.Validate(); err != nil {
		return "", fmt.Errorf("image %q: %w", image, err)
	}
	file := s.own("images", image.Encoded()+".json")
	text, err := s.d.ReadFile(ctx, file, recordLimit)
	if err != nil {
		return "", err
	}
	var rec imageRecord
	if err := json.Unmarshal(text, &rec); err != nil || rec.ID != image || len(rec.Disks) == 0 {
		return "", fmt.Errorf("%s is cut off: %w", s.d.Path(file), fs.ErrNotExist)
	}
	return s.DiskPath(rec.Disks[0]), nil
}
