package vsphere

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"log/slog"
	"path"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
	"github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/vim25/types"

	"vic/vmdk"
)

// Folders and files of a Store.
const (
	disksFolder = "disks"
	vchsFolder  = "vchs"
	storeFile   = "store.json"
	baseName    = "base"
	recordLimit = 1 << 20
)

// A Store is an image store on a datastore: the disks of images as vSphere's virtual machines take them, for several VCHs.
//
//	store.json                   storeRecord; made last: without it there is no store
//	disks/
//	  base.vmdk, base-flat.vmdk  the disk under all others, thin and empty; the server makes it
//	  NAME.vmdk                  descriptor of a disk; its parent, if it has one, is in the same folder
//	  NAME-delta.vmdk            its extent; -sesparse or -flat where the server made one, or none where disks are no files
//	  NAME.json                  diskRecord: the disk is complete from the moment this is there
//	vchs/VCH/
//	  pulls/ID.json              names of disks that somebody is about to use or to make
//	  images/ID.json             an image that the VCH has, and its disks
//	  names/ID.json              what the VCH calls that image, for people alone
//	vchs/_seed/                  the same, of images that were brought for VCHs to come
//
// NAME is the chain ID of the layer that the disk shows, and after a dash some digits that no two uploads have in common. So
// nobody ever writes a file again that another VCH may have complete already, and perhaps a virtual machine open: two that
// upload the same layer at once leave two disks of it. Nothing is renamed: vSphere flattens a delta that moves.
//
// A disk is removed in this order: its record, then, if no file in any pulls folder names it, its files; else the record is written again.
// Who wants to use one that is there names it in a file of pulls first, and then looks whether the record is still there. So
// one of the two sees the other.
type Store struct {
	d        *Datastore
	vch      string
	log      *slog.Logger
	capacity int64
	encoding Encoding // of the store, or of one that is made
	base     *vmdk.Descriptor

	place     Place         // of virtual machines that bring disks
	appliance *OwnVM        // that writes disks; nil is none
	sending   chan struct{} // holds one for each extent that is being sent
	cache     *cache

	mu         sync.Mutex
	disks      map[digest.Digest][]string // names of what was complete when it was last looked
	coming     map[sendKey]*disk          // what is on its way
	images     map[digest.Digest][]string // that this Store has published: their disks, top first
	committing map[digest.Digest]int      // images whose record is there before the local store has them
	names      map[digest.Digest][]string // of images, as this Store has noted them
}

// DefaultCapacity is the size of a store's disks, in bytes, if nobody says otherwise.
const DefaultCapacity = 64 << 30

// StoreOptions are how OpenStore opens a store.
type StoreOptions struct {
	// VCH is the name of the folder of whoever opens the store; no two may use one at the same time, but for Seeds.
	VCH string
	// Capacity is the size of every disk in bytes. A store that is there must have the same; 0 is whatever it has, and
	// DefaultCapacity for one that is made.
	Capacity int64
	// Encoding is that of a store that is made; "" is the one for its datastore. One that is there has its own.
	Encoding Encoding
	// Own is the virtual machine in which this runs, for BlockWriter; nil is none.
	Own *OwnVM
	// Place is where the virtual machines are made that bring flattened disks.
	Place Place
	Log   *slog.Logger // nil is silent
}

type storeRecord struct {
	Version  int      `json:"version"`
	Capacity int64    `json:"capacity"` // bytes
	Encoding Encoding `json:"encoding"`
	CID      string   `json:"cid"` // of the base disk
}

// A diskRecord is NAME.json.
type diskRecord struct {
	Chain  digest.Digest `json:"chain"`
	Parent string        `json:"parent"` // NAME, or base; "" of a disk that has none
	CID    string        `json:"cid"`
	Extent string        `json:"extent,omitempty"` // file of the extent; "" is NAME-delta.vmdk
	Size   int64         `json:"size"`             // of the extent, bytes; 0 of a disk that is no file
	Sum    *uint32       `json:"crc32c,omitempty"` // of the extent as it was sent; nil of a disk that the server made
}

// An imageRecord says that a VCH has an image.
type imageRecord struct {
	ID    digest.Digest `json:"id"`
	Disks []string      `json:"disks"` // top first
}

var vchName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,79}$`)

// OpenStore opens the store in a datastore's folder, making one if there is none.
func OpenStore(ctx context.Context, d *Datastore, o StoreOptions) (*Store, error) {
	if !vchName.MatchString(o.VCH) && o.VCH != Seeds {
		return nil, fmt.Errorf("%q is no name of a VCH's folder", o.VCH)
	}
	s := newStore(d, o)
	err := s.open(ctx)
	if errors.Is(err, fs.ErrNotExist) {
		if err = s.make(ctx); err == nil {
			err = s.open(ctx)
		}
	}
	for _, f := range []string{"pulls", "images"} {
		if err == nil {
			err = d.MakeFolder(ctx, s.own(f))
		}
	}
	if err == nil && s.vch != Seeds {
		err = s.endPulls(ctx)
	}
	if err == nil {
		err = s.endCommits(ctx)
	}
	if err == nil && s.appliance != nil {
		err = s.appliance.DetachLeft(ctx, s.isDisk)
	}
	if err != nil {
		return nil, fmt.Errorf("open image store %s: %w", d.Path("."), err)
	}
	return s, nil
}

// readStore reads what a store is.
func readStore(ctx context.Context, d *Datastore) (rec storeRecord, err error) {
	text, err := d.ReadFile(ctx, storeFile, recordLimit)
	if err != nil {
		return rec, err
	}
	if err := json.Unmarshal(text, &rec); err != nil {
		return rec, fmt.Errorf("parse %s: %w", storeFile, err)
	}
	if rec.Version != 1 {
		return rec, fmt.Errorf("it has version %d, which this program does not know", rec.Version)
	}
	return rec, nil
}

// StoreCapacity is the size of every disk of the store in a datastore's folder, in bytes. The error is fs.ErrNotExist if there is none.
func StoreCapacity(ctx context.Context, d *Datastore) (int64, error) {
	rec, err := readStore(ctx, d)
	return rec.Capacity, err
}

// FindStore opens the store in a datastore's folder, for Seeds, without making anything there: to look at it, to sweep it, to forget what was
// brought. The error is fs.ErrNotExist if there is none.
func FindStore(ctx context.Context, d *Datastore, log *slog.Logger) (*Store, error) {
	s := newStore(d, StoreOptions{VCH: Seeds, Log: log})
	err := s.open(ctx)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("there is no image store in %s: %w", d.Path("."), err)
	}
	if err != nil {
		return nil, fmt.Errorf("open image store %s: %w", d.Path("."), err)
	}
	return s, nil
}

func newStore(d *Datastore, o StoreOptions) *Store {
	s := &Store{d: d, vch: o.VCH, log: o.Log, capacity: o.Capacity, encoding: o.Encoding, place: o.Place, appliance: o.Own, sending: make(chan struct{}, uploads), cache: newCache(),
		disks: map[digest.Digest][]string{}, coming: map[sendKey]*disk{}, images: map[digest.Digest][]string{}, committing: map[digest.Digest]int{}, names: map[digest.Digest][]string{}}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	return s
}

// Path is the datastore path of the store's folder.
func (s *Store) Path() string { return strings.TrimSuffix(s.d.Path("."), "/.") }

// Capacity is the size of every disk in bytes.
func (s *Store) Capacity() int64 { return s.capacity }

// Reference is the managed object of the datastore that the store is on.
func (s *Store) Reference() types.ManagedObjectReference { return s.d.Reference() }

// own is a path in the VCH's folder.
func (s *Store) own(elem ...string) string {
	return path.Join(append([]string{vchsFolder, s.vch}, elem...)...)
}

func (s *Store) open(ctx context.Context) error {
	rec, err := readStore(ctx, s.d)
	if err != nil {
		return err
	}
	switch {
	case s.capacity == 0 && rec.Capacity > 0:
		s.capacity = rec.Capacity
	case rec.Capacity != s.capacity:
		return fmt.Errorf("its disks have %d bytes, those of the VCH %d: a VCH needs a store of the same", rec.Capacity, s.capacity)
	}
	switch s.encoding = rec.Encoding; s.encoding {
	case VMFSSparse, BlockWriter, Flattened, Hosted:
	default:
		return fmt.Errorf("its disks are %q, which this program does not know", rec.Encoding)
	}
	if s.base, err = s.descriptor(ctx, baseName); err != nil {
		return fmt.Errorf("base disk: %w", err)
	}
	if got := fmt.Sprintf("%08x", s.base.CID); got != rec.CID {
		return fmt.Errorf("the content ID of its base disk is %s and was %s: somebody has written to it", got, rec.CID)
	}
	return nil
}

// make makes an empty store. Two may do so at once.
func (s *Store) make(ctx context.Context) error {
	s.capacity = cmp.Or(s.capacity, DefaultCapacity)
	sp, err := s.d.Space(ctx)
	if err != nil {
		return err
	}
	s.encoding = cmp.Or(s.encoding, sp.ChooseEncoding(s.appliance != nil))
	if err := s.encoding.check(sp); err != nil {
		return err
	}
	if err := s.d.MakeFolder(ctx, disksFolder); err != nil {
		return err
	}
	base := path.Join(disksFolder, baseName+".vmdk")
	err = s.d.CreateDisk(ctx, base, s.capacity)
	if err != nil && !fault.Is(err, &types.FileAlreadyExists{}) {
		return err
	}
	desc, err := s.descriptor(ctx, baseName)
	if err != nil {
		return fmt.Errorf("base disk: %w", err)
	}
	// It gets its name when it is whole: others may look for it meanwhile.
	staged := "store-" + newID() + ".json"
	if err := s.putJSON(ctx, staged, storeRecord{Version: 1, Capacity: s.capacity, Encoding: s.encoding, CID: fmt.Sprintf("%08x", desc.CID)}); err != nil {
		return err
	}
	err = s.d.move(ctx, staged, storeFile)
	if errors.Is(err, fs.ErrExist) { // another was faster
		err = s.d.Remove(ctx, staged)
	}
	return err
}

// put writes a small file.
func (s *Store) put(ctx context.Context, name string, text []byte) error {
	return s.d.putText(ctx, name, text)
}

func (s *Store) putJSON(ctx context.Context, name string, v any) error {
	return s.d.putRecord(ctx, name, v)
}

// endPulls removes what a crash has left of the VCH's pulls: they keep disks from being removed.
func (s *Store) endPulls(ctx context.Context) error {
	list, err := s.d.List(ctx, s.own("pulls"))
	for _, e := range list {
		err = errors.Join(err, s.d.Remove(ctx, s.own("pulls", e.Name)))
	}
	return err
}

// endCommits removes what a crash has left of records of the VCH's images: one that is cut off keeps every Sweep from removing anything,
// and says nothing, for the local store has no such image yet.
func (s *Store) endCommits(ctx context.Context) error {
	own, err := s.ownImages(ctx)
	for _, id := range own {
		_, readErr := s.imageRecord(ctx, id)
		if errors.Is(readErr, fs.ErrNotExist) {
			s.log.Info("remove a record that is cut off", "image", id)
			readErr = s.d.Remove(ctx, s.imageFile(id))
		}
		err = errors.Join(err, readErr)
	}
	return err
}

// look finds out which disks there are.
func (s *Store) look(ctx context.Context) error {
	list, err := s.d.List(ctx, disksFolder)
	if err != nil {
		return err
	}
	disks := map[digest.Digest][]string{}
	for _, e := range list {
		name, ok := strings.CutSuffix(e.Name, ".json")
		if chain, err := chainOf(name); ok && err == nil {
			disks[chain] = append(disks[chain], name)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.disks = disks
	return nil
}

// forget drops a disk that is there no more.
func (s *Store) forget(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if chain, err := chainOf(name); err == nil {
		s.disks[chain] = slices.DeleteFunc(s.disks[chain], func(n string) bool { return n == name })
	}
}

// record reads the record of a disk. The error is fs.ErrNotExist if the disk is not complete.
func (s *Store) record(ctx context.Context, name string) (*diskRecord, error) {
	file := path.Join(disksFolder, name+".json")
	text, err := s.d.ReadFile(ctx, file, recordLimit)
	if err != nil {
		return nil, err
	}
	var rec diskRecord
	if err := json.Unmarshal(text, &rec); err != nil {
		return nil, fmt.Errorf("%s is cut off: %w", s.d.Path(file), fs.ErrNotExist)
	}
	return &rec, nil
}

// A stacked disk is one of those on top of each other.
type stacked struct {
	name string
	*diskRecord
}

// errCircle is the error of records, which may be anybody's, that name each other as parents.
var errCircle = errors.New("come back to it")

// stack yields a disk and those that it stands on, top first, down to one without a parent or with the base as its parent. The last
// may be one whose record cannot be read, with the error.
func (s *Store) stack(ctx context.Context, top string) iter.Seq2[stacked, error] {
	return func(yield func(stacked, error) bool) {
		looked := map[string]bool{}
		for name := top; name != "" && name != baseName; {
			if looked[name] {
				yield(stacked{name: name}, fmt.Errorf("the parents of disk %s %w", s.DiskPath(name), errCircle))
				return
			}
			looked[name] = true
			rec, err := s.record(ctx, name)
			if !yield(stacked{name, rec}, err) || err != nil {
				return
			}
			name = rec.Parent
		}
	}
}

// describe says what a disk is that the server made: its content ID, and its extent's file and size, if it has one.
func (s *Store) describe(ctx context.Context, name string) (cid, extent string, size int64, err error) {
	desc, err := s.descriptor(ctx, name)
	if err != nil {
		return "", "", 0, fmt.Errorf("disk %s: %w", name, err)
	}
	if cid = fmt.Sprintf("%08x", desc.CID); len(desc.Extents) != 1 {
		return "", "", 0, fmt.Errorf("disk %s has %d extents", name, len(desc.Extents))
	}
	if extent = desc.Extents[0].File; strings.Contains(extent, "/") { // an object of vSAN, not a file
		return cid, "", 0, nil
	}
	size, err = s.d.Stat(ctx, path.Join(disksFolder, extent))
	return cid, extent, size, err
}

// removeDisk removes a disk that the server made, with what it consists of.
func (s *Store) removeDisk(ctx context.Context, name string) error {
	return s.d.deleteDisk(ctx, path.Join(disksFolder, name+".vmdk"))
}

// nameID is how many bytes, in hex, tell the disks of one layer apart.
const nameID = 6

// chainOf is the chain ID in the name of a disk; "" is that of the base disk's content.
func chainOf(name string) (digest.Digest, error) {
	hexDigits, id, _ := strings.Cut(name, "-")
	if b, err := hex.DecodeString(id); err != nil || len(b) != nameID {
		return "", fmt.Errorf("%q is no name of a disk", name)
	}
	if hexDigits == baseName {
		return "", nil
	}
	d := digest.NewDigestFromEncoded(digest.SHA256, hexDigits)
	return d, d.Validate()
}

// ChainOf is the chain ID of the topmost layer in the disk of a name, "" if there is none.
func ChainOf(name string) digest.Digest {
	chain, err := chainOf(name)
	if err != nil {
		return ""
	}
	return chain
}

// newName names a disk of a layer, as nobody else does.
func newName(chain digest.Digest) string {
	if chain == "" {
		return baseName + "-" + newID()
	}
	return chain.Encoded() + "-" + newID()
}

// newID is some digits that no two names have in common.
func newID() string {
	var id [nameID]byte
	rand.Read(id[:]) // never fails (crypto/rand)
	return hex.EncodeToString(id[:])
}

// isDisk tells whether a datastore path is the descriptor of a disk of the store.
func (s *Store) isDisk(file string) bool {
	name, ok := strings.CutSuffix(path.Base(file), ".vmdk")
	_, err := chainOf(name)
	return ok && err == nil && file == s.DiskPath(name)
}

// DiskPath is the datastore path of a disk's descriptor.
func (s *Store) DiskPath(name string) string {
	return s.d.Path(path.Join(disksFolder, name+".vmdk"))
}
