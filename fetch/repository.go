package fetch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// PushOptions say where a Repository may get blobs from, and as whom it is spoken to.
type PushOptions struct {
	// Credentials are for the registry. The zero value means anonymous.
	Credentials Credentials
	// From names repositories that may have the image's blobs; those of the same registry are
	// asked for before anything is sent.
	From []reference.Named
	// Progress, if not nil, is called with what happens on the wire, by the goroutine that sends:
	// it must be quick, and ready for several calls at once.
	Progress func(Event)
}

// A Repository is where images are pushed to. Its methods may be called concurrently.
type Repository struct {
	session *session
	ref     reference.Named
	from    []otherRepository // of the same registry
}

// An otherRepository may have blobs to mount. Its session, which may pull from it as well, is one
// of its own: a token service may refuse all of a request of which it refuses a part.
type otherRepository struct {
	name    string
	session *session
}

// maxMountFrom is how many repositories are asked for a blob before it is sent.
const maxMountFrom = 4

// Repository opens the repository that ref names, to push what will be named by ref: by its tag,
// latest if there is none, or by its digest.
//
//	HasBlob      HEAD /v2/NAME/blobs/DIGEST
//	MountBlob    POST /v2/NAME/blobs/uploads/?mount=DIGEST&from=OTHER   DELETE LOCATION if it comes to nothing
//	PutBlob      POST /v2/NAME/blobs/uploads/                           PUT LOCATION?digest=DIGEST
//	PutManifest  PUT  /v2/NAME/manifests/REFERENCE
func (c *Client) Repository(ctx context.Context, ref reference.Named, o PushOptions) (*Repository, error) {
	ref = reference.TagNameOnly(ref)
	name := reference.Path(ref)
	push := pullScope(name) + ",push"
	s, err := c.open(ctx, apiHost(reference.Domain(ref)), name, []string{push}, o.Credentials, o.Progress)
	if err != nil {
		return nil, err
	}
	r := &Repository{ref: ref, session: s}
	for _, ref := range o.From {
		other := otherRepository{name: reference.Path(ref)}
		known := slices.ContainsFunc(r.from, func(x otherRepository) bool { return x.name == other.name })
		if reference.Domain(ref) != reference.Domain(r.ref) || other.name == name || known || len(r.from) == maxMountFrom {
			continue
		}
		both := *s
		both.auth = newAuthorizer(c, s.base, []string{push, pullScope(other.name)}, o.Credentials, s.auth.offers)
		other.session = &both
		r.from = append(r.from, other)
	}
	return r, nil
}

// pullScope is the right to pull from a repository.
func pullScope(name string) string { return "repository:" + name + ":pull" }

// HasBlob tells whether the repository has a blob.
func (r *Repository) HasBlob(ctx context.Context, d ocispec.Descriptor) (bool, error) {
	if err := checkDescriptor(d); err != nil {
		return false, err
	}
	s := r.session
	there := false
	err := retry(ctx, s.client.smallPolicy(), s.notifyRetry(d, noBytes), func() error {
		resp, err := s.send(ctx, request{method: http.MethodHead, url: s.base.JoinPath("v2", s.name, "blobs", d.Digest.String()), pinned: true})
		if err == nil {
			there = resp.ContentLength < 0 || resp.ContentLength == d.Size
			discard(resp)
		}
		if errors.Is(err, ErrNotFound) && !errors.As(err, new(*url.Error)) {
			return nil
		}
		return err
	})
	if err != nil {
		return false, fmt.Errorf("ask for blob %s: %w", d.Digest, err)
	}
	return there, nil
}

// MountBlob has the registry take a blob from one of PushOptions.From. It returns that one's name,
// or "" if none of them has the blob, as far as we may know.
func (r *Repository) MountBlob(ctx context.Context, d ocispec.Descriptor) (string, error) {
	for _, from := range r.from {
		where, err := from.session.startUpload(ctx, url.Values{"mount": {d.Digest.String()}, "from": {from.name}})
		if err != nil {
			if cause := context.Cause(ctx); cause != nil {
				return "", cause
			}
			continue // a registry that does not let us is asked to take the blob from us
		}
		if where == nil {
			return from.name, nil
		}
		// The registry awaits an upload instead. One that does not know this request lets it expire.
		if resp, err := from.session.send(ctx, request{method: http.MethodDelete, url: where}); err == nil {
			discard(resp)
		}
	}
	return "", nil
}

// startUpload asks for a place to upload to. It is nil if the registry has the blob already.
func (s *session) startUpload(ctx context.Context, query url.Values) (*url.URL, error) {
	u := s.base.JoinPath("v2", s.name, "blobs", "uploads/")
	u.RawQuery = query.Encode()
	resp, err := s.send(ctx, request{method: http.MethodPost, url: u, upload: &upload{}})
	if err != nil {
		return nil, err
	}
	discard(resp)
	if resp.StatusCode == http.StatusCreated {
		return nil, nil
	}
	where, err := resp.Request.URL.Parse(resp.Header.Get("Location"))
	if err != nil || resp.Header.Get("Location") == "" || where.Host == "" {
		return nil, errors.New("the registry does not say where to upload to")
	}
	if s.base.Scheme == "https" && where.Scheme != "https" {
		return nil, fmt.Errorf("the registry wants an upload without HTTPS, to %s", where.Host)
	}
	where.User, where.Fragment = nil, ""
	return where, nil
}

// PutBlob uploads a blob. Open returns its bytes, from the beginning; it is called again when the
// connection breaks. An error of what it returns ends the upload.
func (r *Repository) PutBlob(ctx context.Context, d ocispec.Descriptor, open func(context.Context) (io.ReadCloser, error)) error {
	if err := checkDescriptor(d); err != nil {
		return err
	}
	s := r.session
	var sent int64
	u := &upload{size: d.Size, contentType: "application/octet-stream"}
	u.open = func() (io.ReadCloser, error) { return open(ctx) }
	u.report = func(n int64) {
		sent = n
		if s.progress != nil {
			s.progress(Event{Digest: d.Digest, Received: n, Total: d.Size})
		}
	}
	err := retry(ctx, s.client.blobPolicy(), s.notifyRetry(d, func() int64 { return sent }), func() error {
		where, err := s.startUpload(ctx, nil)
		if err != nil || where == nil {
			return err
		}
		q := where.Query()
		q.Set("digest", d.Digest.String())
		where.RawQuery = q.Encode()
		resp, err := s.send(ctx, request{method: http.MethodPut, url: where, upload: u})
		if err != nil {
			return err
		}
		discard(resp)
		return nil
	})
	if err != nil {
		return fmt.Errorf("upload blob %s: %w", d.Digest, err)
	}
	return nil
}

// PutManifest uploads a manifest, whose blobs are all there, and gives it the reference.
func (r *Repository) PutManifest(ctx context.Context, d ocispec.Descriptor, b []byte) error {
	s := r.session
	name := d.Digest.String()
	switch ref := r.ref.(type) {
	case reference.Digested:
		if ref.Digest() != d.Digest {
			return verificationError("manifest %s cannot be pushed as %s", d.Digest, r.ref)
		}
	case reference.Tagged:
		name = ref.Tag()
	}
	u := &upload{size: int64(len(b)), contentType: d.MediaType}
	u.open = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }
	err := retry(ctx, s.client.smallPolicy(), s.notifyRetry(d, noBytes), func() error {
		resp, err := s.send(ctx, request{method: http.MethodPut, url: s.base.JoinPath("v2", s.name, "manifests", name), upload: u})
		if err != nil {
			return err
		}
		discard(resp)
		if said := digest.Digest(resp.Header.Get("Docker-Content-Digest")); said.Validate() == nil && said.Algorithm() == d.Digest.Algorithm() && said != d.Digest {
			return verificationError("the registry says that manifest %s is %s", d.Digest, said)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("upload manifest %s: %w", d.Digest, err)
	}
	return nil
}
