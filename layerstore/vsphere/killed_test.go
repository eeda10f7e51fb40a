package vsphere

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"vic/bench/corpus"
	"vic/bench/vcsim"
	"vic/fetch/archive"
	"vic/layerstore"
)

// What the process that is to be killed is told: where the server is, the image, the local store, and the folder on the datastore.
const (
	killedServer = "VIC_TEST_KILLED_SERVER"
	killedImage  = "VIC_TEST_KILLED_IMAGE"
	killedStore  = "VIC_TEST_KILLED_STORE"
	killedRoot   = "VIC_TEST_KILLED_ROOT"
)

// pullMirrored pulls an image of an OCI layout into a local store with a datastore as its mirror.
func pullMirrored(ctx context.Context, e Endpoint, root, image, dir string, then func(*Store, *layerstore.Store, *layerstore.Image)) error {
	c, err := Connect(ctx, e)
	if err != nil {
		return err
	}
	defer c.Close(context.WithoutCancel(ctx))
	d, err := c.OpenDatastore(ctx, "", "", root)
	if err != nil {
		return err
	}
	st, err := OpenStore(ctx, d, StoreOptions{VCH: "one", Capacity: capacity})
	if err != nil {
		return err
	}
	ls, err := layerstore.Open(dir, layerstore.Options{Capacity: capacity, Mirror: st})
	if err != nil {
		return err
	}
	defer ls.Close()
	then(st, ls, nil)
	a, err := archive.OpenFolder(image)
	if err != nil {
		return err
	}
	defer a.Close()
	src, err := a.Entries()[0].Resolve(ctx, nil)
	if err != nil {
		return err
	}
	img, err := ls.Pull(ctx, src, nil, layerstore.PullOptions{})
	if err == nil {
		then(st, ls, img)
	}
	return err
}

// TestKilled kills a process that pulls an image to a datastore, by SIGKILL in the middle of one upload after the other. Each time
// the store opens and is clean, the pull works, and nothing is left when the image goes.
func TestKilled(t *testing.T) {
	if server := os.Getenv(killedServer); server != "" { // this is the process
		if err := pullMirrored(t.Context(), Endpoint{Server: server, User: user, Password: password}, os.Getenv(killedRoot), os.Getenv(killedImage), os.Getenv(killedStore),
			func(*Store, *layerstore.Store, *layerstore.Image) {}); err != nil {
			t.Fatal(err)
		}
		return
	}
	s, ctx := newSite(t, vcsim.Options{}), t.Context()
	f, c := s.behind()
	image := filepath.Join(t.TempDir(), "image")
	if _, err := corpus.Write(ctx, image, corpus.Shape{Layers: 3, Files: 60, Sizes: corpus.Fixed(5000), Whiteouts: 0.1, Compression: "zstd"}); err != nil {
		t.Fatal(err)
	}
	harmless := func(at int32, st *Store, ls *layerstore.Store) *Checked {
		t.Helper()
		done, err := st.Check(ctx, CheckOptions{Local: ls, Deep: true}, func(f layerstore.Finding) {
			if !f.Harmless {
				t.Errorf("killed at upload %d: found %+v", at, f)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		return done
	}
	const step = 4
	for at := int32(0); ; at += step { // 0 is at the record of the image
		root, dir := fmt.Sprintf("store-%d", at), t.TempDir()
		d := s.datastore(c, root)
		cmd := exec.Command(os.Args[0], "-test.run=^TestKilled$")
		cmd.Env = append(os.Environ(), killedServer+"="+c.client.URL().String(), killedRoot+"="+root, killedImage+"="+image, killedStore+"="+dir)
		var puts atomic.Int32
		started := make(chan struct{})
		kill := func() {
			<-started
			_ = cmd.Process.Kill() // one that has ended is no matter
		}
		f.set(func(_ http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodPut && (puts.Add(1) == at || at == 0 && strings.Contains(r.URL.Path, "/images/")) {
				r.Body = &fatalBody{ReadCloser: r.Body, left: r.ContentLength / 2, kill: kill}
			}
			return false
		})
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		close(started)
		err := cmd.Wait()
		f.set(func(http.ResponseWriter, *http.Request) bool { return false })
		if err == nil {
			if at < 3*step {
				t.Errorf("it is done after %d uploads", at)
			}
			return
		}
		if !strings.Contains(err.Error(), "killed") {
			t.Fatalf("killed at upload %d: %v\n%s", at, err, out.String())
		}
		e := s.endpoint()
		err = pullMirrored(ctx, e, root, image, dir, func(st *Store, ls *layerstore.Store, img *layerstore.Image) {
			if img == nil {
				harmless(at, st, ls)
				return
			}
			if done := harmless(at, st, ls); done.Images != 1 {
				t.Errorf("killed at upload %d: checked %+v", at, *done)
			}
			p, err := st.Publish(ctx, ls, img)
			if err != nil {
				t.Error(err)
				return
			}
			s.same(d, ls, img, p.Disks[0])
			if err := st.Forget(ctx, img.ID); err != nil {
				t.Error(err)
			}
			if _, err := st.Sweep(ctx); err != nil {
				t.Error(err)
			}
		})
		if err != nil {
			t.Fatalf("killed at upload %d, and again: %v", at, err)
		}
		for _, name := range s.files(d, disksFolder) {
			if !strings.HasPrefix(name, baseName+".") && !strings.HasPrefix(name, baseName+"-flat.") {
				t.Errorf("killed at upload %d: %s is left", at, name)
			}
		}
		if left := s.files(d, "vchs/one/pulls"); len(left) > 0 {
			t.Errorf("killed at upload %d: pulls %v are left", at, left)
		}
	}
}

// A fatalBody kills who sends it half way.
type fatalBody struct {
	io.ReadCloser
	left int64
	kill func()
}

func (b *fatalBody) Read(p []byte) (int, error) {
	if b.left <= 0 {
		b.kill()
		return 0, io.ErrUnexpectedEOF
	}
	n, err := b.ReadCloser.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	return n, err
}
