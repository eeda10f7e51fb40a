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
	var dir, output, format string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "convert --store DIR [--format FORMAT] -o FILE REF",
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
			return withStore(cmd, dir, func(s *layerstore.Store) error {
				chain, err := findChain(s, dir, args[0])
				if err != nil {
					return err
				}
				if err := convert(cmd, s, chain, format, output); err != nil || !asJSON {
					return err
				}
				return written{Format: format, Chain: chain}.print(cmd, output)
			})
		},
	}
	storeFlag(cmd, &dir)
	outputFlag(cmd, &output)
	jsonFlag(cmd, &asJSON)
	if err := cmd.MarkFlagRequired("output"); err != nil {
		panic(err) // the flag was added above
	}
	cmd.Flags().StringVar(&format, "format", formatStream, "`FORMAT` to write")
	return cmd
}

func convert(cmd *cobra.Command, s *layerstore.Store, chain digest.Digest, format, output string) error {
	ctx := cmd.Context()
	disk, err := s.OpenDisk(chain)
	if err != nil {
		return err
	}
	defer disk.Close() // read only
	m := newMeter(cmd.ErrOrStderr(), "convert")
	defer m.clear()
	name, cid := filepath.Base(output), disk.CopyCID()
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
		return writeFile(output, 0o644, func(f *os.File) error {
			if err := f.Truncate(disk.Capacity()); err != nil {
				return err
			}
			return disk.CopyTo(meteredFile{f, ctx, m}, rawUnit)
		})
	case format == formatVMDK:
		return writeFile(output, 0o644, func(f *os.File) error { return disk.WriteMonolithic(meteredFile{f, ctx, m}, name, cid) })
	}
	return writeFile(output, 0o644, func(f *os.File) error { return convertByQEMU(ctx, s, chain, f.Name()) })
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

// convertByQEMU makes a file that is there a qcow2 disk.
func convertByQEMU(ctx context.Context, s *layerstore.Store, chain digest.Digest, to string) error {
	qemu, err := exec.LookPath("qemu-img")
	if err != nil {
		return errors.New("qcow2 is written by qemu-img, which is not installed: it is in the package qemu-utils")
	}
	from, err := s.LayerDisk(chain)
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
	out, err := exec.CommandContext(ctx, qemu, "convert", "-f", "vmdk", "-O", "qcow2", from, to).CombinedOutput()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("qemu-img: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}
