package layerstore

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"runtime"
	"sync"

	"github.com/opencontainers/go-digest"

	"vic/diskfs"
	"vic/vmdk"
)

// DefaultCapacity is the size in bytes of every disk of a store whose Options
// name none.
const DefaultCapacity = diskfs.DefaultCapacity

// Options are how Open opens a store.
type Options struct {
	// Capacity is the size in bytes of every disk of the store. It is decided
	// when the store is made: 0 means DefaultCapacity then, and whatever it is
	// later; another value than the store's is an error.
	Capacity int64
	// Depth is the greatest number of disks in the chain of a container, its own
	// included: the disks of layers that are too many for it are merged. It is decided
	// when the store is made, as Capacity is: 0 means DefaultDepth then.
	Depth int
	// Parallel is how many layers are fetched and unpacked at once, over all
	// pulls of this Store. 0 means the number of CPUs, but at least 3.
	Parallel int
	// Limits bound what an image may make the store do.
	Limits Limits
	// Mirror has the disks of all images as well; nil is none.
	Mirror Mirror
	// VolumeDisks keep the disks of volumes that are made; nil leaves them in the store.
	VolumeDisks VolumeDisks
	// Log gets what nobody is there to be told. nil is silent.
	Log *slog.Logger
}

// Limits bound what an image may make the store do. The zero value is the
// defaults.
type Limits struct {
	// Manifest and Config are the largest sizes in bytes. 0 means 4 and 8 MiB.
	Manifest, Config int64
	// Layers is the greatest number of layers of an image. 0 means 500: chains
	// of 600 disks have been opened by QEMU.
	Layers int
	// TarSize is the largest length of a layer's tar in bytes. 0 means the
	// capacity of the store's disks, which could not hold more.
	TarSize int64
	// Ratio is how many times longer than its blob a layer's tar may be, once it
	// has passed 1 GiB. 0 means 500: a tar of text comes to 20, and only a bomb,
	// or a layer of nothing but zeros, to the 1032 that gzip can reach.
	Ratio int64
	// Tar bounds a layer's entries and names; see diskfs.Limits.
	Tar diskfs.Limits
}

// freeRatio is the length of a tar below which its ratio is not looked at.
const freeRatio = 1 << 30

func (l Limits) orDefault(capacity int64) Limits {
	if l.Manifest == 0 {
		l.Manifest = 4 << 20
	}
	if l.Config == 0 {
		l.Config = 8 << 20
	}
	if l.Layers == 0 {
		l.Layers = 500
	}
	if l.TarSize == 0 {
		l.TarSize = capacity
	}
	if l.Ratio == 0 {
		l.Ratio = 500
	}
	if l.Tar.Data == 0 {
		l.Tar.Data = capacity
	}
	return l
}

// A Store is an open store. All its methods may be used at the same time, and
// other processes may have the same store open.
type Store struct {
	dir    Dir
	info   versionRecord
	lim    Limits
	mirror Mirror
	log    *slog.Logger

	volumeDisks VolumeDisks // nil if they are in the store
	names       nameLocks   // of volumes that are made, adopted or removed; come before the store's lock
	writes      nameLocks   // of volumes elsewhere whose disks are written; come before names

	slots *slots
	queue committer

	mu      sync.Mutex
	closed  bool
	pulls   map[*pull]struct{}
	flights map[digest.Digest]*flight
	pulling sync.WaitGroup // pulls; Add under mu while not closed
}

// formatVersion is the version of the layout that this package reads and writes.
const formatVersion = 1

// A versionRecord is the content of STORE/version.
type versionRecord struct {
	Version   int   `json:"version"`
	Capacity  int64 `json:"capacity"`  // of every disk, bytes
	GrainSize int64 `json:"grainSize"` // of every disk, bytes
	Depth     int   `json:"depth"`     // see Options; 0, of stores made before there was one: no bound
	// BaseHigh is what Layer.High is, for the empty base disk.
	BaseHigh int64 `json:"baseHigh"`
	// BaseSum is the CRC-32C of the base disk's extent file.
	BaseSum uint32 `json:"baseCRC32C"`
}

// Open opens the store in a folder, making one if the folder is empty or not
// there. It removes what processes that died left in its tmp folder; apart from
// that its cost does not depend on what the store holds. Close the Store when
// done.
func Open(dir string, o Options) (*Store, error) {
	s := &Store{
		dir:    Dir(dir),
		log:    o.Log,
		mirror: o.Mirror,

		volumeDisks: o.VolumeDisks,

		pulls:   make(map[*pull]struct{}),
		flights: make(map[digest.Digest]*flight),
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if err := s.open(o); err != nil {
		return nil, fmt.Errorf("open store %s: %w", dir, err)
	}
	s.lim = o.Limits.orDefault(s.info.Capacity)
	if o.Parallel == 0 {
		o.Parallel = max(3, runtime.GOMAXPROCS(0))
	}
	s.slots = newSlots(o.Parallel)
	return s, nil
}

func (s *Store) open(o Options) error {
	if err := s.dir.checkFolder(); err != nil {
		return err
	}
	lock, err := s.dir.lockExclusive()
	if err != nil {
		return err
	}
	defer lock.unlock()
	s.info, err = s.dir.readVersion()
	if errors.Is(err, fs.ErrNotExist) {
		s.info, err = s.dir.create(o)
	}
	if err != nil {
		return err
	}
	if o.Capacity != 0 && o.Capacity != s.info.Capacity {
		return fmt.Errorf("its disks have %d bytes, not the %d asked for", s.info.Capacity, o.Capacity)
	}
	if o.Depth != 0 && o.Depth != s.info.Depth {
		return fmt.Errorf("its chains may have %d disks, not the %d asked for", s.info.Depth, o.Depth)
	}
	if err := os.Mkdir(s.dir.volumes(), 0o700); err != nil && !errors.Is(err, fs.ErrExist) { // older stores have none
		return err
	}
	return s.dir.cleanTmp()
}

// Close cancels all pulls and waits for them. The Store is of no use afterwards.
func (s *Store) Close() error {
	s.mu.Lock()
	s.closed = true
	for p := range s.pulls {
		p.cancel(ErrClosed)
	}
	s.mu.Unlock()
	s.pulling.Wait()
	return nil
}

// ErrClosed is the error of a pull when its Store is closed.
var ErrClosed = errors.New("layerstore: store is closed")

// Dir returns the store's folder.
func (s *Store) Dir() string { return string(s.dir) }

// Capacity returns the size in bytes of every disk of the store.
func (s *Store) Capacity() int64 { return s.info.Capacity }

// checkFolder makes the store's folder if it is not there, and refuses one that
// has other things in it than a store or the beginnings of one.
func (d Dir) checkFolder() error {
	if err := makeFolder(string(d)); err != nil {
		return err
	}
	if there, err := exists(d.version()); there || err != nil {
		return err
	}
	known := map[string]bool{"lock": true, "boot": true}
	for _, sub := range subfolders {
		known[sub] = true
	}
	names, err := listDir(string(d))
	if err != nil {
		return err
	}
	for _, name := range names {
		if !known[name] {
			return fmt.Errorf("not a store: it has no file %q but has %q", "version", name)
		}
	}
	return nil
}

func (d Dir) readVersion() (versionRecord, error) {
	var v versionRecord
	b, err := readBounded(d.version(), recordLimit)
	if err != nil {
		return v, err
	}
	if err := json.Unmarshal(b, &v); err != nil {
		return v, formatErrorf(d.version(), "version", "%v", err)
	}
	if v.Version != formatVersion {
		return v, formatErrorf(d.version(), "version", "is %d, this program knows %d", v.Version, formatVersion)
	}
	if v.Capacity <= 0 || v.Capacity%vmdk.DefaultGrainSize != 0 || v.GrainSize != vmdk.DefaultGrainSize || v.BaseHigh < 0 ||
		v.Depth != 0 && (v.Depth < minDepth || v.Depth > maxDepth) {
		return v, formatErrorf(d.version(), "version", "capacity %d, grain size %d, base high %d, depth %d", v.Capacity, v.GrainSize, v.BaseHigh, v.Depth)
	}
	return v, nil
}

// create makes the folders, the empty base disk and, last, the version file. A
// crash before that leaves what the next Open does again.
func (d Dir) create(o Options) (versionRecord, error) {
	v := versionRecord{
		Version: formatVersion, GrainSize: vmdk.DefaultGrainSize,
		Capacity: cmp.Or(o.Capacity, DefaultCapacity), Depth: cmp.Or(o.Depth, DefaultDepth),
	}
	if v.Depth < minDepth || v.Depth > maxDepth {
		return v, fmt.Errorf("chains of %d disks: the bound must be from %d to %d", v.Depth, minDepth, maxDepth)
	}
	for _, sub := range subfolders {
		if err := os.MkdirAll(d.in(sub), 0o700); err != nil {
			return v, err
		}
	}
	if err := syncDir(string(d)); err != nil {
		return v, err
	}
	if err := d.createBase(&v); err != nil {
		return v, fmt.Errorf("make base disk: %w", err)
	}
	return v, d.replaceFile(d.version(), marshalRecord(v))
}

// createBase makes the disk under all layers: an empty file system.
func (d Dir) createBase(v *versionRecord) error {
	if err := d.makeBase(v); err != nil {
		return err
	}
	return d.placeBase()
}

// makeBase makes the base disk in tmp, and notes what is known of it.
func (d Dir) makeBase(v *versionRecord) error {
	if v.Capacity < 0 || v.Capacity%vmdk.DefaultGrainSize != 0 {
		return fmt.Errorf("capacity of %d bytes is not a multiple of %d", v.Capacity, vmdk.DefaultGrainSize)
	}
	_, delta, err := diskfs.Format(diskfs.FormatOptions{Capacity: v.Capacity})
	if err != nil {
		return err
	}
	v.BaseHigh = delta.High
	f, err := createExtentFile(d.tmpExtent(""), true)
	if err != nil {
		return err
	}
	defer f.Close()
	w, err := vmdk.NewLayerWriter(f, v.Capacity)
	if err != nil {
		return err
	}
	if err := writeDelta(w, delta); err != nil {
		return err
	}
	if err := w.Finish(); err != nil {
		return err
	}
	if v.BaseSum, err = f.checksum(f.end); err != nil {
		return err
	}
	if err := seal(f.File); err != nil {
		return err
	}
	text, err := vmdk.NewDescriptor(baseName+extentSuffix, v.Capacity, v.cidOf("")).Marshal()
	if err != nil {
		return err
	}
	return writeSynced(d.tmpDisk(""), text, diskMode)
}

// placeBase moves the base disk from tmp to where it belongs.
func (d Dir) placeBase() error {
	if err := os.Rename(d.tmpExtent(""), d.extent("")); err != nil {
		return err
	}
	if err := os.Rename(d.tmpDisk(""), d.disk("")); err != nil {
		return err
	}
	return syncDir(d.disks())
}

// generation is the number of times that the disks made of the same layers have
// changed, because diskfs or vmdk write them otherwise. It goes into every CID,
// so that a disk is never read over another parent than it was made for.
const generation = 2

// cidOf returns the CID of a layer's disk, or of the base disk.
func (v *versionRecord) cidOf(disk digest.Digest) uint32 {
	if disk == "" {
		return diskCID(fmt.Sprintf("base %d", v.Capacity))
	}
	return diskCID(disk.String())
}

// diskCID returns the CID of a disk of this store.
func diskCID(name string) uint32 { return vmdk.CIDFor(fmt.Sprintf("%d %s", generation, name)) }
