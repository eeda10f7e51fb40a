package vsphere

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/vmware/govmomi/vim25/methods"
)

// Seeds is the owner of images that are brought to a store for VCHs to come. It is no VCH's name: several programs may
// use it at a time, each of which removes its claims. What one that was killed has left counts for seedTime.
const Seeds = "_seed"

// seedTime is how long a claim counts that is not of a VCH, which would end it when it starts again. Nobody takes as long to bring an image.
const seedTime = 24 * time.Hour

// endOldSeeds removes the claims of those who brought images and were killed.
func (s *Store) endOldSeeds(ctx context.Context) error {
	folder := vchsFolder + "/" + Seeds + "/pulls"
	list, err := s.d.List(ctx, folder)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(list) == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	now, err := methods.GetCurrentTime(ctx, s.d.s.client) // of the clock that the files' times are of
	if err != nil {
		return fmt.Errorf("ask for the server's time: %w", unavailable(err))
	}
	for _, e := range list {
		if e.Time.IsZero() || now.Sub(e.Time) < seedTime {
			continue
		}
		s.log.Info("remove what an unfinished seed has left", "file", e.Name, "since", e.Time)
		if err := s.d.RemoveAll(ctx, folder+"/"+e.Name); err != nil {
			return err
		}
	}
	return nil
}

// noSeeds tells whether nobody has brought images that are there still, or is about to.
func (d *Datastore) noSeeds(ctx context.Context) (bool, error) {
	for _, f := range []string{"images", "pulls"} {
		list, err := d.List(ctx, vchsFolder+"/"+Seeds+"/"+f)
		if err != nil && !errors.Is(err, fs.ErrNotExist) || len(list) > 0 {
			return false, err
		}
	}
	return true, nil
}
