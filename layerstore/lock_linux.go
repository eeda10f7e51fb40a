package layerstore

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// A fileLock is a lock on some bytes of a file, held against every other
// fileLock on them, in this process or another; never against the reads and
// writes of the file. It ends with unlock or with the process. These are open
// file description locks (fcntl(2), F_OFD_SETLK): unlike flock(2) they lock
// ranges, so the one file STORE/lock serves all layers and no lock file is ever
// left behind; unlike POSIX locks they do not end when any descriptor of the
// file is closed.
type fileLock struct{ f *os.File }

// useByte is the byte of STORE/lock that Store.lockShared and
// Store.lockExclusive lock.
const useByte = 0

// chainByte is the byte of STORE/lock that stands for a layer. Two chain IDs
// with equal first 62 bits would wait for each other needlessly.
func chainByte(chain digest.Digest) int64 {
	var b [8]byte
	if _, err := hex.Decode(b[:], []byte(chain.Encoded()[:16])); err != nil {
		panic("layerstore: chain ID " + chain + " was not validated")
	}
	return 1<<62 | int64(binary.BigEndian.Uint64(b[:])>>2)
}

// lockRange opens path and locks n bytes from off (n = 0: to the end of all
// files). If it does not block and somebody else has the lock, the lock it
// returns is nil.
func lockRange(path string, typ int16, off, n int64, block bool) (*fileLock, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	cmd := unix.F_OFD_SETLK
	if block {
		cmd = unix.F_OFD_SETLKW
	}
	for {
		err = unix.FcntlFlock(f.Fd(), cmd, &unix.Flock_t{Type: typ, Start: off, Len: n})
		if err != unix.EINTR {
			break
		}
	}
	if err == nil {
		return &fileLock{f}, nil
	}
	f.Close()
	if !block && (err == unix.EAGAIN || err == unix.EACCES) {
		return nil, nil
	}
	return nil, fmt.Errorf("lock %s: %w", path, err)
}

// unlock gives the lock back. It may be called once.
func (l *fileLock) unlock() { l.f.Close() }

// lockShared is held, briefly, by whatever makes a layer needed that may not
// have been before: who writes a lease, an image, a name or a container's pin.
// It blocks while a sweep decides what to remove.
func (d Dir) lockShared() (*fileLock, error) {
	return lockRange(d.lock(), unix.F_RDLCK, useByte, 1, true)
}

// lockExclusive is held, briefly, while a sweep decides what to remove.
func (d Dir) lockExclusive() (*fileLock, error) {
	return lockRange(d.lock(), unix.F_WRLCK, useByte, 1, true)
}

// tryLockChain locks a layer, there or to be: whoever holds the lock may make
// or remove its files. It returns nil if somebody else does.
func (d Dir) tryLockChain(chain digest.Digest) (*fileLock, error) {
	return lockRange(d.lock(), unix.F_WRLCK, chainByte(chain), 1, false)
}

// lockChain waits for a layer's lock. It polls: a blocking fcntl could not be
// cancelled, and the wait is for another process's download.
func (d Dir) lockChain(ctx context.Context, chain digest.Digest) (*fileLock, error) {
	for wait := 5 * time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		l, err := d.tryLockChain(chain)
		if l != nil || err != nil {
			return l, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(wait):
		}
	}
}

// isLocked tells whether somebody holds a lock on a file of its own. A file
// that is gone is not locked.
func isLocked(path string) (bool, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	lk := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &lk); err != nil {
		return false, fmt.Errorf("read lock of %s: %w", path, err)
	}
	return lk.Type != unix.F_UNLCK, nil
}
