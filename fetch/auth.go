package fetch

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// clientID is how token services know us.
const clientID = "vic"

// Limits of what a token service says.
const (
	maxTokenReply = 1 << 20
	maxToken      = 64 << 10
)

// Lifetime of a token: what the service says, but no less than this (a registry
// would hardly let anybody use one otherwise), which is also the default.
const minTokenLife = 60 * time.Second

// errNoBasic is what dockerd says when a registry wants a password.
var errNoBasic = &classError{class: ErrUnauthorized, msg: "no basic auth credentials"}

// An authorizer makes Authorization headers for the same rights.
type authorizer struct {
	client *Client
	base   *url.URL // of the registry
	scopes []string // the rights, as token services have them; none to log in
	creds  Credentials

	lock chan struct{} // holds one element while somebody uses what follows

	offers  []challenge
	bearer  string    // current access token
	expires time.Time // of bearer
	refresh string    // identity token that the service issued
}

func newAuthorizer(c *Client, base *url.URL, scopes []string, creds Credentials, offers []challenge) *authorizer {
	return &authorizer{client: c, base: base, scopes: scopes, creds: creds, offers: offers, lock: make(chan struct{}, 1)}
}

func (a *authorizer) acquire(ctx context.Context) error {
	select {
	case a.lock <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (a *authorizer) release() { <-a.lock }

// authorize returns the header for the next request, "" if none is needed. It
// fetches a token if there is none or it is about to expire.
func (a *authorizer) authorize(ctx context.Context) (string, error) {
	if a.creds.RegistryToken != "" {
		return "Bearer " + a.creds.RegistryToken, nil
	}
	if err := a.acquire(ctx); err != nil {
		return "", err
	}
	defer a.release()
	offer, ok := a.choose()
	switch {
	case !ok:
		return "", nil
	case offer.scheme == "basic" && a.creds.Username == "":
		return "", errNoBasic
	case offer.scheme == "basic":
		return a.basic(), nil
	}
	if a.bearer == "" || time.Now().After(a.expires) {
		if err := a.fetchToken(ctx, offer); err != nil {
			return "", err
		}
	}
	return "Bearer " + a.bearer, nil
}

// challenged says whether a request that was refused with 401 should be sent
// again, with another header than sent.
func (a *authorizer) challenged(ctx context.Context, sent string, offers []challenge) (bool, error) {
	if a.creds.RegistryToken != "" {
		return false, nil
	}
	if err := a.acquire(ctx); err != nil {
		return false, err
	}
	defer a.release()
	if sent != "" && sent != a.basic() && sent != "Bearer "+a.bearer {
		return true, nil // somebody else has a newer one
	}
	old, _ := a.choose()
	was := a.offers
	a.offers = offers
	offer, ok := a.choose()
	same := offer.scheme == old.scheme && offer.params["realm"] == old.params["realm"] && offer.params["service"] == old.params["service"]
	switch {
	case !ok:
		a.offers = was
		return false, nil
	case sent == "":
		return true, nil
	case same && (offer.scheme == "basic" || offer.params["error"] == "insufficient_scope"):
		return false, nil // the same once more would not help
	}
	a.bearer = ""
	return true, nil
}

// choose prefers a token over a password: a registry that offers both takes
// either, and a token can do less harm.
func (a *authorizer) choose() (challenge, bool) {
	for _, scheme := range []string{"bearer", "basic"} {
		i := slices.IndexFunc(a.offers, func(c challenge) bool {
			return c.scheme == scheme && (scheme == "basic" || c.params["realm"] != "")
		})
		if i >= 0 {
			return a.offers[i], true
		}
	}
	return challenge{}, false
}

func (a *authorizer) basic() string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(a.creds.Username+":"+a.creds.Password))
}

// identity returns the identity token that the token service issued, or "".
func (a *authorizer) identity(ctx context.Context) (string, error) {
	if err := a.acquire(ctx); err != nil {
		return "", err
	}
	defer a.release()
	return a.refresh, nil
}

// fetchToken asks the token service that offer names, as the token
// authentication specification of docker's registry has it. An identity token
// goes there in a form (OAuth 2.0, RFC 6749 section 6), a password in a Basic
// header.
func (a *authorizer) fetchToken(ctx context.Context, offer challenge) error {
	realm, err := a.realm(ctx, offer.params["realm"])
	if err != nil {
		return err
	}
	req, err := a.tokenRequest(ctx, realm, offer.params["service"])
	if err != nil {
		return err
	}
	redirect := redirectPolicy(false)
	if req.Method == http.MethodPost {
		// 307 would carry the identity token elsewhere.
		redirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	}
	resp, err := a.client.do(req, redirect)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return replyError(resp, time.Now())
	}
	reply, err := readToken(resp)
	if err != nil {
		return err
	}
	a.bearer = reply.token
	// Renew somewhat early: it is used until the registry has read it.
	a.expires = time.Now().Add(reply.life - reply.life/10)
	if reply.refresh != "" {
		a.refresh = reply.refresh
	}
	return nil
}

// realm checks the address of a token service.
func (a *authorizer) realm(ctx context.Context, s string) (*url.URL, error) {
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
		return nil, fmt.Errorf("realm %q of the registry is no address of a token service", printable(s, maxUnparsed))
	}
	if a.base.Scheme == "https" && u.Scheme == "http" {
		t, err := a.client.transport(ctx, u.Host, false)
		if err != nil {
			return nil, err
		}
		if !t.insecure {
			return nil, fmt.Errorf("token service %s of a registry with HTTPS is without it", u.Host)
		}
	}
	u.User, u.Fragment = nil, ""
	return u, nil
}

// tokenRequest asks for the authorizer's rights, and to nothing else.
func (a *authorizer) tokenRequest(ctx context.Context, realm *url.URL, service string) (*http.Request, error) {
	if a.creds.IdentityToken != "" {
		form := url.Values{"grant_type": {"refresh_token"}, "refresh_token": {a.creds.IdentityToken}, "client_id": {clientID}}
		if service != "" {
			form.Set("service", service)
		}
		if len(a.scopes) > 0 {
			form["scope"] = []string{strings.Join(a.scopes, " ")}
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, realm.String(), strings.NewReader(form.Encode()))
		if err != nil {
			return nil, err
		}
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		return req, nil
	}
	u := *realm
	q := u.Query()
	if service != "" {
		q.Set("service", service)
	}
	if len(a.scopes) > 0 {
		q["scope"] = a.scopes
	} else {
		q.Set("offline_token", "true")
		q.Set("client_id", clientID)
	}
	if a.creds.Username != "" {
		q.Set("account", a.creds.Username)
	}
	u.RawQuery = q.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	if a.creds.Username != "" {
		req.SetBasicAuth(a.creds.Username, a.creds.Password)
	}
	return req, nil
}

// A tokenReply is what a token service granted.
type tokenReply struct {
	token   string
	life    time.Duration
	refresh string
}

// readToken reads a token service's reply and closes it.
func readToken(resp *http.Response) (tokenReply, error) {
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxTokenReply))
	resp.Body.Close()
	if err != nil {
		return tokenReply{}, fmt.Errorf("read token: %w", err)
	}
	return parseToken(body)
}

func parseToken(body []byte) (tokenReply, error) {
	var doc struct {
		Token        string `json:"token"`
		AccessToken  string `json:"access_token"`
		RefreshToken string `json:"refresh_token"`
		ExpiresIn    int64  `json:"expires_in"` // seconds
	}
	if err := json.Unmarshal(body, &doc); err != nil {
		return tokenReply{}, errors.New("unable to decode token response")
	}
	r := tokenReply{token: doc.Token, refresh: doc.RefreshToken, life: minTokenLife}
	if doc.AccessToken != "" {
		r.token = doc.AccessToken
	}
	if r.token == "" {
		return tokenReply{}, errors.New("authorization server did not include a token in the response")
	}
	if len(r.token) > maxToken || strings.ContainsFunc(r.token, func(c rune) bool { return c <= ' ' || c > '~' }) {
		return tokenReply{}, errors.New("authorization server sent a token that is none")
	}
	const maxLife = 24 * time.Hour
	if doc.ExpiresIn > int64(minTokenLife/time.Second) {
		r.life = time.Duration(min(doc.ExpiresIn, int64(maxLife/time.Second))) * time.Second
	}
	return r, nil
}
