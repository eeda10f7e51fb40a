package fetch

import (
	"context"
	_ "crypto/sha256" // the algorithms that a digest may have
	_ "crypto/sha512"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Media types that image-spec has no names for.
const (
	dockerManifest     = "application/vnd.docker.distribution.manifest.v2+json"
	dockerManifestList = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerSchema1      = "application/vnd.docker.distribution.manifest.v1+json"
	dockerSchema1JWS   = "application/vnd.docker.distribution.manifest.v1+prettyjws"
	dockerConfig       = "application/vnd.docker.container.image.v1+json"
	dockerLayer        = "application/vnd.docker.image.rootfs.diff.tar"
	dockerForeignLayer = "application/vnd.docker.image.rootfs.foreign.diff.tar"
)

// maxDocument limits a manifest, an index and a configuration, in bytes. The
// distribution specification has registries accept manifests up to this size.
const maxDocument = 4 << 20

// maxValues limits what is in such a document: a value of three bytes, {}, takes
// more than a hundred in memory.
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

// acceptManifests is what a manifest may be. A registry may answer 404 for
// what is not listed, or convert: schema 1 must not be here.
var acceptManifests = strings.Join([]string{
	ocispec.MediaTypeImageIndex, dockerManifestList, ocispec.MediaTypeImageManifest, dockerManifest,
}, ", ")

// A document is a manifest or an index.
type document struct {
	desc     ocispec.Descriptor // media type, digest and size of body
	body     []byte
	manifest *ocispec.Manifest // or
	index    *ocispec.Index
}

// manifest fetches a document by tag or digest. If want has a digest, the
// document must have it too; if its size is not negative, likewise.
func (s *session) manifest(ctx context.Context, name string, want ocispec.Descriptor) (*document, error) {
	if want.Digest != "" {
		if err := want.Digest.Validate(); err != nil {
			return nil, verificationError("manifest digest %q: %v", want.Digest, err)
		}
	}
	if want.Size > maxDocument {
		return nil, verificationError("manifest %s has %d bytes, more than %d", want.Digest, want.Size, maxDocument)
	}
	req := request{
		url:    s.base.JoinPath("v2", s.name, "manifests", name),
		accept: acceptManifests,
		pinned: want.Digest != "",
	}
	var doc *document
	err := retry(ctx, s.client.smallPolicy(), s.notifyRetry(want, noBytes), func() error {
		resp, err := s.send(ctx, req)
		if err != nil {
			return err
		}
		doc, err = readManifest(resp, want)
		return err
	})
	return doc, err
}

// readManifest reads, verifies and parses a reply, and closes it.
func readManifest(resp *http.Response, want ocispec.Descriptor) (doc *document, err error) {
	defer func() {
		if cerr := resp.Body.Close(); err == nil && cerr != nil {
			err = cerr
		}
	}()
	if resp.ContentLength > maxDocument {
		return nil, verificationError("manifest has %d bytes, more than %d", resp.ContentLength, maxDocument)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxDocument+1))
	if err != nil {
		return nil, &brokenError{fmt.Errorf("read manifest: %w", err)}
	}
	if len(body) > maxDocument {
		return nil, verificationError("manifest has more than %d bytes", maxDocument)
	}
	if want.Size >= 0 && int64(len(body)) != want.Size {
		return nil, verificationError("manifest %s has %d bytes, its descriptor says %d", want.Digest, len(body), want.Size)
	}
	dgst := digest.FromBytes(body)
	if want.Digest != "" {
		if dgst = want.Digest.Algorithm().FromBytes(body); dgst != want.Digest {
			return nil, verificationError("manifest verification failed for digest %s", want.Digest)
		}
	} else if said := digest.Digest(resp.Header.Get("Docker-Content-Digest")); said.Validate() == nil {
		if got := said.Algorithm().FromBytes(body); got != said {
			return nil, verificationError("manifest verification failed: the registry says its digest is %s, it is %s", said, got)
		}
	}
	doc, err = parseManifest(resp.Header.Get("Content-Type"), body)
	if err != nil {
		return nil, err
	}
	if want.MediaType != "" && want.MediaType != doc.desc.MediaType {
		return nil, verificationError("manifest %s is of type %s, its descriptor says %s",
			want.Digest, doc.desc.MediaType, printable(want.MediaType, maxUnparsed))
	}
	doc.desc.Digest = dgst
	return doc, nil
}

// parseManifest reads a manifest or an index of any type. The type is that of
// the Content-Type header, or of the body if the header is general.
func parseManifest(contentType string, body []byte) (*document, error) {
	var shape struct {
		SchemaVersion int             `json:"schemaVersion"`
		MediaType     string          `json:"mediaType"`
		Config        json.RawMessage `json:"config"`
		Layers        json.RawMessage `json:"layers"`
		Manifests     json.RawMessage `json:"manifests"`
		FSLayers      json.RawMessage `json:"fsLayers"`
	}
	if n := values(body); n > maxValues {
		return nil, verificationError("manifest has %d values, more than %d", n, maxValues)
	}
	if err := json.Unmarshal(body, &shape); err != nil {
		return nil, fmt.Errorf("parse manifest: %w", err)
	}
	mediaType, err := manifestType(contentType, shape.MediaType)
	if err != nil {
		return nil, err
	}
	if mediaType == "" {
		switch {
		case shape.SchemaVersion == 1 || shape.FSLayers != nil:
			mediaType = dockerSchema1
		case shape.Manifests != nil:
			mediaType = ocispec.MediaTypeImageIndex
		case shape.Config != nil && shape.Layers != nil:
			mediaType = ocispec.MediaTypeImageManifest
		}
	}
	doc := &document{body: body, desc: ocispec.Descriptor{MediaType: mediaType, Size: int64(len(body))}}
	switch mediaType {
	case dockerSchema1, dockerSchema1JWS:
		return nil, errSchema1
	case ocispec.MediaTypeImageIndex, dockerManifestList:
		if shape.Config != nil || shape.Layers != nil || shape.FSLayers != nil {
			return nil, verificationError(`media-type: %q should not have "config", "layers", or "fsLayers"`, mediaType)
		}
		doc.index = new(ocispec.Index)
		err = json.Unmarshal(body, doc.index)
	case ocispec.MediaTypeImageManifest, dockerManifest:
		if shape.Manifests != nil || shape.FSLayers != nil {
			return nil, verificationError(`media-type: %q should not have "manifests" or "fsLayers"`, mediaType)
		}
		doc.manifest = new(ocispec.Manifest)
		err = json.Unmarshal(body, doc.manifest)
	case "":
		return nil, &classError{class: ErrMediaType, msg: "unsupported manifest format"}
	default:
		return nil, &classError{class: ErrMediaType, msg: "unsupported manifest media type " + printable(mediaType, maxUnparsed)}
	}
	if err != nil {
		return nil, fmt.Errorf("parse manifest: %w", err)
	}
	return doc, nil
}

// errSchema1 is refused by name, once the reference is known.
var errSchema1 = errors.New("manifest is of schema 1")

// manifestType is the media type that the header and the body agree upon, or
// "" if neither says.
func manifestType(header, body string) (string, error) {
	header, _, err := mime.ParseMediaType(header)
	if err != nil {
		header = ""
	}
	body = strings.ToLower(body)
	switch header {
	case "", "application/json", "application/octet-stream", "text/plain", "text/html":
		return body, nil
	}
	if body != "" && body != header {
		return "", verificationError("manifest says it is of type %q, the registry that it is of type %q",
			printable(body, maxUnparsed), printable(header, maxUnparsed))
	}
	return header, nil
}

// checkMediaTypes refuses what is not a container image, and what has layers
// or sizes and digests that cannot be.
func checkMediaTypes(m *ocispec.Manifest) error {
	switch m.Config.MediaType {
	case ocispec.MediaTypeImageConfig, dockerConfig,
		"application/octet-stream", "text/html", "": // old registries and builders, as dockerd accepts them
	default:
		// An artifact says what it is in artifactType if its configuration is
		// empty, and in the configuration's type otherwise.
		kind := m.Config.MediaType
		if kind == ocispec.MediaTypeEmptyJSON && m.ArtifactType != "" {
			kind = m.ArtifactType
		}
		return &classError{class: ErrMediaType, msg: "unsupported media type " + printable(kind, maxUnparsed)}
	}
	if err := checkDescriptor(m.Config); err != nil {
		return fmt.Errorf("image configuration: %w", err)
	}
	for i, l := range m.Layers {
		if !isLayer(l.MediaType) {
			return &classError{class: ErrMediaType, msg: "unsupported media type " + printable(l.MediaType, maxUnparsed)}
		}
		if err := checkDescriptor(l); err != nil {
			return fmt.Errorf("layer %d: %w", i, err)
		}
	}
	return nil
}

// isLayer knows the media types of a layer's changeset.
func isLayer(mediaType string) bool {
	t := withoutCompression(mediaType)
	return t == ocispec.MediaTypeImageLayer || t == dockerLayer || isForeign(mediaType)
}

// isForeign knows the media types of layers that a registry need not hold.
func isForeign(mediaType string) bool {
	t := withoutCompression(mediaType)
	return t == dockerForeignLayer || t == "application/vnd.oci.image.layer.nondistributable.v1.tar"
}

// withoutCompression takes the suffix for a compression off a layer's media
// type: OCI separates it with a plus, docker with a point.
func withoutCompression(mediaType string) string {
	for _, suffix := range []string{"+gzip", "+zstd", ".gzip", ".zstd"} {
		if t, ok := strings.CutSuffix(mediaType, suffix); ok {
			return t
		}
	}
	return mediaType
}

// checkDescriptor validates a digest and a size that somebody else wrote.
func checkDescriptor(d ocispec.Descriptor) error {
	if err := d.Digest.Validate(); err != nil {
		return verificationError("digest %q: %v", printable(d.Digest.String(), maxUnparsed), err)
	}
	if d.Size < 0 {
		return verificationError("size %d of %s is negative", d.Size, d.Digest)
	}
	return nil
}
