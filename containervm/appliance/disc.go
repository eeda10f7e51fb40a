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

// maxRoot bounds the root directory of an ISO.
const maxRoot = 16 * isoBlock

// findKey returns where in an ISO KeyFile begins: ECMA-119 8.4, the primary volume descriptor, and 9.1, the records of the root
// directory.
func findKey(iso io.ReaderAt) (int64, error) {
	var pvd [isoBlock]byte
	if err := readFull(iso, pvd[:], 16*isoBlock); err != nil {
		return 0, err
	}
	if !bytes.HasPrefix(pvd[:], []byte("\x01CD001")) {
		return 0, errNotAppliance
	}
	root := pvd[156:190]
	size := int(binary.LittleEndian.Uint32(root[10:]))
	if size < isoBlock || size > maxRoot {
		return 0, errNotAppliance
	}
	dir := make([]byte, size)
	if err := readFull(iso, dir, block(root)); err != nil {
		return 0, err
	}
	for off := 0; off+33 < len(dir); {
		n := int(dir[off])
		if n == 0 { // records do not cross blocks
			off = (off/isoBlock + 1) * isoBlock
			continue
		}
		if n < 34 || off+n > len(dir) || 33+int(dir[off+32]) > n {
			return 0, errNotAppliance
		}
		r := dir[off : off+n]
		name, _, _ := strings.Cut(string(r[33:33+int(r[32])]), ";")
		if strings.TrimSuffix(name, ".") == KeyFile {
			return checkKey(iso, r)
		}
		off += n
	}
	return 0, errNotAppliance
}

// block is where a directory record says that its file begins.
func block(record []byte) int64 { return int64(binary.LittleEndian.Uint32(record[2:])) * isoBlock }

// checkKey sees that all around the key is as it should be.
func checkKey(iso io.ReaderAt, record []byte) (int64, error) {
	var p [isoBlock]byte
	if binary.LittleEndian.Uint32(record[10:]) != isoBlock {
		return 0, errNotAppliance
	}
	if err := readFull(iso, p[:], block(record)); err != nil {
		return 0, err
	}
	var k Key
	copy(k[:], p[keyOffset:])
	if !bytes.Equal(p[:], keyArchive(k)) {
		return 0, errNotAppliance
	}
	return block(record), nil
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
