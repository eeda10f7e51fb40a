package vsphere

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"time"
)

// emptyFolder is the folder of disks with empty file systems.
const emptyFolder = "empty"

// Folders of Volumes, and what tells that a VCH uses a volume, or writes to its disk.
const (
	volumesFolder = "volumes"
	usesSuffix    = ".uses"
	writesSuffix  = ".writes"
)

// A volumeRecord is what a volume is, but for its capacity, which is the disk's.
type volumeRecord struct {
	Version int               `json:"version"`
	Name    string            `json:"name"`
	Driver  string            `json:"driver"`
	Created time.Time         `json:"created"`
	Labels  map[string]string `json:"labels,omitempty"`
	Options map[string]string `json:"options,omitempty"`
}

// A volumeFolder is what is in a volume's folder.
type volumeFolder struct {
	ids  []string // of records: one
	vchs []string // that use it

	writers []string // VCHs that write to its disk, or did when they broke off
}

func readFolder(list []Entry) volumeFolder {
	var f volumeFolder
	for _, e := range list {
		if id, ok := strings.CutSuffix(e.Name, ".json"); ok && isID(id) {
			f.ids = append(f.ids, id)
		}
		if vch, ok := strings.CutSuffix(e.Name, usesSuffix); ok {
			f.vchs = append(f.vchs, vch)
		}
		if vch, ok := strings.CutSuffix(e.Name, writesSuffix); ok {
			f.writers = append(f.writers, vch)
		}
	}
	return f
}

// isID tells whether a text is what newID makes.
func isID(text string) bool {
	b, err := hex.DecodeString(text)
	return err == nil && len(b) == nameID
}

// An underWay is a VCH's part of a folder of volumes, where those are that it makes or removes.
type underWay struct {
	d   *Datastore
	vch string
}

// all are the folders of volumes, by their names.
func (u underWay) all(ctx context.Context) (map[string][]Entry, error) {
	files, err := u.d.Tree(ctx, volumesFolder)
	all := map[string][]Entry{}
	for _, f := range files {
		folder, name := path.Split(f.Name)
		f.Name = name
		all[path.Clean(folder)] = append(all[path.Clean(folder)], f)
	}
	delete(all, ".")
	return all, err
}

// staged is the folder of a volume.
func (u underWay) staged(id string) string { return path.Join(vchsFolder, u.vch, id) }

// others are the other VCHs that use a volume that was taken.
func (u underWay) others(ctx context.Context, id string) ([]string, error) {
	list, err := u.d.List(ctx, u.staged(id))
	var others []string
	for _, vch := range readFolder(list).vchs {
		if vch != u.vch {
			others = append(others, "virtual container host "+vch)
		}
	}
	return others, err
}

// finish removes the disk of a volume that has no name, and its folder.
func (u underWay) finish(ctx context.Context, id, name string) error {
	if err := u.d.RemoveAll(ctx, name+".json"); err != nil { // of those that are older than volumeRecords
		return err
	}
	if err := u.d.discard(ctx, name+".vmdk"); err != nil {
		return err
	}
	return u.d.RemoveAll(ctx, u.staged(id))
}

// recoverAll removes what a crash has left of them.
func (u underWay) recoverAll(ctx context.Context) error {
	list, failed := u.d.List(ctx, path.Join(vchsFolder, u.vch))
	if errors.Is(failed, fs.ErrNotExist) {
		failed = nil
	}
	for _, e := range list {
		if err := u.recover(ctx, e.Name); err != nil {
			failed = errors.Join(failed, fmt.Errorf("remove %s, which a crash has left: %w", u.d.Path(u.staged(e.Name)), err))
		}
	}
	return failed
}

func (u underWay) recover(ctx context.Context, id string) error {
	var rec volumeRecord
	text, err := u.d.ReadFile(ctx, path.Join(u.staged(id), id+".json"), recordLimit)
	if err == nil {
		err = json.Unmarshal(text, &rec)
	}
	if err != nil || strings.Contains(rec.Name, "/") { // its disk was not begun
		if errors.Is(err, ErrUnavailable) {
			return err
		}
		return u.d.Remove(ctx, u.staged(id))
	}
	others, err := u.others(ctx, id)
	if err != nil {
		return err
	}
	if len(others) > 0 {
		return u.d.move(ctx, u.staged(id), path.Join(volumesFolder, rec.Name))
	}
	return u.finish(ctx, id, rec.Name+"-"+id)
}

// discard deletes a disk with all of its files, if it is there.
func (d *Datastore) discard(ctx context.Context, name string) error {
	if err := d.deleteDisk(ctx, name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
