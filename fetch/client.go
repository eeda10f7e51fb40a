// Package fetch pulls images from registries that speak the OCI distribution
// specification (docker registry HTTP API V2), and pushes to them. It delivers
// bytes that are proven to be what was asked for, and keeps nothing.
//
//	reference ──► Resolve ──► *Image ──► Blob ──► compressed bytes of one layer
//
//	Resolve   GET /v2/                          HTTPS or HTTP, and how to authenticate
//	          GET realm?service=S&scope=...     only where the registry asks for a token
//	          GET /v2/NAME/manifests/REFERENCE  an index, or a manifest
//	          GET /v2/NAME/manifests/DIGEST     the manifest for the platform, if it was an index
//	          GET /v2/NAME/blobs/DIGEST         the image configuration
//	Blob      GET /v2/NAME/blobs/DIGEST         one layer, resumed with Range where the connection breaks,
//	                                            in ranges at once where one connection is too slow
//
// A [Repository] is what is pushed to; [Client.Repository] lists its requests.
//
// # What is verified
//
// A registry, and whoever it redirects to, is not trusted. A document asked
// for by digest has that digest and the size its descriptor gives, or it is an
// error. A tag is resolved over TLS only (except on loopback and on registries
// named in [Client.Insecure]), and its document must agree with the registry's
// Docker-Content-Digest. Manifests and configurations are limited to 4 MiB and
// 100,000 values, error bodies and tokens to 1 MiB. A layer is hashed as it passes: the Read
// that would have returned io.EOF returns an error instead if a byte is wrong,
// missing or too many. A document which names itself another type than the
// Content-Type does, or which is both index and manifest, is refused: two
// programs could read two images under one digest.
//
// # Who gets the credentials
//
// The registry, and the token service that it names in WWW-Authenticate, which
// must be HTTPS if the registry is. A redirect to another scheme, host or port
// loses the Authorization header and never gets it back. From HTTPS to HTTP
// only documents whose digest is known are followed. An upload goes to where the
// registry says, without the header if that is elsewhere, and follows no redirect.
// Client certificates go to the host whose folder they lie in. Nothing is logged;
// errors leave out what follows a question mark in the address of a redirect, or of
// an upload.
//
// # Retries
//
// A request is repeated after a broken connection, silence for
// [Client.IdleTimeout], status 408, 429, 500, 502, 503 and 504. Retry-After is
// obeyed if it is not too far off. A blob gets [Client.Attempts] attempts that
// bring less than 1 MiB, so a long download on a bad line ends when it gets
// nowhere, not when it was unlucky often. What was received is kept: the next
// attempt asks for the rest (206), or skips what it has (200), or asks for
// everything again (416). An upload begins anew; an error of what it reads from ends
// it.
//
// # Concurrency
//
// A Client and an Image may be used by any number of goroutines, a blob's
// reader by one at a time. The package starts no goroutine that outlives a
// call, save those of net/http for idle connections, and those that fetch pieces of
// a blob (see wide.go) until its reader is closed. There are three locks, never held
// together: Client.mu guards the transports, authorizer.lock the token (a channel, so
// that a cancelled pull does not wait for somebody else's token), uploadBody.mu what
// has become of an upload.
package fetch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A Client pulls from any number of registries, and pushes to them. The zero value is ready for
// use. It must not be copied or have its fields changed after the first use.
type Client struct {
	// Insecure lists registries, as HOST, HOST:PORT or CIDR, that are tried
	// with HTTPS without verifying the certificate, then with HTTP. A HOST
	// stands for all its ports. 127.0.0.0/8 and ::1 are always among them.
	Insecure []string

	// Whitelist lists the only registries that are spoken to, as HOST, HOST:PORT,
	// *.DOMAIN, *.DOMAIN:PORT or CIDR; docker.io is Docker Hub. Where they redirect
	// to, and the token services that they name, need not be listed. None means that
	// all registries are.
	Whitelist []string

	// CertsDir has a folder for each registry, named HOST:PORT or HOST, with
	// CA certificates (*.crt) and client certificates (*.cert, *.key).
	// "" means /etc/docker/certs.d.
	CertsDir string

	// Proxy says which proxy a request takes, as in http.Transport.
	// nil means none.
	Proxy func(*http.Request) (*url.URL, error)

	// UserAgent is sent with each request. "" means "vic".
	UserAgent string

	// Attempts is how often a blob is asked for without getting 1 MiB of it,
	// before it is given up. 0 means 5. Manifests and configurations are asked
	// for at most three times.
	Attempts int

	// Backoff is how long to wait after the first failed attempt for a blob;
	// after the n-th it is n times that, each time up to a quarter less at
	// random. Other requests wait a fifth of it. 0 means 5 seconds, less means
	// not at all.
	Backoff time.Duration

	// MaxRetryAfter is the longest wait that a registry may ask for with
	// Retry-After; if it asks for more, the request has failed.
	// 0 means 60 seconds.
	MaxRetryAfter time.Duration

	// IdleTimeout is how long to wait for a reply to begin, or for more bytes
	// of it, before the connection counts as broken. 0 means 60 seconds.
	IdleTimeout time.Duration

	pieces int64 // length of the pieces of wide blobs; 0 means pieceSize

	mu         sync.Mutex
	transports map[string]*hostTransport // by host:port, guarded by mu
}

// ResolveOptions say what to resolve a reference to, and as whom.
type ResolveOptions struct {
	// Platform is the one to choose from an index. nil means Linux on the
	// architecture that this program runs on, as does what is empty in it.
	Platform *ocispec.Platform

	// Credentials are for the registry that the reference names. The zero
	// value means anonymous.
	Credentials Credentials

	// Progress, if not nil, is called with what happens on the wire, by the
	// goroutine that called Resolve, Blob or Read: it must be quick, and ready
	// for several calls at once if several blobs are read at once.
	Progress func(Event)
}

// An Event tells how a download goes on, or an upload.
type Event struct {
	Digest   digest.Digest // of the blob or manifest; "" if not yet known
	Received int64         // bytes of the blob received and delivered so far, or sent
	Total    int64         // its size in bytes
	Retry    time.Duration // if not 0, an attempt failed and the next is so far off; told once a second
	Err      error         // why it failed, if Retry is not 0
}

// Resolve finds the image that ref names: the manifest for the platform and
// the image configuration, both verified. Without a tag and digest, ref means
// the tag latest; with both, the digest counts.
//
// The error can be told apart with errors.Is: ErrNotFound, ErrUnauthorized,
// ErrDenied, ErrForbidden, ErrTooManyRequests, ErrSchema1, ErrNoPlatform, ErrMediaType,
// ErrVerification. Its text is what dockerd would have said.
func (c *Client) Resolve(ctx context.Context, ref reference.Named, o ResolveOptions) (*Image, error) {
	ref = reference.TagNameOnly(ref)
	s, err := c.open(ctx, apiHost(reference.Domain(ref)), reference.Path(ref), []string{pullScope(reference.Path(ref))}, o.Credentials, o.Progress)
	if err != nil {
		return nil, err
	}
	return s.resolve(ctx, ref, wantedPlatform(o.Platform))
}

// Login checks credentials as POST /auth needs it: it asks the registry at
// host ("docker.io", "localhost:5000", or the address of Docker Hub's index)
// for its version with them. It returns the identity token if the registry
// issued one, which the client should keep in place of the password. Wrong
// credentials give ErrUnauthorized.
func (c *Client) Login(ctx context.Context, host string, creds Credentials) (string, error) {
	s, err := c.open(ctx, apiHost(host), "", nil, creds, nil)
	if err != nil {
		return "", err
	}
	u := s.base.JoinPath("v2/")
	resp, err := s.send(ctx, request{url: u})
	if err != nil {
		if re, ok := errors.AsType[*RegistryError](err); ok && !errors.As(err, new(*url.Error)) {
			return "", &classError{
				class: re.class(),
				msg:   fmt.Sprintf("login attempt to %s failed with status: %d %s", u, re.Status, http.StatusText(re.Status)),
				cause: err,
			}
		}
		return "", err
	}
	discard(resp)
	return s.auth.identity(ctx)
}

// resolve does the work of Resolve, with ref's tag or digest.
func (s *session) resolve(ctx context.Context, ref reference.Named, want ocispec.Platform) (*Image, error) {
	name, pin := "", digest.Digest("")
	switch r := ref.(type) {
	case reference.Digested:
		pin = r.Digest()
		name = pin.String()
	case reference.Tagged:
		name = r.Tag()
	}
	doc, err := s.manifest(ctx, name, ocispec.Descriptor{Digest: pin, Size: -1})
	if err != nil {
		return nil, pullError(err, ref)
	}
	img := &Image{session: s, ref: ref, digest: doc.desc.Digest, indexed: doc.index != nil}
	img.docs, err = completeImage(doc, want,
		func(d ocispec.Descriptor) (*document, error) {
			doc, err := s.manifest(ctx, d.Digest.String(), d)
			if err != nil {
				return nil, pullError(err, ref)
			}
			return doc, nil
		},
		func(d ocispec.Descriptor) ([]byte, error) { return s.config(ctx, d) })
	if err != nil {
		return nil, err
	}
	return img, nil
}

// wantedPlatform is p, with its defaults. Container VMs run Linux whatever the
// VCH runs on.
func wantedPlatform(p *ocispec.Platform) ocispec.Platform {
	d := platforms.DefaultSpec()
	d.OS, d.OSVersion, d.OSFeatures = "linux", "", nil
	if p == nil {
		return d
	}
	want := *p
	want.OS = cmp.Or(want.OS, d.OS)
	if want.Architecture == "" {
		want.Architecture, want.Variant = d.Architecture, d.Variant
	}
	return want
}

// apiHost is the host:port to talk to for a registry named as in a docker
// configuration: a domain, or an address such as https://index.docker.io/v1/.
func apiHost(name string) string {
	switch host := hostOf(name); host {
	case "", hubDomain, "index.docker.io", "www.docker.io":
		return hubHost
	default:
		return host
	}
}

// hostOf strips the scheme and path from a registry's name.
func hostOf(name string) string {
	name = strings.TrimPrefix(strings.TrimPrefix(name, "https://"), "http://")
	host, _, _ := strings.Cut(name, "/")
	return host
}

// The names of Docker Hub: in references, on the wire, in docker's
// configuration.
const (
	hubDomain = "docker.io"
	hubHost   = "registry-1.docker.io"
	hubKey    = "https://index.docker.io/v1/"
)

func (c *Client) piece() int64 { return cmp.Or(c.pieces, pieceSize) }

func (c *Client) attempts() int                { return cmp.Or(c.Attempts, 5) }
func (c *Client) backoff() time.Duration       { return max(cmp.Or(c.Backoff, 5*time.Second), 0) }
func (c *Client) maxRetryAfter() time.Duration { return cmp.Or(c.MaxRetryAfter, 60*time.Second) }
func (c *Client) idleTimeout() time.Duration   { return cmp.Or(c.IdleTimeout, 60*time.Second) }
