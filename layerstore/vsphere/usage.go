package vsphere

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
)

// Usage is what a store takes up, of all VCHs.
type Usage struct {
	Disks  []DiskUsage  `json:"disks"`  // by name
	Images []ImageUsage `json:"images"` // by VCH and ID
}

// A DiskUsage is what one disk takes up.
type DiskUsage struct {
	Name   string        `json:"name"`
	Chain  digest.Digest `json:"chain"`  // of the topmost layer in it
	Parent string        `json:"parent"` // its name, or base; "" of a disk that has none, or is not complete
	Size   int64         `json:"size"`   // of its files, bytes, as the datastore lists them
	Images int           `json:"images"` // how many need it
}

// An ImageUsage is what one image of a VCH takes up.
type ImageUsage struct {
	VCH   string        `json:"vch"` // or Seeds
	ID    digest.Digest `json:"id"`
	Names []string      `json:"names"` // that the VCH has noted
	Disks []string      `json:"disks"` // top first
	Size  int64         `json:"size"`  // of all its disks
	Own   int64         `json:"own"`   // of those that no other image needs
}

// Usage finds out what the store takes up.
func (s *Store) Usage(ctx context.Context) (*Usage, error) {
	list, err := s.d.List(ctx, disksFolder)
	if err != nil {
		return nil, err
	}
	disks := map[string]*DiskUsage{}
	for _, e := range list {
		name, suffix := cutSuffix(e.Name)
		chain, err := chainOf(name)
		if err != nil || suffix == "" {
			continue
		}
		if disks[name] == nil {
			disks[name] = &DiskUsage{Name: name, Chain: chain}
		}
		if suffix != ".json" {
			disks[name].Size += e.Size
		}
	}
	images, err := s.allImages(ctx)
	if err == nil {
		err = s.nameImages(ctx, images)
	}
	if err != nil {
		return nil, err
	}
	needs := map[string]map[digest.Digest]bool{} // of disks; an image that several VCHs have is one
	for _, img := range images {
		for _, name := range img.Disks {
			if needs[name] == nil {
				needs[name] = map[digest.Digest]bool{}
			}
			needs[name][img.ID] = true
		}
	}
	u := &Usage{Disks: []DiskUsage{}, Images: []ImageUsage{}}
	for name, d := range disks {
		rec, err := s.record(ctx, name)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		if err == nil {
			d.Parent = rec.Parent
		}
		d.Images = len(needs[name])
		u.Disks = append(u.Disks, *d)
	}
	for _, img := range images {
		x := ImageUsage{VCH: img.vch, ID: img.ID, Names: familiar(img.names), Disks: img.Disks}
		for _, name := range img.Disks {
			if d := disks[name]; d != nil {
				if x.Size += d.Size; d.Images == 1 {
					x.Own += d.Size
				}
			}
		}
		u.Images = append(u.Images, x)
	}
	slices.SortFunc(u.Disks, func(a, b DiskUsage) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(u.Images, func(a, b ImageUsage) int {
		return cmp.Or(strings.Compare(a.VCH, b.VCH), strings.Compare(string(a.ID), string(b.ID)))
	})
	return u, nil
}

// A vchImage is an image of a VCH.
type vchImage struct {
	vch, file string
	names     []string // that the VCH has noted, when nameImages has read them
	imageRecord
}

// label is what people know the image by.
func (img vchImage) label() string {
	switch {
	case len(img.names) > 0:
		return familiar(img.names[:1])[0]
	case img.ID == "":
		return img.file
	}
	return img.ID.String()
}

// nameImages reads what VCHs call their images.
func (s *Store) nameImages(ctx context.Context, images []vchImage) error {
	names := map[string]map[digest.Digest][]string{} // by VCH
	for i, img := range images {
		if names[img.vch] == nil {
			var err error
			if names[img.vch], err = s.namesOf(ctx, img.vch); err != nil {
				return err
			}
		}
		images[i].names = append([]string{}, names[img.vch][img.ID]...)
	}
	return nil
}

// allImages are the images of all VCHs. One whose record is cut off has no disks.
func (s *Store) allImages(ctx context.Context) ([]vchImage, error) {
	vchs, err := s.d.List(ctx, vchsFolder)
	if err != nil {
		return nil, err
	}
	var images []vchImage
	for _, v := range vchs {
		dir := path.Join(vchsFolder, v.Name, "images")
		files, err := s.d.List(ctx, dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, f := range files {
			img := vchImage{vch: v.Name, file: path.Join(dir, f.Name)}
			text, err := s.d.ReadFile(ctx, img.file, recordLimit)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return nil, err
			}
			if err := json.Unmarshal(text, &img.imageRecord); err != nil {
				img.imageRecord = imageRecord{}
			}
			images = append(images, img)
		}
	}
	return images, nil
}
