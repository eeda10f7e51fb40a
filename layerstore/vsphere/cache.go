package vsphere

import (
	"container/list"
	"context"
	"io"
	"sync"
)

const (
	// chunkSize is how much of a file is asked for at least: a request costs as much as some hundred KiB.
	chunkSize = 256 << 10
	// mostAhead is how many chunks are asked for at once at most.
	mostAhead = 16
	// cachedChunks is how many a Store keeps: 64 MiB.
	cachedChunks = 256
)

// A cache keeps what was read last of the files of a Store's disks, which do not change, for all that read them. What is read in
// order is read ahead: each request is for twice as much as the one that brought the chunk before it. Who misses one that
// another has asked for waits for that.
type cache struct {
	mu     sync.Mutex // guards what follows; not held while reading
	chunks map[chunkKey]*list.Element
	order  list.List // of *chunk, that used last in front
}

type chunkKey struct {
	file string
	i    int64
}

// A chunk is a piece of a file, on its way until ready is closed.
type chunk struct {
	key   chunkKey
	group int // how many came with it, itself included
	ready chan struct{}
	p     []byte
	err   error
}

func newCache() *cache { return &cache{chunks: map[chunkKey]*list.Element{}} }

// take returns chunk i of a file, or reserves it and up to want that follow it, below end, for the caller to bring.
func (c *cache) take(file string, i, want, end int64) (there *chunk, reserved []*chunk) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.chunks[chunkKey{file, i}]; e != nil {
		c.order.MoveToFront(e)
		return e.Value.(*chunk), nil
	}
	if e := c.chunks[chunkKey{file, i - 1}]; e != nil {
		want = max(want, 2*int64(e.Value.(*chunk).group))
	}
	end = min(end, i+min(want, mostAhead))
	for ; i < end && c.chunks[chunkKey{file, i}] == nil; i++ {
		reserved = append(reserved, &chunk{key: chunkKey{file, i}, ready: make(chan struct{})})
	}
	for _, x := range reserved {
		x.group = len(reserved)
		c.chunks[x.key] = c.order.PushFront(x)
	}
	for c.order.Len() > cachedChunks {
		c.drop(c.order.Back().Value.(*chunk))
	}
	return nil, reserved
}

// drop forgets a chunk. Call it with mu held.
func (c *cache) drop(x *chunk) {
	if e := c.chunks[x.key]; e != nil && e.Value.(*chunk) == x {
		c.order.Remove(e)
		delete(c.chunks, x.key)
	}
}

// A remoteFile reads a file of a datastore that does not change.
type remoteFile struct {
	ctx   context.Context // of who opened it, for io.ReaderAt passes none
	d     *Datastore
	name  string
	size  int64
	cache *cache
}

func (f *remoteFile) ReadAt(p []byte, off int64) (n int, err error) {
	want := len(p)
	if off >= f.size {
		return 0, io.EOF
	}
	p = p[:min(int64(want), f.size-off)]
	for n < len(p) {
		at := off + int64(n)
		text, err := f.chunk(at/chunkSize, (off+int64(len(p))+chunkSize-1)/chunkSize-at/chunkSize)
		if err != nil {
			return n, err
		}
		n += copy(p[n:], text[at%chunkSize:])
	}
	if n < want {
		return n, io.EOF
	}
	return n, nil
}

// chunk returns a piece of the file, whose content the caller does not change. Want is how many from there on will be asked for.
func (f *remoteFile) chunk(i, want int64) ([]byte, error) {
	for {
		there, reserved := f.cache.take(f.name, i, want, (f.size+chunkSize-1)/chunkSize)
		if there == nil {
			return f.bring(reserved)
		}
		select {
		case <-there.ready:
		case <-f.ctx.Done():
			return nil, f.ctx.Err()
		}
		if there.err == nil {
			return there.p, nil
		}
		// Whoever brought it may have been told to end. It is no longer there.
	}
}

// bring reads chunks that follow one another, and returns the first.
func (f *remoteFile) bring(chunks []*chunk) ([]byte, error) {
	off := chunks[0].key.i * chunkSize
	p := make([]byte, min(int64(len(chunks))*chunkSize, f.size-off))
	err := f.d.ReadRange(f.ctx, f.name, p, off)
	f.cache.mu.Lock()
	defer f.cache.mu.Unlock()
	for k, x := range chunks {
		if x.err = err; err == nil {
			x.p = p[k*chunkSize : min((k+1)*chunkSize, len(p))]
		} else {
			f.cache.drop(x)
		}
		close(x.ready)
	}
	return chunks[0].p, err
}
