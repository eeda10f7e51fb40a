package diskfs

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
)

// A layer's tar can be rebuilt from its disk, bit for bit, by a recipe of two parts. The
// skeleton is what ReadTar sees of the tar besides the data of files; the sources are
// known once Apply has placed that data. Numbers are varints as encoding/binary has them.
//
//	skeleton   repeated:  uvarint n, n bytes as they stand in the tar,
//	                      uvarint m: m bytes of data follow in the tar, if m is not 0 those
//	                      of the next source
//	sources    repeated:  uvarint 0: the data itself follows, since no disk has it, or
//	                      uvarint k+1, and k times, ascending by block of the file:
//	                        uvarint  blocks between the end of the last run and this one
//	                        varint   disk block, less the one behind the last run
//	                        uvarint  blocks
//	                      What no run covers is zeros.
//
// Data that the disk does not have is that of files which a later entry of the same tar
// replaced.

// maxPiece is how long a piece of a skeleton can be.
const maxPiece = 64 << 10

// A skeleton writes the first part of a recipe from what is read of a tar.
type skeleton struct {
	out   io.Writer // nil: nothing is wanted
	piece []byte
	err   error
}

// add takes bytes of the tar that are not data.
func (s *skeleton) add(p []byte) {
	for s.out != nil && len(p) > 0 {
		n := min(len(p), maxPiece-len(s.piece))
		s.piece = append(s.piece, p[:n]...)
		if p = p[n:]; len(s.piece) == maxPiece {
			s.data(0)
		}
	}
}

// data ends a piece: n bytes of data follow it in the tar.
func (s *skeleton) data(n int64) {
	if s.out == nil || s.err != nil || len(s.piece) == 0 && n == 0 {
		return
	}
	var b [binary.MaxVarintLen64]byte
	write := func(p []byte) {
		if s.err == nil {
			_, s.err = s.out.Write(p)
		}
	}
	write(binary.AppendUvarint(b[:0], uint64(len(s.piece))))
	write(s.piece)
	write(binary.AppendUvarint(b[:0], uint64(n)))
	s.piece = s.piece[:0]
}

// payload is the data of one file as it stands in the tar.
type payload struct {
	size int64
	runs []run // of the stream
}

// WriteSources writes the second part of the recipe for the changeset's tar. stream reads
// the stream that ReadTar wrote, Dead ranges included.
func (d *Delta) WriteSources(w io.Writer, stream io.ReaderAt) error {
	out := bufio.NewWriter(w)
	a := d.a
	var b []byte
	for i, p := range a.cs.payloads.all() {
		runs, kept := a.kept[i]
		if !kept {
			if a.lost(p) {
				out.WriteByte(0)
				if err := copyRuns(out, stream, p.runs, p.size, make([]byte, min(p.size, tarChunk))); err != nil {
					return fmt.Errorf("keep data that was replaced: %w", err)
				}
				continue
			}
			for _, r := range p.runs {
				runs = a.place.runs(runs, r.at, r.where, r.n)
			}
		}
		b = appendRuns(binary.AppendUvarint(b[:0], uint64(len(runs))+1), runs)
		out.Write(b)
	}
	if err := out.Flush(); err != nil {
		return fmt.Errorf("write sources: %w", err)
	}
	return nil
}

// lost says whether some of the data has become dead.
func (a *apply) lost(p payload) bool {
	return slices.ContainsFunc(p.runs, func(r run) bool {
		i, found := slices.BinarySearchFunc(a.dead, r.where, func(d run, b int64) int {
			switch {
			case d.where+d.n <= b:
				return -1
			case d.where > b:
				return 1
			}
			return 0
		})
		return found || i < len(a.dead) && a.dead[i].where < r.where+r.n
	})
}

// copyRuns writes size bytes that lie in runs of disk, by way of buf.
func copyRuns(w io.Writer, disk io.ReaderAt, runs []run, size int64, buf []byte) error {
	r := fileReader{disk: disk, size: size, runs: runs}
	for off := int64(0); off < size; {
		n := int(min(int64(len(buf)), size-off))
		if _, err := r.ReadAt(buf[:n], off); err != nil && err != io.EOF {
			return err
		}
		if _, err := w.Write(buf[:n]); err != nil {
			return err
		}
		off += int64(n)
	}
	return nil
}

// RebuildTar writes the tar of a layer, given the parts of its recipe, and the disk with
// that layer on top, of capacity bytes. What is damaged gives a *FormatError or another
// tar: its digest tells.
func RebuildTar(w io.Writer, skeleton, sources io.Reader, disk io.ReaderAt, capacity int64) error {
	in, src := bufio.NewReader(skeleton), bufio.NewReader(sources)
	var runs []run
	buf := make([]byte, tarChunk)
	for {
		n, err := binary.ReadUvarint(in)
		if err == io.EOF {
			return nil
		}
		if err == nil && n > maxPiece {
			return badRecipe("a piece of %d bytes", n)
		}
		if err == nil {
			_, err = io.CopyN(w, in, int64(n))
		}
		if err != nil {
			return recipeError("skeleton", err)
		}
		size, err := binary.ReadUvarint(in)
		if err != nil {
			return recipeError("skeleton", err)
		}
		if size == 0 {
			continue
		}
		if size > 1<<62 {
			return badRecipe("data of %d bytes", size)
		}
		count, err := binary.ReadUvarint(src)
		if err != nil {
			return recipeError("sources", err)
		}
		if count == 0 {
			if _, err := io.CopyN(w, src, int64(size)); err != nil {
				return recipeError("sources", err)
			}
			continue
		}
		if runs, err = readRuns(src, runs[:0], count-1, int64(size), capacity); err != nil {
			return recipeError("sources", err)
		}
		if err := copyRuns(w, disk, runs, int64(size), buf); err != nil {
			return fmt.Errorf("rebuild tar: %w", err)
		}
	}
}

// readRuns appends n runs that lie in a file of size bytes and a disk of capacity bytes.
func readRuns(src *bufio.Reader, runs []run, n uint64, size, capacity int64) ([]run, error) {
	blocks := uint64(size+BlockSize-1) / BlockSize
	var at, where int64
	for range n {
		gap, err := binary.ReadUvarint(src)
		if err != nil {
			return nil, err
		}
		step, err := binary.ReadVarint(src)
		if err != nil {
			return nil, err
		}
		length, err := binary.ReadUvarint(src)
		if err != nil {
			return nil, err
		}
		left := blocks - uint64(at)
		if gap > left || length > left-gap || length == 0 {
			return nil, badRecipe("a run past the end of its file")
		}
		at += int64(gap)
		limit := capacity / BlockSize
		if step < -where || step > limit-where || int64(length) > limit-where-step {
			return nil, badRecipe("a run past the end of the disk")
		}
		where += step
		runs = append(runs, run{at: at, where: where, n: int64(length)})
		at, where = at+int64(length), where+int64(length)
	}
	return runs, nil
}

func badRecipe(format string, args ...any) error {
	return &FormatError{Off: -1, Field: "recipe", Msg: fmt.Sprintf(format, args...)}
}

// recipeError tells where a recipe ends early.
func recipeError(part string, err error) error {
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("rebuild tar: %s: %w", part, err)
}
