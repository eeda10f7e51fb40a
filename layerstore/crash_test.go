package layerstore

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// Child processes of tests are this test binary, told by the environment what to
// do. They print a line when they begin.
const (
	childDo   = "LAYERSTORE_TEST_DO"   // pull, remove, flatten, repair, volumes, hold
	childDir  = "LAYERSTORE_TEST_DIR"  // of the store
	childKill = "LAYERSTORE_TEST_KILL" // after how many changes in the store to kill itself
)

// TestChild is the child processes' side. By itself it does nothing.
func TestChild(t *testing.T) {
	do := os.Getenv(childDo)
	if do == "" {
		t.Skip("for other tests")
	}
	dir := os.Getenv(childDir)
	if n, err := strconv.Atoi(os.Getenv(childKill)); err == nil {
		killAfter(t, dir, n)
	}
	fmt.Println("begin")
	s := openStoreIn(t, dir, Options{})
	src := webImage(t)
	switch do {
	case "remove":
		if _, err := s.Remove("web", RemoveOptions{}); err != nil {
			t.Fatal(err)
		}
	case "volumes":
		makeVolume(t, s, small("new"))
		if _, err := s.ClaimVolumes("c1", []VolumeClaim{{VolumeOptions: small("new")}, {VolumeOptions: small("own"), Own: true}}); err != nil {
			t.Fatal(err)
		}
		if _, err := s.RemoveOwnVolumes("c1"); err != nil {
			t.Fatal(err)
		}
		if err := s.RemoveVolume("old"); err != nil {
			t.Fatal(err)
		}
	case "flatten":
		if _, err := s.Flatten(t.Context(), "web", nil); err != nil {
			t.Fatal(err)
		}
	case "repair":
		if _, left := repair(t, s, RepairOptions{CheckOptions: CheckOptions{Deep: true}, Fetch: registryOf(src)}); left != "" {
			t.Fatal(left)
		}
	case "hold":
		// The last layer comes when the parent says so.
		var man ocispec.Manifest
		src.change(t, func(_ *ocispec.Image, m *ocispec.Manifest) { man = *m })
		last := man.Layers[len(man.Layers)-1].Digest
		src.hook = func(ctx context.Context, d ocispec.Descriptor, r io.Reader) io.Reader {
			if d.Digest != last {
				return r
			}
			return readerFunc(func(p []byte) (int, error) {
				n, err := r.Read(p)
				if err == io.EOF {
					fmt.Println("holding")
					_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
				}
				return n, err
			})
		}
		fallthrough
	case "pull":
		pullImage(t, s, src, "web")
		fmt.Println("fetched", src.total())
	}
}

// killAfter kills the process with SIGKILL when n things have happened to the
// files of the store: a file made, written, renamed or removed.
func killAfter(t *testing.T, dir string, n int) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	for _, sub := range append([]string{"."}, subfolders...) {
		path := filepath.Join(dir, sub)
		if err := os.MkdirAll(path, 0o700); err != nil {
			t.Fatal(err)
		}
		if _, err := unix.InotifyAddWatch(fd, path, unix.IN_CREATE|unix.IN_MODIFY|unix.IN_MOVE|unix.IN_DELETE|unix.IN_ATTRIB); err != nil {
			t.Fatal(err)
		}
	}
	go func() {
		buf := make([]byte, unix.SizeofInotifyEvent+unix.NAME_MAX+1)
		for {
			m, err := unix.Read(fd, buf)
			if err != nil {
				panic(err)
			}
			for m > 0 {
				name := int(buf[12]) | int(buf[13])<<8
				m -= unix.SizeofInotifyEvent + name
				copy(buf, buf[unix.SizeofInotifyEvent+name:])
				if n--; n == 0 {
					unix.Kill(os.Getpid(), unix.SIGKILL)
				}
			}
		}
	}()
}

func child(t testing.TB, do, dir string, kill int) *exec.Cmd {
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestChild$")
	cmd.Env = append(os.Environ(), childDo+"="+do, childDir+"="+dir)
	if kill > 0 {
		cmd.Env = append(cmd.Env, childKill+"="+strconv.Itoa(kill))
	}
	return cmd
}

// killed tells whether a process was killed; if it ended by itself, in another
// way than with success, the test fails.
func killed(t *testing.T, err error, out []byte) bool {
	t.Helper()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() && ws.Signal() == unix.SIGKILL {
			return true
		}
	}
	if err != nil {
		t.Fatalf("child: %v\n%s", err, out)
	}
	return false
}

// recovered proves that a store is whole after a crash: Check finds nothing, and a
// pull and a removal end where they should.
func recovered(t *testing.T, dir string) {
	t.Helper()
	s, err := Open(dir, Options{Capacity: testCapacity})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	checkClean(t, s)
	emptyTmp(t, s)
	img := pullImage(t, s, webImage(t), "web")
	checkClean(t, s)
	f, err := s.FS(img)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := readFileFS(f, "etc/os-release")
	if err != nil || string(b) != "ID=web\n" {
		t.Errorf("file in the image: %q, %v", b, err)
	}
	if _, err := s.Remove("web", RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	if chains, err := s.dir.chains(); err != nil || len(chains) != 0 {
		t.Errorf("%d layers left after removal: %v", len(chains), err)
	}
	checkClean(t, s)
}

func readFileFS(f *FS, name string) ([]byte, error) {
	file, err := f.Open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return io.ReadAll(file)
}

// TestKilledAtEachStep kills a pull, from the making of the store on, after the
// first change that it makes to a file, after the second, and so on.
func TestKilledAtEachStep(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	kills := 0
	for n := 1; ; n += 1 + rnd.IntN(4) {
		dir := filepath.Join(t.TempDir(), "store")
		out, err := child(t, "pull", dir, n).CombinedOutput()
		if !killed(t, err, out) {
			break
		}
		kills++
		recovered(t, dir)
		if t.Failed() {
			t.Fatalf("killed after %d changes", n)
		}
	}
	if kills < 20 {
		t.Errorf("only %d kills", kills)
	}
	t.Logf("%d kills", kills)
}

// TestKilledAtRandom kills a pull at random moments.
func TestKilledAtRandom(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	kills := 0
	for i := range 50 {
		dir := filepath.Join(t.TempDir(), "store")
		cmd := child(t, "pull", dir, 0)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		r := bufio.NewReader(out)
		if _, err := r.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
		timer := time.AfterFunc(time.Duration(rnd.IntN(100_000))*time.Microsecond, func() { cmd.Process.Kill() })
		rest, _ := io.ReadAll(r)
		err = cmd.Wait()
		timer.Stop()
		if killed(t, err, rest) {
			kills++
		}
		recovered(t, dir)
		if t.Failed() {
			t.Fatalf("kill %d", i)
		}
	}
	t.Logf("%d of 50 pulls killed", kills)
}

// TestKilledRemoving does with a removal what TestKilledAtEachStep does with a
// pull.
func TestKilledRemoving(t *testing.T) {
	kills := 0
	for n := 1; ; n++ {
		dir := filepath.Join(t.TempDir(), "store")
		s := openStoreIn(t, dir, Options{})
		pullImage(t, s, webImage(t), "web")
		out, err := child(t, "remove", dir, n).CombinedOutput()
		if !killed(t, err, out) {
			break
		}
		kills++
		// The names may be gone and the image not yet, or the image and not all
		// layers: a sweep and a removal take the rest.
		again, err := Open(dir, Options{})
		if err != nil {
			t.Fatal(err)
		}
		checkClean(t, again)
		if _, err := again.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
		checkClean(t, again)
		again.Close()
		recovered(t, dir)
		if t.Failed() {
			t.Fatalf("killed after %d changes", n)
		}
	}
	if kills < 5 {
		t.Errorf("only %d kills", kills)
	}
	t.Logf("%d kills", kills)
}

// Two processes pull the same image: what one of them is fetching the other waits
// for. A sweep of one leaves the other's layers alone.
func TestTwoProcesses(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	s := openStoreIn(t, dir, Options{})
	cmd := child(t, "hold", dir, 0)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	expect := func(want string) {
		t.Helper()
		if !lines.Scan() || lines.Text() != want {
			t.Fatalf("child says %q, want %q", lines.Text(), want)
		}
	}
	expect("begin")
	expect("holding")
	src := webImage(t)
	done, begun := startPull(t, s, t.Context(), src, "mine")
	<-begun
	if swept, err := s.Sweep(t.Context()); err != nil || len(swept.Layers) != 0 {
		t.Errorf("sweep took %v, %v", swept.Layers, err)
	}
	if again, err := Open(dir, Options{}); err != nil { // cleans tmp, or rather does not
		t.Error(err)
	} else {
		again.Close()
	}
	if _, err := io.WriteString(in, "\n"); err != nil {
		t.Fatal(err)
	}
	expect("fetched 4")
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	if n := src.total(); n != 0 {
		t.Errorf("%d blobs fetched again", n)
	}
	img, err := s.Image("web")
	if err != nil {
		t.Fatal(err)
	}
	if got := img.RepoTags(); len(got) != 2 {
		t.Errorf("tags %q, want two", got)
	}
	checkClean(t, s)
	emptyTmp(t, s)
}
