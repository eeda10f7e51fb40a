package api

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/moby/moby/api/types/container"

	"vic/containervm"
	"vic/fetch/archive"
)

// pathStatHeader has the description of a file, as JSON in base64.
const pathStatHeader = "X-Docker-Container-Path-Stat"

// archivePath is the path that a request is about, which it must name.
func (s *Server) archivePath(r *http.Request) (*containervm.Container, string, error) {
	c, err := s.container(r)
	if err != nil {
		return nil, "", err
	}
	path := r.URL.Query().Get("path")
	if path == "" {
		return nil, "", badRequest("invalid path: cannot be empty")
	}
	return c, path, nil
}

// pathError has what is wrong with a path name the container as the client does.
func pathError(r *http.Request, path string, err error) error {
	switch {
	case errors.Is(err, containervm.ErrNotFound):
		return notFound("Could not find the file %s in container %s", path, param(r, "id"))
	case errors.Is(err, containervm.ErrPaused):
		return conflict("container %s is paused, unpause the container first", param(r, "id"))
	}
	return err
}

func setPathStat(w http.ResponseWriter, st containervm.PathStat) error {
	text, err := json.Marshal(container.PathStat{Name: st.Name, Size: st.Size, Mode: st.Mode, Mtime: st.Mtime, LinkTarget: st.LinkTarget})
	if err != nil {
		return fmt.Errorf("encode description of %s: %w", st.Name, err)
	}
	w.Header().Set(pathStatHeader, base64.StdEncoding.EncodeToString(text))
	return nil
}

// statArchive describes a file of a container in a header.
func (s *Server) statArchive(w http.ResponseWriter, r *http.Request) error {
	c, path, err := s.archivePath(r)
	if err != nil {
		return err
	}
	st, err := c.StatPath(r.Context(), path)
	if err != nil {
		return pathError(r, path, err)
	}
	return setPathStat(w, st)
}

// readArchive is docker cp from a container: a file or a folder as a tar.
func (s *Server) readArchive(w http.ResponseWriter, r *http.Request) error {
	c, path, err := s.archivePath(r)
	if err != nil {
		return err
	}
	st, tar, err := c.ReadPath(r.Context(), path)
	if err != nil {
		return pathError(r, path, err)
	}
	defer tar.Close()
	if err := setPathStat(w, st); err != nil {
		return err
	}
	return s.sendTar(w, r, tar, "reading files of a container")
}

// copyBuffer is how much of a tar is passed on at once.
const copyBuffer = 256 << 10

// sendTar passes a tar on to the client.
func (s *Server) sendTar(w http.ResponseWriter, r *http.Request, tar io.Reader, what string) error {
	w.Header().Set("Content-Type", "application/x-tar")
	if _, err := io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{tar}, make([]byte, copyBuffer)); err != nil {
		if r.Context().Err() == nil {
			s.log.Error(what, "container", param(r, "id"), "error", err)
		}
		panic(http.ErrAbortHandler) // the client must not take it for whole
	}
	return nil
}

// writeArchive is docker cp to a container: a tar is extracted in a folder.
func (s *Server) writeArchive(_ http.ResponseWriter, r *http.Request) error {
	c, path, err := s.archivePath(r)
	if err != nil {
		return err
	}
	tar, err := archive.Decompress(r.Body)
	if err != nil {
		return err
	}
	defer tar.Close()
	return pathError(r, path, c.WritePath(r.Context(), path, containervm.WriteOptions{
		Own: boolParam(r, "copyUIDGID"), KeepKinds: boolParam(r, "noOverwriteDirNonDir"),
	}, tar))
}
