package layerstore

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
)

// A Layer is what the store knows of one layer: the record in its layers
// folder, whose presence says that the layer is complete.
type Layer struct {
	// Chain is the chain ID: the layer and all below it.
	Chain digest.Digest `json:"chain"`
	// Parent is the chain ID of the layer below, "" for the lowest.
	Parent digest.Digest `json:"parent,omitempty"`
	// DiffID is the digest of the layer's tar.
	DiffID digest.Digest `json:"diffID"`
	// Disk is the chain ID whose disk shows this layer: Chain itself, or for an
	// empty layer the next below that is not empty; "" is the base disk.
	Disk digest.Digest `json:"disk,omitempty"`
	// Index is the number of layers up to here that have a disk of their own: that of
	// the layer's disk, in which the disks below may be merged.
	Index int `json:"index"`
	// Blob and BlobSize tell what the layer was fetched as: the digest and the
	// bytes of the compressed tar. Another registry may have it as another blob.
	Blob     digest.Digest `json:"blob,omitempty"`
	BlobSize int64         `json:"blobSize,omitempty"`
	// BlobHead is how that began, in hex: a gzip header tells what program may have made it. "" if
	// it was not compressed, or was not read.
	BlobHead string `json:"blobHead,omitempty"`
	// TarSize is the length of the tar in bytes, 0 if it was known to be empty
	// without being fetched.
	TarSize int64 `json:"tarSize"`
	// ExtentSize is the length of the extent file in bytes, 0 for an empty layer.
	ExtentSize int64 `json:"extentSize"`
	// Sum is the CRC-32C of the extent file.
	Sum uint32 `json:"crc32c"`
	// Recipe is how the tar can be rebuilt; nil if it cannot.
	Recipe *Recipe `json:"recipe,omitempty"`
	// Flat is the extent file that Flatten made; nil if there is none. Whether it or the
	// layer's own is in use, the disk's descriptor tells.
	Flat *Flat `json:"flat,omitempty"`
	// In is the chain ID of the layer above whose flattened disk has this layer's data: its
	// own disk is gone. "" if that is there.
	In digest.Digest `json:"in,omitempty"`
	// High is the first cluster of the disk that no layer up to here has used.
	High int64 `json:"high"`
}

// Empty tells whether the layer changes nothing and so has no disk of its own.
func (l *Layer) Empty() bool { return l.Disk != l.Chain }

// maxIndex bounds the number of layers below one.
const maxIndex = 1 << 14

// recordLimit bounds the JSON files that this package writes.
const recordLimit = 1 << 20

// childChain returns the chain ID of a layer from that of the layer below, ""
// if there is none, as the OCI image specification's config.md computes it.
func childChain(parent, diffID digest.Digest) digest.Digest {
	if parent == "" {
		return diffID
	}
	return identity.ChainID([]digest.Digest{parent, diffID})
}

// Layer returns the record of a layer. Its error is fs.ErrNotExist if the store
// does not have it, or a *FormatError.
func (s *Store) Layer(chain digest.Digest) (*Layer, error) {
	if err := chain.Validate(); err != nil {
		return nil, fmt.Errorf("read layer %q: %w", chain, err)
	}
	return s.dir.readLayer(chain)
}

// Chains returns the chain IDs of all layers, ascending, without looking into their
// records.
func (s *Store) Chains() ([]digest.Digest, error) { return s.dir.chains() }

// readLayer reads and validates a record by itself; what it says about other
// files is Check's concern.
func (d Dir) readLayer(chain digest.Digest) (*Layer, error) {
	path := d.layer(chain)
	b, err := readBounded(path, recordLimit)
	if err != nil {
		return nil, err
	}
	var l Layer
	if err := json.Unmarshal(b, &l); err != nil {
		return nil, formatErrorf(path, "layer record", "%v", err)
	}
	for _, f := range []struct {
		name     string
		d        digest.Digest
		optional bool
	}{
		{"chain", l.Chain, false}, {"diffID", l.DiffID, false}, {"parent", l.Parent, true},
		{"disk", l.Disk, true}, {"blob", l.Blob, true}, {"in", l.In, true},
	} {
		if f.d == "" && f.optional {
			continue
		}
		if err := f.d.Validate(); err != nil {
			return nil, formatErrorf(path, f.name, "%q: %v", f.d, err)
		}
	}
	switch {
	case l.Chain != chain:
		return nil, formatErrorf(path, "chain", "%s, not that of the file's name", l.Chain)
	case childChain(l.Parent, l.DiffID) != chain:
		return nil, formatErrorf(path, "chain", "not that of parent %q and diff ID %s", l.Parent, l.DiffID)
	case l.Recipe != nil && (l.Recipe.Skeleton < 0 || l.Recipe.Sources < 0):
		return nil, formatErrorf(path, "recipe", "a size is negative")
	case l.Index > maxIndex:
		return nil, formatErrorf(path, "index", "%d", l.Index)
	case l.Index < 0 || l.High < 0 || l.TarSize < 0 || l.BlobSize < 0 || l.ExtentSize < 0 || l.Flat != nil && l.Flat.ExtentSize < 0:
		return nil, formatErrorf(path, "layer record", "a size is negative")
	}
	return &l, nil
}

// marshal returns the record's bytes, equal for equal records.
func (l *Layer) marshal() []byte { return marshalRecord(l) }

// marshalRecord returns v as this package writes JSON files.
func marshalRecord(v any) []byte {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		panic("layerstore: marshal record: " + err.Error()) // plain structs only
	}
	return append(b, '\n')
}

// A LayerUse is a layer and what it takes and serves.
type LayerUse struct {
	Layer
	// Stored is the number of bytes that the layer's files occupy on the
	// datastore: less than ExtentSize where the extent file has holes.
	Stored int64
	// Depth is the number of disks in the chain of Disk, 0 if that cannot be read.
	Depth int
	// Images are the IDs of the images that contain the layer, ascending.
	Images []digest.Digest
}

// Layers returns all layers of the store, ascending by chain ID. A record that
// cannot be read is left out and logged; Check tells what is wrong with it.
func (s *Store) Layers() ([]LayerUse, error) {
	chains, err := s.dir.chains()
	if err != nil {
		return nil, err
	}
	images, err := s.Images()
	if err != nil {
		return nil, err
	}
	users := make(map[digest.Digest][]digest.Digest)
	for _, img := range images {
		for _, l := range img.Layers {
			users[l.Chain] = append(users[l.Chain], img.ID)
		}
	}
	var uses []LayerUse
	depths := make(map[digest.Digest]int)
	for _, chain := range chains {
		l, err := s.dir.readLayer(chain)
		if errors.Is(err, fs.ErrNotExist) {
			continue // swept meanwhile
		}
		if err != nil {
			s.log.Warn("layer left out of the list", "chain", chain, "error", err)
			continue
		}
		u := LayerUse{Layer: *l, Images: users[chain]}
		u.Stored, u.Depth = s.dir.storedLayer(chain), s.dir.depth(l.Disk, depths)
		uses = append(uses, u)
	}
	return uses, nil
}

// Stored returns the number of bytes that the files of all layers occupy on the datastore.
func (s *Store) Stored() (n int64, err error) {
	chains, err := s.dir.chains()
	if err != nil {
		return 0, err
	}
	for _, chain := range chains {
		n += s.dir.storedLayer(chain)
	}
	return n, nil
}

// chains returns the chain IDs of all records, ascending.
func (d Dir) chains() ([]digest.Digest, error) {
	names, err := listDir(d.layers())
	if err != nil {
		return nil, err
	}
	var chains []digest.Digest
	for _, name := range names {
		hex, isRecord := strings.CutSuffix(name, ".json")
		if chain, ok := parseHex(hex); ok && isRecord {
			chains = append(chains, chain)
		}
	}
	return chains, nil
}

// storedLayer returns the bytes that a layer's files occupy.
func (d Dir) storedLayer(chain digest.Digest) int64 {
	var n int64
	for _, path := range d.layerFiles(chain) {
		n += storedSize(path)
	}
	return n
}

// storedSize returns the bytes that a file occupies, 0 if it cannot be seen.
func storedSize(path string) int64 {
	fi, err := os.Stat(path)
	if err != nil {
		return 0
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return st.Blocks * 512
	}
	return fi.Size()
}
