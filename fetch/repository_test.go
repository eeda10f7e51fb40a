package fetch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func bytesOf(b []byte) func(context.Context) (io.ReadCloser, error) {
	return func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }
}

// pushLayout pushes an image that umoci made, and returns its manifest's digest.
func pushLayout(t *testing.T, c *Client, ref string, o PushOptions) digest.Digest {
	t.Helper()
	f := newFakeRegistry(t) // keeps the parts of an image until they are pushed
	desc := f.addImage(t, amd64, ocispec.MediaTypeImageLayerGzip, [][]byte{randomBytes(3_000_000), randomBytes(10)})
	r, err := c.Repository(t.Context(), named(t, ref), o)
	if err != nil {
		t.Fatal(err)
	}
	for d, b := range f.blobs {
		blob := ocispec.Descriptor{Digest: d, Size: int64(len(b))}
		there, err := r.HasBlob(t.Context(), blob)
		if err != nil {
			t.Fatal(err)
		}
		from, err := r.MountBlob(t.Context(), blob)
		if err != nil {
			t.Fatal(err)
		}
		if want := len(o.From) > 0; (from != "") != want || there {
			t.Errorf("blob %s: there %t, mounted from %q", d, there, from)
		}
		if from == "" {
			if err := r.PutBlob(t.Context(), blob, bytesOf(b)); err != nil {
				t.Fatal(err)
			}
		}
		if there, err := r.HasBlob(t.Context(), blob); err != nil || !there {
			t.Errorf("blob %s is not there: %v", d, err)
		}
	}
	if err := r.PutManifest(t.Context(), desc, f.manifests[desc.Digest.String()].body); err != nil {
		t.Fatal(err)
	}
	return desc.Digest
}

// What is pushed to docker-registry is what skopeo finds there.
func TestPushToRegistry(t *testing.T) {
	for _, password := range []bool{false, true} {
		t.Run(fmt.Sprint("password ", password), func(t *testing.T) {
			host := startRegistry(t, password)
			o := PushOptions{}
			args := []string{"inspect", "--tls-verify=false", "--format", "{{.Digest}}"}
			if password {
				if _, err := quick().Repository(t.Context(), named(t, host+"/a/b:1"), PushOptions{}); err != nil {
					t.Fatal(err)
				}
				o.Credentials = Credentials{Username: registryUser, Password: registryPassword}
				args = append(args, "--creds", registryUser+":"+registryPassword)
			}
			d := pushLayout(t, quick(), host+"/a/b:1", o)
			o.From = append(o.From, named(t, host+"/not/there"), named(t, "elsewhere.example/a/b"), named(t, host+"/a/b:9"))
			if got := pushLayout(t, quick(), host+"/mounted:2", o); got != d {
				t.Errorf("mounted %s, want %s", got, d)
			}
			for _, ref := range []string{"/a/b:1", "/mounted:2", "/mounted@" + d.String()} {
				if got := strings.TrimSpace(run(t, "skopeo", append(args, "docker://"+host+ref)...)); got != d.String() {
					t.Errorf("%s is %s, want %s", ref, got, d)
				}
				run(t, "skopeo", append([]string{"copy", "-q", "--src-tls-verify=false"}, append(srcCreds(args), "docker://"+host+ref, "dir:"+filepath.Join(t.TempDir(), "copy"))...)...)
			}
		})
	}
}

func srcCreds(args []string) []string {
	if args[len(args)-2] != "--creds" {
		return nil
	}
	return []string{"--src-creds", args[len(args)-1]}
}

// An uploadRegistry takes uploads as a test wants it to.
type uploadRegistry struct {
	*httptest.Server
	host  string
	tries atomic.Int32
	start func(w http.ResponseWriter, r *http.Request) // POST; nil is 202
	put   func(w http.ResponseWriter, r *http.Request) // PUT
}

func newUploadRegistry(t *testing.T) *uploadRegistry {
	u := &uploadRegistry{}
	u.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.Method {
		case http.MethodPost:
			u.tries.Add(1)
			if u.start != nil {
				u.start(w, r)
				return
			}
			w.Header().Set("Location", "/upload/1?_state=a%2Fb")
			w.WriteHeader(http.StatusAccepted)
		case http.MethodPut:
			u.put(w, r)
		case http.MethodHead:
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	t.Cleanup(u.Close)
	u.host = strings.TrimPrefix(u.URL, "http://")
	return u
}

func TestUpload(t *testing.T) {
	blob := randomBytes(500_000)
	desc := ocispec.Descriptor{Digest: digest.FromBytes(blob), Size: int64(len(blob))}
	broken := errors.New("the disk is damaged")
	for _, tt := range []struct {
		name  string
		set   func(u *uploadRegistry)
		open  func(context.Context) (io.ReadCloser, error)
		want  string // error; "" is success
		tries int32
	}{
		{name: "at once", tries: 1},
		{name: "after two broken connections", tries: 3, set: func(u *uploadRegistry) {
			whole := u.put
			u.put = func(w http.ResponseWriter, r *http.Request) {
				if u.tries.Load() < 3 {
					io.CopyN(io.Discard, r.Body, 1000)
					panic(http.ErrAbortHandler)
				}
				whole(w, r)
			}
		}},
		{name: "after 503", tries: 2, set: func(u *uploadRegistry) {
			whole := u.put
			u.put = func(w http.ResponseWriter, r *http.Request) {
				if u.tries.Load() < 2 {
					w.WriteHeader(http.StatusServiceUnavailable)
					return
				}
				whole(w, r)
			}
		}},
		{name: "never", tries: 5, want: "", set: func(u *uploadRegistry) {
			u.put = func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }
		}},
		{name: "refused", tries: 1, want: "digest invalid: ", set: func(u *uploadRegistry) {
			u.put = func(w http.ResponseWriter, r *http.Request) { sayError(w, http.StatusBadRequest, "DIGEST_INVALID", "") }
		}},
		{name: "denied", tries: 1, want: "denied: ", set: func(u *uploadRegistry) {
			u.start = func(w http.ResponseWriter, r *http.Request) { sayError(w, http.StatusForbidden, "DENIED", "") }
		}},
		{name: "no location", tries: 1, want: "does not say where to upload to", set: func(u *uploadRegistry) {
			u.start = func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusAccepted) }
		}},
		{name: "redirected", tries: 1, want: "307", set: func(u *uploadRegistry) {
			u.put = func(w http.ResponseWriter, r *http.Request) {
				http.Redirect(w, r, "http://192.0.2.1/", http.StatusTemporaryRedirect)
			}
		}},
		{name: "redirected to a page", tries: 1, want: "302", set: func(u *uploadRegistry) {
			u.put = func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/page", http.StatusFound) }
		}},
		{name: "there already", tries: 1, set: func(u *uploadRegistry) {
			u.start = func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusCreated) }
		}},
		{name: "source fails at once", tries: 1, want: broken.Error(), open: func(context.Context) (io.ReadCloser, error) { return nil, broken }},
		{name: "source fails", tries: 1, want: broken.Error(), open: func(context.Context) (io.ReadCloser, error) {
			return io.NopCloser(io.MultiReader(bytes.NewReader(blob[:300_000]), &failingReader{broken})), nil
		}},
		{name: "source is short", tries: 1, want: "has not the 500000 bytes", open: bytesOf(blob[:300_000])},
		{name: "source is long", tries: 1, want: "has not the 500000 bytes", open: bytesOf(append(blob, 1))},
	} {
		t.Run(tt.name, func(t *testing.T) {
			u := newUploadRegistry(t)
			u.put = func(w http.ResponseWriter, r *http.Request) {
				b, err := io.ReadAll(r.Body)
				if q := r.URL.Query(); err != nil || !bytes.Equal(b, blob) || q.Get("digest") != desc.Digest.String() || q.Get("_state") != "a/b" {
					sayError(w, http.StatusBadRequest, "DIGEST_INVALID", "")
					return
				}
				w.WriteHeader(http.StatusCreated)
			}
			if tt.set != nil {
				tt.set(u)
			}
			var last atomic.Int64
			r, err := quick().Repository(t.Context(), named(t, u.host+"/x"), PushOptions{Progress: func(e Event) { last.Store(e.Received) }})
			if err != nil {
				t.Fatal(err)
			}
			if tt.open == nil {
				tt.open = bytesOf(blob)
			}
			err = r.PutBlob(t.Context(), desc, tt.open)
			if fails := tt.want != "" || tt.name == "never"; (err != nil) != fails || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
			if n := u.tries.Load(); n != tt.tries {
				t.Errorf("%d attempts, want %d", n, tt.tries)
			}
			if err == nil && tt.name != "there already" && last.Load() != desc.Size {
				t.Errorf("progress ended at %d of %d", last.Load(), desc.Size)
			}
		})
	}
}

type failingReader struct{ err error }

func (r *failingReader) Read([]byte) (int, error) { return 0, r.err }

// A token is asked for with the rights that pushing needs, and for mounting in another request.
func TestPushScopes(t *testing.T) {
	var scopes []string
	token := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		scopes = append(scopes, strings.Join(r.URL.Query()["scope"], " "))
		if len(r.URL.Query()["scope"]) > 1 {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		io.WriteString(w, `{"token":"t"}`)
	}))
	defer token.Close()
	f := newFakeRegistry(t)
	f.before = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Authorization") == "Bearer t" {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Bearer realm="`+token.URL+`/token",service="s"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	}
	r, err := quick().Repository(t.Context(), named(t, f.host+"/to"), PushOptions{From: []reference.Named{named(t, f.host+"/from")}})
	if err != nil {
		t.Fatal(err)
	}
	d := f.addBlob("", []byte("x"))
	if there, err := r.HasBlob(t.Context(), d); err != nil || !there {
		t.Errorf("%t, %v", there, err)
	}
	if from, err := r.MountBlob(t.Context(), d); err != nil || from != "" {
		t.Errorf("%q, %v", from, err)
	}
	if want := []string{"repository:to:pull,push", "repository:to:pull,push repository:from:pull"}; strings.Join(scopes, "|") != strings.Join(want, "|") {
		t.Errorf("scopes %q, want %q", scopes, want)
	}
}

// A token that runs out is renewed, and the upload sent again.
func TestUploadRenewsToken(t *testing.T) {
	blob := randomBytes(100_000)
	desc := ocispec.Descriptor{Digest: digest.FromBytes(blob), Size: int64(len(blob))}
	issued := 0
	token := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		issued++
		fmt.Fprintf(w, `{"token":"t%d"}`, issued)
	}))
	defer token.Close()
	u := newUploadRegistry(t)
	puts := 0
	u.put = func(w http.ResponseWriter, r *http.Request) {
		puts++
		if r.Header.Get("Authorization") != "Bearer t2" {
			io.Copy(io.Discard, r.Body) // or the connection may break before the reply is read
			w.Header().Set("WWW-Authenticate", `Bearer realm="`+token.URL+`/token",service="s",error="invalid_token"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		if b, err := io.ReadAll(r.Body); err != nil || !bytes.Equal(b, blob) {
			t.Errorf("%d bytes, %v", len(b), err)
		}
		w.WriteHeader(http.StatusCreated)
	}
	u.start = func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") == "" {
			w.Header().Set("WWW-Authenticate", `Bearer realm="`+token.URL+`/token",service="s"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		w.Header().Set("Location", "/upload/1")
		w.WriteHeader(http.StatusAccepted)
	}
	r, err := quick().Repository(t.Context(), named(t, u.host+"/x"), PushOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.PutBlob(t.Context(), desc, bytesOf(blob)); err != nil {
		t.Error(err)
	}
	if issued != 2 || puts != 2 {
		t.Errorf("%d tokens and %d uploads, want 2 of each", issued, puts)
	}
}
