package archive

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"path"
	"regexp"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"vic/fetch"
)

// dockerManifestFile lists the images of an archive of docker's.
const dockerManifestFile = "manifest.json"

// Media types of the manifests that are made for docker's archives. Its specification has no name
// for a layer that is not compressed; the one here is that of others, such as skopeo.
const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerConfig   = "application/vnd.docker.container.image.v1+json"
	dockerLayer    = "application/vnd.docker.image.rootfs.diff.tar"
	dockerPrefix   = "application/vnd.docker."
)

// documentTypes are the media types of a manifest and of its configuration.
type documentTypes struct{ manifest, config string }

var (
	dockerTypes = documentTypes{dockerManifest, dockerConfig}
	ociTypes    = documentTypes{ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageConfig}
)

// maxConfig limits an image configuration, in bytes, and maxLayers the layers of an image.
const (
	maxConfig = 4 << 20
	maxLayers = 4096
)

// hexName is a file's name that says the digest of what is in it.
var hexName = regexp.MustCompile(`^([0-9a-f]{64})(\.json)?$`)

// A dockerImage is an entry of manifest.json.
type dockerImage struct {
	Config   string
	RepoTags []string
	Layers   []string // bottom first
}

// readDocker lists the images of an archive of docker's. The error is fs.ErrNotExist if the
// archive is none.
func (a *Archive) readDocker() error {
	b, err := readFile(a.fsys, dockerManifestFile, maxIndex)
	if err != nil {
		if _, old := fs.Stat(a.fsys, "repositories"); old == nil {
			return formatErrorf("repositories", "made by docker save before version 1.10, which is not supported")
		}
		return err
	}
	var images []dockerImage
	if err := json.Unmarshal(b, &images); err != nil {
		return formatErrorf(dockerManifestFile, "%v", err)
	}
	if len(images) > maxEntries {
		return formatErrorf(dockerManifestFile, "%d images, %d are allowed", len(images), maxEntries)
	}
	names := 0
	for _, di := range images {
		if names += len(di.RepoTags); names > maxEntries {
			return formatErrorf(dockerManifestFile, "more than %d names", maxEntries)
		}
		if len(di.Layers) > maxLayers {
			return formatErrorf(dockerManifestFile, "an image has %d layers, %d are allowed", len(di.Layers), maxLayers)
		}
		e := &Entry{resolve: func(ctx context.Context, _ *ocispec.Platform) (*Image, error) { return a.dockerImage(ctx, di) }}
		for _, tag := range di.RepoTags {
			if err := e.name(tag); err != nil {
				return formatErrorf(dockerManifestFile, "%v", err)
			}
		}
		a.entries = append(a.entries, e)
	}
	return nil
}

// dockerImage makes a manifest for an image.
func (a *Archive) dockerImage(ctx context.Context, di dockerImage) (*Image, error) {
	configFile, err := memberName(di.Config)
	if err != nil {
		return nil, err
	}
	config, err := readFile(a.fsys, configFile, maxConfig)
	if err != nil {
		return nil, missing(configFile, err)
	}
	id := digest.FromBytes(config)
	if m := hexName.FindStringSubmatch(path.Base(configFile)); m != nil && m[1] != id.Encoded() {
		return nil, formatErrorf(configFile, "digest is %s, not what its name says", id)
	}
	var parsed ocispec.Image
	if err := json.Unmarshal(config, &parsed); err != nil {
		return nil, formatErrorf(configFile, "%v", err)
	}
	if have, want := len(di.Layers), len(parsed.RootFS.DiffIDs); have != want {
		return nil, formatErrorf(dockerManifestFile, "%d layers, but the config has %d diff IDs", have, want)
	}
	files := make(map[digest.Digest]string)
	known := make(map[string]ocispec.Descriptor) // by the file's name
	var layers []ocispec.Descriptor
	for i, layer := range di.Layers {
		name, err := memberName(layer)
		if err != nil {
			return nil, err
		}
		d, ok := known[name]
		if !ok || d.MediaType == dockerLayer {
			if d, err = a.dockerLayer(ctx, name, parsed.RootFS.DiffIDs[i]); err != nil {
				return nil, err
			}
			known[name] = d
		}
		files[d.Digest] = name
		layers = append(layers, d)
	}
	return makeImage(a.fsys, dockerTypes, config, layers, files)
}

// makeImage makes a manifest for a config and layers, which lie in files.
func makeImage(fsys fs.FS, types documentTypes, config []byte, layers []ocispec.Descriptor, files map[digest.Digest]string) (*Image, error) {
	id := digest.FromBytes(config)
	manifest, err := json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: types.manifest,
		Config: ocispec.Descriptor{MediaType: types.config, Digest: id, Size: int64(len(config))},
		Layers: append([]ocispec.Descriptor{}, layers...),
	})
	if err != nil {
		return nil, err
	}
	top := ocispec.Descriptor{MediaType: types.manifest, Digest: digest.FromBytes(manifest), Size: int64(len(manifest))}
	docs, err := fetch.ReadDocuments([]ocispec.Descriptor{top}, nil, func(d ocispec.Descriptor) ([]byte, error) {
		if d.Digest == id {
			return config, nil
		}
		return manifest, nil
	})
	if err != nil {
		return nil, err
	}
	return &Image{fsys: fsys, digest: top.Digest, docs: docs, path: func(d digest.Digest) (string, error) {
		name, ok := files[d]
		if !ok {
			return "", formatErrorf(dockerManifestFile, "has no layer %s", d)
		}
		return name, nil
	}}, nil
}

// dockerLayer describes a layer as it lies in the archive. One that is compressed is read for its
// digest.
func (a *Archive) dockerLayer(ctx context.Context, name string, diffID digest.Digest) (d ocispec.Descriptor, err error) {
	f, err := a.fsys.Open(name)
	if err != nil {
		return d, missing(name, err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return d, err
	}
	d = ocispec.Descriptor{MediaType: dockerLayer, Digest: diffID, Size: info.Size()}
	magic := make([]byte, magicSize)
	n, err := io.ReadFull(f, magic)
	if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
		return d, fmt.Errorf("read %s: %w", name, err)
	}
	switch kind := compression(magic[:n]); kind {
	case plain:
		return d, nil
	case gzipped, zstdType:
		d.MediaType += "." + kind
	default:
		return d, formatErrorf(name, "compressed with %s, which no layer may be", kind)
	}
	hash := digest.SHA256.Digester()
	hash.Hash().Write(magic[:n])
	if _, err := io.Copy(hash.Hash(), &contextReader{ctx, f}); err != nil {
		return d, fmt.Errorf("read %s: %w", name, err)
	}
	d.Digest = hash.Digest()
	return d, nil
}

// memberName is a name in an archive as it is looked up.
func memberName(s string) (string, error) {
	name := path.Clean(strings.TrimPrefix(s, "./"))
	if !fs.ValidPath(name) || name == "." {
		return "", formatErrorf(dockerManifestFile, "%.80q names nothing in the archive", s)
	}
	return name, nil
}
