package layerstore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

// A Deleted is one thing that Remove removed: a name, or an image or layer by
// its ID. One field is set.
type Deleted struct {
	Untagged string // as docker prints references
	Deleted  digest.Digest
}

// RemoveOptions are how Remove goes about it.
type RemoveOptions struct {
	// Force removes an image although containers that do not run use it, or
	// although names in several repositories refer to it. The layers that the
	// containers need stay.
	Force bool
	// Running tells whether a container runs: the image of one that does stays.
	// nil means that none does.
	Running func(container string) bool
}

// An InUseError refuses to remove an image or a name of it.
type InUseError struct {
	Ref       string        // what was to be removed, if a name
	Image     digest.Digest // the image, or that of the name
	Container string        // that uses the image; "" if its names are the reason
	Running   bool          // the container runs: Force does not help
}

// Error is worded as docker words it.
func (e *InUseError) Error() string {
	switch {
	case e.Ref != "":
		return fmt.Sprintf("conflict: unable to remove repository reference %q (must force) - container %s is using its referenced image %s",
			e.Ref, shortID(e.Container), shortID(e.Image.Encoded()))
	case e.Running:
		return fmt.Sprintf("conflict: unable to delete %s (cannot be forced) - image is being used by running container %s",
			shortID(e.Image.Encoded()), shortID(e.Container))
	case e.Container != "":
		return fmt.Sprintf("conflict: unable to delete %s (must be forced) - image is being used by stopped container %s",
			shortID(e.Image.Encoded()), shortID(e.Container))
	}
	return fmt.Sprintf("conflict: unable to delete %s (must be forced) - image is referenced in multiple repositories",
		shortID(e.Image.Encoded()))
}

func shortID(id string) string { return id[:min(12, len(id))] }

// Remove removes what ref, as Image understands it, refers to, as docker does it.
// A name goes, and with a repository's last tag its names by digest; the image
// goes with its last name, and its layers if nothing else needs them. An ID
// removes the image if its names are in one repository. The list says what went,
// in order, also when there is an error. That is ErrNotFound, ErrAmbiguous, an
// *InUseError or the datastore's.
func (s *Store) Remove(ref string, o RemoveOptions) ([]Deleted, error) {
	r := removal{s: s, ref: ref, o: o}
	doomed, err := r.unlink()
	swept, removeErr := s.dir.bury(doomed, r.trash)
	for _, chain := range swept.Layers {
		r.done = append(r.done, Deleted{Deleted: chain})
	}
	return r.done, errors.Join(err, removeErr)
}

// A removal is one call of Remove.
type removal struct {
	s    *Store
	ref  string
	o    RemoveOptions
	id   digest.Digest
	refs []reference.Named // the names of the image that are left
	done []Deleted

	trash string // the image's folder, out of sight
}

// unlink removes names and perhaps the image's record, and returns the layers
// that this makes superfluous.
func (r *removal) unlink() ([]doomedLayer, error) {
	d := r.s.dir
	lock, err := d.lockExclusive()
	if err != nil {
		return nil, err
	}
	defer lock.unlock()
	if r.id, err = d.resolve(r.ref); err == nil {
		var there bool
		if there, err = exists(d.image(r.id)); err == nil && !there {
			err = ErrNotFound
		}
	}
	if err != nil {
		return nil, fmt.Errorf("image %q: %w", r.ref, err)
	}
	names, err := d.allNames(r.s.logDamage)
	if err != nil {
		return nil, err
	}
	r.refs = names[r.id]
	users, err := r.users()
	if err != nil {
		return nil, err
	}
	named, isName := parseName(r.ref)
	isName = isName && slices.ContainsFunc(r.refs, func(x reference.Named) bool { return x.String() == named.String() })
	if isName {
		left, err := r.untag(named, users)
		if left || err != nil {
			return nil, err
		}
	} else if err := r.untagAll(users); err != nil {
		return nil, err
	}
	return r.removeImage()
}

// users returns the containers that use the image, those that run first.
func (r *removal) users() ([]*pin, error) {
	pins, err := r.s.dir.pins()
	if err != nil {
		return nil, err
	}
	pins = slices.DeleteFunc(pins, func(p *pin) bool { return p.Image != r.id })
	slices.SortStableFunc(pins, func(a, b *pin) int {
		switch x, y := r.runs(a), r.runs(b); {
		case x == y:
			return 0
		case x:
			return -1
		}
		return 1
	})
	return pins, nil
}

func (r *removal) runs(p *pin) bool { return r.o.Running != nil && r.o.Running(p.id) }

// untag removes a name and, if it was its repository's last tag, the names by
// digest in the same repository. It tells whether the image must stay.
func (r *removal) untag(named reference.Named, users []*pin) (left bool, err error) {
	if !r.o.Force && isSingleReference(r.refs) && len(users) > 0 {
		return true, &InUseError{Ref: r.ref, Image: r.id, Container: users[0].id}
	}
	if err := r.removeName(named); err != nil {
		return true, err
	}
	inRepository := func(x reference.Named) bool { return x.Name() == named.Name() }
	if !isDigest(named) && !slices.ContainsFunc(r.refs, func(x reference.Named) bool { return inRepository(x) && !isDigest(x) }) {
		for _, x := range slices.Clone(r.refs) {
			if inRepository(x) {
				if err := r.removeName(x); err != nil {
					return true, err
				}
			}
		}
	}
	// The name is gone in any case; the image of a running container stays.
	return len(r.refs) > 0 || len(users) > 0 && (!r.o.Force || r.runs(users[0])), nil
}

// untagAll removes all names of the image, or refuses.
func (r *removal) untagAll(users []*pin) error {
	switch {
	case len(users) > 0 && r.runs(users[0]):
		return &InUseError{Image: r.id, Container: users[0].id, Running: true}
	case r.o.Force:
	case !isSingleReference(r.refs):
		return &InUseError{Image: r.id}
	case len(users) > 0:
		return &InUseError{Image: r.id, Container: users[0].id}
	}
	for _, x := range slices.Clone(r.refs) {
		if err := r.removeName(x); err != nil {
			return err
		}
	}
	return nil
}

func (r *removal) removeName(x reference.Named) error {
	if err := r.s.dir.removeName(x); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	r.refs = slices.DeleteFunc(r.refs, func(y reference.Named) bool { return y.String() == x.String() })
	r.done = append(r.done, Deleted{Untagged: reference.FamiliarString(x)})
	return nil
}

// removeImage removes the image's folder and dooms its layers; for an image so
// damaged that they are not known, whatever layers nothing needs.
func (r *removal) removeImage() ([]doomedLayer, error) {
	d := r.s.dir
	candidates := d.chains
	if img, err := d.readImage(r.id); err == nil {
		candidates = func() ([]digest.Digest, error) { return img.chains(), nil }
	}
	var err error
	if r.trash, err = d.discard(d.image(r.id)); err != nil {
		return nil, fmt.Errorf("remove image %s: %w", r.id, err)
	}
	r.done = append(r.done, Deleted{Deleted: r.id})
	return d.doom(context.Background(), candidates)
}

// isSingleReference tells whether names are one tag, and nothing else than names
// by digest in the tag's repository, or names by digest in one repository.
func isSingleReference(refs []reference.Named) bool {
	tags := 0
	for _, x := range refs {
		if !isDigest(x) {
			tags++
		}
		if x.Name() != refs[0].Name() {
			return false
		}
	}
	return tags <= 1
}
