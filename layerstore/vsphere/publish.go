//go:build linux

package vsphere

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"vic/layerstore"
	"vic/vmdk"
)

// Published are the disks of an image on a datastore.
type Published struct {
	// Disks are the names of the disks, top first, without the base disk.
	Disks []string
	// Sent is how many bytes of extents were sent, for whomever that was.
	Sent int64
}

// Publish brings the disks of an image to the datastore that are not there, several at once, and notes that this
// VCH has the image. What was sent of a layer stays if the rest fails, and is not sent again. An image that this Store
// has published before costs nothing.
func (s *Store) Publish(ctx context.Context, from *layerstore.Store, img *layerstore.Image) (_ *Published, err error) {
	if disks := s.published(from, img); disks != nil {
		return &Published{Disks: disks}, nil
	}
	p := s.begin(ctx, from)
	defer func() { err = errors.Join(err, p.Close()) }()
	return p.commit(img.ID, img.Chain())
}

// published are the disks of an image that was published by this Store and has the same in the local one, else nil.
func (s *Store) published(from *layerstore.Store, img *layerstore.Image) []string {
	s.mu.Lock()
	disks := s.images[img.ID]
	s.mu.Unlock()
	if disks == nil {
		return nil
	}
	top, err := from.OpenDisk(img.Chain())
	if err != nil {
		return nil // Publish finds out
	}
	defer top.Close() // read only
	if of, err := chainOf(disks[0]); !s.encoding.uploaded() && err == nil && of == top.Chains()[0] {
		return disks // which have the layers in some other way
	}
	same := slices.EqualFunc(disks, top.Chains(), func(name string, chain digest.Digest) bool {
		of, err := chainOf(name)
		return err == nil && of == chain
	})
	if !same {
		return nil
	}
	return disks
}

// Begin implements layerstore.Mirror: the disks of the image's layers are sent while others still come.
func (s *Store) Begin(ctx context.Context, from *layerstore.Store) (layerstore.Mirroring, error) {
	if err := s.d.s.available(); err != nil {
		return nil, err
	}
	return s.begin(ctx, from), nil
}

// A publication brings the disks of one image to the datastore. It is a layerstore.Mirroring.
type publication struct {
	s    *Store
	from *layerstore.Store
	ctx  context.Context
	stop context.CancelFunc
	wg   sync.WaitGroup // of choosing

	choosing chan struct{} // holds one while disks are chosen
	looked   bool          // guarded by choosing, like claims
	claims   []*claim

	mu    sync.Mutex
	next  digest.Digest             // the highest layer told of, whose chain is to be chosen
	again bool                      // there is a next
	disks map[digest.Digest][]*disk // that it uses; of one layer several if the chain below has changed
	holds map[digest.Digest]*disk   // which of several layers' disks has the content of one
	image digest.Digest             // that is being committed; Store.committing has it

	full bool // the datastore was; set by commit
}

func (s *Store) begin(ctx context.Context, from *layerstore.Store) *publication {
	p := &publication{s: s, from: from, choosing: make(chan struct{}, 1), disks: map[digest.Digest][]*disk{}}
	p.ctx, p.stop = context.WithCancel(ctx)
	return p
}

// Layer implements layerstore.Mirroring. Disks of several layers wait for the whole image.
func (p *publication) Layer(chain digest.Digest) {
	if !p.s.encoding.uploaded() {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.next = chain
	if p.again {
		return // whoever chooses takes this one
	}
	p.again = true
	p.wg.Go(func() {
		select {
		case p.choosing <- struct{}{}:
		case <-p.ctx.Done():
			return
		}
		defer func() { <-p.choosing }()
		p.mu.Lock()
		chain := p.next
		p.again = false
		p.mu.Unlock()
		if _, err := p.chain(chain); err != nil { // commit does it again, and tells
			p.s.log.Debug("bring a layer to the datastore", "layer", chain, "error", err)
		}
	})
}

// Sent implements layerstore.Mirroring.
func (p *publication) Sent(chain digest.Digest) (sent, total int64, done bool) {
	p.mu.Lock()
	d := p.holds[chain]
	if disks := p.disks[chain]; len(disks) > 0 {
		d = disks[len(disks)-1]
	}
	p.mu.Unlock()
	if d == nil {
		l, err := p.from.Layer(chain)
		return 0, 0, err == nil && l.Disk != chain // it has no disk of its own
	}
	if d.chain == chain { // else the bytes are told of with another layer
		sent, total = d.sent.Load(), d.total.Load()
	}
	select {
	case <-d.done:
		return sent, total, d.err == nil
	default:
		return sent, total, false
	}
}

// Commit implements layerstore.Mirroring.
func (p *publication) Commit(image, top digest.Digest) error {
	_, err := p.commit(image, top)
	return err
}

func (p *publication) commit(image, top digest.Digest) (*Published, error) {
	out, err := p.finish(image, top)
	if err != nil {
		p.full = errors.As(err, new(*FullError))
		return nil, fmt.Errorf("bring image %s to %s: %w", image.Encoded()[:12], p.s.d.Path("."), err)
	}
	return out, nil
}

func (p *publication) finish(image, top digest.Digest) (*Published, error) {
	select {
	case p.choosing <- struct{}{}:
	case <-p.ctx.Done():
		return nil, p.ctx.Err()
	}
	disks, err := p.chain(top)
	<-p.choosing
	if err != nil {
		return nil, err
	}
	out := &Published{}
	for _, d := range slices.Backward(disks) { // what fails first is lowest
		select {
		case <-d.done:
		case <-p.ctx.Done():
			return nil, p.ctx.Err()
		}
		if d.err != nil {
			return nil, d.err
		}
	}
	for _, d := range disks {
		out.Disks = append(out.Disks, d.name)
		out.Sent += d.total.Load()
	}
	p.s.mu.Lock()
	p.s.committing[image]++
	p.s.mu.Unlock()
	p.image = image
	if err := p.s.putJSON(p.ctx, p.s.imageFile(image), imageRecord{image, out.Disks}); err != nil {
		return nil, err
	}
	p.s.mu.Lock()
	p.s.images[image] = out.Disks
	p.s.mu.Unlock()
	return out, nil
}

// Close implements layerstore.Mirroring.
func (p *publication) Close() error {
	p.stop()
	p.wg.Wait()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(p.ctx), partingTime)
	defer cancel()
	var errs []error
	for _, disks := range p.disks {
		for _, d := range disks {
			errs = append(errs, p.s.leave(ctx, d))
		}
	}
	for _, c := range p.claims {
		errs = append(errs, p.s.drop(ctx, c))
	}
	if p.image != "" {
		p.s.mu.Lock()
		if p.s.committing[p.image]--; p.s.committing[p.image] == 0 {
			delete(p.s.committing, p.image)
		}
		p.s.mu.Unlock()
	}
	if p.full { // what of it is whole would be for the next pull, but takes the room that others need
		_, err := p.s.Sweep(ctx)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// chain chooses the disks of a layer's chain, top first, and has those sent that are not there. Call it with choosing held.
func (p *publication) chain(top digest.Digest) ([]*disk, error) {
	local, err := p.from.OpenDisk(top)
	if err != nil {
		return nil, err
	}
	chains := local.Chains()
	local.Close()  // read only
	if !p.looked { // others bring disks as well
		if err := p.s.look(p.ctx); err != nil {
			return nil, err
		}
		p.looked = true
	}
	for try := 1; ; try++ {
		choose := p.choose
		if !p.s.encoding.uploaded() {
			choose = p.chooseFew
		}
		disks, gone, err := choose(chains)
		if err != nil || gone == "" {
			return disks, err
		}
		if try == maxChoices {
			return nil, fmt.Errorf("disk %s was removed while it was wanted, the last of %d times", gone, try)
		}
		p.s.forget(gone)
	}
}

// partingTime is how long a publication that has ended takes at most to remove its claims.
const partingTime = 30 * time.Second

// maxChoices bounds how often disks are removed by others between being found and being wanted.
const maxChoices = 8

// choose finds for each disk of a chain, top first, the one that the publication uses already, that is on its way, or that is on the
// datastore, or begins to send it. It returns the name of one that was removed meanwhile, if there is one.
func (p *publication) choose(chains []digest.Digest) (disks []*disk, gone string, err error) {
	s := p.s
	var parent *disk
	below := s.base
	var found, made []*disk
	for _, chain := range slices.Backward(chains) {
		d := p.uses(chain, parent)
		if d == nil {
			d = &disk{chain: chain, parent: parent, done: make(chan struct{}), users: 1}
			cid := vmdk.CIDFor("vsphere " + chain.String())
			if d.name, err = s.find(p.ctx, chain, d.below(), cid); err != nil {
				return nil, "", err
			}
			if d.name != "" {
				found = append(found, d)
				close(d.done)
			} else {
				d.name = newName(chain)
				made = append(made, d)
			}
			d.desc = s.child(below, d.name+"-delta.vmdk", d.below()+".vmdk", cid)
		}
		parent, below = d, d.desc
		disks = append(disks, d)
	}
	slices.Reverse(disks)
	gone, again, err := p.take(found, made)
	switch {
	case again:
		return p.choose(chains)
	case err != nil || gone != "":
		return nil, gone, err
	}
	return disks, "", nil
}

// take uses disks that were found, and begins to send those that are to be made. It says first in a claim that they are wanted, and
// then looks whether the found ones are still there: gone is the name of one that is not. Again says that another publication began to send
// one meanwhile: all above are to stand on its disk.
func (p *publication) take(found, made []*disk) (gone string, again bool, err error) {
	if len(found)+len(made) == 0 {
		return "", false, nil
	}
	var names []string
	for _, d := range slices.Concat(found, made) {
		names = append(names, d.name)
	}
	c, err := p.s.claim(p.ctx, names)
	p.claims = append(p.claims, c)
	if err != nil {
		return "", false, err
	}
	for _, d := range found {
		if _, err := p.s.record(p.ctx, d.name); errors.Is(err, fs.ErrNotExist) {
			return d.name, false, nil
		} else if err != nil {
			return "", false, err
		}
		p.use(d)
	}
	for _, d := range made {
		if !p.s.start(p.ctx, p.from, d, c) {
			return "", true, nil
		}
		p.use(d)
	}
	return "", false, nil
}

// uses returns the disk of a layer over a parent that the publication uses, or uses from now on since it is on its way. It is nil if there
// is none.
func (p *publication) uses(chain digest.Digest, parent *disk) *disk {
	below := (&disk{parent: parent}).below()
	p.mu.Lock()
	i := slices.IndexFunc(p.disks[chain], func(d *disk) bool { return d.below() == below })
	var d *disk
	if i >= 0 {
		d = p.disks[chain][i]
	}
	p.mu.Unlock()
	if d == nil {
		if d = p.s.join(sendKey{chain, below}); d != nil {
			p.use(d)
		}
	}
	return d
}

func (p *publication) use(d *disk) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.disks[d.chain] = append(p.disks[d.chain], d)
}

// find returns the name of a disk of a layer over a parent, "" if there is none.
func (s *Store) find(ctx context.Context, chain digest.Digest, parent string, cid uint32) (string, error) {
	s.mu.Lock()
	candidates := slices.Clone(s.disks[chain])
	s.mu.Unlock()
	for _, name := range candidates {
		rec, err := s.record(ctx, name)
		if errors.Is(err, fs.ErrNotExist) {
			s.forget(name)
			continue
		}
		if err != nil {
			return "", err
		}
		if rec.Chain == chain && rec.Parent == parent && rec.CID == fmt.Sprintf("%08x", cid) {
			return name, nil
		}
	}
	return "", nil
}
