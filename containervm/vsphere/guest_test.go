package vsphere

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"vic/bench/oracle"
	"vic/bench/vcsim/bridge"
	"vic/containervm"
	"vic/containervm/boot"
	"vic/containervm/network"
	"vic/containervm/vspc"
	"vic/fetch/archive"
	"vic/layerstore"
)

// pack makes a tar of programs.
func pack(t *testing.T, files map[string][]byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(files[name]))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(files[name]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// busyboxImage puts an image with busybox into a store.
func busyboxImage(t *testing.T, store *layerstore.Store) *layerstore.Image {
	t.Helper()
	busybox, err := os.ReadFile(oracle.Find(t, "busybox"))
	if err != nil {
		t.Fatal(err)
	}
	layer := pack(t, map[string][]byte{"busybox": busybox})
	config := fmt.Sprintf(`{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["%s"]}}`, digest.FromBytes(layer))
	saved := pack(t, map[string][]byte{"manifest.json": []byte(`[{"Config":"config.json","Layers":["layer.tar"]}]`), "config.json": []byte(config), "layer.tar": layer})
	a, err := archive.Read(t.Context(), bytes.NewReader(saved), store.TempFile)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	src, err := a.Entries()[0].Resolve(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	img, err := store.Pull(t.Context(), src, nil, layerstore.PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// An iso is what guests boot: a Booter.
type iso string

func (i iso) Boot(context.Context) (containervm.Boot, error) {
	return containervm.Boot{Kernel: "kernel", ISO: string(i)}, nil
}

func bootISO(t *testing.T) iso {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", dir+"/tether", "vic/cmd/tether")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	if m, err := filepath.Glob("/boot/vmlinuz-*"); err != nil || len(m) == 0 {
		oracle.Missing(t, fmt.Errorf("a kernel: %v", err))
	}
	m, err := boot.Build(t.Context(), dir, boot.Options{Tether: dir + "/tether"})
	if err != nil {
		t.Fatal(err)
	}
	if err := boot.WriteISO(dir+"/guest.iso", m, boot.Options{}); err != nil {
		t.Fatal(err)
	}
	return iso(dir + "/guest.iso")
}

// A host is a site whose VMs run, under a Manager.
type host struct {
	*site
	m      *containervm.Manager
	mo     containervm.Options
	mu     sync.Mutex
	events []string
}

func newHost(t *testing.T) *host {
	t.Helper()
	oracle.Need(t, "qemu-system-x86_64")
	h := &host{site: newSite(t, objects)}
	h.appliance(nil)
	b, err := bridge.Attach(h.sim, bridge.Options{Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	ports := vspc.NewServer(vspc.Options{Log: h.o.Log})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() { _ = ports.Serve(l) })
	t.Cleanup(func() { ports.Close(); serving.Wait() })
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	h.o.Ports, h.o.Proxy = ports, "telnet://"+l.Addr().String()
	h.open()
	run, err := os.MkdirTemp("", "vic") // short enough for sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(run) })
	h.image = busyboxImage(t, h.local)
	h.mo = containervm.Options{Store: h.local.Dir(), Disks: h.Driver, Volumes: h.local, Hypervisor: h.Driver, Boot: bootISO(t),
		Networks: network.New(network.Options{}), RuntimeDir: run, Log: h.o.Log}
	h.manage()
	t.Cleanup(func() { h.m.Close() })
	return h
}

func (h *host) manage() {
	h.t.Helper()
	m, err := containervm.Open(h.t.Context(), h.mo)
	if err != nil {
		h.t.Fatal(err)
	}
	h.m = m
	m.Subscribe(func(e containervm.Event) {
		if e.Type != "container" || strings.HasPrefix(e.Action, "exec_") || e.Action == "archive-path" {
			return
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		h.events = append(h.events, e.Action)
	})
}

// reopen is a restart of the VCH. It returns the container as it is found again.
func (h *host) reopen(id string) *containervm.Container {
	h.t.Helper()
	if err := h.m.Close(); err != nil {
		h.t.Fatal(err)
	}
	h.manage()
	return h.container(id)
}

func (h *host) container(id string) *containervm.Container {
	h.t.Helper()
	c, err := h.m.Container(id)
	if err != nil {
		h.t.Fatal(err)
	}
	return c
}

// tells waits for these events.
func (h *host) tells(want ...string) {
	h.t.Helper()
	var got []string
	defer func() {
		if h.t.Failed() {
			h.t.Logf("events %v, want %v", got, want)
		}
	}()
	h.until("there are these events", func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		if got = slices.Clone(h.events); slices.Equal(got, want) {
			h.events = nil
			return true
		}
		return false
	})
}

// logs is all output of a container.
func (h *host) logs(c *containervm.Container) string {
	h.t.Helper()
	var b strings.Builder
	if err := c.Logs(h.t.Context(), containervm.LogOptions{Stdout: true, Stderr: true}, func(e containervm.LogEntry) error {
		b.Write(e.Data)
		return nil
	}); err != nil {
		h.t.Error(err)
	}
	return b.String()
}

// exec runs a command in a container.
func (h *host) exec(c *containervm.Container, script string) string {
	h.t.Helper()
	e, err := c.CreateExec(containervm.ExecSpec{Args: []string{"/busybox", "sh", "-c", script}, Stdout: true, Stderr: true})
	if err != nil {
		h.t.Fatal(err)
	}
	var out bytes.Buffer
	if err := e.Start(h.t.Context(), containervm.ExecStartOptions{}); err != nil {
		h.t.Fatal(err)
	}
	if err := e.Stream(h.t.Context(), nil, &out, &out); err != nil {
		h.t.Fatal(err)
	}
	return out.String()
}

// TestContainer lets a container live, under a Manager, in a VM that runs.
func TestContainer(t *testing.T) {
	h := newHost(t)
	ctx := t.Context()
	c, err := h.m.Create(ctx, containervm.Spec{Name: "web", ImageID: h.image.ID, Network: containervm.NetworkSpec{Mode: "none"},
		Args: []string{"/busybox", "sh", "-c", `/busybox ls /kept 2>&1; trap 'echo stopped; exit 3' TERM; echo ready; while :; do /busybox sleep 0.1; done`}})
	if err != nil {
		t.Fatal(err)
	}
	calls := h.sim.Calls()
	began := time.Now()
	if err := c.Start(ctx); err != nil {
		t.Fatal(err)
	}
	t.Logf("started in %v with %v", time.Since(began).Round(time.Millisecond), since(h.sim.Calls(), calls))
	h.tells("create", "start")
	h.until("it is ready", func() bool { return strings.HasSuffix(h.logs(c), "ready\n") })
	if got := h.exec(c, "echo kept >/kept; /busybox sync; /busybox hostname"); got != c.ID()[:12]+"\n" {
		t.Errorf("exec says %q", got)
	}
	t.Run("found again", func(t *testing.T) {
		c = h.reopen(c.ID())
		if got := h.exec(c, "/busybox cat /kept"); got != "kept\n" {
			t.Errorf("exec says %q", got)
		}
	})
	t.Run("suspended by somebody", func(t *testing.T) {
		h.must(h.vm(c.ID()).Suspend(ctx))
		h.tells("pause")
		if got := c.Info().State.Status; got != containervm.Paused {
			t.Errorf("it is %s", got)
		}
		if err := c.Unpause(ctx); err != nil {
			t.Fatal(err)
		}
		h.tells("unpause")
		if got := h.exec(c, "echo goes on"); got != "goes on\n" {
			t.Errorf("exec says %q", got)
		}
	})
	t.Run("reset by somebody", func(t *testing.T) {
		h.must(h.vm(c.ID()).Reset(ctx))
		h.tells("die", "start")
		h.until("it is ready again", func() bool { return strings.HasSuffix(h.logs(c), "ready\n/kept\nready\n") })
		if got := h.exec(c, "echo answers"); got != "answers\n" {
			t.Errorf("exec says %q", got)
		}
	})
	t.Run("stop", func(t *testing.T) {
		if err := c.Stop(ctx, containervm.StopOptions{}); err != nil {
			t.Fatal(err)
		}
		h.tells("kill", "die", "stop")
		if st := c.Info().State; st.ExitCode != 3 || st.Status != containervm.Exited {
			t.Errorf("state %+v", st)
		}
		if got := h.logs(c); !strings.HasSuffix(got, "stopped\n") {
			t.Errorf("log %q", got)
		}
	})
	t.Run("read while it is stopped", func(t *testing.T) {
		var changes []string
		if err := c.Changes(ctx, func(ch containervm.Change) error {
			changes = append(changes, ch.Path)
			return nil
		}); err != nil || !slices.Contains(changes, "/kept") {
			t.Errorf("changes %v, %v", changes, err)
		}
		_, r, err := c.ReadPath(ctx, "/kept")
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		tr := tar.NewReader(r)
		if _, err := tr.Next(); err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(tr); err != nil || string(got) != "kept\n" {
			t.Errorf("the file has %q, %v", got, err)
		}
	})
	t.Run("deleted by somebody", func(t *testing.T) {
		h.must(h.vm(c.ID()).Destroy(ctx))
		if err := c.Start(ctx); err == nil || !strings.Contains(err.Error(), "somebody has deleted it") {
			t.Errorf("start: %v", err)
		}
		if err := c.Remove(ctx, containervm.RemoveOptions{}); err != nil {
			t.Fatal(err)
		}
		h.tells("destroy")
	})
}

// since are the calls that were made between two counts.
func since(now, before map[string]int) map[string]int {
	out := map[string]int{}
	for name, n := range now {
		if n -= before[name]; n > 0 {
			out[name] = n
		}
	}
	return out
}
