package fetch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A session is the conversation with one repository of a registry, or with the
// registry itself if name is "". It is safe for concurrent use.
type session struct {
	client   *Client
	base     *url.URL // scheme and host
	name     string
	auth     *authorizer
	progress func(Event) // or nil
}

// A request is a GET, unless it says otherwise.
type request struct {
	method string // "" means GET
	url    *url.URL
	accept string
	off    int64   // first byte wanted
	n      int64   // bytes wanted, if off is not 0; 0 means all that follow
	pinned bool    // the digest of the reply is known
	upload *upload // what is sent; nil if nothing is
}

// open finds out how a registry is spoken to. The scopes are the rights that are needed.
func (c *Client) open(ctx context.Context, host, name string, scopes []string, creds Credentials, progress func(Event)) (*session, error) {
	if _, err := c.permitted(ctx, host); err != nil {
		return nil, err
	}
	base, challenges, err := c.ping(ctx, host)
	if err != nil {
		return nil, err
	}
	return &session{
		client:   c,
		base:     base,
		name:     name,
		auth:     newAuthorizer(c, base, scopes, creds, challenges),
		progress: progress,
	}, nil
}

// ping asks for /v2/ over HTTPS, and over HTTP where that is allowed. The
// reply's status does not matter, except that 401 brings challenges: there are
// registries that have no such page.
func (c *Client) ping(ctx context.Context, host string) (*url.URL, []challenge, error) {
	t, err := c.transport(ctx, host, true)
	if err != nil {
		return nil, nil, err
	}
	schemes := []string{"https"}
	if t.insecure {
		schemes = append(schemes, "http")
	}
	for _, scheme := range schemes {
		base := &url.URL{Scheme: scheme, Host: host}
		var req *http.Request
		req, err = http.NewRequestWithContext(ctx, http.MethodGet, base.JoinPath("v2/").String(), nil)
		if err != nil {
			return nil, nil, err
		}
		var resp *http.Response
		if resp, err = c.do(req, redirectPolicy(false)); err != nil {
			if cause := context.Cause(ctx); cause != nil {
				return nil, nil, cause
			}
			continue
		}
		discard(resp)
		var challenges []challenge
		if resp.StatusCode == http.StatusUnauthorized && sameOrigin(resp.Request.URL, base) {
			// registry.k8s.io redirects to a registry whose challenge is for
			// other names than its own, and is not for our credentials.
			challenges = parseChallenges(resp.Header.Values("WWW-Authenticate"))
		}
		return base, challenges, nil
	}
	return nil, nil, err
}

// send sends a request with the authorization that it needs. The reply to a GET has
// status 200 or, if r.off is not 0, perhaps 206 or 416, and that to another request
// 200, 201, 202 or 204; any other is a *RegistryError. A token that the registry does
// not take is renewed once.
func (s *session) send(ctx context.Context, r request) (*http.Response, error) {
	method := cmp.Or(r.method, http.MethodGet)
	for try := 0; ; try++ {
		grant, err := s.auth.authorize(ctx)
		if err != nil {
			if cause := context.Cause(ctx); cause != nil {
				return nil, cause
			}
			return nil, &url.Error{Op: method[:1] + strings.ToLower(method[1:]), URL: r.url.String(), Err: err}
		}
		req, err := http.NewRequestWithContext(ctx, method, r.url.String(), nil)
		if err != nil {
			return nil, err
		}
		if err := r.upload.attach(req); err != nil {
			return nil, err
		}
		// An upload may be sent to where the registry says, but its token is for the registry.
		if grant != "" && sameOrigin(r.url, s.base) {
			req.Header.Set("Authorization", grant)
		}
		if r.accept != "" {
			req.Header.Set("Accept", r.accept)
		}
		if r.off > 0 {
			last := ""
			if r.n > 0 {
				last = strconv.FormatInt(r.off+r.n-1, 10)
			}
			req.Header.Set("Range", "bytes="+strconv.FormatInt(r.off, 10)+"-"+last)
		}
		redirect := redirectPolicy(r.pinned)
		if method != http.MethodGet && method != http.MethodHead {
			redirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
		}
		resp, err := s.client.do(req, redirect)
		if err != nil {
			return nil, err
		}
		switch resp.StatusCode {
		case http.StatusOK:
			return resp, nil
		case http.StatusCreated, http.StatusAccepted, http.StatusNoContent:
			if method != http.MethodGet {
				return resp, nil
			}
		case http.StatusPartialContent, http.StatusRequestedRangeNotSatisfiable:
			if r.off > 0 {
				return resp, nil
			}
		case http.StatusUnauthorized:
			if try > 0 || !sameOrigin(resp.Request.URL, s.base) {
				break
			}
			again, err := s.auth.challenged(ctx, grant, parseChallenges(resp.Header.Values("WWW-Authenticate")))
			if err != nil {
				resp.Body.Close()
				return nil, err
			}
			if again {
				discard(resp)
				continue
			}
		}
		return nil, replyError(resp, time.Now())
	}
}

// do sends a request. The reply's body, and the wait for the reply, end when
// nothing comes for the idle timeout.
func (c *Client) do(req *http.Request, redirect func(*http.Request, []*http.Request) error) (*http.Response, error) {
	agent := c.UserAgent
	if agent == "" {
		agent = "vic"
	}
	req.Header.Set("User-Agent", agent)
	// A proxy that compressed a blob on the way would change its digest.
	req.Header.Set("Accept-Encoding", "identity")

	guard, ctx := newIdleGuard(req.Context(), c.idleTimeout())
	hc := http.Client{Transport: router{c}, CheckRedirect: redirect}
	req = req.WithContext(ctx)
	sent, uploads := req.Body.(*uploadBody)
	if uploads {
		sent.guard = guard
	}
	resp, err := hc.Do(req)
	if failed := sent.end(); failed != nil {
		if err == nil {
			resp.Body.Close()
		}
		guard.release()
		return nil, failed
	}
	guard.timer.Stop()
	if err != nil {
		err = guard.explain(err)
		guard.release()
		return nil, hideQuery(err, req)
	}
	resp.Body = &guardedBody{ReadCloser: resp.Body, guard: guard}
	return resp, nil
}

// discard closes a reply that says nothing of interest. A short one is read to
// its end, so that the connection serves for the next request.
func discard(resp *http.Response) {
	io.CopyN(io.Discard, resp.Body, 64<<10)
	resp.Body.Close()
}

// maxRedirects is how many redirects in a row are followed.
const maxRedirects = 10

// redirectPolicy returns an http.Client.CheckRedirect. net/http itself keeps
// the Authorization header for other ports and for subdomains.
func redirectPolicy(pinned bool) func(*http.Request, []*http.Request) error {
	return func(req *http.Request, via []*http.Request) error {
		if len(via) > maxRedirects {
			return fmt.Errorf("stopped after %d redirects", maxRedirects)
		}
		if via[len(via)-1].URL.Scheme == "https" && req.URL.Scheme != "https" && !pinned {
			return errors.New("redirect from HTTPS to " + req.URL.Scheme + " refused")
		}
		strayed := slices.ContainsFunc(append(via[1:len(via):len(via)], req), func(r *http.Request) bool {
			return !sameOrigin(r.URL, via[0].URL)
		})
		if strayed {
			req.Header.Del("Authorization")
		}
		req.Header.Del("Referer")
		return nil
	}
}

func sameOrigin(a, b *url.URL) bool {
	return a.Scheme == b.Scheme && a.Host == b.Host
}

// hideQuery removes the query from the address in an error if a redirect led
// there, or what a registry said of an upload: signatures in it are good for
// downloading, or for uploading.
func hideQuery(err error, asked *http.Request) error {
	ue, ok := errors.AsType[*url.Error](err)
	if !ok {
		return err
	}
	u, perr := url.Parse(ue.URL)
	if perr != nil || u.RawQuery == "" || asked.Method == http.MethodGet && sameOrigin(u, asked.URL) {
		return err
	}
	u.RawQuery = ""
	return &url.Error{Op: ue.Op, URL: u.String(), Err: ue.Err}
}

// notifyRetry returns a function that tells Progress about a wait.
func (s *session) notifyRetry(d ocispec.Descriptor, received func() int64) func(time.Duration, error) {
	return func(left time.Duration, cause error) {
		if s.progress == nil {
			return
		}
		s.progress(Event{
			Digest:   d.Digest,
			Received: received(),
			Total:    max(d.Size, 0),
			Retry:    (left + time.Second - 1).Truncate(time.Second),
			Err:      cause,
		})
	}
}

// noBytes is the received of what is delivered whole.
func noBytes() int64 { return 0 }

// An idleGuard cancels an attempt when nothing was received for too long
// while somebody waits for it. Slowness of whoever reads does not count.
type idleGuard struct {
	limit  time.Duration
	timer  *time.Timer
	cancel context.CancelCauseFunc
	cause  func() error // of the attempt's end
}

// newIdleGuard starts waiting at once. The attempt uses the context.
func newIdleGuard(ctx context.Context, limit time.Duration) (*idleGuard, context.Context) {
	ctx, cancel := context.WithCancelCause(ctx)
	return &idleGuard{
		limit:  limit,
		timer:  time.AfterFunc(limit, func() { cancel(fmt.Errorf("%w for %v", errIdle, limit)) }),
		cancel: cancel,
		cause:  func() error { return context.Cause(ctx) },
	}, ctx
}

// explain returns the guard's reason for err if it is the guard's doing.
func (g *idleGuard) explain(err error) error {
	cause := g.cause()
	if cause == nil || !errors.Is(cause, errIdle) {
		return err
	}
	if ue, ok := errors.AsType[*url.Error](err); ok {
		return &url.Error{Op: ue.Op, URL: ue.URL, Err: cause}
	}
	return cause
}

// release frees the guard; the attempt is over.
func (g *idleGuard) release() {
	g.timer.Stop()
	g.cancel(nil)
}

// A guardedBody is a reply's body, read under a guard.
type guardedBody struct {
	io.ReadCloser
	guard *idleGuard
}

func (b *guardedBody) Read(p []byte) (int, error) {
	b.guard.timer.Reset(b.guard.limit)
	n, err := b.ReadCloser.Read(p)
	b.guard.timer.Stop()
	if err != nil && err != io.EOF {
		err = b.guard.explain(err)
	}
	return n, err
}

// Close ends the attempt, whatever is still under way.
func (b *guardedBody) Close() error {
	b.guard.release()
	return b.ReadCloser.Close()
}
