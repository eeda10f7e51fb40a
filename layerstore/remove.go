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
	// KeepParents leaves images without a name that nothing is left of which was made from them.
	KeepParents bool
	// Building tells whether something is being made from an image: it stays. nil means that
	// nothing is.
	Building func(image digest.Digest) bool
}

// An InUseError refuses to remove an image or a name of it.
type InUseError struct {
	Ref       string        // what was to be removed, if a name
	Image     digest.Digest // the image, or that of the name
	Container string        // that uses the image; "" if its names are the reason
	Running   bool          // the container runs: Force does not help
	Child     bool          // another image was made from the image: Force does not help
	Building  bool          // an image is being made from the image: Force does not help
}

// Error is worded as docker words it.
func (e *InUseError) Error() string {
	switch {
	case e.Child:
		return fmt.Sprintf("conflict: unable to delete %s (cannot be forced) - image has dependent child images", shortID(e.Image.Encoded()))
	case e.Building:
		return fmt.Sprintf("conflict: unable to delete %s (cannot be forced) - image is being used by a build", shortID(e.Image.Encoded()))
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
// goes with its last name unless another was made from it, and with it the images that it was
// made from, as far as they have no names, no users and no other children, and all layers
// that nothing else needs. An ID removes the image if its names are in one repository. The list says what went,
// in order, also when there is an error. That is ErrNotFound, ErrAmbiguous, an
// *InUseError or the datastore's.
func (s *Store) Remove(ref string, o RemoveOptions) ([]Deleted, error) {
	r := removal{s: s, ref: ref, o: o}
	doomed, err := r.unlink()
	swept, removeErr := s.dir.bury(doomed, r.trash...)
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

	pins     []*pin                // of all containers
	children map[digest.Digest]int // how many images were made from each

	trash  []string        // folders of images, out of sight
	chains []digest.Digest // layers of these
	broken bool            // of one of these they are not known
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
	if r.pins, err = d.pins(); err != nil {
		return nil, err
	}
	if r.children, err = d.children(); err != nil {
		return nil, err
	}
	users := r.users(r.id)
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
	parent, err := r.removeImage(r.id)
	for err == nil && !r.o.KeepParents && parent != "" && len(names[parent]) == 0 && r.children[parent] == 0 &&
		len(r.users(parent)) == 0 && !r.building(parent) {
		parent, err = r.removeImage(parent)
	}
	doomed, doomErr := d.doom(context.Background(), r.candidates)
	return doomed, errors.Join(err, doomErr)
}

// users returns the containers that use an image, those that run first.
func (r *removal) users(id digest.Digest) []*pin {
	var users []*pin
	for _, p := range r.pins {
		if p.Image == id {
			users = append(users, p)
		}
	}
	slices.SortStableFunc(users, func(a, b *pin) int {
		switch x, y := r.runs(a), r.runs(b); {
		case x == y:
			return 0
		case x:
			return -1
		}
		return 1
	})
	return users
}

func (r *removal) building(id digest.Digest) bool { return r.o.Building != nil && r.o.Building(id) }

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
	// The name is gone in any case; the image of a running container stays, and one that another was made from.
	return len(r.refs) > 0 || len(users) > 0 && (!r.o.Force || r.runs(users[0])) || r.children[r.id] > 0 || r.building(r.id), nil
}

// untagAll removes all names of the image, or refuses.
func (r *removal) untagAll(users []*pin) error {
	switch {
	case r.children[r.id] > 0:
		return &InUseError{Image: r.id, Child: true}
	case r.building(r.id):
		return &InUseError{Image: r.id, Building: true}
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

// removeImage removes an image's folder, and returns the image that it was made from, if that is known and there.
func (r *removal) removeImage(id digest.Digest) (parent digest.Digest, err error) {
	d := r.s.dir
	img, damage := d.readImage(id)
	trash, err := d.discard(d.image(id))
	r.trash = append(r.trash, trash)
	if err != nil {
		return "", fmt.Errorf("remove image %s: %w", id, err)
	}
	r.done = append(r.done, Deleted{Deleted: id})
	if damage != nil {
		r.broken = true
		return "", nil
	}
	r.chains = append(r.chains, img.chains()...)
	if parent = img.Descent.Parent; parent == "" {
		return "", nil
	}
	r.children[parent]--
	there, err := exists(d.image(parent))
	if err != nil || !there {
		return "", err
	}
	return parent, nil
}

// candidates are the layers that may not be needed any more: of the removed images, or, if one of these was
// so damaged that they are not known, all.
func (r *removal) candidates() ([]digest.Digest, error) {
	if r.broken {
		return r.s.dir.chains()
	}
	slices.Sort(r.chains)
	return slices.Compact(r.chains), nil
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
