package build

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"vic/layerstore"
)

// A cache finds the images that steps came to before.
type cache struct {
	store  *layerstore.Store
	images map[layerstore.Descent]*layerstore.Image // the newest of each
	// from are the images that all must belong to, if there are any; ancestors are those below them.
	from      []*layerstore.Image
	ancestors map[digest.Digest]bool
}

// openCache looks through the images of the store.
func (b *builder) openCache() (*cache, error) {
	c := &cache{store: b.Store, images: make(map[layerstore.Descent]*layerstore.Image)}
	if b.NoCache {
		return c, nil
	}
	images, err := b.Store.Images()
	if err != nil {
		return nil, err
	}
	byID := make(map[digest.Digest]*layerstore.Image)
	for _, img := range images {
		byID[img.ID] = img
		if img.Descent.Step != "" {
			c.add(img)
		}
	}
	if len(b.CacheFrom) > 0 {
		c.ancestors = make(map[digest.Digest]bool)
	}
	for _, ref := range b.CacheFrom {
		img, err := b.Store.Image(ref)
		if errors.Is(err, layerstore.ErrNotFound) {
			continue // as Docker does: the first build of all names one that is not there yet
		}
		if err != nil {
			return nil, err
		}
		c.from = append(c.from, img)
		for at := img; at != nil && !c.ancestors[at.ID]; at = byID[at.Descent.Parent] {
			c.ancestors[at.ID] = true
		}
	}
	return c, nil
}

func (c *cache) add(img *layerstore.Image) {
	if old := c.images[img.Descent]; old == nil || old.Created().Before(img.Created()) {
		c.images[img.Descent] = img
	}
}

// find returns the image that a step came to, nil if there is none.
func (c *cache) find(d layerstore.Descent) *layerstore.Image {
	img := c.images[d]
	if img == nil || c.ancestors != nil && !c.ancestors[img.ID] {
		return nil
	}
	img, err := c.store.Image(img.ID.String())
	if err != nil {
		return nil // removed meanwhile
	}
	return img
}

// stepOf is the digest of what a step depends on, apart from the image that it begins with.
func stepOf(cfg dockerspec.DockerOCIImageConfig, createdBy []string) digest.Digest {
	text, err := json.Marshal(struct {
		Config    dockerspec.DockerOCIImageConfig
		CreatedBy []string
	}{cfg, createdBy})
	if err != nil {
		panic("build: encode a configuration: " + err.Error()) // of strings and numbers
	}
	return digest.FromBytes(text)
}

// probe looks whether the step has been done before, and then takes its image.
func (s *stage) probe(createdBy []string) (bool, error) {
	if s.b.NoCache || s.busted {
		return false, nil
	}
	img := s.b.cache.find(layerstore.Descent{Parent: s.imageID(), Step: stepOf(s.config, createdBy)})
	var err error
	if img == nil {
		img, err = s.restore(createdBy)
	}
	if img == nil {
		s.busted = true
		return false, err
	}
	s.b.say(" ---> Using cache\n")
	s.take(img)
	return true, nil
}

// restore makes the step's image out of one that the cache may be taken from, of which no more
// than its history and its layers are known.
func (s *stage) restore(createdBy []string) (*layerstore.Image, error) {
	done := s.document()
	for _, from := range s.b.cache.from {
		n, layers := len(done.History), len(done.RootFS.DiffIDs)
		history, diffIDs := from.Config.History, from.Config.RootFS.DiffIDs
		if len(history) <= n || len(diffIDs) < layers || history[n].CreatedBy != strings.Join(createdBy, " ") ||
			!slices.EqualFunc(history[:n], done.History, sameHistory) || !slices.Equal(diffIDs[:layers], done.RootFS.DiffIDs) {
			continue
		}
		next := history[n]
		if !next.EmptyLayer && len(diffIDs) == layers {
			continue // its history is not that of its layers
		}
		if len(history) == n+1 {
			return from, nil
		}
		descs, err := descriptors(from)
		if err != nil {
			return nil, err
		}
		if !next.EmptyLayer {
			done.RootFS.DiffIDs = append(done.RootFS.DiffIDs, diffIDs[layers])
			layers++
		}
		done.History = append(done.History, next)
		done.Created, done.Author = next.Created, next.Author
		img, err := s.pull(s.ctx, done, descs[:layers], createdBy)
		if err != nil {
			return nil, fmt.Errorf("take a step from image %s: %w", from.ID, err)
		}
		return img, nil
	}
	return nil, nil
}

func sameHistory(a, b ocispec.History) bool {
	sameTime := a.Created == b.Created || a.Created != nil && b.Created != nil && a.Created.Equal(*b.Created)
	a.Created, b.Created = nil, nil
	return sameTime && a == b
}
