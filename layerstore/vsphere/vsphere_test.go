package vsphere

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"io/fs"
	"math/rand"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vmware/govmomi/session"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"

	"vic/bench/vcsim"
)

// A site is a simulated vSphere.
type site struct {
	t *testing.T
	*vcsim.Server
}

const user, password = "vic", "s3cret"

// folder is where the simulator keeps a datastore.
func (s *site) folder(d *Datastore) string { return s.Folder(d.ds.Name()) }

// newSite starts a vSphere. Its datastore is of a kind that takes vmfsSparse deltas, unless the options say otherwise.
func newSite(t *testing.T, o vcsim.Options) *site {
	t.Helper()
	o.User = url.UserPassword(user, password)
	if o.Datastores == nil {
		o.Datastores = []vcsim.Datastore{{Name: "LocalDS_0", Type: vcsim.VMFS5}}
	}
	server, err := vcsim.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	})
	return &site{t, server}
}

func (s *site) endpoint() Endpoint {
	return Endpoint{Server: s.URL().Host, User: user, Password: password, Thumbprint: s.Thumbprint()}
}

// certificate is the server's.
func (s *site) certificate() *x509.Certificate {
	s.t.Helper()
	conn, err := tls.Dial("tcp", s.URL().Host, &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		s.t.Fatal(err)
	}
	defer conn.Close()
	return conn.ConnectionState().PeerCertificates[0]
}

func (s *site) connect(e Endpoint) *Session {
	s.t.Helper()
	c, err := Connect(s.t.Context(), e)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		if err := c.Close(context.Background()); err != nil && !errors.Is(err, ErrUnavailable) {
			s.t.Log(err)
		}
	})
	c.retry = backOff{first: time.Millisecond, most: 4 * time.Millisecond, tries: 4}
	return c
}

func (s *site) datastore(c *Session, root string) *Datastore {
	s.t.Helper()
	d, err := c.OpenDatastore(s.t.Context(), "", "", root)
	if err != nil {
		s.t.Fatal(err)
	}
	return d
}

func TestConnect(t *testing.T) {
	s := newSite(t, vcsim.Options{})
	good := s.endpoint()
	cert := s.certificate()
	sha1, sha256 := soap.ThumbprintSHA1(cert), soap.ThumbprintSHA256(cert)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		edit func(*Endpoint)
		want string // in the error; "" if there is none
	}{
		{"SHA-256", func(e *Endpoint) { e.Thumbprint = sha256 }, ""},
		{"SHA-1", func(e *Endpoint) { e.Thumbprint = sha1 }, ""},
		{"lower case", func(e *Endpoint) { e.Thumbprint = strings.ToLower(e.Thumbprint) }, ""},
		{"CA", func(e *Endpoint) { e.Thumbprint, e.CAFile = "", ca }, ""},
		{"URL", func(e *Endpoint) { e.Server = (&url.URL{Scheme: "https", Host: s.URL().Host, Path: "/sdk"}).String() }, ""},
		{"no trust", func(e *Endpoint) { e.Thumbprint = "" }, sha256},
		{"wrong thumbprint", func(e *Endpoint) { e.Thumbprint = strings.Repeat("AB:", 31) + "AB" }, "does not match"},
		{"no CA", func(e *Endpoint) { e.CAFile = "/nope" }, "read trusted certificates"},
		{"wrong password", func(e *Endpoint) { e.Password = "guess" }, "log in to"},
		{"no server", func(e *Endpoint) { e.Server = "https://" }, "is no server"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := good
			tt.edit(&e)
			c, err := Connect(t.Context(), e)
			if err == nil {
				err = c.Close(t.Context())
			}
			switch {
			case tt.want == "" && err != nil:
				t.Error(err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("error %v, want one with %q", err, tt.want)
			case err != nil && (strings.Contains(err.Error(), password) || strings.Contains(err.Error(), "guess")):
				t.Errorf("the password is in %v", err)
			}
		})
	}
}

// TestSessionGone reads properties, by one call or another, when the session is gone: it logs in again.
func TestSessionGone(t *testing.T) {
	s := newSite(t, vcsim.Options{})
	c := s.connect(s.endpoint())
	dc := s.datastore(c, "").Datacenter().Reference()
	spec := types.PropertyFilterSpec{PropSet: []types.PropertySpec{{Type: dc.Type, PathSet: []string{"name", "configuration"}}}, ObjectSet: []types.ObjectSpec{{Obj: dc}}}
	pc := c.Client().ServiceContent.PropertyCollector
	for name, read := range map[string]func() ([]types.ObjectContent, error){
		"RetrieveProperties": func() ([]types.ObjectContent, error) {
			res, err := methods.RetrieveProperties(t.Context(), c.Client(), &types.RetrieveProperties{This: pc, SpecSet: []types.PropertyFilterSpec{spec}})
			return res.Returnval, err
		},
		"RetrievePropertiesEx": func() ([]types.ObjectContent, error) {
			res, err := methods.RetrievePropertiesEx(t.Context(), c.Client(), &types.RetrievePropertiesEx{This: pc, SpecSet: []types.PropertyFilterSpec{spec}})
			return res.Returnval.Objects, err
		},
	} {
		t.Run(name, func(t *testing.T) {
			if err := s.DropSessions(t.Context()); err != nil {
				t.Fatal(err)
			}
			got, err := read()
			if err != nil || len(got) != 1 || len(got[0].PropSet) != 2 || len(got[0].MissingSet) > 0 {
				t.Errorf("got %+v, %v", got, err)
			}
		})
	}
}

// file is what Put opens.
func file(p []byte) func() (io.ReadCloser, error) {
	return func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(p)), nil }
}

func noise(n int) []byte {
	p := make([]byte, n)
	rand.New(rand.NewSource(int64(n))).Read(p)
	return p
}

func TestFiles(t *testing.T) {
	for name, o := range map[string]vcsim.Options{"vCenter": {}, "ESXi": {ESX: true}} {
		t.Run(name, func(t *testing.T) {
			s, ctx := newSite(t, o), t.Context()
			d := s.datastore(s.connect(s.endpoint()), "vic/store")
			if _, err := d.List(ctx, "."); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("list what is not there: %v", err)
			}
			for range 2 {
				if err := d.MakeFolder(ctx, "disks"); err != nil {
					t.Fatal(err)
				}
			}
			big, small := noise(3<<20+17), []byte("small")
			var sent []int64
			if err := d.Put(ctx, "disks/big", int64(len(big)), file(big), func(n int64) { sent = append(sent, n) }); err != nil {
				t.Fatal(err)
			}
			if sent[0] != 0 || sent[len(sent)-1] != int64(len(big)) || !slices.IsSorted(sent) {
				t.Errorf("progress %d ... %d", sent[0], sent[len(sent)-1])
			}
			for range 2 { // in place of itself
				if err := d.Put(ctx, "disks/small name+%", int64(len(small)), file(small), nil); err != nil {
					t.Fatal(err)
				}
			}
			onDisk, err := os.ReadFile(filepath.Join(s.folder(d), "vic/store/disks/big"))
			if err != nil || !bytes.Equal(onDisk, big) {
				t.Errorf("the datastore has %d bytes, %v", len(onDisk), err)
			}
			if n, err := d.Stat(ctx, "disks/big"); n != int64(len(big)) || err != nil {
				t.Errorf("stat: %d, %v", n, err)
			}
			p := make([]byte, 1<<20)
			if err := d.ReadRange(ctx, "disks/big", p, 1<<20+1); err != nil || !bytes.Equal(p, big[1<<20+1:2<<20+1]) {
				t.Errorf("read a range: %v", err)
			}
			if text, err := d.ReadFile(ctx, "disks/small name+%", 5); err != nil || string(text) != "small" {
				t.Errorf("read %q, %v", text, err)
			}
			if _, err := d.ReadFile(ctx, "disks/small name+%", 4); err == nil || !strings.Contains(err.Error(), "more than 4 bytes") {
				t.Errorf("read beyond the limit: %v", err)
			}
			list, err := d.List(ctx, ".")
			if err != nil || len(list) != 1 || list[0].Name != "disks" || !list[0].Dir {
				t.Errorf("root: %v, %v", list, err)
			}
			list, err = d.List(ctx, "disks")
			slices.SortFunc(list, func(a, b Entry) int { return strings.Compare(a.Name, b.Name) })
			for i := range list {
				if list[i].Time.IsZero() {
					t.Errorf("%s has no time", list[i].Name)
				}
				list[i].Time = time.Time{}
			}
			if want := []Entry{{Name: "big", Size: int64(len(big))}, {Name: "small name+%", Size: 5}}; err != nil || !slices.Equal(list, want) {
				t.Errorf("disks: %v, %v", list, err)
			}
			tree, err := d.Tree(ctx, ".")
			for i := range tree {
				tree[i].Time = time.Time{}
			}
			if want := []Entry{{Name: "disks/big", Size: int64(len(big))}, {Name: "disks/small name+%", Size: 5}}; err != nil || !slices.Equal(tree, want) {
				t.Errorf("tree: %v, %v, want %v", tree, err, want)
			}
			if tree, err = d.Tree(ctx, "disks"); err != nil || len(tree) != 2 || tree[0].Name != "big" {
				t.Errorf("tree of disks: %v, %v", tree, err)
			}
			if _, err := d.Tree(ctx, "nope"); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("tree of what is not there: %v", err)
			}
			for _, name := range []string{"disks/big", "disks"} {
				if err := d.Remove(ctx, name); err != nil {
					t.Error(err)
				}
			}
			for op, err := range map[string]error{
				"stat":   func() error { _, err := d.Stat(ctx, "disks/big"); return err }(),
				"read":   func() error { _, err := d.ReadFile(ctx, "disks/big", 1); return err }(),
				"range":  d.ReadRange(ctx, "disks/big", p, 0),
				"remove": d.Remove(ctx, "disks"),
			} {
				if !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("%s what is not there: %v", op, err)
				}
			}
			for _, name := range []string{"", ".", "../x", "/x", "a//b"} {
				if err := d.Put(ctx, name, 0, file(nil), nil); !errors.Is(err, fs.ErrInvalid) {
					t.Errorf("write %q: %v", name, err)
				}
				if err := d.Remove(ctx, name); !errors.Is(err, fs.ErrInvalid) {
					t.Errorf("remove %q: %v", name, err)
				}
			}
			if sp, err := d.Space(ctx); err != nil || sp.Capacity == 0 || sp.Type == "" {
				t.Errorf("space %+v, %v", sp, err)
			}
		})
	}
}

func TestOpenDatastore(t *testing.T) {
	s, ctx := newSite(t, vcsim.Options{Datastores: []vcsim.Datastore{{Name: "LocalDS_0"}, {Name: "LocalDS_1"}}}), t.Context()
	c := s.connect(s.endpoint())
	if _, err := c.OpenDatastore(ctx, "", "", ""); err == nil || !strings.Contains(err.Error(), "LocalDS_0") || !strings.Contains(err.Error(), "LocalDS_1") {
		t.Errorf("one of two: %v", err)
	}
	if _, err := c.OpenDatastore(ctx, "", "nope", ""); err == nil || !strings.Contains(err.Error(), "there are LocalDS_0, LocalDS_1") {
		t.Errorf("a wrong name: %v", err)
	}
	if _, err := c.OpenDatastore(ctx, "nope", "LocalDS_0", ""); err == nil || !strings.Contains(err.Error(), "there are DC0") {
		t.Errorf("a wrong datacenter: %v", err)
	}
	if _, err := c.OpenDatastore(ctx, "", "LocalDS_0", "../x"); err == nil {
		t.Error("a folder outside")
	}
	d, err := c.OpenDatastore(ctx, "/DC0", "LocalDS_1", "x")
	if err != nil || d.Path("y z") != "[LocalDS_1] x/y z" {
		t.Errorf("%v, %v", d, err)
	}
}

func TestBrokenUploads(t *testing.T) {
	s, ctx := newSite(t, vcsim.Options{}), t.Context()
	f, c := s.behind()
	d := s.datastore(c, "")
	data := noise(4 << 20)
	var tries atomic.Int32
	cut := func(n int32) func(http.ResponseWriter, *http.Request) bool {
		tries.Store(0)
		return func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodPut || tries.Add(1) > n {
				return false
			}
			if _, err := io.CopyN(io.Discard, r.Body, int64(len(data)/2)); err != nil {
				t.Error(err)
			}
			panic(http.ErrAbortHandler)
		}
	}
	f.set(cut(2))
	if err := d.Put(ctx, "x", int64(len(data)), file(data), nil); err != nil || tries.Load() != 3 {
		t.Errorf("cut off twice: %v after %d tries", err, tries.Load())
	}
	if got, err := os.ReadFile(filepath.Join(s.folder(d), "x")); err != nil || !bytes.Equal(got, data) {
		t.Errorf("the datastore has %d bytes, %v", len(got), err)
	}
	f.set(cut(100))
	if err := d.Put(ctx, "x", int64(len(data)), file(data), nil); !errors.Is(err, ErrUnavailable) || tries.Load() != 4 {
		t.Errorf("cut off each time: %v after %d tries", err, tries.Load())
	}
	f.set(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPut {
			return false
		}
		tries.Add(1)
		http.Error(w, "no space left", http.StatusInsufficientStorage)
		return true
	})
	tries.Store(0)
	if err := d.Put(ctx, "x", int64(len(data)), file(data), nil); err == nil || !strings.Contains(err.Error(), "is full") || errors.Is(err, ErrUnavailable) || tries.Load() != 1 {
		t.Errorf("a full datastore: %v after %d tries", err, tries.Load())
	}
	f.set(func(http.ResponseWriter, *http.Request) bool { return false })

	broken := errors.New("the layer's file is gone")
	opened := 0
	err := d.Put(ctx, "x", 100, func() (io.ReadCloser, error) {
		opened++
		return io.NopCloser(io.MultiReader(strings.NewReader("half"), bad{broken})), nil
	}, nil)
	if !errors.Is(err, broken) || opened != 1 {
		t.Errorf("a bad source: %v, opened %d times", err, opened)
	}
	if err := d.Put(ctx, "x", 100, file([]byte("short")), nil); err == nil {
		t.Error("wrote a file of 100 bytes from 5")
	}
	stopped, cancel := context.WithCancel(ctx)
	if err := d.Put(stopped, "x", int64(len(data)), file(data), func(n int64) {
		if n > 1<<20 {
			cancel()
		}
	}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

type bad struct{ err error }

func (b bad) Read([]byte) (int, error) { return 0, b.err }

// A session that the server has dropped, and a server that is away, are seen as time.
func TestAway(t *testing.T) {
	s, ctx := newSite(t, vcsim.Options{}), t.Context()
	f, c := s.behind()
	d := s.datastore(c, "")
	drop := func() {
		t.Helper()
		u, err := session.NewManager(c.client).UserSession(ctx)
		if err != nil || u == nil {
			t.Fatalf("%v, %v", u, err)
		}
		if err := session.NewManager(s.connect(s.endpoint()).client).TerminateSession(ctx, []string{u.Key}); err != nil {
			t.Fatal(err)
		}
	}
	drop()
	if err := d.MakeFolder(ctx, "a"); err != nil {
		t.Errorf("after the session was dropped: %v", err)
	}
	if c.epoch != 2 {
		t.Errorf("%d logins", c.epoch)
	}
	if err := d.Remove(ctx, "a"); err != nil {
		t.Error(err)
	}

	var tries atomic.Int32
	away := func(n int32) {
		tries.Store(0)
		f.set(func(w http.ResponseWriter, r *http.Request) bool {
			if tries.Add(1) > n {
				return false
			}
			http.Error(w, "starting", http.StatusServiceUnavailable)
			return true
		})
	}
	away(2)
	if err := d.MakeFolder(ctx, "b"); err != nil {
		t.Errorf("after two answers of 503: %v", err)
	}
	away(2)
	if err := d.Put(ctx, "b/x", 3, file([]byte("abc")), nil); err != nil {
		t.Errorf("after two answers of 503: %v", err)
	}
	away(1 << 30)
	if _, err := d.Stat(ctx, "b/x"); !errors.Is(err, ErrUnavailable) {
		t.Errorf("away: %v", err)
	}
	if err := d.MakeFolder(ctx, "c"); !errors.Is(err, ErrUnavailable) {
		t.Errorf("away: %v", err)
	}
	away(0)
	if _, err := methods.GetCurrentTime(ctx, c.client); err != nil {
		t.Errorf("back again: %v", err)
	}
}
