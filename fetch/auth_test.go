package fetch

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A tokenService issues tokens and remembers who asked for what.
type tokenService struct {
	*httptest.Server
	mu    sync.Mutex
	asked []string // "GET user:password scope=…&service=…" or "POST …"
	valid map[string]bool
	n     int

	// reply, if not nil, answers in place of the service and returns true.
	reply func(http.ResponseWriter, *http.Request) bool
}

func newTokenService(t *testing.T) *tokenService {
	s := &tokenService{valid: map[string]bool{}}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

func (s *tokenService) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if err := r.ParseForm(); err != nil {
		http.Error(w, err.Error(), 400)
		return
	}
	user, password, _ := r.BasicAuth()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, r.Method+" "+user+":"+password+" "+r.Form.Encode())
	if s.reply != nil && s.reply(w, r) {
		return
	}
	if password == "wrong" || r.Form.Get("refresh_token") == "wrong" {
		w.WriteHeader(http.StatusUnauthorized)
		fmt.Fprint(w, `{"details":"incorrect username or password"}`)
		return
	}
	s.n++
	token := fmt.Sprintf("token-%d", s.n)
	s.valid[token] = true
	doc := map[string]any{"token": token, "expires_in": 300}
	if r.Method == http.MethodPost {
		doc = map[string]any{"access_token": token, "expires_in": 300, "refresh_token": "next"}
	} else if r.Form.Get("offline_token") == "true" && user != "" {
		doc["refresh_token"] = "identity"
	}
	json.NewEncoder(w).Encode(doc)
}

// requests returns what was asked for so far.
func (s *tokenService) requests() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.asked)
}

// revoke makes all tokens invalid.
func (s *tokenService) revoke() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.valid)
}

// guard is a fakeRegistry.before that lets nobody in without a token.
func (s *tokenService) guard(w http.ResponseWriter, r *http.Request) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if s.valid[token] {
		return false
	}
	w.Header().Set("WWW-Authenticate", `Bearer realm="`+s.URL+`/token?keep=1",service="fake.registry"`)
	sayError(w, http.StatusUnauthorized, "UNAUTHORIZED", "authentication required")
	return true
}

func TestBearer(t *testing.T) {
	const scope = "scope=repository%3Aa%2Fb%3Apull&service=fake.registry"
	for _, tc := range []struct {
		name  string
		creds Credentials
		asked []string
		class error
		msg   string
	}{
		{name: "anonymous", asked: []string{"GET : keep=1&" + scope}},
		{name: "password", creds: Credentials{Username: "u", Password: "p"},
			asked: []string{"GET u:p account=u&keep=1&" + scope}},
		{name: "wrong password", creds: Credentials{Username: "u", Password: "wrong"},
			asked: []string{"GET u:wrong account=u&keep=1&" + scope},
			class: ErrUnauthorized, msg: `/v2/a/b/manifests/latest": unauthorized: incorrect username or password`},
		{name: "identity token", creds: Credentials{Username: "<token>", IdentityToken: "id"},
			asked: []string{"POST : client_id=vic&grant_type=refresh_token&keep=1&refresh_token=id&" + scope}},
		{name: "wrong identity token", creds: Credentials{IdentityToken: "wrong"},
			asked: []string{"POST : client_id=vic&grant_type=refresh_token&keep=1&refresh_token=wrong&" + scope}, class: ErrUnauthorized},
		{name: "registry token", creds: Credentials{RegistryToken: "preset"}},
		{name: "wrong registry token", creds: Credentials{RegistryToken: "other"}, class: ErrUnauthorized, msg: "unauthorized: authentication required"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newTokenService(t)
			s.valid["preset"] = true
			f := newFakeRegistry(t)
			f.before = s.guard
			layer := randomBytes(100)
			f.addImage(t, amd64, ocispec.MediaTypeImageLayer, [][]byte{layer}, "latest")
			img, err := quick().Resolve(t.Context(), named(t, f.host+"/a/b"), ResolveOptions{Credentials: tc.creds, Platform: &amd64})
			if got := s.requests(); !slices.Equal(got, tc.asked) {
				t.Errorf("asked for tokens: %q, want %q", got, tc.asked)
			}
			if tc.class != nil {
				if !errors.Is(err, tc.class) || !strings.Contains(err.Error(), tc.msg) {
					t.Errorf("error: %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got, err := readBlob(t, img, img.Layers()[0]); err != nil || !bytes.Equal(got, layer) {
				t.Errorf("layer: %d bytes, %v", len(got), err)
			}
			if n := len(s.requests()); n != len(tc.asked) {
				t.Errorf("%d tokens for one pull", n)
			}
		})
	}
}

// A token that expires in the middle of a pull, and of a blob, is renewed,
// once, however many blobs are under way.
func TestBearerRenewed(t *testing.T) {
	s := newTokenService(t)
	f := newFakeRegistry(t)
	layers := [][]byte{randomBytes(1000), randomBytes(1001), randomBytes(1002), randomBytes(1003)}
	f.addImage(t, amd64, ocispec.MediaTypeImageLayer, layers, "latest")
	var broken sync.Map
	f.before = func(w http.ResponseWriter, r *http.Request) bool {
		if s.guard(w, r) {
			return true
		}
		for _, l := range layers {
			if d := digest.FromBytes(l).String(); strings.HasSuffix(r.URL.Path, d) {
				if _, dup := broken.LoadOrStore(d, true); !dup {
					cut(10)(t, w, r, l)
				}
			}
		}
		return false
	}
	img := mustResolve(t, quick(), f.host+"/a/b", ResolveOptions{})
	var wg sync.WaitGroup
	var opened sync.WaitGroup
	opened.Add(len(layers))
	revoked := make(chan struct{})
	for i, d := range img.Layers() {
		wg.Go(func() {
			r, err := img.Blob(t.Context(), d)
			opened.Done()
			if err != nil {
				t.Error(err)
				return
			}
			defer r.Close()
			<-revoked
			var b bytes.Buffer
			if _, err := b.ReadFrom(r); err != nil || !bytes.Equal(b.Bytes(), layers[i]) {
				t.Errorf("layer %d: %d bytes, %v", i, b.Len(), err)
			}
		})
	}
	opened.Wait()
	s.revoke()
	close(revoked)
	wg.Wait()
	if n := len(s.requests()); n != 2 {
		t.Errorf("%d tokens, want 2", n)
	}
}

// A token is renewed before it expires, without asking the registry.
func TestBearerExpires(t *testing.T) {
	s := newTokenService(t)
	f := newFakeRegistry(t)
	f.before = s.guard
	f.addImage(t, amd64, ocispec.MediaTypeImageLayer, [][]byte{nil}, "latest")
	img := mustResolve(t, quick(), f.host+"/a/b", ResolveOptions{})
	img.session.auth.expires = time.Now().Add(-time.Second)
	if _, err := readBlob(t, img, img.Layers()[0]); err != nil {
		t.Fatal(err)
	}
	if n := len(s.requests()); n != 2 {
		t.Errorf("%d tokens, want 2", n)
	}
	if got := len(f.asked("/blobs/" + img.Layers()[0].Digest.String())); got != 1 {
		t.Errorf("%d requests for the blob, want 1", got)
	}
}

// A registry that never lets anybody in is asked twice, not for ever.
func TestUnauthorizedLoop(t *testing.T) {
	for _, tc := range []struct {
		name      string
		challenge string
		creds     Credentials
		manifests int // requests for one
		class     error
		msg       string
	}{
		{"bearer", `Bearer realm="REALM",service="s"`, Credentials{}, 2, ErrUnauthorized, "unauthorized: authentication required"},
		{"bearer, changing", `Bearer realm="REALM",service="N"`, Credentials{}, 2, ErrUnauthorized, "unauthorized: authentication required"},
		{"bearer, invalid token", `Bearer realm="REALM",error="invalid_token",error_description="too old"`, Credentials{}, 2, ErrUnauthorized, "unauthorized: too old"},
		{"bearer, insufficient scope", `Bearer realm="REALM",error="insufficient_scope"`, Credentials{}, 1, ErrDenied,
			"pull access denied for HOST/a/b, repository does not exist or may require 'docker login': "},
		{"basic", `Basic realm="r"`, Credentials{Username: "u", Password: "p"}, 1, ErrUnauthorized, "unauthorized: authentication required"},
		{"basic, nobody", `Basic realm="r"`, Credentials{}, 0, ErrUnauthorized, `Get "http://HOST/v2/a/b/manifests/latest": no basic auth credentials`},
		{"bearer then basic", `Bearer service="no realm", Basic realm="r"`, Credentials{}, 0, ErrUnauthorized, "no basic auth credentials"},
		{"none", ``, Credentials{Username: "u", Password: "p"}, 1, ErrUnauthorized, "unauthorized: authentication required"},
		{"unknown", `Negotiate`, Credentials{Username: "u", Password: "p"}, 1, ErrUnauthorized, "unauthorized: authentication required"},
		{"malformed", `Bearer realm="REALM`, Credentials{}, 1, ErrUnauthorized, "unauthorized: authentication required"},
		{"binary", "\xff\x80, =\"", Credentials{}, 1, ErrUnauthorized, "unauthorized: authentication required"},
		{"realm is no address", `Bearer realm="::"`, Credentials{}, 0, nil, `realm "::" of the registry is no address of a token service`},
		{"realm is a file", `Bearer realm="file:///etc/passwd"`, Credentials{}, 0, nil, "is no address of a token service"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newTokenService(t)
			f := newFakeRegistry(t)
			n := 0
			f.before = func(w http.ResponseWriter, r *http.Request) bool {
				n++
				if tc.challenge != "" {
					w.Header().Set("WWW-Authenticate", strings.NewReplacer("REALM", s.URL, "N", fmt.Sprint(n)).Replace(tc.challenge))
				}
				sayError(w, http.StatusUnauthorized, "UNAUTHORIZED", "authentication required")
				return true
			}
			_, err := quick().Resolve(t.Context(), named(t, f.host+"/a/b"), ResolveOptions{Credentials: tc.creds})
			if err == nil || tc.class != nil && !errors.Is(err, tc.class) || !strings.Contains(err.Error(), strings.ReplaceAll(tc.msg, "HOST", f.host)) {
				t.Errorf("error: %v", err)
			}
			if got := len(f.asked("/manifests/")); got != tc.manifests {
				t.Errorf("asked for the manifest %d times, want %d", got, tc.manifests)
			}
		})
	}
}

// A registry may ask for authentication only where it is needed.
func TestChallengeAfterPing(t *testing.T) {
	for _, scheme := range []string{"Basic", "Bearer"} {
		t.Run(scheme, func(t *testing.T) {
			s := newTokenService(t)
			f := newFakeRegistry(t)
			f.addImage(t, amd64, ocispec.MediaTypeImageLayer, nil, "latest")
			f.before = func(w http.ResponseWriter, r *http.Request) bool {
				if r.URL.Path == "/v2/" {
					return false
				}
				if scheme == "Bearer" {
					return s.guard(w, r)
				}
				if u, p, _ := r.BasicAuth(); u == "u" && p == "p:q" {
					return false
				}
				w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
				w.WriteHeader(http.StatusUnauthorized)
				return true
			}
			mustResolve(t, quick(), f.host+"/a/b", ResolveOptions{Credentials: Credentials{Username: "u", Password: "p:q"}})
			if n := len(f.asked("/manifests/")); n != 2 {
				t.Errorf("asked for the manifest %d times, want 2", n)
			}
		})
	}
}

// A challenge of whom the ping was redirected to is not the registry's.
func TestPingRedirected(t *testing.T) {
	s := newTokenService(t)
	behind := newFakeRegistry(t)
	behind.before = func(w http.ResponseWriter, r *http.Request) bool {
		return r.URL.Path == "/v2/" && s.guard(w, r)
	}
	behind.addImage(t, amd64, ocispec.MediaTypeImageLayer, nil, "latest")
	front := newFakeRegistry(t)
	front.before = func(w http.ResponseWriter, r *http.Request) bool {
		http.Redirect(w, r, behind.URL+r.URL.Path, http.StatusTemporaryRedirect)
		return true
	}
	mustResolve(t, quick(), front.host+"/a", ResolveOptions{Credentials: Credentials{Username: "u", Password: "p"}})
	if got := s.requests(); len(got) != 0 {
		t.Errorf("asked for tokens: %q", got)
	}
}

// What a token service may get wrong.
func TestTokenServiceFaults(t *testing.T) {
	other := newTokenService(t)
	for _, tc := range []struct {
		name  string
		creds Credentials
		reply http.HandlerFunc
		asked int
		class error
		msg   string
	}{
		{name: "no JSON", reply: func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "hello") },
			asked: 1, msg: "unable to decode token response"},
		{name: "no token", reply: func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "{}") },
			asked: 1, msg: "authorization server did not include a token in the response"},
		{name: "header injection", reply: func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"token":"x\r\nHost: y"}`) },
			asked: 1, msg: "a token that is none"},
		{name: "huge", reply: func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprintf(w, `{"token":"%s"}`, strings.Repeat("x", maxToken+1))
		}, asked: 1, msg: "a token that is none"},
		{name: "endless", reply: func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				w.Write(make([]byte, 1<<16))
			}
		}, asked: 1, msg: "unable to decode token response"},
		{name: "403", reply: func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(403) }, asked: 1, class: ErrDenied},
		{name: "503", reply: func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) }, asked: 3, msg: "503 Service Unavailable"},
		{name: "429", reply: func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "3600")
			w.WriteHeader(429)
			fmt.Fprint(w, `{"details":"slow down"}`)
		}, asked: 1, class: ErrTooManyRequests, msg: "toomanyrequests: slow down"},
		{name: "elsewhere", creds: Credentials{IdentityToken: "secret"}, reply: func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", other.URL)
			w.WriteHeader(http.StatusTemporaryRedirect)
		}, asked: 1, msg: "307 Temporary Redirect"},
		{name: "in a circle", reply: func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", "/again")
			w.WriteHeader(http.StatusFound)
		}, asked: 11, msg: "stopped after 10 redirects"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newTokenService(t)
			s.reply = func(w http.ResponseWriter, r *http.Request) bool { tc.reply(w, r); return true }
			f := newFakeRegistry(t)
			f.before = s.guard
			_, err := quick().Resolve(t.Context(), named(t, f.host+"/a/b"), ResolveOptions{Credentials: tc.creds})
			if err == nil || !strings.Contains(err.Error(), tc.msg) || tc.class != nil && !errors.Is(err, tc.class) {
				t.Errorf("error: %v", err)
			}
			if strings.Contains(err.Error(), "secret") {
				t.Errorf("the error tells the secret: %v", err)
			}
			if n := len(s.requests()); n != tc.asked {
				t.Errorf("asked %d times, want %d", n, tc.asked)
			}
		})
	}
	if got := other.requests(); len(got) != 0 {
		t.Errorf("an identity token went elsewhere: %q", got)
	}
}

func TestLogin(t *testing.T) {
	s := newTokenService(t)
	bearer := newFakeRegistry(t)
	bearer.before = s.guard
	basic := newFakeRegistry(t)
	basic.before = func(w http.ResponseWriter, r *http.Request) bool {
		if u, p, _ := r.BasicAuth(); u == "u" && p == "p" {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	}
	open := newFakeRegistry(t)
	for _, tc := range []struct {
		name  string
		host  string
		creds Credentials
		token string
		class error
		msg   string
	}{
		{name: "bearer", host: bearer.host, creds: Credentials{Username: "u", Password: "p"}, token: "identity"},
		{name: "bearer by address", host: "http://" + bearer.host + "/v2/", creds: Credentials{Username: "u", Password: "p"}, token: "identity"},
		{name: "bearer, identity token", host: bearer.host, creds: Credentials{IdentityToken: "id"}, token: "next"},
		{name: "bearer, wrong", host: bearer.host, creds: Credentials{Username: "u", Password: "wrong"}, class: ErrUnauthorized,
			msg: `Get "http://` + bearer.host + `/v2/": unauthorized: incorrect username or password`},
		{name: "basic", host: basic.host, creds: Credentials{Username: "u", Password: "p"}},
		{name: "basic, wrong", host: basic.host, creds: Credentials{Username: "u", Password: "wrong"}, class: ErrUnauthorized,
			msg: "login attempt to http://" + basic.host + "/v2/ failed with status: 401 Unauthorized"},
		{name: "open", host: open.host, creds: Credentials{Username: "u", Password: "p"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			token, err := quick().Login(t.Context(), tc.host, tc.creds)
			if token != tc.token {
				t.Errorf("token %q, want %q", token, tc.token)
			}
			switch {
			case tc.msg == "" && err != nil:
				t.Error(err)
			case tc.msg != "" && (err == nil || err.Error() != tc.msg || !errors.Is(err, tc.class)):
				t.Errorf("error: %v, want %s", err, tc.msg)
			}
		})
	}
	want := "GET u:p account=u&client_id=vic&keep=1&offline_token=true&service=fake.registry"
	if got := s.requests(); len(got) == 0 || got[0] != want {
		t.Errorf("asked for tokens: %q, want first %q", got, want)
	}
}

func TestAPIHost(t *testing.T) {
	for in, want := range map[string]string{
		"":                            hubHost,
		"docker.io":                   hubHost,
		"https://index.docker.io/v1/": hubHost,
		"localhost:5000":              "localhost:5000",
		"https://r.example":           "r.example",
		"http://r.example:80/v1/":     "r.example:80",
	} {
		if got := apiHost(in); got != want {
			t.Errorf("apiHost(%q) = %q, want %q", in, got, want)
		}
	}
}

// Authorization goes where it belongs and nowhere else, also if the way leads
// back.
func TestRedirectKeepsSecrets(t *testing.T) {
	blob := randomBytes(1000)
	d := digest.FromBytes(blob).String()
	var mu sync.Mutex
	seen := map[string][]string{} // Authorization and Referer by path
	record := func(r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		seen[r.URL.Path] = append(seen[r.URL.Path], r.Header.Get("Authorization")+r.Header.Get("Referer")+r.Header.Get("Range"))
	}
	var f *fakeRegistry
	storage := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		record(r)
		switch r.URL.Path {
		case "/back":
			http.Redirect(w, r, f.URL+"/stored", http.StatusFound)
		default:
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(blob))
		}
	}))
	defer storage.Close()
	for _, tc := range []struct {
		name  string
		to    string
		paths map[string]string // what they were sent
	}{
		{"same host", "HERE/stored", map[string]string{"/stored": "Basic dTpw"}},
		{"relative", "/stored", map[string]string{"/stored": "Basic dTpw"}},
		{"other port", storage.URL + "/elsewhere", map[string]string{"/elsewhere": ""}},
		{"other name", strings.Replace(storage.URL, "127.0.0.1", "localhost", 1) + "/elsewhere", map[string]string{"/elsewhere": ""}},
		{"there and back", storage.URL + "/back", map[string]string{"/back": "", "/stored": ""}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			clear(seen)
			f = newFakeRegistry(t)
			f.addImage(t, amd64, ocispec.MediaTypeImageLayer, [][]byte{blob}, "latest")
			f.before = func(w http.ResponseWriter, r *http.Request) bool {
				switch {
				case strings.HasSuffix(r.URL.Path, d):
					http.Redirect(w, r, strings.Replace(tc.to, "HERE", f.URL, 1), http.StatusTemporaryRedirect)
					return true
				case r.URL.Path == "/stored":
					record(r)
					http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(blob))
					return true
				}
				if _, _, ok := r.BasicAuth(); !ok {
					w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
					w.WriteHeader(http.StatusUnauthorized)
					return true
				}
				return false
			}
			img := mustResolve(t, quick(), f.host+"/a", ResolveOptions{Credentials: Credentials{Username: "u", Password: "p"}})
			if got, err := readBlob(t, img, img.Layers()[0]); err != nil || !bytes.Equal(got, blob) {
				t.Fatalf("%d bytes, %v", len(got), err)
			}
			for path, want := range tc.paths {
				if got := seen[path]; len(got) != 1 || got[0] != want {
					t.Errorf("%s was sent %q, want %q", path, got, want)
				}
			}
		})
	}
}

// A storage behind the registry that refuses does not make us give it a token,
// and its signed address is not told.
func TestRedirectRefused(t *testing.T) {
	s := newTokenService(t)
	storage := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			t.Error("the storage got an Authorization header")
		}
		s.guard(w, r)
	}))
	f := newFakeRegistry(t)
	f.addImage(t, amd64, ocispec.MediaTypeImageLayer, [][]byte{randomBytes(10)}, "latest")
	d := digest.FromBytes(randomBytes(10)).String()
	f.before = func(w http.ResponseWriter, r *http.Request) bool {
		if s.guard(w, r) {
			return true
		}
		if strings.HasSuffix(r.URL.Path, d) {
			http.Redirect(w, r, storage.URL+"/x?signature=s3cret", http.StatusFound)
			return true
		}
		return false
	}
	img := mustResolve(t, quick(), f.host+"/a", ResolveOptions{})
	_, err := readBlob(t, img, img.Layers()[0])
	if !errors.Is(err, ErrUnauthorized) {
		t.Errorf("error: %v", err)
	}
	if n := len(s.requests()); n != 1 {
		t.Errorf("%d tokens, want 1", n)
	}
	storage.Close()
	_, err = readBlob(t, img, img.Layers()[0])
	if err == nil || strings.Contains(err.Error(), "s3cret") || !strings.Contains(err.Error(), storage.URL+"/x") {
		t.Errorf("error: %v", err)
	}
	if ue, ok := errors.AsType[*url.Error](err); !ok || ue.URL != storage.URL+"/x" {
		t.Errorf("error: %#v", err)
	}
}

func TestRedirectLoop(t *testing.T) {
	f := newFakeRegistry(t)
	f.before = func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/v2/" {
			return false
		}
		http.Redirect(w, r, r.URL.Path, http.StatusFound)
		return true
	}
	_, err := quick().Resolve(t.Context(), named(t, f.host+"/a"), ResolveOptions{})
	if err == nil || !strings.Contains(err.Error(), "stopped after 10 redirects") {
		t.Errorf("error: %v", err)
	}
	if n := len(f.asked("/manifests/")); n != 11 {
		t.Errorf("%d requests, want 11", n)
	}
}

func FuzzParseToken(f *testing.F) {
	f.Add([]byte(`{"token":"abc","access_token":"abc","expires_in":300,"issued_at":"2026-01-02T03:04:05.678Z"}`))
	f.Add([]byte(`{"access_token":"abc","refresh_token":"def","scope":"repository:a:pull","expires_in":-1}`))
	f.Add([]byte(`{"token":"abc","expires_in":9223372036854775807}`))
	f.Add([]byte(`{"token":"a\nb"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseToken(b)
		if err != nil {
			return
		}
		if r.life < minTokenLife || r.life > 24*time.Hour {
			t.Errorf("life %v", r.life)
		}
		req := httptest.NewRequest(http.MethodGet, "/", nil)
		req.Header.Set("Authorization", "Bearer "+r.token)
		if err := req.Header.Write(&bytes.Buffer{}); err != nil || strings.ContainsAny(r.token, "\r\n") {
			t.Errorf("token %q is no header", r.token)
		}
	})
}
