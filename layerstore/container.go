package layerstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"

	"github.com/opencontainers/go-digest"

	"vic/vmdk"
)

// A pin is the content of a container's layers.json: what its disk is made over.
// It keeps the layers, whatever becomes of the image.
type pin struct {
	Image digest.Digest `json:"image"`
	// Disk is the chain ID of the disk that is the parent of the container's; ""
	// is the base disk.
	Disk   digest.Digest   `json:"disk,omitempty"`
	Layers []digest.Digest `json:"layers"` // chain IDs, bottom first

	id string // of the container, from the folder's name
}

// Files of a container's folder that belong to this package.
const (
	containerDisk   = "disk.vmdk"
	containerExtent = "disk" + extentSuffix
)

// containerID is what the ID of a container may be: a file name without tricks.
var containerID = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$`)

// CreateContainerDisk makes the disk of a container, an empty delta over the
// image's, and returns the path of its descriptor. From then on the image's
// layers stay, until RemoveContainer. The folder STORE/containers/id is made
// unless it is there. The error is fs.ErrExist if the container has a disk
// already or was not removed after an error, ErrNotFound if the image is not in
// the store. What an error or a crash leaves behind, RemoveContainer removes.
func (s *Store) CreateContainerDisk(id string, image digest.Digest) (string, error) {
	path, err := s.createContainerDisk(id, image)
	if err != nil {
		return "", fmt.Errorf("make disk of container %s: %w", id, err)
	}
	return path, nil
}

func (s *Store) createContainerDisk(id string, image digest.Digest) (string, error) {
	if !containerID.MatchString(id) {
		return "", fmt.Errorf("%q cannot be the ID of a container", id)
	}
	if err := image.Validate(); err != nil {
		return "", fmt.Errorf("image %q: %w", image, err)
	}
	lock, err := s.dir.lockShared()
	if err != nil {
		return "", err
	}
	defer lock.unlock()
	p, err := s.dir.newPin(id, image)
	if err != nil {
		return "", err
	}
	parent, err := s.dir.readDescriptor(s.dir.disk(p.Disk))
	if err != nil {
		return "", err
	}
	dir := s.dir.container(id)
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	f, err := os.OpenFile(filepath.Join(dir, containerExtent), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", err
	}
	defer f.Close()
	if err := s.dir.replaceFile(s.dir.pin(id), marshalRecord(p)); err != nil {
		return "", err
	}
	if err := vmdk.CreateExtent(f, s.info.Capacity); err != nil {
		return "", err
	}
	if err := f.Sync(); err != nil {
		return "", err
	}
	text, err := parent.Child(containerExtent, "../../disks/"+diskName(p.Disk)+".vmdk", diskCID("container "+id)).Marshal()
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, containerDisk)
	if err := s.dir.replaceFile(path, text); err != nil { // syncs dir
		return "", err
	}
	return path, syncDir(s.dir.containers())
}

// newPin returns the pin of a container of an image.
func (d Dir) newPin(id string, image digest.Digest) (*pin, error) {
	img, err := d.readImage(image)
	if errors.Is(err, fs.ErrNotExist) {
		err = ErrNotFound
	}
	if err != nil {
		return nil, err
	}
	p := &pin{Image: image, Layers: img.chains(), id: id}
	if chain := img.Chain(); chain != "" {
		l, err := d.readLayer(chain)
		if err != nil {
			return nil, err
		}
		p.Disk = l.Disk
	}
	return p, nil
}

// RemoveContainer removes a container's folder with all that is in it, in one
// step as a crash sees it, and then those layers under its disk that nothing
// needs any more. The container's VM must not run. It is no error if there is no
// such folder.
func (s *Store) RemoveContainer(id string) error {
	if !containerID.MatchString(id) {
		return fmt.Errorf("remove container: %q cannot be the ID of one", id)
	}
	uses, _ := s.dir.readVolumeUses(id) // what cannot be read a later look at all volumes finds
	doomed, trash, err := s.unpin(id)
	_, buryErr := s.dir.bury(doomed, trash)
	if err := errors.Join(err, buryErr); err != nil {
		return fmt.Errorf("remove container %s: %w", id, err)
	}
	for _, u := range uses {
		s.noteUse(u.Name)
	}
	return nil
}

// unpin takes a container's folder out of sight, and returns where it is now and
// the layers that this makes superfluous.
func (s *Store) unpin(id string) (doomed []doomedLayer, trash string, err error) {
	lock, err := s.dir.lockExclusive()
	if err != nil {
		return nil, "", err
	}
	defer lock.unlock()
	p, err := s.dir.readPin(id)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.logDamage(err)
	}
	trash, err = s.dir.discard(s.dir.container(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, "", nil
	}
	if err != nil || p == nil {
		return nil, trash, err // what a damaged pin kept, the next Sweep finds
	}
	if s.dir.held(p) {
		return nil, trash, nil
	}
	doomed, err = s.dir.doom(context.Background(), func() ([]digest.Digest, error) { return p.Layers, nil })
	if err != nil {
		s.log.Warn("layers of a removed container left for the next sweep", "container", id, "error", err)
	}
	return doomed, trash, nil
}

// held says whether a container's image is there and needs all layers that the container does, as most do: then none is superfluous,
// and nobody has to look at what all other containers need.
func (d Dir) held(p *pin) bool {
	img, err := d.readImage(p.Image)
	return err == nil && !slices.ContainsFunc(p.Layers, func(c digest.Digest) bool {
		return !slices.ContainsFunc(img.Layers, func(l ImageLayer) bool { return l.Chain == c })
	})
}

// readPin returns the pin of a container. The error is fs.ErrNotExist if it has
// none, a *FormatError if it is damaged.
func (d Dir) readPin(id string) (*pin, error) {
	path := d.pin(id)
	b, err := readBounded(path, recordLimit)
	if err != nil {
		return nil, err
	}
	p := pin{id: id}
	if err := json.Unmarshal(b, &p); err != nil {
		return nil, formatErrorf(path, "pin", "%v", err)
	}
	for _, c := range append([]digest.Digest{p.Image}, p.Layers...) {
		if err := c.Validate(); err != nil {
			return nil, formatErrorf(path, "pin", "%q: %v", c, err)
		}
	}
	if p.Disk != "" && p.Disk.Validate() != nil {
		return nil, formatErrorf(path, "disk", "%q is no chain ID", p.Disk)
	}
	return &p, nil
}

// pins returns the pins of all containers, ascending by container ID.
func (d Dir) pins() ([]*pin, error) {
	ids, err := listDir(d.containers())
	if err != nil {
		return nil, err
	}
	var pins []*pin
	for _, id := range ids {
		p, err := d.readPin(id)
		if errors.Is(err, fs.ErrNotExist) {
			continue // it has no disk yet, or no more
		}
		if err != nil {
			return nil, err
		}
		pins = append(pins, p)
	}
	return pins, nil
}

// ContainerImages returns the IDs of the images that containers were made from, some of which may have been removed since. Who wants to
// know which images are needed asks for ImageIDs before.
func (s *Store) ContainerImages() ([]digest.Digest, error) {
	pins, err := s.dir.pins()
	if err != nil {
		return nil, err
	}
	var ids []digest.Digest
	for _, p := range pins {
		ids = append(ids, p.Image)
	}
	return ids, nil
}
