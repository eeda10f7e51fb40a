package vsphere

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

// NoteNames notes what the VCH calls its images, for people who look at the store. It costs nothing for those that this Store has noted
// so before. An image that is not among them keeps what was noted until it is forgotten.
func (s *Store) NoteNames(ctx context.Context, names map[digest.Digest][]string) error {
	for id, want := range names {
		s.mu.Lock()
		noted, known := s.names[id]
		s.mu.Unlock()
		if known && slices.Equal(noted, want) {
			continue
		}
		if !known {
			var err error
			if noted, err = s.namesIn(ctx, s.namesFile(id)); err != nil {
				return err
			}
		}
		if !slices.Equal(noted, want) {
			if err := s.putNames(ctx, id, want); err != nil {
				return err
			}
		}
		s.mu.Lock()
		s.names[id] = slices.Clone(want)
		s.mu.Unlock()
	}
	return nil
}

// AddNames notes more names of an image, beside those that others may have noted.
func (s *Store) AddNames(ctx context.Context, id digest.Digest, names ...string) error {
	noted, err := s.namesIn(ctx, s.namesFile(id))
	if err != nil {
		return err
	}
	all := slices.Compact(slices.Sorted(slices.Values(slices.Concat(noted, names))))
	if slices.Equal(all, noted) {
		return nil
	}
	return s.putNames(ctx, id, all)
}

// RemoveName removes a name that was noted, and returns those that are left.
func (s *Store) RemoveName(ctx context.Context, id digest.Digest, name string) ([]string, error) {
	noted, err := s.namesIn(ctx, s.namesFile(id))
	if err != nil {
		return nil, err
	}
	left := slices.DeleteFunc(slices.Clone(noted), func(n string) bool { return n == name })
	if len(left) == len(noted) {
		return left, nil
	}
	return left, s.putNames(ctx, id, left)
}

func (s *Store) namesFile(id digest.Digest) string { return s.own("names", id.Encoded()+".json") }

func (s *Store) putNames(ctx context.Context, id digest.Digest, names []string) error {
	if err := s.d.MakeFolder(ctx, s.own("names")); err != nil {
		return err
	}
	return s.putJSON(ctx, s.namesFile(id), names)
}

// namesIn reads a file of names. One that is not there, or is being written, has none.
func (s *Store) namesIn(ctx context.Context, file string) ([]string, error) {
	text, err := s.d.ReadFile(ctx, file, recordLimit)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var names []string
	if json.Unmarshal(text, &names) != nil {
		return nil, nil
	}
	return names, nil
}

// familiar are names as docker shows them.
func familiar(names []string) []string {
	out := make([]string, 0, len(names))
	for _, name := range names {
		if ref, err := reference.ParseNormalizedNamed(name); err == nil {
			name = reference.FamiliarString(ref)
		}
		out = append(out, name)
	}
	return out
}

// namesOf are the names that a VCH has noted of its images.
func (s *Store) namesOf(ctx context.Context, vch string) (map[digest.Digest][]string, error) {
	dir := path.Join(vchsFolder, vch, "names")
	files, err := s.d.List(ctx, dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	all := map[digest.Digest][]string{}
	for _, f := range files {
		id := digest.NewDigestFromEncoded(digest.SHA256, strings.TrimSuffix(f.Name, ".json"))
		if all[id], err = s.namesIn(ctx, path.Join(dir, f.Name)); err != nil {
			return nil, err
		}
	}
	return all, nil
}
