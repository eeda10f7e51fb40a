package layerstore

import (
	"context"
	"errors"
	"fmt"

	"github.com/fsnotify/fsnotify"
)

// Watch calls changed after images, names or layers of the store have come or gone, by this
// process or another of this machine; several changes may make one call. It returns once ctx
// ends, then nil, or when it cannot watch. What other machines do to a store on a network
// file system is not seen.
func (s *Store) Watch(ctx context.Context, changed func()) (err error) {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch store %s: %w", s.dir, err)
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	for _, dir := range []string{s.dir.images(), s.dir.names(), s.dir.layers()} {
		if err := w.Add(dir); err != nil {
			return fmt.Errorf("watch store %s: %w", s.dir, err)
		}
	}
	changed() // what changed before the watch began
	for {
		select {
		case <-ctx.Done():
			return nil
		case err, ok := <-w.Errors:
			if ok && !errors.Is(err, fsnotify.ErrEventOverflow) {
				return fmt.Errorf("watch store %s: %w", s.dir, err)
			}
		case <-w.Events:
		}
		for pending := true; pending; { // they come in groups
			select {
			case <-w.Events:
			default:
				pending = false
			}
		}
		changed()
	}
}
