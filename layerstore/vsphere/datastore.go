package vsphere

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"path"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/property"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// A Datastore is a folder on a datastore. Names of files are paths below it, with slashes.
type Datastore struct {
	s    *Session
	ds   *object.Datastore
	dc   *object.Datacenter
	root string
	// namespaces tells that folders at its top are not made by the file manager: vSAN and vVol have objects there.
	namespaces bool
}

// OpenDatastore finds a datastore by its name or inventory path, in a datacenter or, if that is "", in the only
// one there is. Root is the folder, which need not be there. The error of a wrong name says which there are.
func (s *Session) OpenDatastore(ctx context.Context, datacenter, name, root string) (*Datastore, error) {
	if root != "" && !fs.ValidPath(root) {
		return nil, fmt.Errorf("%q is no folder of a datastore: want NAME/NAME", root)
	}
	f := find.NewFinder(s.client, false)
	dc, err := f.DatacenterOrDefault(ctx, datacenter)
	if err != nil {
		return nil, fmt.Errorf("find datacenter: %w", suggest(ctx, err, func(ctx context.Context) ([]string, error) {
			all, err := f.DatacenterList(ctx, "*")
			return names(all), err
		}))
	}
	f.SetDatacenter(dc)
	ds, err := f.DatastoreOrDefault(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("find datastore: %w", suggest(ctx, err, func(ctx context.Context) ([]string, error) {
			all, err := f.DatastoreList(ctx, "*")
			return names(all), err
		}))
	}
	var m mo.Datastore
	if err := property.DefaultCollector(s.client).RetrieveOne(ctx, ds.Reference(), []string{"capability"}, &m); err != nil {
		return nil, fmt.Errorf("look at datastore %s: %w", ds.Name(), unavailable(err))
	}
	top := m.Capability.TopLevelDirectoryCreateSupported
	return &Datastore{s: s, ds: ds, dc: dc, root: root, namespaces: top != nil && !*top}, nil
}

// at is another folder on the same datastore.
func (d *Datastore) at(root string) *Datastore {
	other := *d
	other.root = root
	return &other
}

// names are those of inventory objects.
func names[T interface{ Name() string }](all []T) []string {
	var out []string
	for _, o := range all {
		out = append(out, o.Name())
	}
	return out
}

// suggest adds to the error of a name that was not found, or not unique, the names that there are.
func suggest(ctx context.Context, err error, list func(context.Context) ([]string, error)) error {
	all, listErr := list(ctx)
	if listErr != nil || len(all) == 0 {
		return err
	}
	return fmt.Errorf("%w; there are %s", err, strings.Join(all, ", "))
}

// Path is a file's datastore path: "[NAME] FOLDER/FILE".
func (d *Datastore) Path(name string) string { return d.ds.Path(path.Join(d.root, name)) }

// Datacenter is the one that the datastore is in.
func (d *Datastore) Datacenter() *object.Datacenter { return d.dc }

// Reference is the datastore's managed object.
func (d *Datastore) Reference() types.ManagedObjectReference { return d.ds.Reference() }

// A Space says how much a datastore has room for, in bytes, and what it is.
type Space struct {
	Type           string // VMFS, NFS, NFS41, vsan, VVOL, ...
	Version        string // of VMFS, "" if it is another
	Capacity, Free int64
	// SparseDeltas tells that disks of virtual machines may be vmfsSparse deltas there; it is false where the
	// server does not say.
	SparseDeltas bool
}

// Kind is the type, and its version if it has one.
func (sp Space) Kind() string { return strings.TrimSpace(sp.Type + " " + sp.Version) }

// Space asks for it.
func (d *Datastore) Space(ctx context.Context) (Space, error) {
	var m mo.Datastore
	if err := property.DefaultCollector(d.s.client).RetrieveOne(ctx, d.ds.Reference(), []string{"summary", "capability", "info"}, &m); err != nil {
		return Space{}, fmt.Errorf("look at datastore %s: %w", d.ds.Name(), unavailable(err))
	}
	sp := Space{Type: m.Summary.Type, Capacity: m.Summary.Capacity, Free: m.Summary.FreeSpace}
	if v := m.Capability.VmfsSparseSupported; v != nil {
		sp.SparseDeltas = *v
	}
	if vmfs, ok := m.Info.(*types.VmfsDatastoreInfo); ok && vmfs.Vmfs != nil {
		sp.Version = vmfs.Vmfs.Version
	}
	return sp, nil
}

// check refuses names that are no files below the root.
func (d *Datastore) check(op, name string) error {
	if !fs.ValidPath(name) || name == "." {
		return &fs.PathError{Op: op, Path: name, Err: fs.ErrInvalid}
	}
	return nil
}

// do runs an operation on a file, again where that may help. Its error is that of wrap.
func (d *Datastore) do(ctx context.Context, op, name string, fn func() error) error {
	return d.wrap(op, name, d.s.retry.do(ctx, transient, fn))
}

// wrap names the operation and the file of an error, nil if that is nil. It is fs.ErrNotExist where the server knows no such file. That the
// datastore is full is a *FullError: the file has nothing to do with it.
func (d *Datastore) wrap(op, name string, err error) error {
	if err := d.Blame(err); errors.As(err, new(*FullError)) {
		return err
	}
	if fault.Is(err, &types.FileNotFound{}) {
		err = fs.ErrNotExist
	}
	if err != nil {
		return &fs.PathError{Op: op, Path: d.Path(name), Err: unavailable(err)}
	}
	return nil
}

// unavailable marks errors of a server that does not answer. A full datastore is none.
func unavailable(err error) error {
	var status *statusError
	if err == nil || errors.Is(err, ErrUnavailable) {
		return err
	}
	if errors.As(err, &status) && status.code >= 500 && status.code != http.StatusInsufficientStorage || unreachable(err) {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return err
}

// MakeFolder makes a folder and those above it that are not there.
func (d *Datastore) MakeFolder(ctx context.Context, name string) error {
	if !fs.ValidPath(name) {
		return &fs.PathError{Op: "mkdir", Path: name, Err: fs.ErrInvalid}
	}
	return d.do(ctx, "mkdir", name, func() error {
		if top, below, _ := strings.Cut(path.Join(d.root, name), "/"); d.namespaces {
			_, err := object.NewDatastoreNamespaceManager(d.s.client).CreateDirectory(ctx, d.ds, top, "")
			if err != nil && !fault.Is(err, &types.FileAlreadyExists{}) || below == "" {
				return existing(err)
			}
		}
		err := object.NewFileManager(d.s.client).MakeDirectory(ctx, d.Path(name), d.dc, true)
		return existing(err)
	})
}

// existing drops the error of what is there already.
func existing(err error) error {
	if fault.Is(err, &types.FileAlreadyExists{}) {
		return nil
	}
	return err
}

// Remove removes a file, or a folder with all that is in it. The error is fs.ErrNotExist if there is none.
func (d *Datastore) Remove(ctx context.Context, name string) error {
	if err := d.check("remove", name); err != nil {
		return err
	}
	return d.wrap("remove", name, d.s.Do(ctx, func() (*object.Task, error) {
		return object.NewFileManager(d.s.client).DeleteDatastoreFile(ctx, d.Path(name), d.dc)
	}))
}

// RemoveAll is Remove, but that what is not there is no error.
func (d *Datastore) RemoveAll(ctx context.Context, name string) error {
	if err := d.Remove(ctx, name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// CreateDisk has the server make a disk, thin and empty.
func (d *Datastore) CreateDisk(ctx context.Context, name string, capacity int64) error {
	err := d.s.Do(ctx, func() (*object.Task, error) {
		return object.NewVirtualDiskManager(d.s.client).CreateVirtualDisk(ctx, d.Path(name), d.dc, &types.FileBackedVirtualDiskSpec{
			VirtualDiskSpec: types.VirtualDiskSpec{AdapterType: string(types.VirtualDiskAdapterTypeLsiLogic), DiskType: string(types.VirtualDiskTypeThin)},
			CapacityKb:      capacity >> 10,
		})
	})
	return d.wrap("create disk", name, err)
}

// deleteDisk removes a disk, in whatever form the datastore has it. The error is fs.ErrNotExist if there is none.
func (d *Datastore) deleteDisk(ctx context.Context, name string) error {
	text, err := d.ReadFile(ctx, name, recordLimit)
	if err != nil {
		return err
	}
	// ESXi marks disks that became parents.
	if kept := notDeletable.ReplaceAll(text, nil); len(kept) < len(text) {
		if err := d.putText(ctx, name, kept); err != nil {
			return err
		}
	}
	return d.wrap("delete disk", name, d.s.Do(ctx, func() (*object.Task, error) {
		return object.NewVirtualDiskManager(d.s.client).DeleteVirtualDisk(ctx, d.Path(name), d.dc)
	}))
}

var notDeletable = regexp.MustCompile(`(?m)^ddb\.deletable *= *"false"\r?\n`)

// An Entry is what List says of a file.
type Entry struct {
	Name string // within the folder
	Size int64
	Dir  bool
	Time time.Time // of the last change; zero if the server does not say
}

// List returns what is in a folder. The error is fs.ErrNotExist if there is none.
func (d *Datastore) List(ctx context.Context, name string) ([]Entry, error) {
	if !fs.ValidPath(name) {
		return nil, &fs.PathError{Op: "list", Path: name, Err: fs.ErrInvalid}
	}
	var out []Entry
	err := d.do(ctx, "list", name, func() (err error) {
		out, err = d.list(ctx, name)
		return err
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

func (d *Datastore) list(ctx context.Context, name string) ([]Entry, error) {
	browser, err := d.ds.Browser(ctx)
	if err != nil {
		return nil, err
	}
	task, err := browser.SearchDatastore(ctx, d.Path(name), everything())
	if err != nil {
		return nil, err
	}
	info, err := task.WaitForResult(ctx, nil)
	if err != nil {
		return nil, err
	}
	found, ok := info.Result.(types.HostDatastoreBrowserSearchResults)
	if !ok {
		return nil, fmt.Errorf("the search ended with a %T", info.Result)
	}
	var out []Entry
	for _, f := range found.File {
		out = append(out, newEntry(f))
	}
	return out, nil
}

// move renames a file, or a folder with all that is in it. The error is fs.ErrExist if something has the name, fs.ErrNotExist if
// there is no such file.
func (d *Datastore) move(ctx context.Context, from, to string) error {
	for _, name := range []string{from, to} {
		if err := d.check("move", name); err != nil {
			return err
		}
	}
	err := d.s.Do(ctx, func() (*object.Task, error) {
		return object.NewFileManager(d.s.client).MoveDatastoreFile(ctx, d.Path(from), d.dc, d.Path(to), d.dc, false)
	})
	if fault.Is(err, &types.FileAlreadyExists{}) {
		err = fs.ErrExist
	}
	return d.wrap("move", from, err)
}

func newEntry(f types.BaseFileInfo) Entry {
	i := f.GetFileInfo()
	_, dir := f.(*types.FolderFileInfo)
	e := Entry{Name: i.Path, Size: i.FileSize, Dir: dir}
	if i.Modification != nil {
		e.Time = *i.Modification
	}
	return e
}

// Put writes a file of so many bytes, in place of what had that name: a broken connection or a lost session has it begun again.
// An error may leave a part of the file, under its name: who needs to know whether it is whole has
// something else to say so, written later. Open returns the bytes from the first on, each time; progress, which may be nil,
// is told how many of them have gone, and goes back to 0 for another try.
func (d *Datastore) Put(ctx context.Context, name string, size int64, open func() (io.ReadCloser, error), progress func(sent int64)) error {
	if err := d.check("write", name); err != nil {
		return err
	}
	if progress == nil {
		progress = func(int64) {}
	}
	return d.do(ctx, "write", name, func() error { return d.put(ctx, name, size, open, progress) })
}

// A sourceError is an error of what is to be written.
type sourceError struct{ error }

func (e sourceError) Unwrap() error { return e.error }

func (d *Datastore) put(ctx context.Context, name string, size int64, open func() (io.ReadCloser, error), progress func(int64)) error {
	from, err := open()
	if err != nil {
		return sourceError{err}
	}
	defer from.Close() // read only
	progress(0)
	b := &body{r: io.LimitReader(from, size), progress: progress}
	res, err := d.send(ctx, http.MethodPut, name, b, size, nil)
	if res != nil {
		defer res.Body.Close()
	}
	if bad := b.stop(); bad != nil {
		return sourceError{bad}
	}
	if err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK && res.StatusCode != http.StatusCreated {
		return &statusError{res.StatusCode, res.Status}
	}
	return nil
}

// A body is what is sent: it tells of what was read, and keeps the error of reading it. The transport may go on
// reading when it has an answer already, until the body is stopped.
type body struct {
	mu       sync.Mutex // guards all
	r        io.Reader
	n        int64
	err      error
	progress func(int64)
	stopped  bool
}

func (b *body) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.stopped {
		return 0, io.ErrClosedPipe
	}
	n, err := b.r.Read(p)
	if n > 0 {
		b.n += int64(n)
		b.progress(b.n)
	}
	if err != nil && err != io.EOF {
		b.err = err
	}
	return n, err
}

// stop waits until nobody reads, and returns the error of the source.
func (b *body) stop() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.stopped = true
	return b.err
}

// send asks the file service. It logs in again if the session is gone, but cannot send a body again: that error is
// ErrUnavailable.
func (d *Datastore) send(ctx context.Context, method, name string, body io.Reader, size int64, header http.Header) (*http.Response, error) {
	epoch := d.s.seen()
	for again := false; ; {
		u, ticket, err := d.ds.ServiceTicket(ctx, path.Join(d.root, name), method)
		if err != nil {
			return nil, err
		}
		req, err := http.NewRequestWithContext(ctx, method, u.String(), body)
		if err != nil {
			return nil, err
		}
		for key, values := range header {
			req.Header[key] = values
		}
		if body != nil {
			req.ContentLength = size
			req.Header.Set("Content-Type", soap.DefaultUpload.Type)
		}
		if ticket != nil {
			req.AddCookie(ticket)
			req.Close = true
		}
		res, err := d.s.client.Client.Client.Do(req)
		if err != nil || res.StatusCode != http.StatusUnauthorized || again {
			return res, err
		}
		again = true
		res.Body.Close()
		if err := d.s.authenticate(ctx, epoch); err != nil { // unless somebody else has since
			return nil, err
		}
		if body != nil {
			return nil, fmt.Errorf("%w: %s", ErrUnavailable, res.Status)
		}
	}
}

// Stat returns a file's size. The error is fs.ErrNotExist if there is none.
func (d *Datastore) Stat(ctx context.Context, name string) (int64, error) {
	if err := d.check("stat", name); err != nil {
		return 0, err
	}
	var size int64
	err := d.do(ctx, "stat", name, func() error {
		res, err := d.send(ctx, http.MethodHead, name, nil, 0, nil)
		if err != nil {
			return err
		}
		res.Body.Close()
		if err := fileStatus(res, http.StatusOK); err != nil {
			return err
		}
		size = res.ContentLength
		return nil
	})
	if err != nil {
		return 0, err
	}
	return size, nil
}

// fileStatus is the error of an answer about a file.
func fileStatus(res *http.Response, want int) error {
	switch res.StatusCode {
	case want:
		return nil
	case http.StatusNotFound:
		return fs.ErrNotExist
	}
	return &statusError{res.StatusCode, res.Status}
}

// ReadRange reads len(p) bytes of a file at byte off, in one request. Fewer are an io.ErrUnexpectedEOF.
func (d *Datastore) ReadRange(ctx context.Context, name string, p []byte, off int64) error {
	if err := d.check("read", name); err != nil {
		return err
	}
	if len(p) == 0 {
		return nil
	}
	return d.do(ctx, "read", name, func() error {
		h := http.Header{"Range": {"bytes=" + strconv.FormatInt(off, 10) + "-" + strconv.FormatInt(off+int64(len(p))-1, 10)}}
		res, err := d.send(ctx, http.MethodGet, name, nil, 0, h)
		if err != nil {
			return err
		}
		defer res.Body.Close()
		if err := fileStatus(res, http.StatusPartialContent); err != nil {
			return err
		}
		_, err = io.ReadFull(res.Body, p)
		return err
	})
}

// ReadAvailable reads up to len(p) bytes of a file at byte off: what there is of them, in one request. It is io.EOF if there is
// nothing, yet.
func (d *Datastore) ReadAvailable(ctx context.Context, name string, p []byte, off int64) (n int, err error) {
	if err := d.check("read", name); err != nil {
		return 0, err
	}
	if len(p) == 0 {
		return 0, nil
	}
	empty := false
	err = d.do(ctx, "read", name, func() error {
		h := http.Header{"Range": {"bytes=" + strconv.FormatInt(off, 10) + "-" + strconv.FormatInt(off+int64(len(p))-1, 10)}}
		res, err := d.send(ctx, http.MethodGet, name, nil, 0, h)
		if err != nil {
			return err
		}
		defer res.Body.Close()
		empty = res.StatusCode == http.StatusRequestedRangeNotSatisfiable || res.StatusCode == http.StatusOK && res.ContentLength == 0
		if empty {
			return nil
		}
		if err := fileStatus(res, http.StatusPartialContent); err != nil {
			return err
		}
		n, err = io.ReadFull(res.Body, p[:min(int64(len(p)), max(0, res.ContentLength))])
		return err
	})
	if err == nil && (empty || n == 0) {
		err = io.EOF
	}
	return n, err
}

// ReadFile reads a whole file of at most limit bytes. The error is fs.ErrNotExist if there is none.
func (d *Datastore) ReadFile(ctx context.Context, name string, limit int64) ([]byte, error) {
	if err := d.check("read", name); err != nil {
		return nil, err
	}
	var text []byte
	err := d.do(ctx, "read", name, func() error {
		res, err := d.send(ctx, http.MethodGet, name, nil, 0, nil)
		if err != nil {
			return err
		}
		defer res.Body.Close()
		if err := fileStatus(res, http.StatusOK); err != nil {
			return err
		}
		text, err = io.ReadAll(io.LimitReader(res.Body, limit+1))
		if err == nil && int64(len(text)) > limit {
			return fmt.Errorf("has more than %d bytes", limit)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return text, nil
}

// putText writes a small file.
func (d *Datastore) putText(ctx context.Context, name string, text []byte) error {
	return d.Put(ctx, name, int64(len(text)), func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(text)), nil }, nil)
}

// putRecord writes a file of JSON.
func (d *Datastore) putRecord(ctx context.Context, name string, v any) error {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return d.putText(ctx, name, append(text, '\n'))
}
