package vcsim

import (
	"bytes"
	"fmt"
	"net/http"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"

	"vic/vmdk"
)

// Disks that are objects have their blocks in files of this machine, as others have. The API shows only their descriptors, in which an object has
// the file's place.

// isObject tells whether a file is one that has no name on such a datastore.
func isObject(name string) bool {
	return strings.HasSuffix(name, "-flat.vmdk") || strings.HasSuffix(name, "-delta.vmdk")
}

// objects tells whether the datastore's disks are objects.
func (d Datastore) objects() bool { return d.Objects || d.Type == VSAN }

// hideObjects leaves out of searches what is no file.
func (s *Server) hideObjects(_ *simulator.Task, run func() Outcome) Outcome {
	o := run()
	hide := func(r *types.HostDatastoreBrowserSearchResults) {
		if s.datastores[datastoreOf(r.FolderPath)].objects() {
			r.File = slices.DeleteFunc(r.File, func(f types.BaseFileInfo) bool { return isObject(f.GetFileInfo().Path) })
		}
	}
	switch r := o.Result.(type) {
	case types.HostDatastoreBrowserSearchResults:
		hide(&r)
		o.Result = r
	case types.ArrayOfHostDatastoreBrowserSearchResults:
		for i := range r.HostDatastoreBrowserSearchResults {
			hide(&r.HostDatastoreBrowserSearchResults[i])
		}
		o.Result = r
	}
	return o
}

// serveObject serves what is shown of a disk that is an object: its descriptor. It tells whether the request was for what such a disk consists of.
func serveObject(w http.ResponseWriter, r *http.Request, name, file string) bool {
	if path.Ext(name) != ".vmdk" {
		return false
	}
	if isObject(name) {
		http.NotFound(w, r)
		return true
	}
	d, err := readDescriptor(file)
	if err != nil {
		return false // who serves files says so
	}
	for i, x := range d.Extents {
		d.Extents[i] = objectLine(x, fmt.Sprintf("%s %s", name, x.File))
	}
	text, err := d.Marshal()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return true
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(text))
	return true
}

// objectLine is how a descriptor names an object.
func objectLine(x vmdk.ExtentLine, id string) vmdk.ExtentLine {
	return vmdk.ExtentLine{Access: x.Access, Sectors: x.Sectors, Type: "VMFS", File: fmt.Sprintf("vvol://rfc4122.%08x-0000-0000-0000-000000000000", vmdk.CIDFor(id))}
}
