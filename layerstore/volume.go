package layerstore

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"

	"vic/diskfs"
	"vic/vmdk"
)

// A Volume is a disk with a file system of its own, which containers mount and which outlives
// them. One VM at a time may write it.
type Volume struct {
	Name    string            `json:"name"`
	Driver  string            `json:"driver"` // as it was asked for: one of VolumeDrivers
	Created time.Time         `json:"created"`
	Labels  map[string]string `json:"labels,omitempty"`
	Options map[string]string `json:"options,omitempty"` // as they were given
	// Capacity in bytes is that of the disk.
	Capacity int64 `json:"capacity"`
	// Disk is the name that the store's VolumeDisks have given the disk; "" if it is in the store.
	Disk string `json:"disk,omitempty"`
	// Published says that the VolumeDisks have the record as well; it is false in records that are older than that.
	Published bool `json:"published,omitempty"`
	// Users are the IDs of the containers that mount it, whether they run or not, ascending.
	Users []string `json:"-"`
}

// VolumeOptions say what a volume is to be.
type VolumeOptions struct {
	Name string // must be given
	// Driver is one of VolumeDrivers; "" means the first. All are the same.
	Driver string
	// Options are size, in docker's notation ("10g"; a plain number is bytes), or Capacity, the same but
	// that a plain number is MiB. Without either the volume has DefaultCapacity, of which only
	// what is written takes room. A store's VolumeDisks may take further ones.
	Options map[string]string
	Labels  map[string]string
}

// VolumeDrivers are the names of drivers that a volume may be made with.
var VolumeDrivers = []string{"local", "vsphere"}

// ErrNoDriver is wrapped by the error for a volume of a driver that is not there.
var ErrNoDriver = errors.New("plugin not found")

// A VolumeOptionError refuses to make a volume as it was asked for.
type VolumeOptionError struct{ Name, Msg string }

func (e *VolumeOptionError) Error() string { return fmt.Sprintf("create %s: %s", e.Name, e.Msg) }

const (
	minVolume = 16 << 20 // the smallest file system that diskfs makes
	// maxVolume is what a hosted sparse extent file can hold with its tables: 2 TiB.
	maxVolume = 2<<40 - 1<<30
	// maxVolumeText bounds labels and options together, in bytes.
	maxVolumeText = 256 << 10
)

// validVolume is what docker calls its volumes; a folder's name has an end.
var validVolume = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{1,199}$`)

func checkVolumeName(name string) error {
	if len(name) > 200 {
		return &VolumeOptionError{name[:20] + "…", "a volume's name has 200 characters at most"}
	}
	if !validVolume.MatchString(name) {
		return &VolumeOptionError{name, fmt.Sprintf("%q includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. "+
			"If you intended to pass a host directory, use absolute path", name)}
	}
	return nil
}

// volume returns the record of the volume that is asked for, but for its time.
func (o VolumeOptions) volume(elsewhere VolumeDisks) (*Volume, error) {
	if err := checkVolumeName(o.Name); err != nil {
		return nil, err
	}
	v := &Volume{Name: o.Name, Driver: o.Driver, Labels: o.Labels, Options: o.Options, Capacity: diskfs.DefaultCapacity}
	if v.Driver == "" {
		v.Driver = VolumeDrivers[0]
	}
	if !slices.Contains(VolumeDrivers, v.Driver) {
		return nil, &driverError{o.Name, o.Driver}
	}
	var others []string
	if elsewhere != nil {
		others = elsewhere.Options()
	}
	given := ""
	if text := textLen(o.Labels, o.Options); text > maxVolumeText {
		return nil, &VolumeOptionError{o.Name, fmt.Sprintf("labels and options of %d bytes, %d are allowed", text, maxVolumeText)}
	}
	for _, key := range slices.Sorted(maps.Keys(o.Options)) {
		k := strings.ToLower(key)
		if slices.Contains(others, k) {
			continue
		}
		if k != "size" && k != "capacity" {
			return nil, &VolumeOptionError{o.Name, fmt.Sprintf("invalid option: %q: a volume is a disk of its own, and takes %s", key, strings.Join(append([]string{"size (or Capacity)"}, others...), ", "))}
		}
		if given != "" {
			return nil, &VolumeOptionError{o.Name, fmt.Sprintf("options %s and %s are the same: give one", given, key)}
		}
		given = key
		n, err := parseCapacity(strings.ToLower(key), o.Options[key])
		if err != nil {
			return nil, &VolumeOptionError{o.Name, fmt.Sprintf("option %s: %v", key, err)}
		}
		v.Capacity = n
	}
	if elsewhere != nil {
		var err error
		if v.Disk, err = elsewhere.Name(o.Name, o.Options); err != nil {
			return nil, &VolumeOptionError{o.Name, err.Error()}
		}
	}
	return v, nil
}

// sized tells whether the options name a capacity.
func (o VolumeOptions) sized() bool {
	for key := range o.Options {
		if k := strings.ToLower(key); k == "size" || k == "capacity" {
			return true
		}
	}
	return false
}

// parseCapacity reads a volume's size. key says what a plain number means.
func parseCapacity(key, text string) (int64, error) {
	if key == "capacity" && text != "" && strings.Trim(text, "0123456789") == "" {
		text += "m"
	}
	n, err := units.RAMInBytes(text)
	if errors.Is(err, strconv.ErrSyntax) {
		err = fmt.Errorf("invalid size: '%s'", text) // as it says of others
	}
	if err != nil {
		return 0, err
	}
	if n < 0 { // it takes no sizes below zero, and is silent about those beyond numbers
		return 0, fmt.Errorf("%s: a volume has from %s to %s", text, units.BytesSize(minVolume), units.BytesSize(maxVolume))
	}
	return roundCapacity(n)
}

// roundCapacity returns the capacity of the disk for a volume of n bytes.
func roundCapacity(n int64) (int64, error) {
	if n < minVolume || n > maxVolume {
		return 0, fmt.Errorf("%s: a volume has from %s to %s", units.BytesSize(float64(n)), units.BytesSize(minVolume), units.BytesSize(maxVolume))
	}
	const grain = vmdk.DefaultGrainSize
	return (n + grain - 1) / grain * grain, nil
}

// driverError is ErrNoDriver in docker's words.
type driverError struct{ name, driver string }

func (e *driverError) Error() string {
	return fmt.Sprintf("create %s: error looking up volume plugin %s: plugin %q not found", e.name, e.driver, e.driver)
}

func (e *driverError) Unwrap() error { return ErrNoDriver }

// noVolumeError is ErrNotFound in docker's words.
type noVolumeError struct{ name string }

func (e *noVolumeError) Error() string { return fmt.Sprintf("get %s: no such volume", e.name) }
func (e *noVolumeError) Unwrap() error { return ErrNotFound }

// readVolume returns the record of a volume. The error is ErrNotFound, or a *FormatError if it is damaged.
func (d Dir) readVolume(name string) (*Volume, error) {
	if !validVolume.MatchString(name) {
		return nil, &noVolumeError{name}
	}
	path := d.volumeRecord(name)
	b, err := readBounded(path, recordLimit)
	if errors.Is(err, fs.ErrNotExist) {
		there, statErr := exists(d.volume(name))
		if statErr != nil {
			return nil, statErr
		}
		if !there {
			return nil, &noVolumeError{name}
		}
		b, err = readBounded(path, recordLimit) // it may have come since: folder and record come at once
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, formatErrorf(path, "volume record", "is missing")
	}
	if err != nil {
		return nil, err
	}
	var v Volume
	if err := json.Unmarshal(b, &v); err != nil {
		return nil, formatErrorf(path, "volume record", "%v", err)
	}
	if v.Name != name {
		return nil, formatErrorf(path, "name", "%.80q is not the folder's", v.Name)
	}
	if err := v.check(path); err != nil {
		return nil, err
	}
	return &v, nil
}

// check refuses a record that CreateVolume does not make.
func (v *Volume) check(path string) error {
	switch {
	case !validVolume.MatchString(v.Name):
		return formatErrorf(path, "name", "%.80q cannot be a volume's", v.Name)
	case v.Capacity < minVolume || v.Capacity > maxVolume || v.Capacity%vmdk.DefaultGrainSize != 0:
		return formatErrorf(path, "capacity", "%d bytes", v.Capacity)
	case !slices.Contains(VolumeDrivers, v.Driver):
		return formatErrorf(path, "driver", "%.80q is not known", v.Driver)
	case textLen(v.Labels, v.Options) > maxVolumeText:
		return formatErrorf(path, "labels", "and options have %d bytes", textLen(v.Labels, v.Options))
	}
	return nil
}

// textLen is how long all keys and values are.
func textLen(maps ...map[string]string) int {
	n := 0
	for _, m := range maps {
		for k, value := range m {
			n += len(k) + len(value)
		}
	}
	return n
}

// Volume returns a volume by its name, also one that another host has made where the store's VolumeDisks are. The error is
// ErrNotFound, or a *FormatError if its record is damaged.
func (s *Store) Volume(name string) (*Volume, error) {
	v, err := s.dir.readVolume(name)
	if errors.Is(err, ErrNotFound) && s.volumeDisks != nil && validVolume.MatchString(name) {
		v, err = s.adoptVolume(name)
	}
	if err != nil {
		return nil, err
	}
	users, err := s.dir.volumeUsers(s.logDamage)
	if err != nil {
		return nil, err
	}
	v.Users = users[name]
	return v, nil
}

// Volumes returns all volumes, ascending by name. Those whose record is damaged are left out, and damaged says
// what is wrong with them, and with those of other hosts.
func (s *Store) Volumes() (all []*Volume, damaged []error, err error) {
	if damaged, err = s.syncVolumes(); err != nil {
		return nil, nil, err
	}
	names, err := listDir(s.dir.volumes())
	if err != nil {
		return nil, nil, err
	}
	users, err := s.dir.volumeUsers(s.logDamage)
	if err != nil {
		return nil, nil, err
	}
	for _, name := range names {
		v, err := s.dir.readVolume(name)
		switch {
		case errors.Is(err, ErrNotFound):
		case err != nil:
			damaged = append(damaged, fmt.Errorf("volume %s is damaged: %w", name, err))
		default:
			v.Users = users[name]
			all = append(all, v)
		}
	}
	return all, damaged, nil
}
