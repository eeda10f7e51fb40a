package fetch

import (
	"fmt"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Documents are an image without its layers' bytes. They are verified, and agree with each other.
type Documents struct {
	Manifest   []byte
	Descriptor ocispec.Descriptor   // of Manifest
	Layers     []ocispec.Descriptor // as many as the configuration has diff IDs, lowest first
	Config     []byte
	Platform   ocispec.Platform // of Config
}

// ReadDocuments finds an image that is not in a registry, by the same rules. It is the one that
// top describes, a manifest or an index to choose one from; of several tops, one is chosen as
// from an index. Platform is as in [ResolveOptions]. Read returns what a descriptor describes;
// it is asked for no more than 4 MiB, and what it returns is verified here.
func ReadDocuments(top []ocispec.Descriptor, platform *ocispec.Platform, read func(ocispec.Descriptor) ([]byte, error)) (Documents, error) {
	want := wantedPlatform(platform)
	verified := func(d ocispec.Descriptor) ([]byte, error) {
		if err := checkDescriptor(d); err != nil {
			return nil, err
		}
		if d.Size > maxDocument {
			return nil, verificationError("%s has %d bytes, more than %d", d.Digest, d.Size, maxDocument)
		}
		b, err := read(d)
		if err != nil {
			return nil, err
		}
		if int64(len(b)) != d.Size {
			return nil, verificationError("%s has %d bytes, its descriptor says %d", d.Digest, len(b), d.Size)
		}
		if got := d.Digest.Algorithm().FromBytes(b); got != d.Digest {
			return nil, verificationError("verification failed for digest %s: it is %s", d.Digest, got)
		}
		return b, nil
	}
	manifest := func(d ocispec.Descriptor) (*document, error) {
		b, err := verified(d)
		if err != nil {
			return nil, err
		}
		doc, err := parseManifest(d.MediaType, b)
		if err != nil {
			return nil, err
		}
		doc.desc.Digest = d.Digest
		return doc, nil
	}
	var d ocispec.Descriptor
	var err error
	if len(top) == 1 {
		d = top[0]
	} else if d, err = chooseManifest(&ocispec.Index{Manifests: top}, want); err != nil {
		return Documents{}, err
	}
	doc, err := manifest(d)
	if err != nil {
		return Documents{}, err
	}
	return completeImage(doc, want, manifest, verified)
}

// completeImage reads what belongs to doc: the manifest for the platform, if doc is an index, and the
// configuration.
func completeImage(doc *document, want ocispec.Platform,
	manifest func(ocispec.Descriptor) (*document, error), config func(ocispec.Descriptor) ([]byte, error)) (Documents, error) {
	if doc.index != nil {
		index := doc.desc.Digest
		d, err := chooseManifest(doc.index, want)
		if err != nil {
			return Documents{}, err
		}
		if doc, err = manifest(d); err != nil {
			return Documents{}, err
		}
		if doc.index != nil {
			return Documents{}, &classError{class: ErrMediaType, msg: fmt.Sprintf("index %s holds another index, %s", index, d.Digest)}
		}
	}
	if err := checkMediaTypes(doc.manifest); err != nil {
		return Documents{}, err
	}
	docs := Documents{Manifest: doc.body, Descriptor: doc.desc, Layers: doc.manifest.Layers}
	var err error
	if docs.Config, err = config(doc.manifest.Config); err != nil {
		return Documents{}, fmt.Errorf("error pulling image configuration: %w", err)
	}
	docs.Platform, err = parseConfig(docs.Config, len(docs.Layers))
	return docs, err
}
