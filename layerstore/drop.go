package layerstore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

// clean removes those of some layers, and of those that stand on them, that nothing needs, of
// all layers if all is set; and files without a record.
func (r *repairer) clean(ctx context.Context, of map[digest.Digest]bool, all bool) error {
	lock, err := r.d.lockExclusive()
	if err != nil {
		return err
	}
	needed, err := r.d.needed()
	if err != nil { // an image or a pin is damaged still: it may need anything
		lock.unlock()
		r.s.log.Warn("nothing is removed", "error", err)
		return nil
	}
	doomed, err := r.d.doom(ctx, func() ([]digest.Digest, error) {
		if all {
			return r.d.chains()
		}
		return r.d.onTop(of)
	})
	if err == nil {
		var orphans []doomedLayer
		orphans, err = r.d.orphans(ctx)
		for _, l := range orphans {
			if needed[l.chain] { // its record may come back
				l.lock.unlock()
				continue
			}
			doomed = append(doomed, l)
		}
	}
	err = errors.Join(err, r.d.cleanTmp())
	lock.unlock()
	swept, buryErr := r.d.bury(doomed, "")
	for _, chain := range swept.Layers {
		r.did(AboutLayer, chain.String(), "removed layer %s, which nothing needs", shortID(chain.Encoded()))
	}
	_, strayErr := r.d.sweepStrays(ctx)
	return errors.Join(err, buryErr, strayErr)
}

// onTop returns some layers and all that stand on them.
func (d Dir) onTop(of map[digest.Digest]bool) ([]digest.Digest, error) {
	all, err := d.chains()
	if err != nil {
		return nil, err
	}
	parents := make(map[digest.Digest]digest.Digest, len(all))
	for _, c := range all {
		if l, err := d.readLayer(c); err == nil {
			parents[c] = l.Parent
		}
	}
	return slices.DeleteFunc(all, func(c digest.Digest) bool {
		for ; c != ""; c = parents[c] {
			if of[c] {
				return false
			}
		}
		return true
	}), nil
}

// drop removes the images that findings say are damaged, names that are, and then the layers
// that nothing needs any more.
func (r *repairer) drop(ctx context.Context, findings []Finding) (err error) {
	if r.census, err = r.d.censusOf(); err != nil {
		return err
	}
	images := make(map[digest.Digest]bool)
	layers, gone := make(map[digest.Digest]bool), make(map[digest.Digest]bool)
	for _, f := range findings {
		switch f.About {
		case AboutLayer:
			if _, waits := errors.AsType[*runningError](r.failed[f.About+f.ID]); waits {
				continue // it may yet be mended
			}
			layers[digest.Digest(f.ID)] = true
			for _, id := range r.users[digest.Digest(f.ID)] {
				images[id] = true
			}
		case AboutImage:
			images[digest.Digest(f.ID)] = true
		case AboutName:
			if err := r.dropName(f.ID); err != nil {
				return err
			}
		}
	}
	unknown := false // what layers an image had
	for _, id := range slices.Sorted(maps.Keys(images)) {
		if err := ctx.Err(); err != nil {
			return err
		}
		img := r.images[id]
		if err := r.dropImage(id, img); err != nil {
			r.failed[AboutImage+id.String()] = err
			for chain := range layers {
				if key := AboutLayer + chain.String(); slices.Contains(r.users[chain], id) {
					r.failed[key] = errors.Join(r.failed[key], err)
				}
			}
			continue
		}
		if img == nil {
			unknown = true
			continue
		}
		for _, l := range img.Layers {
			gone[l.Chain] = true
		}
	}
	return r.clean(ctx, gone, unknown)
}

func (r *repairer) dropName(file string) error {
	lock, err := r.d.lockExclusive()
	if err != nil {
		return err
	}
	defer lock.unlock()
	if _, _, err := r.d.readName(file); err == nil || errors.Is(err, fs.ErrNotExist) {
		return nil // it has changed
	}
	if err := os.Remove(filepath.Join(r.d.names(), file)); err != nil {
		return err
	}
	r.did(AboutName, file, "removed the damaged name %s", file)
	return syncDir(r.d.names())
}

// dropImage removes an image with its names, unless a container or a lease needs it.
func (r *repairer) dropImage(id digest.Digest, img *Image) (err error) {
	lock, err := r.d.lockExclusive()
	if err != nil {
		return err
	}
	trash := ""
	defer func() {
		lock.unlock()
		_, buryErr := r.d.bury(nil, trash)
		err = errors.Join(err, buryErr)
	}()
	pins, err := r.d.pins()
	if err != nil {
		return fmt.Errorf("not dropped: %w", err)
	}
	for _, p := range pins {
		if p.Image == id {
			return fmt.Errorf("not dropped: container %s needs it", shortID(p.id))
		}
	}
	leased := make(map[digest.Digest]bool)
	if err := r.d.leased(leased); err != nil {
		return fmt.Errorf("not dropped: %w", err)
	}
	if img != nil && slices.ContainsFunc(img.Layers, func(l ImageLayer) bool { return leased[l.Chain] }) {
		return errors.New("not dropped: another command is using its layers")
	}
	var names []string
	for _, ref := range r.names[id] {
		if err := r.d.removeName(ref); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		names = append(names, reference.FamiliarString(ref))
	}
	if trash, err = r.d.discard(r.d.image(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if len(names) == 0 {
		names = []string{id.String()}
	}
	r.did(AboutImage, id.String(), "dropped image %s: %s", shortID(id.Encoded()), strings.Join(names, ", "))
	return nil
}
