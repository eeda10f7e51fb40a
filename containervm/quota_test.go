package containervm

import (
	"context"
	"crypto/rand"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// As many containers are made as there may be, however many are asked for at once; and another when one is gone.
func TestContainerLimit(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.o.Quota.Containers = 3
	s.reopen()
	first := s.create(Spec{Name: "first", Args: []string{"true"}})
	var made, refused int
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			_, err := s.Create(t.Context(), Spec{Args: []string{"true"}, Network: NetworkSpec{Mode: "none"}})
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				made++
				return
			}
			refused++
			wantError(t, err, ErrForbidden, "Container count exceeds limit 3")
		})
	}
	wg.Wait()
	if made != 2 || refused != 6 {
		t.Errorf("%d made, %d refused", made, refused)
	}
	s.reopen()
	_, err := s.Create(t.Context(), Spec{Name: "late", Args: []string{"true"}, Network: NetworkSpec{Mode: "none"}})
	wantError(t, err, ErrForbidden, "Container count exceeds limit 3")
	if first, err = s.Container("first"); err != nil {
		t.Fatal(err)
	}
	if err := first.Remove(t.Context(), RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	s.create(Spec{Name: "late", Args: []string{"true"}})
	s.o.Quota.Containers = 0 // lifted
	s.reopen()
	s.create(Spec{Args: []string{"true"}})
}

// What containers have written counts as it takes up the disk, and one more is refused without a trace.
func TestStorageQuota(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	before, err := s.Charge(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s.o.Quota.Storage = before.Images + before.Containers + 4<<20
	s.reopen()
	c := s.create(Spec{Name: "big", Args: []string{"true"}})
	f, err := os.Create(filepath.Join(s.disks.dir, c.ID(), "written"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(1 << 40); err != nil { // holes cost nothing
		t.Fatal(err)
	}
	s.create(Spec{Name: "second", Args: []string{"true"}})
	p := make([]byte, 5<<20)
	if _, err := rand.Read(p); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(p, 1<<30); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		_, err = s.Create(t.Context(), Spec{Name: "third", Args: []string{"true"}, Network: NetworkSpec{Mode: "none"}})
		wantError(t, err, ErrForbidden, "Storage quota exceeds limit")
	}
	if len(s.List()) != 2 {
		t.Errorf("%d containers", len(s.List()))
	}
	if err := c.Remove(t.Context(), RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	s.create(Spec{Name: "third", Args: []string{"true"}})
}

// meter is Disks on which VMs have swap files.
type meter struct {
	Disks
	bytes int64
	err   error
}

func (m *meter) ContainerBytes(context.Context, string) (map[string]Bytes, error) {
	return map[string]Bytes{"a": {Disk: m.bytes, Rest: 1}, "b": {Rest: m.bytes - 1}}, m.err
}

// Where VMs have swap files, the memory of all containers counts; and nothing is made while nobody knows what there is.
func TestStorageQuotaMemory(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	m := &meter{Disks: s.disks, bytes: 50 << 20}
	s.o.Disks, s.o.Quota.Storage = m, 1<<30
	s.reopen()
	s.create(Spec{Args: []string{"true"}, Memory: 512 << 20})
	_, err := s.Create(t.Context(), Spec{Args: []string{"true"}, Memory: 512 << 20, Network: NetworkSpec{Mode: "none"}})
	wantError(t, err, ErrForbidden, "Storage quota exceeds limit 1GiB: images take up ")
	if !strings.HasSuffix(err.Error(), "containers with this one 1.098GiB") {
		t.Error(err)
	}
	s.create(Spec{Args: []string{"true"}}) // 256 MiB
	m.err = ErrClosed
	_, err = s.Create(t.Context(), Spec{Args: []string{"true"}, Memory: 96 << 20, Network: NetworkSpec{Mode: "none"}})
	wantError(t, err, ErrClosed, "measure containers")
}
