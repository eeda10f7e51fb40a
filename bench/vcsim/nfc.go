package vcsim

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"

	"vic/vmdk"
)

// serveNFC serves the URLs of NFC leases. The simulator drops what is uploaded: here it becomes what the disk has.
func (f *front) serveNFC(w http.ResponseWriter, r *http.Request) {
	mux := f.s.Service.ServeMux
	if r.Method != http.MethodPut && r.Method != http.MethodPost {
		mux.ServeHTTP(w, r)
		return
	}
	name, err := f.s.uploading(path.Base(r.URL.Path))
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	u := f.failures.upload(r, datastoreOf(name))
	sent, err := os.CreateTemp("", "vcsim-nfc-")
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer os.Remove(sent.Name())
	defer sent.Close()
	tee := &tee{u, sent}
	r.Body = tee
	answer := &answer{ResponseWriter: w}
	mux.ServeHTTP(answer, r)
	switch {
	case errors.Is(u.err, errFull):
		answer.status = http.StatusInsufficientStorage
	case u.err != nil:
		panic(http.ErrAbortHandler) // breaks the connection
	case answer.status == http.StatusOK:
		if err := f.s.importDisk(name, sent); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
	}
	w.WriteHeader(answer.status)
}

// A tee is a body that is kept as it is read.
type tee struct {
	*upload
	w io.Writer
}

func (t *tee) Read(p []byte) (int, error) {
	n, err := t.upload.Read(p)
	if _, werr := t.w.Write(p[:n]); werr != nil {
		return n, werr
	}
	return n, err
}

// An answer is a status that is not sent yet, without a body.
type answer struct {
	http.ResponseWriter
	status int
}

func (a *answer) WriteHeader(status int)      { a.status = status }
func (a *answer) Write(p []byte) (int, error) { return len(p), nil }

// uploading is the datastore path of the disk with a file name; of several the one of the youngest virtual machine.
func (s *Server) uploading(base string) (string, error) {
	var found string
	var youngest int
	for _, e := range s.Service.Context.Map.All("VirtualMachine") {
		ref := e.Reference()
		var n int
		if _, err := fmt.Sscanf(ref.Value, "vm-%d", &n); err != nil {
			n = 0 // as those of an ESXi host
		}
		s.Service.Context.WithLock(e, func() {
			_ = s.eachDisk(ref, func(_ *types.VirtualDisk, b *types.VirtualDiskFlatVer2BackingInfo) error { // which returns none
				if path.Base(b.FileName) == base && (found == "" || n >= youngest) {
					found, youngest = b.FileName, n
				}
				return nil
			})
		})
	}
	if found == "" {
		return "", fmt.Errorf("no virtual machine has a disk %s", base)
	}
	return found, nil
}

// importDisk writes a stream-optimized disk to the flat one that was made for it.
func (s *Server) importDisk(name string, sent *os.File) error {
	at, err := s.Path(name)
	if err != nil {
		return err
	}
	size, err := sent.Seek(0, io.SeekCurrent)
	if err != nil {
		return err
	}
	e, err := vmdk.OpenExtent(sent, size)
	if err != nil {
		return err
	}
	d, err := vmdk.OpenDisk([]vmdk.Link{{Extents: []*vmdk.Extent{e}}})
	if err != nil {
		return err
	}
	flat, err := os.OpenFile(simulator.VirtualDiskBackingFileName(at), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	fi, err := flat.Stat()
	if err == nil && fi.Size() != d.Capacity() {
		err = fmt.Errorf("the disk sent has %d bytes, the one made for it %d", d.Capacity(), fi.Size())
	}
	if err == nil {
		err = d.CopyTo(flat, vmdk.DefaultGrainSize)
	}
	return errors.Join(err, flat.Close())
}
