package layerstore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
)

// checkImages checks what is known of each image, and that its layers are there.
func (c *checker) checkImages(ctx context.Context) error {
	ids, err := c.d.imageIDs()
	if err != nil {
		return err
	}
	missing := make(map[digest.Digest]bool)
	for _, id := range ids {
		if err := ctx.Err(); err != nil {
			return err
		}
		img, err := c.d.readImage(id)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed meanwhile
		}
		if err != nil {
			c.image(id, c.d.image(id), "%v", err)
			continue
		}
		for _, l := range img.Layers {
			there, err := exists(c.d.layer(l.Chain))
			if err != nil {
				return err
			}
			if still, err := exists(c.d.image(id)); !there && still && err == nil && !missing[l.Chain] {
				missing[l.Chain] = true
				c.layer(l.Chain, c.d.layer(l.Chain), "layer %s is missing", l.Chain)
			}
		}
	}
	return nil
}

// checkDisks looks for files without a record.
func (c *checker) checkDisks(ctx context.Context) error {
	names, err := listDir(c.d.disks())
	if err != nil {
		return err
	}
	for _, name := range names {
		path := filepath.Join(c.d.disks(), name)
		if name == baseName+".vmdk" || name == baseName+extentSuffix {
			continue
		}
		chain, ok := parseDiskName(name)
		if !ok {
			c.report(Finding{About: AboutFile, Path: path, Problem: "is no disk of a layer", Advice: "find out where it comes from, and move it elsewhere"})
			continue
		}
		if err := c.checkOrphan(path, chain); err != nil {
			return err
		}
	}
	return nil
}

// checkOrphan reports a disk file without a record, unless somebody is at it.
func (c *checker) checkOrphan(path string, chain digest.Digest) error {
	if there, err := exists(c.d.layer(chain)); there || err != nil {
		return err
	}
	lock, err := c.d.tryLockChain(chain)
	if lock == nil || err != nil {
		return err
	}
	defer lock.unlock()
	if there, err := exists(c.d.layer(chain)); there || err != nil {
		return err
	}
	if there, err := exists(path); !there || err != nil {
		return err
	}
	c.report(Finding{About: AboutFile, ID: chain.String(), Path: path, Problem: "its layer has no record", Advice: "vic gc", Harmless: true})
	return nil
}

func (c *checker) checkNames(ctx context.Context) error {
	files, err := listDir(c.d.names())
	if err != nil {
		return err
	}
	for _, file := range files {
		path := filepath.Join(c.d.names(), file)
		r, _, err := c.d.readName(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			c.report(Finding{About: AboutName, ID: file, Path: path, Problem: err.Error(), Advice: "vic check --repair; or remove it and pull the image again"})
			continue
		}
		there, err := exists(c.d.image(r.Image))
		if err != nil {
			return err
		}
		if still, _ := exists(path); !there && still {
			c.image(r.Image, path, "image %s is not there", r.Image)
		}
	}
	return nil
}

func (c *checker) checkContainers(ctx context.Context) error {
	return c.eachContainer(ctx, c.checkContainer)
}

// eachContainer calls check for each container.
func (c *checker) eachContainer(ctx context.Context, check func(id string) error) error {
	ids, err := listDir(c.d.containers())
	if err != nil {
		return err
	}
	for _, id := range ids {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := check(id); err != nil {
			return err
		}
	}
	return nil
}

// checkContainer checks what does not change while a container runs: what its
// disk stands on. Nobody makes or removes a container meanwhile.
func (c *checker) checkContainer(id string) error {
	lock, err := c.d.lockExclusive()
	if err != nil {
		return err
	}
	defer lock.unlock()
	p, err := c.d.readPin(id)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // it has no disk yet
	}
	remove := fmt.Sprintf("remove container %s", id)
	if err != nil {
		c.container(id, c.d.pin(id), remove+"; until then no layer can be removed", "%v", err)
		return nil
	}
	advice := fmt.Sprintf("pull image %s again; if that does not help, %s", p.Image, remove)
	for _, chain := range p.Layers {
		if there, err := exists(c.d.layer(chain)); err != nil {
			return err
		} else if !there && !slices.ContainsFunc(c.pinsOf(chain), func(q *pin) bool { return q.id < id }) && len(c.users[chain]) == 0 {
			c.layer(chain, c.d.layer(chain), "layer %s is missing", chain) // else it was said before
		}
	}
	path := filepath.Join(c.d.container(id), containerDisk)
	desc, err := c.d.readDescriptor(path)
	if errors.Is(err, fs.ErrNotExist) {
		c.report(Finding{About: AboutContainer, ID: id, Path: c.d.container(id), Problem: "has no disk: making it was interrupted", Advice: remove, Harmless: true})
		return nil
	}
	if err != nil {
		c.container(id, path, remove, "%v", err)
		return nil
	}
	if _, err := checkRedo(c.d.container(id)); err != nil {
		c.container(id, filepath.Join(c.d.container(id), redoFile), remove, "%v", err)
	}
	if want := "../../disks/" + diskName(p.Disk) + ".vmdk"; desc.ParentFileNameHint != want {
		c.container(id, path, advice, "its parent is %q, not %q", desc.ParentFileNameHint, want)
		return nil
	}
	parent, err := c.d.readDescriptor(c.d.disk(p.Disk))
	if err == nil && !c.checkParentCID(p.Disk, parent, desc) {
		c.container(id, path, advice, "made over CID %08x; the disk below has %08x", desc.ParentCID, parent.CID)
	}
	return nil
}

// checkTmp looks for what Open would remove.
func (c *checker) checkTmp(ctx context.Context) error {
	lock, err := c.d.lockExclusive()
	if err != nil {
		return err
	}
	defer lock.unlock()
	names, err := listDir(c.d.tmp())
	if err != nil {
		return err
	}
	for _, name := range names {
		path := filepath.Join(c.d.tmp(), name)
		live := false
		if chain, ok := parseTmpName(name); ok {
			l, err := c.d.tryLockChain(chain)
			if err != nil {
				return err
			}
			if live = l == nil; !live {
				l.unlock()
			}
		} else if strings.HasPrefix(name, leasePrefix) {
			if live, err = isLocked(path); err != nil {
				return err
			}
		} else if strings.HasPrefix(name, trashPrefix) {
			live = true // somebody may be at it
		}
		if !live {
			c.report(Finding{About: AboutFile, Path: path, Problem: "left by a process that died", Advice: "any vic command removes it", Harmless: true})
		}
	}
	return nil
}
