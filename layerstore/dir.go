package layerstore

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"
)

// A Dir is the folder of a store; its methods name what is in it. The package
// comment draws the whole tree.
type Dir string

func (d Dir) in(elem ...string) string {
	return filepath.Join(append([]string{string(d)}, elem...)...)
}

func (d Dir) version() string    { return d.in("version") }
func (d Dir) lock() string       { return d.in("lock") }
func (d Dir) disks() string      { return d.in("disks") }
func (d Dir) layers() string     { return d.in("layers") }
func (d Dir) images() string     { return d.in("images") }
func (d Dir) names() string      { return d.in("names") }
func (d Dir) tmp() string        { return d.in("tmp") }
func (d Dir) containers() string { return d.in("containers") }
func (d Dir) volumes() string    { return d.in("volumes") }

// layer returns the path of a layer's record.
func (d Dir) layer(chain digest.Digest) string { return d.in("layers", chain.Encoded()+".json") }

// disk returns the path of a layer's descriptor; no chain ID means the empty
// base disk.
func (d Dir) disk(chain digest.Digest) string { return d.in("disks", diskName(chain)+".vmdk") }

// extent returns the path of a layer's extent file.
func (d Dir) extent(chain digest.Digest) string { return d.in("disks", diskName(chain)+extentSuffix) }

// recipe returns the path of what a layer's tar is rebuilt by.
func (d Dir) recipe(chain digest.Digest) string { return d.in("disks", diskName(chain)+recipeSuffix) }

// flat returns the path of the extent file that Flatten makes for a layer's disk.
func (d Dir) flat(chain digest.Digest) string { return d.in("disks", diskName(chain)+flatSuffix) }

// layerFiles returns the paths of all files that a layer may have in the disks folder.
func (d Dir) layerFiles(chain digest.Digest) []string {
	return []string{d.disk(chain), d.extent(chain), d.flat(chain), d.recipe(chain)}
}

func (d Dir) image(id digest.Digest) string    { return d.in("images", id.Encoded()) }
func (d Dir) name(name string) string          { return d.in("names", escapeName(name)) }
func (d Dir) container(id string) string       { return d.in("containers", id) }
func (d Dir) pin(id string) string             { return d.in("containers", id, "layers.json") }
func (d Dir) volumePin(id string) string       { return d.in("containers", id, "volumes.json") }
func (d Dir) volume(name string) string        { return d.in("volumes", name) }
func (d Dir) volumeRecord(name string) string  { return d.in("volumes", name, volumeRecord) }
func (d Dir) tmpDisk(c digest.Digest) string   { return d.in("tmp", diskName(c)+".vmdk") }
func (d Dir) tmpLayer(c digest.Digest) string  { return d.in("tmp", diskName(c)+".json") }
func (d Dir) tmpRecipe(c digest.Digest) string { return d.in("tmp", diskName(c)+recipeSuffix) }
func (d Dir) tmpFlat(c digest.Digest) string   { return d.in("tmp", diskName(c)+flatSuffix) }
func (d Dir) tmpExtent(c digest.Digest) string {
	return d.in("tmp", diskName(c)+extentSuffix)
}

// extentSuffix ends the names of extent files: vSphere knows the data of
// NAME.vmdk by it.
const extentSuffix = "-delta.vmdk"

// flatSuffix ends the names of the extent files of disks that Flatten made.
const flatSuffix = "-flattened.vmdk"

// baseName is the file name, less its suffixes, of the empty disk under all
// layers.
const baseName = "base"

// diskName returns the file name, less its suffixes, of a layer's disk.
func diskName(chain digest.Digest) string {
	if chain == "" {
		return baseName
	}
	return chain.Encoded()
}

// parseHex returns the digest that a file name stands for.
func parseHex(name string) (digest.Digest, bool) {
	d := digest.NewDigestFromEncoded(digest.SHA256, name)
	return d, d.Validate() == nil
}

// subfolders are made when the store is, in this order.
var subfolders = []string{"disks", "layers", "images", "names", "tmp", "containers", "volumes"}

// makeFolder makes a folder and those above it that are not there, and their names
// durable: else all that is in them is lost with their names.
func makeFolder(path string) error {
	err := os.Mkdir(path, 0o700)
	above := filepath.Dir(path)
	if errors.Is(err, fs.ErrNotExist) && above != path {
		if err := makeFolder(above); err != nil {
			return err
		}
		err = os.Mkdir(path, 0o700)
	}
	if errors.Is(err, fs.ErrExist) {
		if fi, statErr := os.Stat(path); statErr == nil && fi.IsDir() {
			return nil
		}
	}
	if err != nil {
		return err
	}
	if err := syncDir(above); !errors.Is(err, fs.ErrPermission) { // we may not be allowed to read it
		return err
	}
	return nil
}

// syncDir makes the names in a folder durable.
func syncDir(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// writeSynced writes a new file and makes its content durable, not its name.
// What was there under that name is lost.
func writeSynced(path string, data []byte, mode fs.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err != nil {
		os.Remove(path)
	}
	return err
}

// replaceFile writes path whole or not at all, and durably: a file of tmp takes
// its place in one rename. The caller holds the store's lock, so that no Open
// takes the file in tmp for a dead one.
func (d Dir) replaceFile(path string, data []byte) error {
	f, err := os.CreateTemp(d.tmp(), "file-")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
		return err
	}
	return syncDir(filepath.Dir(path))
}

// TempFile makes a file on the store's datastore that has no name: it is gone when it is closed, or
// when the process ends, however.
func (s *Store) TempFile() (*os.File, error) { return s.dir.tempFile() }

func (d Dir) tempFile() (*os.File, error) {
	f, err := os.CreateTemp(d.tmp(), "spool-")
	if err != nil {
		return nil, err
	}
	if err := removeAll(f.Name()); err != nil { // an Open may have been faster
		f.Close()
		return nil, err
	}
	return f, nil
}

// readBounded reads a file of the store that a program wrote and a person may
// have changed: what is longer than limit bytes is a *FormatError.
func readBounded(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, formatErrorf(path, "file", "longer than %d bytes", limit)
	}
	return b, nil
}

// removeAll removes files and wants no error for those that are not there.
func removeAll(paths ...string) error {
	var first error
	for _, p := range paths {
		if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) && first == nil {
			first = err
		}
	}
	return first
}

// trashPrefix begins the names of folders in tmp that wait to be removed.
const trashPrefix = "removed-"

// discard takes a folder out of sight in one rename to tmp, and returns the
// folder there that is to be removed, by whom and when does not matter. The caller
// holds the store's lock, so that no Open does it before there is anything in it.
func (d Dir) discard(path string) (trash string, err error) {
	trash, err = os.MkdirTemp(d.tmp(), trashPrefix)
	if err != nil {
		return "", err
	}
	if err := os.Rename(path, filepath.Join(trash, filepath.Base(path))); err != nil {
		os.Remove(trash)
		return "", err
	}
	return trash, syncDir(filepath.Dir(path))
}

// exists tells whether there is a file of that name.
func exists(path string) (bool, error) {
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// listDir returns the names in a folder, sorted; editors' and copiers' hidden
// files are not among them.
func listDir(path string) ([]string, error) {
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, err
	}
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), ".") {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// A FormatError reports a file of the store, or a manifest or config on its way
// into it, that is not what it should be.
type FormatError struct {
	Path  string // the file; "" for what a Source gave
	Field string // what is wrong
	Msg   string // how it is wrong
}

func (e *FormatError) Error() string {
	if e.Path == "" {
		return fmt.Sprintf("%s: %s", e.Field, e.Msg)
	}
	return fmt.Sprintf("%s: %s: %s", e.Path, e.Field, e.Msg)
}

func formatErrorf(path, field, format string, args ...any) *FormatError {
	return &FormatError{Path: path, Field: field, Msg: fmt.Sprintf(format, args...)}
}
