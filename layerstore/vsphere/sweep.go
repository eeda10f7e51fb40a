package vsphere

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"github.com/opencontainers/go-digest"
)

// Forget notes that the VCH has an image no more. Its disks stay until a Sweep finds that nobody needs them.
func (s *Store) Forget(ctx context.Context, id digest.Digest) error {
	if err := id.Validate(); err != nil {
		return fmt.Errorf("forget image %q: %w", id, err)
	}
	s.mu.Lock()
	delete(s.images, id)
	s.mu.Unlock()
	if err := s.d.Remove(ctx, s.own("images", id.Encoded()+".json")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Sweep removes the disks that no VCH has an image of, and what broken uploads have left. It returns their names, and may run
// beside anything, another Sweep included.
func (s *Store) Sweep(ctx context.Context) (removed []string, err error) {
	list, err := s.d.List(ctx, disksFolder)
	if err != nil {
		return nil, err
	}
	names := map[string][]string{} // of disks: their files, the record first
	for _, e := range list {
		name, suffix := cutSuffix(e.Name)
		if _, err := chainOf(name); err != nil || suffix == "" {
			continue // the base disk's, or nothing of ours
		}
		if suffix == ".json" {
			names[name] = append([]string{suffix}, names[name]...)
		} else {
			names[name] = append(names[name], suffix)
		}
	}
	// A disk that is being made is named by a pull before it has files, and by an image before that pull ends.
	needed, err := s.needed(ctx)
	if err != nil {
		return nil, err
	}
	records := map[string][]byte{} // that were removed
	for name, files := range names {
		if needed[name] {
			delete(names, name)
			continue
		}
		if files[0] != ".json" {
			continue
		}
		file := path.Join(disksFolder, name+".json")
		text, err := s.d.ReadFile(ctx, file, recordLimit)
		if err == nil {
			err = s.d.Remove(ctx, file)
		}
		switch {
		case errors.Is(err, fs.ErrNotExist): // another Sweep has it
			delete(names, name)
			continue
		case err != nil:
			return removed, s.restore(ctx, records, err)
		}
		records[name] = text
		s.forget(name)
	}
	if needed, err = s.needed(ctx); err != nil {
		return removed, s.restore(ctx, records, err)
	}
	for name, files := range names {
		if needed[name] { // since it was looked at
			if text := records[name]; text != nil {
				if err := s.put(ctx, path.Join(disksFolder, name+".json"), text); err != nil {
					return removed, err
				}
			}
			continue
		}
		for _, suffix := range files {
			if suffix == ".json" {
				continue
			}
			if err := s.d.Remove(ctx, path.Join(disksFolder, name+suffix)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return removed, err
			}
		}
		removed = append(removed, name)
	}
	return removed, nil
}

// restore writes records again that were removed for nothing.
func (s *Store) restore(ctx context.Context, records map[string][]byte, err error) error {
	for name, text := range records {
		err = errors.Join(err, s.put(context.WithoutCancel(ctx), path.Join(disksFolder, name+".json"), text))
	}
	return err
}

// cutSuffix takes the name of a disk's file apart.
func cutSuffix(file string) (name, suffix string) {
	for _, suffix := range []string{"-delta.vmdk", ".vmdk", ".json"} {
		if name, ok := strings.CutSuffix(file, suffix); ok {
			return name, suffix
		}
	}
	return file, ""
}

// needed are the names of the disks that images or pulls of any VCH name.
func (s *Store) needed(ctx context.Context) (map[string]bool, error) {
	needed := map[string]bool{}
	vchs, err := s.d.List(ctx, vchsFolder)
	if err != nil {
		return nil, err
	}
	for _, v := range vchs {
		if !v.Dir {
			continue
		}
		// Pulls first: what one of them wanted an image has by the time that it ends.
		for _, folder := range []string{"pulls", "images"} {
			dir := path.Join(vchsFolder, v.Name, folder)
			files, err := s.d.List(ctx, dir)
			if errors.Is(err, fs.ErrNotExist) { // a VCH that comes, or goes
				continue
			}
			if err != nil {
				return nil, err
			}
			for _, f := range files {
				if err := s.addNeeded(ctx, needed, path.Join(dir, f.Name), folder == "images"); err != nil {
					return nil, err
				}
			}
		}
	}
	return needed, nil
}

func (s *Store) addNeeded(ctx context.Context, needed map[string]bool, file string, image bool) error {
	text, err := s.d.ReadFile(ctx, file, recordLimit)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var rec imageRecord
	if image {
		err = json.Unmarshal(text, &rec)
	} else {
		err = json.Unmarshal(text, &rec.Disks)
	}
	if err != nil { // being written, or cut off: whose it is knows which disks it means
		return fmt.Errorf("%s cannot be read, so nothing is removed: %w", s.d.Path(file), err)
	}
	for _, name := range rec.Disks {
		needed[name] = true
	}
	return nil
}
