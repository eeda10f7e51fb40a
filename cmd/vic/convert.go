package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"vic/layerstore"
	datastore "vic/layerstore/vsphere"
)

// Formats of vic convert.
const (
	formatStream = "streamOptimized"
	formatVMDK   = "vmdk"
	formatRaw    = "raw"
	formatQCOW2  = "qcow2"
)

// rawUnit is the length of the zeros that a raw disk has no storage for.
const rawUnit = 4096

func convertCommand() *cobra.Command {
	var store storeFlags
	var output, format string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "convert {--store DIR | --image-store DATASTORE} [--format FORMAT] -o FILE REF",
		Short: "Write an image's disk, all layers in one, in another format",
		Long: `Write the disk of an image, all layers in one, to one file that needs no store:

  streamOptimized  a compressed VMDK, as OVF packages have them; to send, not to run
  vmdk             a sparse VMDK in one file, which QEMU, Workstation and Fusion run
  raw              the bytes of the disk; what is not used takes no storage
  qcow2            by qemu-img, which must be installed

REF is a name as docker has it, or the beginning of an image's ID or of a layer's chain ID. A file
appears whole or not at all. streamOptimized and raw can go to standard output, which is called -.`,
		Example: `  vic convert --store /var/lib/vic -o debian.vmdk debian:12
  vic convert --store /var/lib/vic --format raw -o debian.raw debian:12 && mount -o loop,ro,noload debian.raw /mnt`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch format {
			case formatStream, formatRaw:
			case formatVMDK, formatQCOW2:
				if output == "-" {
					return usageErrorf("--format %s cannot go to standard output: name a file", format)
				}
			default:
				return usageErrorf("--format %q: use %s, %s, %s or %s", format, formatStream, formatVMDK, formatRaw, formatQCOW2)
			}
			if err := checkJSON(asJSON, output); err != nil {
				return err
			}
			return withDisk(cmd, &store, args[0], func(disk shownDisk) error {
				if err := convert(cmd, disk, format, output); err != nil || !asJSON {
					return err
				}
				return written{Format: format, Chain: disk.chain}.print(cmd, output)
			})
		},
	}
	store.add(cmd)
	outputFlag(cmd, &output)
	jsonFlag(cmd, &asJSON)
	if err := cmd.MarkFlagRequired("output"); err != nil {
		panic(err) // the flag was added above
	}
	cmd.Flags().StringVar(&format, "format", formatStream, "`FORMAT` to write")
	return cmd
}

// A shownDisk is the disk of an image or a layer in either kind of store.
type shownDisk struct {
	*layerstore.Disk
	chain digest.Digest // of the topmost layer in it
	cid   uint32        // of copies
	path  string        // of the descriptor on this machine; "" if it is elsewhere
}

// withDisk opens the disk of an image or a layer for the time of a function.
func withDisk(cmd *cobra.Command, store *storeFlags, ref string, do func(shownDisk) error) error {
	return store.with(cmd, only{}, func(s *layerstore.Store) error {
		chain, err := findChain(s, store.dir, ref)
		if err != nil {
			return err
		}
		disk, err := s.OpenDisk(chain)
		if err != nil {
			return err
		}
		defer disk.Close() // read only
		path, err := s.LayerDisk(chain)
		if err != nil {
			return err
		}
		return do(shownDisk{disk, chain, disk.CopyCID(), path})
	}, func(s *datastore.Store) error {
		name, err := findDisk(cmd.Context(), s, ref)
		if err != nil {
			return err
		}
		disk, err := s.OpenDisk(cmd.Context(), name)
		if err != nil {
			return err
		}
		defer disk.Close() // read only
		chain := disk.Chain()
		return do(shownDisk{&layerstore.Disk{Disk: disk.Disk}, chain, layerstore.CopyCID(chain, disk.Capacity()), ""})
	})
}

func convert(cmd *cobra.Command, disk shownDisk, format, output string) error {
	ctx := cmd.Context()
	m := newMeter(cmd.ErrOrStderr(), "convert")
	defer m.clear()
	name, cid := filepath.Base(output), disk.cid
	if output == "-" {
		name = "disk.vmdk"
	}
	switch {
	case format == formatStream:
		return writeOutput(cmd, output, func(w io.Writer) error {
			return disk.WriteStream(contextWriter{ctx, io.MultiWriter(w, m)}, name, cid)
		})
	case format == formatRaw && output == "-":
		return writeOutput(cmd, output, func(w io.Writer) error {
			_, err := io.Copy(contextWriter{ctx, io.MultiWriter(w, m)}, io.NewSectionReader(disk, 0, disk.Capacity()))
			return err
		})
	case format == formatRaw:
		return writeFile(output, 0o644, func(f *os.File) error { return disk.writeRaw(ctx, f, m) })
	case format == formatVMDK:
		return writeFile(output, 0o644, func(f *os.File) error { return disk.WriteMonolithic(meteredFile{f, ctx, m}, name, cid) })
	}
	return writeFile(output, 0o644, func(f *os.File) error {
		if disk.path != "" {
			return convertByQEMU(ctx, "vmdk", disk.path, f.Name())
		}
		return disk.viaRaw(ctx, f, m)
	})
}

// writeRaw writes the disk's bytes to an empty file.
func (d shownDisk) writeRaw(ctx context.Context, f *os.File, m *meter) error {
	if err := f.Truncate(d.Capacity()); err != nil {
		return err
	}
	return d.CopyTo(meteredFile{f, ctx, m}, rawUnit)
}

// viaRaw makes a file that is there a qcow2 disk, by a raw one that is beside it meanwhile.
func (d shownDisk) viaRaw(ctx context.Context, to *os.File, m *meter) (err error) {
	if _, err := findQEMU(); err != nil {
		return err
	}
	raw, err := os.CreateTemp(filepath.Dir(to.Name()), filepath.Base(to.Name())+"-raw-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, raw.Close(), os.Remove(raw.Name())) }()
	if err := d.writeRaw(ctx, raw, m); err != nil {
		return err
	}
	return convertByQEMU(ctx, "raw", raw.Name(), to.Name())
}

func findQEMU() (string, error) {
	qemu, err := exec.LookPath("qemu-img")
	if err != nil {
		return "", errors.New("qcow2 is written by qemu-img, which is not installed: it is in the package qemu-utils")
	}
	return qemu, nil
}

// A meteredFile counts what is written to it, until its context ends.
type meteredFile struct {
	*os.File
	ctx context.Context
	m   *meter
}

func (f meteredFile) WriteAt(p []byte, off int64) (int, error) {
	if err := f.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := f.File.WriteAt(p, off)
	f.m.Write(p[:n])
	return n, err
}

// convertByQEMU makes a file that is there a qcow2 disk of one in another of QEMU's formats.
func convertByQEMU(ctx context.Context, format, from, to string) error {
	qemu, err := findQEMU()
	if err != nil {
		return err
	}
	// QEMU takes what is before a colon for a protocol, if there is no slash before it.
	if from, err = filepath.Abs(from); err != nil {
		return err
	}
	if to, err = filepath.Abs(to); err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, qemu, "convert", "-f", format, "-O", "qcow2", from, to).CombinedOutput()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("qemu-img: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}
