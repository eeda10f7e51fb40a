//go:build linux

package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"vic/diskfs"
)

// scsiDisk returns the device file of a unit of the first paravirtual SCSI controller, "" if there is none yet. sys is /sys.
func scsiDisk(sys string, unit int) (string, error) {
	names, err := filepath.Glob(filepath.Join(sys, "class/scsi_host/host*/proc_name"))
	if err != nil {
		return "", err
	}
	first := -1
	for _, f := range names {
		text, err := os.ReadFile(f)
		if err != nil || strings.TrimSpace(string(text)) != "vmw_pvscsi" {
			continue
		}
		n, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(filepath.Dir(f)), "host"))
		if err == nil && (first < 0 || n < first) {
			first = n
		}
	}
	if first < 0 {
		return "", nil
	}
	disks, err := filepath.Glob(filepath.Join(sys, fmt.Sprintf("class/scsi_device/%d:0:%d:0/device/block/*", first, unit)))
	if err != nil || len(disks) == 0 {
		return "", err
	}
	return "/dev/" + filepath.Base(disks[0]), nil
}

// A device is what the file system of the state disk is made on.
type device interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
}

// prepareDevice makes a file system on a device that is blank.
func prepareDevice(path string) (err error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	return prepare(f, size)
}

const (
	sectorSize = 512
	superblock = 1024       // where ext4 has it; the first 1024 bytes are nobody's
	magicAt    = 0x38       // in the superblock
	magic      = "\x53\xef" // ext4's
	uuidAt     = 0x68       // in the superblock
	probed     = 16 << 20   // of the disk's ends, and the distance of what is looked at between
	probe      = 4096
)

// stateUUID is that of the file system of every state disk: by it one is known.
var stateUUID = func() (u [16]byte) {
	sum := sha256.Sum256([]byte("vic state disk, format 1"))
	copy(u[:], sum[:])
	u[6], u[8] = u[6]&0x0f|0x80, u[8]&0x3f|0x80 // RFC 9562 version 8
	return u
}()

var errForeign = errors.New("it holds what is not this program's, and is left as it is: give the VM a blank disk, or empty this one")

// prepare makes sure that a disk of size bytes holds the file system of a state disk. Only a blank one is formatted. First a
// mark is put into the sector before the superblock, and last it is taken away again; a disk with the mark is
// formatted anew, so a crash between leaves nothing to repair.
func prepare(d device, size int64) error {
	head := make([]byte, probe)
	if size < int64(len(head)) {
		return fmt.Errorf("has %d bytes", size)
	}
	if _, err := d.ReadAt(head, 0); err != nil {
		return err
	}
	mark := fmt.Appendf(nil, "vic state disk of %d bytes, being formatted\n", size)
	switch super := head[superblock:]; {
	case bytes.HasPrefix(head, mark):
		return format(d, size, mark)
	case string(super[magicAt:magicAt+2]) == magic && bytes.Equal(super[uuidAt:uuidAt+16], stateUUID[:]):
		return nil
	}
	if err := checkBlank(d, size); err != nil {
		return err
	}
	return format(d, size, mark)
}

// checkBlank looks at all places where partition tables, file systems, volume managers and swap leave something: both
// ends of the disk, and all over it every so often.
func checkBlank(d device, size int64) error {
	zeros := make([]byte, 1<<20)
	p := make([]byte, len(zeros))
	look := func(from, n int64) error {
		for off := from; off < from+n; off += int64(len(p)) {
			part := p[:min(int64(len(p)), from+n-off)]
			if _, err := d.ReadAt(part, off); err != nil {
				return err
			}
			if !bytes.Equal(part, zeros[:len(part)]) {
				return errForeign
			}
		}
		return nil
	}
	if err := look(0, min(probed, size)); err != nil {
		return err
	}
	if err := look(max(0, size-probed), min(probed, size)); err != nil {
		return err
	}
	for off := int64(probed); off < size-probed; off += probed {
		if err := look(off, probe); err != nil {
			return err
		}
	}
	return nil
}

// format makes an empty file system on a disk that was blank, or that format had begun with.
func format(d device, size int64, mark []byte) error {
	_, delta, err := diskfs.Format(diskfs.FormatOptions{Capacity: size - size%diskfs.ClusterSize, UUID: stateUUID})
	if err != nil {
		return err
	}
	sector := make([]byte, sectorSize)
	copy(sector, mark)
	if _, err := d.WriteAt(sector, 0); err != nil {
		return err
	}
	if err := d.Sync(); err != nil {
		return err
	}
	if err := putDelta(d, delta, sector); err != nil {
		return err
	}
	if err := d.Sync(); err != nil {
		return err
	}
	if _, err := d.WriteAt(make([]byte, sectorSize), 0); err != nil {
		return err
	}
	return d.Sync()
}

// putDelta writes what diskfs.Format has made, but for the first sector.
func putDelta(d device, delta *diskfs.Delta, first []byte) error {
	var stream bytes.Buffer
	if err := delta.WriteMeta(&stream); err != nil {
		return err
	}
	put := func(p []byte, cluster int64) error {
		if cluster == 0 {
			p = append(append([]byte(nil), first...), p[len(first):]...)
		}
		_, err := d.WriteAt(p, cluster*diskfs.ClusterSize)
		return err
	}
	for _, r := range delta.Map {
		p := stream.Bytes()[r.Stream*diskfs.ClusterSize : min((r.Stream+r.N)*diskfs.ClusterSize, int64(stream.Len()))]
		if err := put(p, r.Disk); err != nil {
			return err
		}
	}
	return delta.Fixed(func(cluster int64, p []byte) error { return put(p, cluster) })
}
