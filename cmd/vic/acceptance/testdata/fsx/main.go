// Fsx works on files at random and knows what must be in them. It runs in a container: its
// root disk is the disk under test.
//
//	fsx DIR SEED OPERATIONS
//
// Every file below DIR holds, to begin with, its own name over and over. Four workers, each
// with a share of the files, write, append, cut, punch holes, map, rename, link and remove;
// read back what should be there, of which the page cache is told to forget now and then;
// and sync. At the end fsx prints the SHA-256 of each file as sha256sum does; on its way, on
// standard error, how far it has come.
package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

const (
	workers = 4
	maxFile = 600 << 10
	maxOp   = 64 << 10
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "fsx:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 3 {
		return errors.New("usage: fsx DIR SEED OPERATIONS")
	}
	seed, err := strconv.ParseUint(args[1], 10, 64)
	if err != nil {
		return err
	}
	operations, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	list := make([]*worker, workers)
	for i := range list {
		list[i] = &worker{dir: args[0], id: i, rnd: rand.New(rand.NewPCG(seed, uint64(i))), files: map[string]*file{}}
	}
	n := 0
	err = filepath.WalkDir(args[0], func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		name, err := filepath.Rel(args[0], path)
		pattern := []byte(name + "\n")
		data := bytes.Repeat(pattern, int(info.Size())/len(pattern)+1)[:info.Size()]
		list[n%workers].files[name] = &file{data}
		n++
		return err
	})
	if err != nil {
		return err
	}
	if n == 0 {
		return errors.New("no files")
	}
	errs := make([]error, workers)
	var all sync.WaitGroup
	for i, w := range list {
		all.Go(func() { errs[i] = w.work(operations) })
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	syscall.Sync()
	for _, w := range list {
		for _, name := range slices.Sorted(maps.Keys(w.files)) {
			fmt.Printf("%x  ./%s\n", sha256.Sum256(w.files[name].data), name)
		}
	}
	return nil
}

// A file is the content that one or more names must have.
type file struct{ data []byte }

type worker struct {
	dir   string
	id    int
	rnd   *rand.Rand
	files map[string]*file
	made  int
}

func (w *worker) path(name string) string { return filepath.Join(w.dir, name) }

// some returns one of the worker's names.
func (w *worker) some() string {
	names := slices.Sorted(maps.Keys(w.files))
	return names[w.rnd.IntN(len(names))]
}

func (w *worker) newName() string {
	w.made++
	return fmt.Sprintf("w%d/%d/new-%d", w.id, w.made%7, w.made)
}

func (w *worker) work(operations int) error {
	for _, name := range slices.Sorted(maps.Keys(w.files)) {
		if err := w.verify(name); err != nil {
			return fmt.Errorf("before the first operation: %w", err)
		}
	}
	for i := range 7 {
		if err := os.MkdirAll(w.path(fmt.Sprintf("w%d/%d", w.id, i)), 0o755); err != nil {
			return err
		}
	}
	for n := range operations {
		if w.id == 0 && n%(operations/10+1) == 0 {
			fmt.Fprintf(os.Stderr, "%d of %d operations\n", n, operations)
		}
		what, err := w.operation()
		if err != nil {
			return fmt.Errorf("worker %d, operation %d, %s: %w", w.id, n, what, err)
		}
	}
	for name := range w.files {
		if err := w.forget(name); err != nil {
			return err
		}
		if err := w.verify(name); err != nil {
			return fmt.Errorf("after the last operation: %w", err)
		}
	}
	return nil
}

func (w *worker) operation() (string, error) {
	name := w.some()
	f := w.files[name]
	off := w.rnd.IntN(maxFile - maxOp)
	n := 1 + w.rnd.IntN(maxOp)
	switch op := w.rnd.IntN(100); {
	case op < 30:
		return "write " + name, w.write(name, f, off, n, false)
	case op < 37:
		return "append to " + name, w.write(name, f, len(f.data), min(n, max(1, maxFile-len(f.data))), false)
	case op < 45:
		return "map " + name, w.write(name, f, off, n, true)
	case op < 55:
		f.grow(off)
		f.data = f.data[:off]
		return "truncate " + name, os.Truncate(w.path(name), int64(off))
	case op < 62:
		return "punch " + name, w.punch(name, f, off, n)
	case op < 68:
		to := w.newName()
		delete(w.files, name)
		w.files[to] = f
		return "rename " + name, os.Rename(w.path(name), w.path(to))
	case op < 72:
		to := w.newName()
		w.files[to] = f
		return "link " + name, os.Link(w.path(name), w.path(to))
	case op < 76 && len(w.files) > 3:
		delete(w.files, name)
		return "remove " + name, os.Remove(w.path(name))
	case op < 82:
		to := w.newName()
		w.files[to] = &file{}
		if err := os.WriteFile(w.path(to), nil, 0o644); err != nil {
			return "create " + to, err
		}
		return "create " + to, w.write(to, w.files[to], 0, n, false)
	case op < 86:
		return "forget " + name, errors.Join(w.forget(name), w.verify(name))
	default:
		return "read " + name, w.verify(name)
	}
}

func (f *file) grow(n int) {
	if len(f.data) < n {
		f.data = append(f.data, make([]byte, n-len(f.data))...)
	}
}

// write writes n bytes at off, if mapped by way of memory.
func (w *worker) write(name string, f *file, off, n int, mapped bool) error {
	p := bytes.Repeat([]byte(fmt.Sprintf("%s %d %d\n", name, off, w.rnd.Uint32())), n/8+1)[:n]
	if w.rnd.IntN(8) == 0 {
		clear(p)
	}
	f.grow(off + n)
	copy(f.data[off:], p)
	file, err := os.OpenFile(w.path(name), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	if !mapped {
		_, err := file.WriteAt(p, int64(off))
		return err
	}
	if err := file.Truncate(int64(len(f.data))); err != nil {
		return err
	}
	m, err := syscall.Mmap(int(file.Fd()), 0, off+n, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	if err != nil {
		return err
	}
	copy(m[off:], p)
	return syscall.Munmap(m)
}

func (w *worker) punch(name string, f *file, off, n int) error {
	const keepSize, punchHole = 1, 2
	if end := min(off+n, len(f.data)); off < end {
		clear(f.data[off:end])
	}
	file, err := os.OpenFile(w.path(name), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	return syscall.Fallocate(int(file.Fd()), keepSize|punchHole, int64(off), int64(n))
}

// forget syncs a file and takes it out of the page cache.
func (w *worker) forget(name string) error {
	const dontNeed = 4
	file, err := os.Open(w.path(name))
	if err != nil {
		return err
	}
	defer file.Close()
	if err := file.Sync(); err != nil {
		return err
	}
	if _, _, errno := syscall.Syscall6(syscall.SYS_FADVISE64, file.Fd(), 0, 0, dontNeed, 0, 0); errno != 0 {
		return errno
	}
	return nil
}

func (w *worker) verify(name string) error {
	got, err := os.ReadFile(w.path(name))
	if err != nil {
		return err
	}
	want := w.files[name].data
	if bytes.Equal(got, want) {
		return nil
	}
	at := 0
	for at < min(len(got), len(want)) && got[at] == want[at] {
		at++
	}
	return fmt.Errorf("%s has %d bytes, want %d, and differs at byte %d: %s", name, len(got), len(want), at, strings.TrimSpace(fmt.Sprintf("%q", got[at:min(at+40, len(got))])))
}
