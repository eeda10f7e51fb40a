package layerstore

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A Source is one image that can be fetched, in a registry or anywhere else.
type Source interface {
	// Digest is what the image's reference resolved to: the digest of its
	// manifest, or of the index that led to it.
	Digest() digest.Digest
	// Manifest returns the image manifest, already verified against the
	// descriptor that comes with it.
	Manifest() ([]byte, ocispec.Descriptor)
	// Config returns the image config, already verified.
	Config() []byte
	// Blob returns the bytes of a layer as the manifest describes it. A size or
	// digest that is not the descriptor's is the error of the Read that would
	// have returned io.EOF. Retries are the Source's affair. Blobs may be read
	// at the same time, and, if another Pull wants the layer too, after the Pull
	// that was given this Source has been cancelled.
	Blob(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error)
}

// A plan is what a manifest and a config say about an image, validated.
type plan struct {
	id       digest.Digest // of the config
	digest   digest.Digest // what the reference resolved to
	manifest []byte
	desc     ocispec.Descriptor // of the manifest
	config   []byte
	layers   []planLayer // bottom first
	descent  Descent
}

// A planLayer is one layer of a plan.
type planLayer struct {
	chain, parent, diffID digest.Digest
	blob                  ocispec.Descriptor
	donor                 *Layer // of the store, made from the same tar; nil if there is none
	// again is set for a layer that is to be made although it seems to be there, and only
	// if it becomes the same.
	again bool
}

// Diff IDs of tars without entries: the digests of no bytes, of the two zero
// blocks that end a tar, and of those padded to GNU tar's record size.
var emptyDiffIDs = map[digest.Digest]int{
	digest.FromBytes(nil):                 0,
	digest.FromBytes(make([]byte, 1024)):  1024,
	digest.FromBytes(make([]byte, 10240)): 10240,
}

// Media types of layers end with how they are compressed, which is not trusted:
// the blob's own first bytes tell.
const (
	ociLayer    = "application/vnd.oci.image.layer."
	dockerLayer = "application/vnd.docker.image.rootfs."
)

// makePlan reads what src knows of an image.
func makePlan(src Source, lim Limits) (*plan, error) {
	p := &plan{digest: src.Digest(), config: src.Config()}
	p.manifest, p.desc = src.Manifest()
	p.id = digest.FromBytes(p.config)
	if err := p.digest.Validate(); err != nil {
		return nil, formatErrorf("", "digest", "%q: %v", p.digest, err)
	}
	if n := int64(len(p.manifest)); n > lim.Manifest {
		return nil, formatErrorf("", "manifest", "%d bytes, %d are allowed", n, lim.Manifest)
	}
	if n := int64(len(p.config)); n > lim.Config {
		return nil, formatErrorf("", "config", "%d bytes, %d are allowed", n, lim.Config)
	}
	if d := digest.FromBytes(p.manifest); d != p.desc.Digest {
		return nil, formatErrorf("", "manifest", "digest is %s, not %s", d, p.desc.Digest)
	}
	var m ocispec.Manifest
	if n := values(p.manifest); n > maxValues {
		return nil, formatErrorf("", "manifest", "%d values, %d are allowed", n, maxValues)
	}
	if err := json.Unmarshal(p.manifest, &m); err != nil {
		return nil, formatErrorf("", "manifest", "%v", err)
	}
	if m.Config.Digest != p.id {
		return nil, formatErrorf("", "config", "digest is %s, but the manifest names %s", p.id, m.Config.Digest)
	}
	cfg, err := parseConfig("", p.config)
	if err != nil {
		return nil, err
	}
	if cfg.OS != "" && cfg.OS != "linux" {
		return nil, formatErrorf("", "config", "operating system %q cannot run here, only linux", cfg.OS)
	}
	diffIDs := cfg.RootFS.DiffIDs
	if len(m.Layers) != len(diffIDs) {
		return nil, formatErrorf("", "manifest", "%d layers, but the config has %d diff IDs", len(m.Layers), len(diffIDs))
	}
	if len(diffIDs) > lim.Layers {
		return nil, formatErrorf("", "manifest", "%d layers, %d are allowed", len(diffIDs), lim.Layers)
	}
	var parent digest.Digest
	for i, chain := range chainIDs(diffIDs) {
		blob := m.Layers[i]
		if err := checkBlob(blob); err != nil {
			return nil, formatErrorf("", fmt.Sprintf("layer %d", i), "%v", err)
		}
		p.layers = append(p.layers, planLayer{chain: chain, parent: parent, diffID: diffIDs[i], blob: blob})
		parent = chain
	}
	return p, nil
}

// maxValues bounds what is in a manifest or a config: a value of three bytes, {},
// takes more than a hundred in memory.
const maxValues = 100_000

// values counts the values in a JSON document, or a few more.
func values(doc []byte) int {
	n, inString := 1, false
	for i := 0; i < len(doc); i++ {
		switch c := doc[i]; {
		case c == '"':
			inString = !inString
		case inString && c == '\\':
			i++
		case !inString && (c == ',' || c == '{' || c == '['):
			n++
		}
	}
	return n
}

// chainIDs returns the chain ID of each layer.
func chainIDs(diffIDs []digest.Digest) []digest.Digest {
	return identity.ChainIDs(append([]digest.Digest(nil), diffIDs...))
}

// checkBlob validates a layer's descriptor.
func checkBlob(d ocispec.Descriptor) error {
	if err := d.Digest.Validate(); err != nil {
		return fmt.Errorf("digest %q: %w", d.Digest, err)
	}
	if d.Size < 0 {
		return fmt.Errorf("size %d", d.Size)
	}
	known := strings.HasPrefix(d.MediaType, ociLayer) || strings.HasPrefix(d.MediaType, dockerLayer)
	if !known || strings.HasSuffix(d.MediaType, "+encrypted") {
		return fmt.Errorf("media type %q is not a file system layer", d.MediaType)
	}
	return nil
}

// parseConfig parses an image config and validates what this package needs of
// it. Path says where it was read.
func parseConfig(path string, b []byte) (*ocispec.Image, error) {
	var cfg ocispec.Image
	if n := values(b); n > maxValues {
		return nil, formatErrorf(path, "config", "%d values, %d are allowed", n, maxValues)
	}
	if err := json.Unmarshal(b, &cfg); err != nil {
		return nil, formatErrorf(path, "config", "%v", err)
	}
	if cfg.RootFS.Type != "layers" {
		return nil, formatErrorf(path, "config", "rootfs type %q, not layers", cfg.RootFS.Type)
	}
	for i, d := range cfg.RootFS.DiffIDs {
		if err := d.Validate(); err != nil {
			return nil, formatErrorf(path, "config", "diff ID %d, %q: %v", i, d, err)
		}
		if d.Algorithm() != digest.SHA256 {
			return nil, formatErrorf(path, "config", "diff ID %d is a %s digest, not sha256", i, d.Algorithm())
		}
	}
	return &cfg, nil
}

// A HistoryEntry is one step of how an image was built.
type HistoryEntry struct {
	ID        digest.Digest // of the image, for the newest step only
	Created   time.Time     // zero if not recorded
	CreatedBy string
	Comment   string
	Size      int64 // bytes that the step's disk takes on the datastore; 0 for a step without a layer
}

// History returns the steps that the image's config tells of, newest first.
// Configs need not have any; layers and steps that do not match are not an
// error, since only people read them.
func (img *Image) History() []HistoryEntry {
	var entries []HistoryEntry
	layers := img.Layers
	for _, h := range img.Config.History {
		e := HistoryEntry{CreatedBy: h.CreatedBy, Comment: h.Comment}
		if h.Created != nil {
			e.Created = *h.Created
		}
		if !h.EmptyLayer && len(layers) > 0 {
			e.Size = layers[0].Size
			layers = layers[1:]
		}
		entries = append(entries, e)
	}
	for i, j := 0, len(entries)-1; i < j; i, j = i+1, j-1 {
		entries[i], entries[j] = entries[j], entries[i]
	}
	if len(entries) > 0 {
		entries[0].ID = img.ID
	}
	return entries
}
