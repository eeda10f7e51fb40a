package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"unicode"
	"unicode/utf8"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"
)

// A usageError is a mistake in the command line.
type usageError struct{ error }

func (e *usageError) Unwrap() error { return e.error }

func usageErrorf(format string, args ...any) error { return &usageError{fmt.Errorf(format, args...)} }

// jsonFlag adds --json to a command.
func jsonFlag(cmd *cobra.Command, asJSON *bool) {
	cmd.Flags().BoolVar(asJSON, "json", false, "print JSON, sizes in bytes")
}

func printJSON(cmd *cobra.Command, v any) error {
	e := json.NewEncoder(cmd.OutOrStdout())
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// outputFlag adds --output to a command.
func outputFlag(cmd *cobra.Command, path *string) {
	cmd.Flags().StringVarP(path, "output", "o", "", "`FILE` to write instead of standard output, which - is as well")
}

// written is what commands that write a file tell of it as JSON.
type written struct {
	File     string          `json:"file"`
	Size     int64           `json:"size"`
	Format   string          `json:"format,omitempty"`   // of a disk
	Chain    digest.Digest   `json:"chain,omitempty"`    // chain ID of the layer whose disk it is
	Images   []digest.Digest `json:"images,omitempty"`   // IDs of those in it
	Repacked int             `json:"repacked,omitempty"` // layers with other blobs than they came as
}

// checkJSON refuses --json where standard output has the file itself.
func checkJSON(asJSON bool, path string) error {
	if asJSON && (path == "" || path == "-") {
		return usageErrorf("--json tells of a file: name one with --output")
	}
	return nil
}

// print completes and prints it.
func (w written) print(cmd *cobra.Command, path string) error {
	fi, err := os.Stat(path)
	if err != nil {
		return err
	}
	w.File, w.Size = path, fi.Size()
	return printJSON(cmd, w)
}

// writeOutput writes to a file, or to standard output if there is none or it is called -.
func writeOutput(cmd *cobra.Command, path string, write func(io.Writer) error) error {
	if path != "" && path != "-" {
		return writeFile(path, 0o644, func(f *os.File) error { return write(f) })
	}
	if isTerminal(cmd.OutOrStdout()) {
		return errors.New("standard output is a terminal: name a file with --output, or redirect it")
	}
	return write(cmd.OutOrStdout())
}

// writeFile writes a new file, which gets its name once it is complete and durable. Only a
// file may have had the name before.
func writeFile(path string, mode fs.FileMode, write func(*os.File) error) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("write %s: %w", path, err)
		}
	}()
	if fi, err := os.Lstat(path); err == nil && !fi.Mode().IsRegular() {
		return errors.New("is there already, and no file")
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	err = write(f)
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// A contextWriter fails when its context has ended.
type contextWriter struct {
	ctx context.Context
	w   io.Writer
}

func (w contextWriter) Write(p []byte) (int, error) {
	if err := w.ctx.Err(); err != nil {
		return 0, err
	}
	return w.w.Write(p)
}

// shown returns a name from an image as it may be shown: on a terminal, one that could do
// something to it, or be taken for another, is quoted.
func shown(w io.Writer, name string) string {
	if isTerminal(w) {
		return quoted(name)
	}
	return name
}

func quoted(name string) string {
	if !utf8.ValidString(name) {
		return strconv.Quote(name)
	}
	for _, r := range name {
		if !unicode.IsPrint(r) {
			return strconv.Quote(name)
		}
	}
	return name
}

// rawName is what JSON says of a name that is no text: its bytes.
func rawName(name string) []byte {
	if utf8.ValidString(name) {
		return nil
	}
	return []byte(name)
}
