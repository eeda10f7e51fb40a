package vsphere

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
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
	delete(s.names, id)
	s.mu.Unlock()
	for _, file := range []string{s.imageFile(id), s.namesFile(id)} {
		if err := s.d.RemoveAll(ctx, file); err != nil {
			return err
		}
	}
	return nil
}

// Leave notes that the VCH is no more: whatever images it had, it needs none. Nobody may use the Store afterwards but to Sweep.
func (s *Store) Leave(ctx context.Context) error {
	return s.d.RemoveAll(ctx, s.own())
}

// Swept is what a Sweep has removed.
type Swept struct {
	Disks []string // their names
	Bytes int64    // of their files, as the datastore lists them
}

// Sweep removes the disks that nobody needs, and what broken pulls have left. It may run
// beside anything, another Sweep included. Disks of virtual machines, their parents included, stay even if no image has them.
func (s *Store) Sweep(ctx context.Context) (removed Swept, err error) {
	sw := &sweeping{s: s, names: map[string][]string{}, sizes: map[string]int64{}, records: map[string][]byte{}}
	if err := s.endOldSeeds(ctx); err != nil {
		return Swept{}, err
	}
	if err := sw.list(ctx); err != nil {
		return Swept{}, err
	}
	if err := sw.spare(ctx); err != nil || len(sw.names) == 0 {
		return Swept{}, err
	}
	// Now the records, and then once more a look at who wants them.
	err = sw.removeRecords(ctx)
	var needed map[string]bool
	if err == nil {
		needed, err = s.needed(ctx)
	}
	if err != nil {
		return Swept{}, sw.restore(ctx, err)
	}
	return sw.removeFiles(ctx, needed)
}

// A sweeping is a Sweep under way.
type sweeping struct {
	s       *Store
	names   map[string][]string // of disks that may go: their files, the record first
	sizes   map[string]int64    // of these, together
	records map[string][]byte   // that were removed
}

func (sw *sweeping) list(ctx context.Context) error {
	list, err := sw.s.d.List(ctx, disksFolder)
	if err != nil {
		return err
	}
	for _, e := range list {
		name, suffix := cutSuffix(e.Name)
		if _, err := chainOf(name); err != nil || suffix == "" {
			continue // the base disk's, or nothing of ours
		}
		sw.sizes[name] += e.Size
		if suffix == ".json" {
			sw.names[name] = append([]string{suffix}, sw.names[name]...)
		} else {
			sw.names[name] = append(sw.names[name], suffix)
		}
	}
	return nil
}

// spare leaves out what is needed. A disk that is being made is named by a pull before it has files, and by an image before that pull
// ends.
func (sw *sweeping) spare(ctx context.Context) error {
	needed, err := sw.s.needed(ctx)
	if err != nil {
		return err
	}
	maps.DeleteFunc(sw.names, func(name string, _ []string) bool { return needed[name] })
	if len(sw.names) == 0 {
		return nil
	}
	used, err := sw.s.used(ctx)
	if err != nil {
		return err
	}
	maps.DeleteFunc(sw.names, func(name string, _ []string) bool { return used[name] })
	return nil
}

// removeRecords removes the records of what may go: from there on nobody finds it.
func (sw *sweeping) removeRecords(ctx context.Context) error {
	for name, files := range sw.names {
		if files[0] != ".json" {
			continue
		}
		file := path.Join(disksFolder, name+".json")
		text, err := sw.s.d.ReadFile(ctx, file, recordLimit)
		if err == nil {
			err = sw.s.d.Remove(ctx, file)
		}
		switch {
		case errors.Is(err, fs.ErrNotExist): // another Sweep has it
			delete(sw.names, name)
			continue
		case err != nil:
			return err
		}
		sw.records[name] = text
		sw.s.forget(name)
	}
	return nil
}

// removeFiles removes the files of what nobody has wanted since it was looked at, and writes the records of the others again.
func (sw *sweeping) removeFiles(ctx context.Context, needed map[string]bool) (removed Swept, err error) {
	for name, files := range sw.names {
		if needed[name] {
			if text := sw.records[name]; text != nil {
				if err := sw.s.put(ctx, path.Join(disksFolder, name+".json"), text); err != nil {
					return removed, err
				}
			}
			continue
		}
		if !sw.s.encoding.uploaded() && slices.Contains(files, ".vmdk") {
			if err := sw.s.removeDisk(ctx, name); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return removed, err
			}
		}
		for _, suffix := range files {
			if suffix == ".json" {
				continue
			}
			if err := sw.s.d.RemoveAll(ctx, path.Join(disksFolder, name+suffix)); err != nil {
				return removed, err
			}
		}
		removed.Disks = append(removed.Disks, name)
		removed.Bytes += sw.sizes[name]
	}
	return removed, nil
}

// restore writes records again that were removed for nothing.
func (sw *sweeping) restore(ctx context.Context, err error) error {
	for name, text := range sw.records {
		err = errors.Join(err, sw.s.put(context.WithoutCancel(ctx), path.Join(disksFolder, name+".json"), text))
	}
	return err
}

// cutSuffix takes the name of a disk's file apart.
func cutSuffix(file string) (name, suffix string) {
	for _, suffix := range []string{"-delta.vmdk", "-sesparse.vmdk", "-flat.vmdk", ".vmdk", ".json"} {
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

// errUnreadable is of a file that names disks.
var errUnreadable = errors.New("cannot be read")

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
		return fmt.Errorf("%s %w, so nothing is removed: %w", s.d.Path(file), errUnreadable, err)
	}
	for _, name := range rec.Disks {
		needed[name] = true
	}
	return nil
}
