package vsphere

import (
	"context"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/types"
)

// Tree returns all files below a folder, in one search, with their paths within it, ascending. What is a folder is left out. The error is
// fs.ErrNotExist if there is no such folder.
func (d *Datastore) Tree(ctx context.Context, name string) ([]Entry, error) {
	if !fs.ValidPath(name) {
		return nil, &fs.PathError{Op: "list", Path: name, Err: fs.ErrInvalid}
	}
	var out []Entry
	err := d.do(ctx, "list", name, func() (err error) {
		out, err = d.tree(ctx, name)
		return err
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

func (d *Datastore) tree(ctx context.Context, name string) ([]Entry, error) {
	browser, err := d.ds.Browser(ctx)
	if err != nil {
		return nil, err
	}
	task, err := browser.SearchDatastoreSubFolders(ctx, d.Path(name), everything())
	if err != nil {
		return nil, err
	}
	info, err := task.WaitForResult(ctx, nil)
	if err != nil {
		return nil, err
	}
	found, ok := info.Result.(types.ArrayOfHostDatastoreBrowserSearchResults)
	if !ok {
		return nil, fmt.Errorf("the search ended with a %T", info.Result)
	}
	root := path.Join(d.root, name)
	var out []Entry
	for _, folder := range found.HostDatastoreBrowserSearchResults {
		var p object.DatastorePath
		if !p.FromString(folder.FolderPath) {
			return nil, fmt.Errorf("the search found %q, which is no path", folder.FolderPath)
		}
		at := path.Clean(p.Path)
		rest, within := strings.CutPrefix(at+"/", root+"/")
		if !within {
			return nil, fmt.Errorf("the search in %s found %s", root, at)
		}
		for _, f := range folder.File {
			if e := newEntry(f); !e.Dir {
				e.Name = path.Join(rest, e.Name)
				out = append(out, e)
			}
		}
	}
	slices.SortFunc(out, func(a, b Entry) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// everything asks for all that is in a folder.
func everything() *types.HostDatastoreBrowserSearchSpec {
	return &types.HostDatastoreBrowserSearchSpec{
		MatchPattern: []string{"*"},
		Query:        []types.BaseFileQuery{&types.FolderFileQuery{}, &types.FileQuery{}}, // else disks come as one, without their extents
		Details:      &types.FileQueryFlags{FileType: true, FileSize: true, Modification: true},
	}
}
