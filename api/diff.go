package api

import (
	"net/http"

	"github.com/moby/moby/api/types/container"

	"vic/containervm"
	"vic/diskfs"
)

// changeKinds are docker's numbers of what happened at a path.
var changeKinds = map[diskfs.ChangeKind]container.ChangeType{
	diskfs.Changed: container.ChangeModify, diskfs.Added: container.ChangeAdd, diskfs.Deleted: container.ChangeDelete,
}

// containerChanges is docker diff.
func (s *Server) containerChanges(w http.ResponseWriter, r *http.Request) error {
	c, err := s.container(r)
	if err != nil {
		return err
	}
	list := []container.FilesystemChange{}
	err = c.Changes(r.Context(), func(ch containervm.Change) error {
		list = append(list, container.FilesystemChange{Kind: changeKinds[ch.Kind], Path: ch.Path})
		return nil
	})
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, list)
}

// exportContainer is docker export: the root file system as a tar.
func (s *Server) exportContainer(w http.ResponseWriter, r *http.Request) error {
	c, err := s.container(r)
	if err != nil {
		return err
	}
	tar, err := c.Export(r.Context())
	if err != nil {
		return err
	}
	defer tar.Close()
	return s.sendTar(w, r, tar, "exporting a container")
}
