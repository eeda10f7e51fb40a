package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/docker/go-units"
	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"vic/diskfs"
	"vic/layerstore"
	datastore "vic/layerstore/vsphere"
)

func lsCommand() *cobra.Command {
	var store storeFlags
	var long, asJSON bool
	cmd := &cobra.Command{
		Use:   "ls {--store DIR | --image-store DATASTORE} [REF [PATH]]",
		Short: "List images and layers, or what is in one",
		Long: `Without REF, list the images of a store and the layers that they are made of.

SIZE is what the disks take on the datastore; images share layers, so the sizes of images add up to
more than the store takes. A layer with no images is left over from a pull that did not end, unless a
container needs it.

On a datastore, VCH is who has the image; _seed is nobody: vic seed has brought it. Names are those that
it had when the VCH last noted them. A disk may have several layers, and is listed by the topmost.

With REF, list a directory of that image, or of the image that a layer and all below it make: REF is a
name as docker has it, or the beginning of an image's ID or of a layer's chain ID. Symlinks lead to
where they lead in the image. The long form has the type and permissions, the number of names, the
numbers of owner and group, the size in bytes or the device's major and minor number, the time of the
last change, and the name. On a terminal, names that could do something to it are quoted.`,
		Example: `  vic ls --store /var/lib/vic
  vic ls --store /var/lib/vic -l debian:12 /etc
  vic ls --target vcenter --user admin --thumbprint 1A:2B:... --image-store datastore1/vic`,
		Args: cobra.MaximumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 && long {
				return usageErrorf("--long is for the files of an image: name one")
			}
			if len(args) == 0 {
				return store.with(cmd, only{}, func(s *layerstore.Store) error { return list(cmd, s, asJSON) },
					func(s *datastore.Store) error { return listRemote(cmd, s, asJSON) })
			}
			return withRootFS(cmd, &store, args[0], func(_ digest.Digest, f *diskfs.FS) error {
				at := "/"
				if len(args) == 2 {
					at = args[1]
				}
				d, err := readListing(f, at, long)
				if err != nil {
					return err
				}
				if asJSON {
					return printJSON(cmd, d)
				}
				return d.print(cmd.OutOrStdout(), long)
			})
		},
	}
	store.add(cmd)
	jsonFlag(cmd, &asJSON)
	cmd.Flags().BoolVarP(&long, "long", "l", false, "say all of each file that can be said in a line")
	return cmd
}

// contents is what vic ls tells of a store as JSON.
type contents struct {
	Images []imageEntry `json:"images"`
	Layers []layerEntry `json:"layers"`
}

type imageEntry struct {
	ID      digest.Digest   `json:"id"`
	Names   []string        `json:"names"`
	Digest  digest.Digest   `json:"digest"` // what its name resolved to when it was pulled
	Layers  []digest.Digest `json:"layers"` // chain IDs, bottom first
	Size    int64           `json:"size"`   // that its layers take, those of others included
	Created time.Time       `json:"created"`
	Pulled  time.Time       `json:"pulled"`
}

type layerEntry struct {
	Chain    digest.Digest   `json:"chain"`
	Parent   digest.Digest   `json:"parent,omitempty"`
	DiffID   digest.Digest   `json:"diffID"`
	Disk     digest.Digest   `json:"disk,omitempty"` // chain ID of the layer whose disk shows it
	Depth    int             `json:"depth"`
	Blob     digest.Digest   `json:"blob,omitempty"`
	BlobSize int64           `json:"blobSize"`
	TarSize  int64           `json:"tarSize"`
	Size     int64           `json:"size"`
	Images   []digest.Digest `json:"images"` // IDs of those that have it
}

func list(cmd *cobra.Command, s *layerstore.Store, asJSON bool) error {
	images, err := s.Images()
	if err != nil {
		return err
	}
	layers, err := s.Layers()
	if err != nil {
		return err
	}
	if asJSON {
		return printJSON(cmd, contentsOf(images, layers))
	}
	w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "IMAGE\tID\tLAYERS\tSIZE\tPULLED")
	for _, img := range images {
		for _, name := range orNone(namesOf(img)) {
			fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%s\n", name, short(img.ID), len(img.Layers), units.HumanSize(float64(img.Size())), img.Pulled.Format(time.RFC3339))
		}
	}
	fmt.Fprintln(w, "\nLAYER\tPARENT\tDEPTH\tSIZE\tIMAGES")
	for _, l := range layers {
		parent := "-"
		if l.Parent != "" {
			parent = short(l.Parent)
		}
		fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%d\n", short(l.Chain), parent, l.Depth, units.HumanSize(float64(l.Stored)), len(l.Images))
	}
	return w.Flush()
}

func contentsOf(images []*layerstore.Image, layers []layerstore.LayerUse) contents {
	c := contents{Images: []imageEntry{}, Layers: []layerEntry{}}
	for _, img := range images {
		e := imageEntry{ID: img.ID, Names: namesOf(img), Digest: img.Digest, Layers: []digest.Digest{}, Size: img.Size(), Created: img.Created(), Pulled: img.Pulled}
		for _, l := range img.Layers {
			e.Layers = append(e.Layers, l.Chain)
		}
		c.Images = append(c.Images, e)
	}
	for _, l := range layers {
		c.Layers = append(c.Layers, layerEntry{Chain: l.Chain, Parent: l.Parent, DiffID: l.DiffID, Disk: l.Disk, Depth: l.Depth,
			Blob: l.Blob, BlobSize: l.BlobSize, TarSize: l.TarSize, Size: l.Stored, Images: append([]digest.Digest{}, l.Images...)})
	}
	return c
}

// A listing is some files of an image.
type listing struct {
	Path    string      `json:"path"` // of the directory, or of the one file
	Entries []fileEntry `json:"entries"`
}

type fileEntry struct {
	Name    string            `json:"name"`
	RawName []byte            `json:"rawName,omitempty"` // if the name is not UTF-8
	Type    string            `json:"type"`              // file, directory, symlink, char, block, fifo, socket
	Mode    string            `json:"mode"`              // permissions, octal
	Links   int               `json:"links"`
	UID     uint32            `json:"uid"`
	GID     uint32            `json:"gid"`
	Size    int64             `json:"size"`
	Major   *uint32           `json:"major,omitempty"` // of devices
	Minor   *uint32           `json:"minor,omitempty"`
	ModTime time.Time         `json:"mtime"`
	Target  string            `json:"target,omitempty"` // of symlinks
	Xattrs  map[string][]byte `json:"xattrs,omitempty"`

	mode fs.FileMode
}

// readListing lists a directory, or one file. The long form is about a symlink, not about
// where it leads, unless a slash is behind it.
func readListing(f *diskfs.FS, at string, long bool) (*listing, error) {
	name, err := f.Find(at, !long)
	if err != nil {
		return nil, err
	}
	info, err := f.Lstat(name)
	if err != nil {
		return nil, err
	}
	d := &listing{Path: path.Join("/", name), Entries: []fileEntry{}}
	if !info.IsDir() {
		e, err := readEntry(f, name, info)
		if err != nil {
			return nil, err
		}
		e.Name, e.RawName = at, rawName(at)
		d.Entries = append(d.Entries, *e)
		return d, nil
	}
	entries, err := f.ReadDir(name)
	if err != nil {
		return nil, err
	}
	for _, entry := range entries {
		info, err := entry.Info()
		if err != nil {
			return nil, fmt.Errorf("%q in %s: %w", entry.Name(), d.Path, err)
		}
		child := entry.Name()
		if name != "." {
			child = name + "/" + child
		}
		e, err := readEntry(f, child, info)
		if err != nil {
			return nil, err
		}
		d.Entries = append(d.Entries, *e)
	}
	return d, nil
}

var typeNames = map[fs.FileMode]string{
	0: "file", fs.ModeDir: "directory", fs.ModeSymlink: "symlink", fs.ModeDevice | fs.ModeCharDevice: "char", fs.ModeDevice: "block",
	fs.ModeNamedPipe: "fifo", fs.ModeSocket: "socket",
}

func readEntry(f *diskfs.FS, name string, info fs.FileInfo) (*fileEntry, error) {
	st, ok := info.Sys().(*diskfs.Stat)
	if !ok {
		return nil, errors.New("not a file of an image")
	}
	e := &fileEntry{Name: info.Name(), RawName: rawName(info.Name()), Type: typeNames[info.Mode().Type()], Mode: fmt.Sprintf("%04o", st.Mode&0o7777),
		Links: int(st.Links), UID: st.UID, GID: st.GID, Size: st.Size, ModTime: st.Mtime.UTC(), mode: info.Mode()}
	switch e.Type {
	case "char", "block":
		e.Major, e.Minor = &st.Major, &st.Minor
	case "symlink":
		target, err := f.ReadLink(name)
		if err != nil {
			return nil, err
		}
		e.Target = target
	}
	list, err := f.Xattrs(name)
	if err != nil {
		return nil, err
	}
	for _, x := range list {
		if e.Xattrs == nil {
			e.Xattrs = make(map[string][]byte)
		}
		e.Xattrs[x.Name] = x.Value
	}
	return e, nil
}

// print prints a line for each file; the long ones as ls -lA does, with the time in UTC.
func (d *listing) print(w io.Writer, long bool) error {
	if !long {
		for _, e := range d.Entries {
			if _, err := fmt.Fprintln(w, shown(w, e.Name)); err != nil {
				return err
			}
		}
		return nil
	}
	var columns [][]string
	var width [5]int
	for _, e := range d.Entries {
		size := fmt.Sprint(e.Size)
		if e.Major != nil {
			size = fmt.Sprintf("%d, %d", *e.Major, *e.Minor)
		}
		c := []string{modeString(e), fmt.Sprint(e.Links), fmt.Sprint(e.UID), fmt.Sprint(e.GID), size}
		for i := range c {
			width[i] = max(width[i], len(c[i]))
		}
		columns = append(columns, c)
	}
	for i, e := range d.Entries {
		c := columns[i]
		name := shown(w, e.Name)
		if e.Type == "symlink" {
			name += " -> " + shown(w, e.Target)
		}
		_, err := fmt.Fprintf(w, "%-*s %*s %*s %*s %*s %s %s\n", width[0], c[0], width[1], c[1], width[2], c[2], width[3], c[3], width[4], c[4],
			e.ModTime.Format("2006-01-02 15:04:05"), name)
		if err != nil {
			return err
		}
	}
	return nil
}

// modeString is what ls makes of a mode; a plus is for an ACL.
func modeString(e fileEntry) string {
	letters := map[string]byte{"directory": 'd', "symlink": 'l', "char": 'c', "block": 'b', "fifo": 'p', "socket": 's'}
	b := []byte("-rwxrwxrwx")
	if l := letters[e.Type]; l != 0 {
		b[0] = l
	}
	for i := range 9 {
		if e.mode&(1<<(8-i)) == 0 {
			b[1+i] = '-'
		}
	}
	for _, s := range []struct {
		bit     fs.FileMode
		at      int
		letters string // without and with x
	}{{fs.ModeSetuid, 3, "Ss"}, {fs.ModeSetgid, 6, "Ss"}, {fs.ModeSticky, 9, "Tt"}} {
		if e.mode&s.bit == 0 {
			continue
		}
		if b[s.at] == 'x' {
			b[s.at] = s.letters[1]
		} else {
			b[s.at] = s.letters[0]
		}
	}
	for name := range e.Xattrs {
		if strings.HasPrefix(name, "system.posix_acl_") {
			return string(b) + "+"
		}
	}
	return string(b)
}
