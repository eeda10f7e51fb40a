package appliance

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
)

var errNotAppliance = errors.New("appliance: not the ISO of an appliance")

const (
	// maxRoot bounds the root directory of an ISO, maxRelease what it says that it is.
	maxRoot    = 16 * isoBlock
	maxRelease = 256

	// releaseFile is a file at the root of an ISO.
	releaseFile = "RELEASE"
)

// ReadRelease returns what an ISO says that it is: the version of vic in it.
func ReadRelease(iso io.ReaderAt) (string, error) {
	at, size, err := find(iso, releaseFile)
	if err != nil {
		return "", err
	}
	p := make([]byte, min(size, maxRelease))
	if err := readFull(iso, p, at); err != nil {
		return "", err
	}
	return string(bytes.TrimSpace(p)), nil
}

// find returns where in an ISO a file of the root directory begins, and its size: ECMA-119 8.4, the primary volume
// descriptor, and 9.1, the records of a directory.
func find(iso io.ReaderAt, file string) (at, size int64, err error) {
	var pvd [isoBlock]byte
	if err := readFull(iso, pvd[:], 16*isoBlock); err != nil {
		return 0, 0, err
	}
	if !bytes.HasPrefix(pvd[:], []byte("\x01CD001")) {
		return 0, 0, errNotAppliance
	}
	root := pvd[156:190]
	at, size = extentOf(root)
	if size > maxRoot {
		return 0, 0, errNotAppliance
	}
	dir := make([]byte, size)
	if err := readFull(iso, dir, at); err != nil {
		return 0, 0, err
	}
	for off := 0; off+33 < len(dir); {
		n := int(dir[off])
		if n == 0 { // records do not cross blocks
			off = (off/isoBlock + 1) * isoBlock
			continue
		}
		if n < 34 || off+n > len(dir) || 33+int(dir[off+32]) > n {
			return 0, 0, errNotAppliance
		}
		r := dir[off : off+n]
		name, _, _ := strings.Cut(string(r[33:33+int(r[32])]), ";")
		if strings.TrimSuffix(name, ".") == file {
			at, size = extentOf(r)
			return at, size, nil
		}
		off += n
	}
	return 0, 0, errNotAppliance
}

// extentOf is where a directory record says that its file is.
func extentOf(record []byte) (at, size int64) {
	le := binary.LittleEndian
	return int64(le.Uint32(record[2:])) * isoBlock, int64(le.Uint32(record[10:]))
}

// findKey returns where in an ISO KeyFile begins, if that is what it should be.
func findKey(iso io.ReaderAt) (int64, error) {
	at, size, err := find(iso, KeyFile)
	if err != nil {
		return 0, err
	}
	if size != isoBlock {
		return 0, errNotAppliance
	}
	var p [isoBlock]byte
	if err := readFull(iso, p[:], at); err != nil {
		return 0, err
	}
	var k Key
	copy(k[:], p[keyOffset:])
	if !bytes.Equal(p[:], keyArchive(k)) {
		return 0, errNotAppliance
	}
	return at, nil
}

// readFull reads len(p) bytes. An ISO that ends before is none.
func readFull(iso io.ReaderAt, p []byte, off int64) error {
	n, err := iso.ReadAt(p, off)
	switch {
	case n == len(p):
		return nil
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return errNotAppliance
	}
	return fmt.Errorf("read ISO: %w", err)
}
