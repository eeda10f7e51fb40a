package layerstore

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"slices"
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

// RepairOptions are how Repair goes about it.
type RepairOptions struct {
	CheckOptions
	// Fetch finds an image in its registry, by a name that the store has for it. nil means
	// that nothing is fetched.
	Fetch func(ctx context.Context, name reference.Named) (Source, error)
	// Drop removes images that cannot be repaired, with their names and the layers that
	// nothing else needs.
	Drop bool
	// Pulled is told of layers on their way, as PullOptions.Progress is. nil is silent.
	Pulled func(ProgressEvent)
}

// A Repaired is one thing that Repair did.
type Repaired struct {
	About string `json:"about"` // as in Finding
	ID    string `json:"id"`
	Done  string `json:"done"` // what was done, in words
}

// Repair checks the store and mends what it can; then it checks again what it has mended, and
// all else except that it does not read it in full, and returns what is still wrong.
//
//   - A layer is made again from another that has the same tar, from what is left of itself,
//     or from its registry. The new disk must have the bytes that the record, or else the
//     disk that is there, has; it takes the place of the old one in one rename, so whoever
//     has the old one open keeps reading that. A layer under a container that runs is left:
//     its VM would not see the new one.
//   - An image's record is fetched again, if its registry still has that image.
//   - The base disk and descriptors are made again.
//   - Files that belong to nothing are removed, and damaged layers that nothing needs.
//
// Nothing of a container is ever touched, and nothing removed that a container or a lease
// holds. A crash leaves a store that another Repair mends: each step is a Pull's or a
// Sweep's, or one rename. found and done are called by the goroutine that calls Repair, with
// what the first check found and with what was done about it.
func (s *Store) Repair(ctx context.Context, o RepairOptions, found func(Finding), done func(Repaired)) (left []Finding, err error) {
	r := repairer{s: s, d: s.dir, o: o, done: done, failed: make(map[string]error)}
	findings, err := r.check(ctx, o.Deep, nil, found)
	if err != nil || len(findings) == 0 {
		return nil, err
	}
	if err := r.mend(ctx, findings); err != nil {
		return nil, fmt.Errorf("repair store: %w", err)
	}
	touched := layersOf(findings)
	left, err = r.check(ctx, o.Deep, touched, nil)
	if err == nil && o.Drop && slices.ContainsFunc(left, func(f Finding) bool { return !f.Harmless }) {
		if err := r.drop(ctx, left); err != nil {
			return nil, fmt.Errorf("repair store: %w", err)
		}
		left, err = r.check(ctx, o.Deep, touched, nil)
	}
	if err != nil {
		return nil, err
	}
	for i, f := range left {
		if why := r.failed[f.About+f.ID]; why != nil {
			left[i].Unrepaired = strings.ReplaceAll(why.Error(), "\n", "; ")
		}
	}
	return left, nil
}

type repairer struct {
	s      *Store
	d      Dir
	o      RepairOptions
	done   func(Repaired)
	failed map[string]error // why, by what a finding is about and its ID
	*census
}

// check is Check, which reads only some layers in full, unless only is nil.
func (r *repairer) check(ctx context.Context, deep bool, only map[digest.Digest]bool, found func(Finding)) ([]Finding, error) {
	var findings []Finding
	c := r.s.newChecker(r.o.CheckOptions, func(f Finding) {
		findings = append(findings, f)
		if found != nil {
			found(f)
		}
	})
	c.o.Deep, c.only = deep || only != nil, only
	if err := c.run(ctx); err != nil {
		return nil, fmt.Errorf("check store: %w", err)
	}
	return findings, nil
}

// layersOf returns the layers that findings are about.
func layersOf(findings []Finding) map[digest.Digest]bool {
	chains := make(map[digest.Digest]bool)
	for _, f := range findings {
		if f.About == AboutLayer {
			chains[digest.Digest(f.ID)] = true
		}
	}
	return chains
}

func (r *repairer) did(about, id, format string, args ...any) {
	r.done(Repaired{about, id, fmt.Sprintf(format, args...)})
}

func (r *repairer) mend(ctx context.Context, findings []Finding) (err error) {
	if r.census, err = r.d.censusOf(); err != nil {
		return err
	}
	tried := make(map[string]bool)
	each := func(about string, mend func(id string) error) error {
		for _, f := range findings {
			if f.About != about || f.Harmless || tried[about+f.ID] {
				continue
			}
			tried[about+f.ID] = true
			if err := mend(f.ID); err != nil {
				r.failed[about+f.ID] = err
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
		}
		return nil
	}
	if err := each(AboutBase, func(string) error { return r.mendBase() }); err != nil {
		return err
	}
	if r.failed[AboutBase] != nil {
		return nil // nothing can be made over it
	}
	bad := layersOf(findings)
	if err := each(AboutImage, func(id string) error { return r.mendImage(ctx, digest.Digest(id), bad) }); err != nil {
		return err
	}
	if r.census, err = r.d.censusOf(); err != nil { // images may have come back
		return err
	}
	if err := each(AboutName, func(file string) error { return r.mendName(ctx, file) }); err != nil {
		return err
	}
	if r.census, err = r.d.censusOf(); err != nil { // and names
		return err
	}
	if err := r.mendLayers(ctx, bad); err != nil {
		return err
	}
	return r.clean(ctx, bad, false) // what is left of them
}

// mendBase makes the base disk again, if that gives what was there.
func (r *repairer) mendBase() error {
	lock, err := r.d.lockExclusive()
	if err != nil {
		return err
	}
	defer lock.unlock()
	if id, err := r.running(""); err != nil {
		return err
	} else if id != "" {
		return &runningError{id}
	}
	v := r.s.info
	const another = "this program makes another base disk than the store was made with"
	if cid, err := r.d.cidWanted("", v.cidOf("")); err != nil {
		return err
	} else if cid != v.cidOf("") {
		return errors.New(another)
	}
	if err := r.d.makeBase(&v); err != nil {
		return err
	}
	if v != r.s.info {
		return errors.Join(errors.New(another), removeAll(r.d.tmpDisk(""), r.d.tmpExtent("")))
	}
	if err := r.d.placeBase(); err != nil {
		return err
	}
	r.did(AboutBase, "", "made the base disk again")
	return nil
}

// mendName finds out again what a name names, if the store has that image.
func (r *repairer) mendName(ctx context.Context, file string) error {
	name, err := url.PathUnescape(file)
	if err != nil || escapeName(name) != file {
		return errors.New("the file's name does not tell the image's")
	}
	ref, err := reference.ParseNamed(name)
	if err != nil {
		return err
	}
	var id digest.Digest
	if c, ok := ref.(reference.Canonical); ok {
		for _, img := range r.images {
			if img.Digest == c.Digest() || img.Manifest.Digest == c.Digest() {
				id = img.ID
			}
		}
	} else {
		src, err := r.fetch(ctx, ref)
		if err != nil {
			return err
		}
		id = digest.FromBytes(src.Config())
	}
	if id == "" {
		return errors.New("the store does not have the image of that digest")
	}
	lock, err := r.d.lockShared()
	if err != nil {
		return err
	}
	defer lock.unlock()
	if _, err := r.d.readImage(id); err != nil {
		return errors.New("the store does not have the image that the registry calls so now")
	}
	if _, err := r.d.setName(ref, id); err != nil {
		return err
	}
	r.did(AboutName, file, "%s names image %s again", reference.FamiliarString(ref), shortID(id.Encoded()))
	return nil
}

func (r *repairer) fetch(ctx context.Context, ref reference.Named) (Source, error) {
	if r.o.Fetch == nil {
		return nil, errors.New("nothing is to be fetched")
	}
	return r.o.Fetch(ctx, ref)
}

// mendImage fetches an image again whose record is damaged or missing: exactly that one. Of its
// layers it makes those again that are damaged or missing, and takes them out of bad.
func (r *repairer) mendImage(ctx context.Context, id digest.Digest, bad map[digest.Digest]bool) error {
	refs := slices.Clone(r.names[id])
	if len(refs) == 0 {
		return errors.New("it has no name, so no registry is known to have it")
	}
	slices.Reverse(refs) // digests first: tags move
	var errs []error
	for _, ref := range refs {
		src, err := r.fetch(ctx, ref)
		if err == nil && digest.FromBytes(src.Config()) != id {
			err = fmt.Errorf("the registry calls another image %s now", reference.FamiliarString(ref))
		}
		if err == nil {
			err = r.restore(ctx, &repairSource{r: r, src: src, repo: ref}, bad)
		}
		if err == nil {
			r.did(AboutImage, id.String(), "fetched the image again as %s", reference.FamiliarString(ref))
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// restore brings a fetched image into the store.
func (r *repairer) restore(ctx context.Context, src *repairSource, bad map[digest.Digest]bool) error {
	plan, err := makePlan(src, r.s.lim)
	if err != nil {
		return err
	}
	var chains []digest.Digest
	for i, l := range plan.layers {
		chains = append(chains, l.chain)
		if !r.d.serves(l.chain, plan.layers[i+1:]) {
			bad[l.chain] = true
		}
	}
	lease, err := r.d.lease(chains)
	if err != nil {
		return err
	}
	defer lease.release()
	if err := r.mendChain(ctx, src, plan.layers, bad); err != nil {
		return err
	}
	for _, l := range plan.layers {
		if bad[l.chain] {
			return fmt.Errorf("layer %s: %w", shortID(l.chain.Encoded()), r.failed[AboutLayer+l.chain.String()])
		}
	}
	_, err = r.s.commitImage(plan, nil)
	return err
}

// running returns a container that runs on a layer, or on the base disk: a hypervisor holds
// locks on the disks that it has open.
func (r *repairer) running(chain digest.Digest) (string, error) {
	for _, p := range r.pins {
		if chain != "" && !slices.Contains(p.Layers, chain) {
			continue
		}
		if locked, err := isLocked(filepath.Join(r.d.container(p.id), containerExtent)); err != nil || locked {
			return p.id, err
		}
	}
	return "", nil
}

// A runningError says that a layer, or the base disk, is left as it is because a container
// runs on it.
type runningError struct{ container string }

func (e *runningError) Error() string {
	return fmt.Sprintf("container %s runs on it: stop it first", shortID(e.container))
}
