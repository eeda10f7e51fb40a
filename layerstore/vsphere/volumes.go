//go:build linux

package vsphere

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/types"

	"vic/layerstore"
	"vic/vmdk"
)

// VolumeOption is the key of a volume's option that names the folder which its disk is made in.
const VolumeOption = "volumestore"

// DefaultVolumes is the label of the folder of volumes that name none.
const DefaultVolumes = "default"

// Volumes are volumes in folders of datastores that have labels. Several VCHs may have the same folders, and all have all that is there:
//
//	NAME-ID.vmdk, NAME-ID-flat.vmdk  a thin disk with a file system, which the server copied
//	volumes/NAME/ID.json             volumeRecord of the volume, whose disk is complete
//	volumes/NAME/VCH.uses            containers of that VCH mount it, whether they run or not
//	volumes/NAME/VCH.writes          that VCH writes to its disk, or did when it broke off, and nobody else may use it: see holding
//	vchs/VCH/ID/                     a volume's folder while the VCH makes or removes it
//	empty/SIZE-ID.vmdk, .json        an empty file system of so many bytes, which volumes are copies of; one is enough
//
// NAME is the volume's, ID some digits that no two disks have in common. A disk has a UUID of its own, by which guests know it, and that
// is why it is no delta: all over one parent would have the parent's. It implements layerstore.VolumeDisks.
//
// A volume's folder is made in vchs, with the record, then the disk; at last it is renamed to where it has its name, which the server
// does once. Whoever comes second has made a disk for nothing, and takes the first's volume. To remove one is the way back: the
// folder first, by which nobody finds it any more; if another VCH uses it then, it returns; then the disk. What a crash has left in a VCH's folder
// it removes when it starts. No file is ever written in place.
type Volumes struct {
	folders map[string]*Datastore
	vch     string
	place   Place
	own     *OwnVM
	format  func(capacity int64) (*layerstore.Disk, error)
	log     *slog.Logger

	mu sync.Mutex // held while a disk is made

	usesMu sync.Mutex      // guards what follows
	uses   map[string]bool // by disk: whether the file that says so is known to be there
	left   map[string]bool // disks that are written, or were when that broke off

	heldMu  sync.Mutex          // guards what follows; held with no other
	held    map[string]*holding // disks that are attached, or about to be
	reading int                 // how many of them began by a read
}

// An emptyRecord says that an empty file system is complete; disks of volumes had one like it before they had volumeRecords.
type emptyRecord struct {
	Capacity int64 `json:"capacity"` // bytes
}

// VolumesOptions are how NewVolumes makes Volumes. VCH and Format must be set.
type VolumesOptions struct {
	// VCH is the name of whoever uses the volumes; no two have the same at a time.
	VCH string
	// Place is where the virtual machines are made that bring disks.
	Place Place
	// Own is the virtual machine in which this runs, for Write; nil is none.
	Own *OwnVM
	// Format makes a disk with an empty file system.
	Format func(capacity int64) (*layerstore.Disk, error)
	Log    *slog.Logger // nil is silent
}

// NewVolumes returns the volumes in folders, by their labels.
func NewVolumes(folders map[string]*Datastore, o VolumesOptions) *Volumes {
	v := &Volumes{folders: folders, vch: o.VCH, place: o.Place, own: o.Own, format: o.Format, log: o.Log, uses: map[string]bool{}, left: map[string]bool{}, held: map[string]*holding{}}
	if v.log == nil {
		v.log = slog.New(slog.DiscardHandler)
	}
	return v
}

// References are the managed objects of the datastores that the folders are on.
func (v *Volumes) References() []types.ManagedObjectReference {
	var all []types.ManagedObjectReference
	for _, d := range v.folders {
		all = append(all, d.Reference())
	}
	return all
}

// Options implements layerstore.VolumeDisks.
func (v *Volumes) Options() []string { return []string{VolumeOption} }

// Name implements layerstore.VolumeDisks: LABEL/NAME-ID.
func (v *Volumes) Name(volume string, options map[string]string) (string, error) {
	label := DefaultVolumes
	for key, value := range options {
		if strings.EqualFold(key, VolumeOption) {
			label = value
		}
	}
	if v.folders[label] == nil {
		if len(v.folders) == 0 {
			return "", errors.New("this host has no volume store: give vic serve --volume-store")
		}
		return "", fmt.Errorf("no volume store named %q: there are %s", label, strings.Join(slices.Sorted(maps.Keys(v.folders)), ", "))
	}
	return label + "/" + volume + "-" + newID(), nil
}

// find returns the folder of a disk and its name in that, without a suffix.
func (v *Volumes) find(disk string) (*Datastore, string, error) {
	label, name, ok := strings.Cut(disk, "/")
	if !ok || name == "" || strings.ContainsAny(name, "/") || strings.HasPrefix(name, ".") {
		return nil, "", fmt.Errorf("%q is no disk of a volume", disk)
	}
	d := v.folders[label]
	if d == nil {
		return nil, "", fmt.Errorf("volume store %q, which has disk %s, is not there: give vic serve --volume-store", label, name)
	}
	return d, name, nil
}

// Path implements layerstore.VolumeDisks.
func (v *Volumes) Path(disk string) string {
	d, name, err := v.find(disk)
	if err != nil {
		return disk
	}
	return d.Path(name + ".vmdk")
}

// volumeTime bounds what has no context.
const volumeTime = 5 * time.Minute

func volumeContext() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), volumeTime)
}

// Stored implements layerstore.VolumeDisks. It is what the datastore's browser says of the disk's extent.
func (v *Volumes) Stored(disk string) (int64, error) {
	ctx, cancel := volumeContext()
	defer cancel()
	d, name, err := v.find(disk)
	if err != nil {
		return 0, err
	}
	list, err := d.List(ctx, ".")
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	for _, e := range list {
		if e.Name == name+"-flat.vmdk" {
			return e.Size, nil
		}
	}
	return 0, err
}

// makeDisk has the server make a volume's disk.
func (v *Volumes) makeDisk(ctx context.Context, d *Datastore, name string, capacity int64) error {
	empty, err := v.empty(ctx, d, capacity)
	if err != nil {
		return err
	}
	if err := d.discard(ctx, name+".vmdk"); err != nil { // of a copy that was broken off
		return err
	}
	disks := object.NewVirtualDiskManager(d.s.client)
	if err := d.s.Do(ctx, func() (*object.Task, error) {
		return disks.CopyVirtualDisk(ctx, d.Path(empty+".vmdk"), d.dc, d.Path(name+".vmdk"), d.dc, nil, false)
	}); err != nil {
		return d.Blame(err)
	}
	id := uuid.New()
	return d.s.Call(ctx, func() error {
		return disks.SetVirtualDiskUuid(ctx, d.Path(name+".vmdk"), d.dc, vmwareUUID(id))
	})
}

// empty returns the name of a disk with an empty file system, which is made if there is none. Several hosts may do so at once.
func (v *Volumes) empty(ctx context.Context, d *Datastore, capacity int64) (string, error) {
	list, err := d.List(ctx, emptyFolder)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	prefix := strconv.FormatInt(capacity, 10) + "-"
	for _, e := range list {
		name, isRecord := strings.CutSuffix(path.Join(emptyFolder, e.Name), ".json")
		if !isRecord || !strings.HasPrefix(e.Name, prefix) {
			continue
		}
		if there, err := complete(ctx, d, name); there || err != nil {
			return name, err
		}
	}
	name := path.Join(emptyFolder, prefix+newID())
	return name, v.makeEmpty(ctx, d, name, capacity)
}

func (v *Volumes) makeEmpty(ctx context.Context, d *Datastore, name string, capacity int64) error {
	disk, err := v.format(capacity)
	if err != nil {
		return err
	}
	defer disk.Close() // read only
	bound, err := disk.StreamBound()
	if err != nil {
		return err
	}
	if err := d.MakeFolder(ctx, emptyFolder); err != nil {
		return err
	}
	err = d.importDisk(ctx, v.place, imported{
		name: name + ".vmdk", capacity: capacity, bound: bound, progress: func(int64) {},
		write: func(w io.Writer) error { return disk.WriteStream(w, path.Base(name)+".vmdk", vmdk.CIDFor(name)) },
	})
	if err != nil {
		return err
	}
	return d.putRecord(ctx, name+".json", emptyRecord{capacity})
}

// complete tells whether a disk's record is there.
func complete(ctx context.Context, d *Datastore, name string) (bool, error) {
	text, err := d.ReadFile(ctx, name+".json", recordLimit)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	var rec emptyRecord
	return err == nil && json.Unmarshal(text, &rec) == nil, err
}

// vmwareUUID is a UUID as VMware writes those of disks: in hex, of bytes with spaces and a dash in the middle.
func vmwareUUID(id uuid.UUID) string {
	s := fmt.Sprintf("% x", id[:])
	return s[:23] + "-" + s[24:]
}
