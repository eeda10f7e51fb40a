package layerstore

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"
)

// TestFaults has one operation of the datastore after the other fail, during a pull of an
// image over one that is there: with EIO; with ENOSPC, from then on whatever takes room; with a
// write that is short before that. The pull says so, or did not need it. What was there
// stays, whole; nothing half done is visible; and once the datastore is well again, the
// same Store makes the disks that it would have made, and so does one opened anew.
func TestFaults(t *testing.T) {
	first, second, third := crashImages(t)
	want := goodDisks(t, first, second, third)
	takesRoom := func(op string) bool { return op == "create" || op == "mkdir" || op == "write" || op == "allocate" }
	for _, kind := range []struct {
		name string
		what func(after int, op string) fault
		want string // in the pull's error
	}{
		{"EIO", func(after int, op string) fault {
			if after == 0 {
				return fault{errno: syscall.EIO}
			}
			return fault{}
		}, "input/output error"},
		{"ENOSPC", func(after int, op string) fault {
			if takesRoom(op) {
				return fault{errno: syscall.ENOSPC}
			}
			return fault{}
		}, "no space left on device"},
		{"short write", func(after int, op string) fault {
			switch {
			case after == 0 && op == "write":
				return fault{half: true}
			case takesRoom(op):
				return fault{errno: syscall.ENOSPC}
			}
			return fault{}
		}, "no space left on device"},
	} {
		t.Run(strings.ReplaceAll(kind.name, " ", "_"), func(t *testing.T) {
			t.Parallel()
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			rnd := rand.New(rand.NewPCG(seed, 0))
			most := 6
			if testing.Short() {
				most = 40
			}
			failed := 0
			for n := rnd.IntN(most); ; n += 1 + rnd.IntN(most) {
				hit, err := faultOnce(t, n, kind.what, want, first, second, third)
				if err != nil {
					failed++
				}
				if err != nil && !strings.Contains(err.Error(), kind.want) {
					t.Errorf("the pull's error is %v, want one with %q", err, kind.want)
				}
				if t.Failed() {
					t.Fatalf("operation %d fails", n)
				}
				if !hit {
					break
				}
			}
			if failed == 0 {
				t.Error("no pull failed")
			}
			t.Logf("%d pulls failed", failed)
		})
	}
}

// faultOnce has the n-th operation of a pull fail. It tells whether there was one, and the
// pull's error.
func faultOnce(t *testing.T, n int, what func(int, string) fault, want map[string]string, first, second, third *memImage) (hit bool, failure error) {
	f := mountFaultFS(t)
	dir := filepath.Join(f.Dir, "store")
	s, err := Open(dir, Options{Capacity: testCapacity})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { s.Close() }()
	pullImage(t, s, first, "image:0")
	before := snapshot(t, s)
	done := f.faultAt(n, what)
	_, failure = s.Pull(t.Context(), second, mustName(t, "image:1"), PullOptions{})
	hit = done()
	if failure == nil && !hit {
		return false, nil
	}
	after := snapshot(t, s)
	for name, sum := range before {
		if after[name] != sum {
			t.Errorf("%s has changed", name)
		}
	}
	switch img, err := s.Image("image:1"); {
	case failure == nil && err != nil:
		t.Errorf("the pull did not fail, but %v", err)
	case err == nil && img.ID != digest.FromBytes(second.config):
		t.Errorf("image:1 is %s", img.ID)
	}
	// What could not be removed is left in tmp, for the next Open.
	err = s.Check(t.Context(), CheckOptions{Deep: true}, func(f Finding) {
		if !f.Harmless {
			t.Errorf("check: %s: %s (%s)", f.Path, f.Problem, f.Advice)
		}
	})
	if err != nil {
		t.Error(err)
	}
	if n%2 == 0 {
		s.Close()
		if s, err = Open(dir, Options{}); err != nil {
			t.Fatal(err)
		}
		checkClean(t, s)
		emptyTmp(t, s)
	}
	for i, src := range []*memImage{first, second, third} {
		pullImage(t, s, src, fmt.Sprint("image:", i))
	}
	if n%2 != 0 {
		s.Close()
		if s, err = Open(dir, Options{}); err != nil {
			t.Fatal(err)
		}
	}
	checkClean(t, s)
	emptyTmp(t, s)
	if got := treeSums(t, string(s.dir.disks())); !maps.Equal(got, want) {
		t.Errorf("other disks than without a fault:\n%v\nwant\n%v", got, want)
	}
	return hit, failure
}
