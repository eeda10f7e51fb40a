package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"

	"vic/layerstore"
	"vic/layerstore/mount"
	datastore "vic/layerstore/vsphere"
)

// A datastoreSource is a store on a datastore as vic mount shows it.
type datastoreSource struct {
	*datastore.Store
	ctx context.Context // until the end of the mount, for its methods take none

	mu     sync.Mutex // guards what follows; held while it is read anew
	read   time.Time
	images []*datastore.Image
	disks  map[digest.Digest][]string
}

// remembered is how long what was read of the store's images is believed: a look at them takes some calls, and nobody tells of changes.
const remembered = 5 * time.Second

// look returns the images and the disks as they were not long ago.
func (s *datastoreSource) look() ([]*datastore.Image, map[digest.Digest][]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Since(s.read) < remembered {
		return s.images, s.disks, nil
	}
	images, err := s.Store.Images(s.ctx)
	if err != nil {
		return nil, nil, err
	}
	disks, err := s.Store.Disks(s.ctx)
	if err != nil {
		return nil, nil, err
	}
	s.images, s.disks, s.read = images, disks, time.Now()
	return images, disks, nil
}

func (s *datastoreSource) Names() (map[digest.Digest][]reference.Named, error) {
	images, _, err := s.look()
	names := map[digest.Digest][]reference.Named{}
	owner := map[string]digest.Digest{}
	for _, img := range images {
		for _, name := range img.Names {
			ref, err := reference.ParseNormalizedNamed(name)
			if _, twice := owner[name]; twice || err != nil {
				continue // VCHs mean different images by it: they have their IDs
			}
			owner[name] = img.ID
			names[img.ID] = append(names[img.ID], ref)
		}
	}
	return names, err
}

func (s *datastoreSource) ImageIDs() ([]digest.Digest, error) {
	images, _, err := s.look()
	var ids []digest.Digest
	for _, img := range images {
		ids = append(ids, img.ID)
	}
	return ids, err
}

func (s *datastoreSource) Image(ref string) (*layerstore.Image, error) {
	images, _, err := s.look()
	if err != nil {
		return nil, err
	}
	img, err := datastore.FindImage(images, ref)
	if err != nil {
		return nil, err
	}
	return shownImage(img), nil
}

func (s *datastoreSource) ImageByID(id digest.Digest) (*layerstore.Image, error) {
	images, _, err := s.look()
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(images, func(img *datastore.Image) bool { return img.ID == id })
	if i < 0 {
		return nil, fmt.Errorf("image %s: %w", id, fs.ErrNotExist)
	}
	return shownImage(images[i]), nil
}

// shownImage has the topmost layers of an image's disks for its layers: others are in these.
func shownImage(img *datastore.Image) *layerstore.Image {
	shown := &layerstore.Image{ID: img.ID}
	for _, chain := range img.Chains() {
		shown.Layers = append(shown.Layers, layerstore.ImageLayer{Chain: chain})
	}
	return shown
}

func (s *datastoreSource) Chains() ([]digest.Digest, error) {
	_, disks, err := s.look()
	chains := slices.Sorted(maps.Keys(disks))
	return slices.DeleteFunc(chains, func(chain digest.Digest) bool { return chain == "" }), err
}

func (s *datastoreSource) Layer(chain digest.Digest) (*layerstore.Layer, error) {
	_, disks, err := s.look()
	if err != nil {
		return nil, err
	}
	if len(disks[chain]) == 0 {
		return nil, fmt.Errorf("layer %s: %w", chain, fs.ErrNotExist)
	}
	return &layerstore.Layer{Chain: chain, Disk: chain}, nil
}

// Skeleton has none: there are no recipes.
func (s *datastoreSource) Skeleton(l *layerstore.Layer) (io.ReadCloser, error) {
	return nil, fmt.Errorf("layer %s: %w", l.Chain, layerstore.ErrNoRecipe)
}

// Watch tells nothing: a datastore does not either.
func (s *datastoreSource) Watch(ctx context.Context, _ func()) error {
	<-ctx.Done()
	return nil
}

func (s *datastoreSource) Disk(chain digest.Digest) (mount.Disk, error) {
	_, disks, err := s.look()
	if err != nil {
		return nil, err
	}
	err = fmt.Errorf("layer %s: %w", chain, fs.ErrNotExist)
	for _, name := range disks[chain] { // all show the same
		var d *datastore.Disk
		if d, err = s.OpenDisk(s.ctx, name); err == nil {
			return d, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	return nil, err
}
