package archive

import (
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// OpenFolder opens an OCI image layout. A link in it that leads out of it is an error when it is
// followed.
func OpenFolder(dir string) (*Archive, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	return open(folder{root}, root)
}

// A folder opens regular files under a folder, and nothing else.
type folder struct{ root *os.Root }

func (f folder) Open(name string) (fs.File, error) {
	file, err := f.root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0) // a FIFO would block
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = formatErrorf(name, "is not a regular file")
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}
