package layerstore

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
)

// A VolumeClaim is a container's claim on a volume, which is made if it is not there.
type VolumeClaim struct {
	VolumeOptions
	// Own marks a volume that has no life without the container: RemoveOwnVolumes removes it, if no other
	// container mounts it.
	Own bool
}

// A volumeUse is an entry of a container's volumes.json.
type volumeUse struct {
	Name string `json:"name"`
	Own  bool   `json:"own,omitempty"`
}

// ClaimVolumes notes which volumes a container mounts, in place of what was noted before, and makes those that are
// not there; it returns what it made. None of them can be removed until the container is. The container's folder is
// there: see CreateContainerDisk. The errors are those of CreateVolume, after which RemoveOwnVolumes and
// RemoveContainer remove what is left.
func (s *Store) ClaimVolumes(container string, claims []VolumeClaim) ([]*Volume, error) {
	if !containerID.MatchString(container) {
		return nil, fmt.Errorf("claim volumes: %q cannot be the ID of a container", container)
	}
	uses := []volumeUse{}
	for _, c := range claims {
		if _, err := c.volume(s.volumeDisks); err != nil {
			return nil, err
		}
		uses = append(uses, volumeUse{c.Name, c.Own})
	}
	if err := s.noteUses(container, uses); err != nil {
		return nil, fmt.Errorf("claim volumes: %w", err)
	}
	var made []*Volume
	for _, c := range claims {
		v, isNew, err := s.createVolume(c.VolumeOptions, true)
		if err != nil {
			return made, err
		}
		if isNew {
			made = append(made, v)
		} else if err := s.useDistant(v); err != nil {
			return made, err
		}
	}
	return made, nil
}

func (s *Store) noteUses(container string, uses []volumeUse) error {
	lock, err := s.dir.lockShared()
	if err != nil {
		return err
	}
	defer lock.unlock()
	return s.dir.replaceFile(s.dir.volumePin(container), marshalRecord(uses))
}

// RemoveOwnVolumes removes the volumes that are a container's own and that no other mounts, and returns their names.
// The container is about to be removed.
func (s *Store) RemoveOwnVolumes(container string) (removed []string, err error) {
	uses, err := s.dir.readVolumeUses(container)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	for _, u := range uses {
		if !u.Own {
			continue
		}
		gone := s.removeVolume(u.Name, container)
		var inUse *VolumeInUseError
		switch {
		case gone == nil:
			removed = append(removed, u.Name)
		case errors.As(gone, &inUse), errors.Is(gone, ErrNotFound): // it was never made, or is named twice
		default:
			err = errors.Join(err, gone)
		}
	}
	if err != nil {
		err = fmt.Errorf("remove volumes of container %s: %w", container, err)
	}
	return removed, err
}

// readVolumeUses returns which volumes a container mounts. The error is fs.ErrNotExist if it never claimed any, a
// *FormatError if that is damaged.
func (d Dir) readVolumeUses(container string) ([]volumeUse, error) {
	path := d.volumePin(container)
	b, err := readBounded(path, recordLimit)
	if err != nil {
		return nil, err
	}
	var uses []volumeUse
	if err := json.Unmarshal(b, &uses); err != nil {
		return nil, formatErrorf(path, "volumes", "%v", err)
	}
	for _, u := range uses {
		if !validVolume.MatchString(u.Name) {
			return nil, formatErrorf(path, "volumes", "%.80q cannot be the name of one", u.Name)
		}
	}
	return uses, nil
}

// volumeUsers returns the IDs of the containers that mount each volume, ascending. What cannot be read goes to bad.
func (d Dir) volumeUsers(bad func(error)) (map[string][]string, error) {
	ids, err := listDir(d.containers())
	if err != nil {
		return nil, err
	}
	users := make(map[string][]string)
	for _, id := range ids {
		uses, err := d.readVolumeUses(id)
		if err != nil {
			if !errors.Is(err, fs.ErrNotExist) {
				bad(err)
			}
			continue
		}
		for _, u := range uses {
			if !slices.Contains(users[u.Name], id) {
				users[u.Name] = append(users[u.Name], id)
			}
		}
	}
	return users, nil
}

// allVolumeUsers is volumeUsers for who is about to remove a volume: what cannot be read is an error.
func (d Dir) allVolumeUsers() (map[string][]string, error) {
	var damaged error
	users, err := d.volumeUsers(func(e error) { damaged = errors.Join(damaged, e) })
	if err = errors.Join(err, damaged); err != nil {
		return nil, fmt.Errorf("find out which volumes are in use: %w", err)
	}
	return users, nil
}
