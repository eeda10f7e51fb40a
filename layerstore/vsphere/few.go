//go:build linux

package vsphere

import (
	"errors"
	"io/fs"
	"slices"

	"github.com/opencontainers/go-digest"
)

// chooseFew is choose for disks that the server makes. Each costs some calls of it, so they hold as many layers each as
// sharing allows: what is made begins above the topmost disk that is there or on its way, and ends where another image of the local store
// leaves the chain. Imported disks hold all layers.
func (p *publication) chooseFew(chains []digest.Digest) (disks []*disk, gone string, err error) {
	s := p.s
	there, end, err := p.standing(chains)
	if err != nil {
		return nil, "", err
	}
	var made []*disk // bottom first
	if s.appliance != nil && s.encoding == BlockWriter {
		made, err = p.planBlocks(chains[:end], there)
	} else if end > 0 {
		there = nil
		made = []*disk{{chain: chains[0], alone: true, layers: len(chains)}}
	}
	if err != nil {
		return nil, "", err
	}
	for _, d := range made {
		d.name, d.done, d.users = newName(d.chain), make(chan struct{}), 1
		disks = append([]*disk{d}, disks...)
	}
	var found []*disk
	for _, d := range there {
		if !p.has(d) {
			found = append(found, d)
		}
	}
	disks = append(disks, there...)
	p.hold(chains, disks)
	gone, again, err := p.take(found, made)
	switch {
	case again:
		return p.chooseFew(chains)
	case err != nil || gone != "":
		return nil, gone, err
	}
	return disks, "", nil
}

// hold notes which disk has the content of each layer.
func (p *publication) hold(chains []digest.Digest, disks []*disk) {
	holds := map[digest.Digest]*disk{}
	var d *disk
	for _, chain := range chains {
		if len(disks) > 0 && disks[0].chain == chain {
			d, disks = disks[0], disks[1:]
		}
		holds[chain] = d
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.holds = holds
}

// standing finds the topmost layer of a chain that has a disk which is there or on its way, and returns the disks that show it, top
// first, and the layer's index: len(chains) if there is none.
func (p *publication) standing(chains []digest.Digest) ([]*disk, int, error) {
	for i, chain := range chains {
		d := p.joined(chain)
		if d == nil {
			var err error
			if d, err = p.found(chain); err != nil {
				return nil, 0, err
			}
		}
		if d == nil {
			continue
		}
		disks := []*disk{d}
		for x := d.parent; x != nil; x = x.parent {
			disks = append(disks, p.share(x))
		}
		return disks, i, nil
	}
	return nil, len(chains), nil
}

// joined returns a disk of a layer that the publication uses, or uses from now on since it is on its way; nil is none.
func (p *publication) joined(chain digest.Digest) *disk {
	p.mu.Lock()
	var d *disk
	if all := p.disks[chain]; len(all) > 0 {
		d = all[len(all)-1]
	}
	p.mu.Unlock()
	if d == nil {
		if d = p.s.joinAny(chain); d != nil {
			p.use(d)
		}
	}
	return d
}

// share returns a disk for use that another publication has under one of its own: the same if it is on its way, else one that was found.
func (p *publication) share(d *disk) *disk {
	if p.has(d) {
		return d
	}
	if d.claim != nil && p.s.joinAgain(d) {
		p.use(d)
		return d
	}
	return &disk{chain: d.chain, name: d.name, parent: d.parent, alone: d.alone, done: closed, users: 1}
}

func (p *publication) has(d *disk) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Contains(p.disks[d.chain], d)
}

// closed is of disks that are there.
var closed = func() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

// found finds a disk of a layer that is complete, and so are those below, which are its parents; nil is none.
func (p *publication) found(chain digest.Digest) (*disk, error) {
	s := p.s
	s.mu.Lock()
	candidates := slices.Clone(s.disks[chain])
	s.mu.Unlock()
	for _, top := range candidates {
		var first, above *disk
		for rec, err := range s.stack(p.ctx, top) {
			if errors.Is(err, fs.ErrNotExist) { // it goes, and so does what is on it
				s.forget(rec.name)
				first = nil
				break
			}
			if err != nil {
				return nil, err
			}
			d := &disk{chain: rec.Chain, name: rec.name, alone: rec.Parent == "", done: closed, users: 1}
			if above == nil {
				first = d
			} else {
				above.parent = d
			}
			above = d
		}
		if first != nil && first.chain == chain {
			return first, nil
		}
	}
	return nil, nil
}

// ends are the topmost layers that other images of the local store share with a chain.
func (p *publication) ends(chains []digest.Digest) (map[digest.Digest]bool, error) {
	images, err := p.from.Images()
	if err != nil {
		return nil, err
	}
	ends := map[digest.Digest]bool{}
	for _, img := range images {
		has := map[digest.Digest]bool{}
		for _, l := range img.Layers {
			has[l.Chain] = true
		}
		if i := slices.IndexFunc(chains, func(chain digest.Digest) bool { return has[chain] }); i >= 0 {
			ends[chains[i]] = true
		}
	}
	return ends, nil
}

// planBlocks plans the disks for layers over those that are there, bottom first.
func (p *publication) planBlocks(chains []digest.Digest, there []*disk) ([]*disk, error) {
	if len(chains) == 0 {
		return nil, nil
	}
	ends, err := p.ends(chains)
	if err != nil {
		return nil, err
	}
	var made []*disk
	var parent *disk
	if len(there) > 0 {
		parent = there[0]
	}
	for end := len(chains); end > 0; {
		top := end - 1
		for top > 0 && !ends[chains[top]] {
			top--
		}
		parent = &disk{chain: chains[top], parent: parent, layers: end - top}
		made = append(made, parent)
		end = top
	}
	return made, nil
}
