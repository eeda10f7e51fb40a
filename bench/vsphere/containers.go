package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/vmware/govmomi/vim25/soap"
	"golang.org/x/sync/errgroup"

	"vic/containervm"
	"vic/containervm/vsphere"
	"vic/layerstore"
	datastore "vic/layerstore/vsphere"
	"vic/tether/wire"
)

// bridgeName is the port group that containers are on.
const bridgeName = "bridge"

// atOnce is how many containers are made, started or removed at the same time.
const atOnce = 16

// parseCounts reads numbers of containers.
func parseCounts(text string) ([]int, error) {
	var counts []int
	for word := range strings.SplitSeq(text, ",") {
		n, err := strconv.Atoi(word)
		if err != nil || n < 1 || n > 1e5 {
			return nil, fmt.Errorf("%q is no number of containers", word)
		}
		counts = append(counts, n)
	}
	return counts, nil
}

// A fleet is a driver whose VMs do not boot.
type fleet struct {
	*vsphere.Driver
	sim   *simulator
	calls *calls
	store *layerstore.Store
	image *layerstore.Image
	iso   string
	made  int // how many containers there were
}

// containers makes, starts and removes so many containers, for each of the counts, and prints what it took.
func (b *comparison) containers(ctx context.Context, counts []int, out io.Writer) (err error) {
	f := &fleet{sim: b.sim, calls: countCalls(b.session)}
	if f.store, err = layerstore.Open(filepath.Join(b.work, "local"), layerstore.Options{}); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.store.Close()) }()
	src, err := b.image.Entries()[0].Resolve(ctx, nil)
	if err != nil {
		return err
	}
	if f.image, err = f.store.Pull(ctx, src, nil, layerstore.PullOptions{}); err != nil {
		return err
	}
	f.iso = filepath.Join(b.work, "boot.iso")
	if err := os.WriteFile(f.iso, []byte("no guest boots from it"), 0o600); err != nil {
		return err
	}
	folder := func(name string) (*datastore.Datastore, error) {
		return b.session.OpenDatastore(ctx, "", datastoreName, name)
	}
	images, err := folder("images")
	if err != nil {
		return err
	}
	vms, err := folder("containers")
	if err != nil {
		return err
	}
	s, err := datastore.OpenStore(ctx, images, datastore.StoreOptions{VCH: "bench", Capacity: f.store.Capacity(), Encoding: b.format})
	if err != nil {
		return err
	}
	if f.Driver, err = vsphere.New(ctx, vsphere.Options{Session: b.session, Local: f.store, Images: s, Containers: vms, Ports: silent{}, Proxy: "telnet://127.0.0.1:1",
		Bridge: bridgeName, Name: "bench"}); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := f.turn(ctx, 1); err != nil { // brings the image and the ISO
		return err
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "containers\t\tcalls each\tms each\tCPU, ms each\tsimulator's")
	var last []cost
	for _, n := range counts {
		if last, err = f.turn(ctx, n); err != nil {
			return fmt.Errorf("%d containers: %w", n, err)
		}
		for _, c := range last {
			fmt.Fprintf(w, "%d\t%s\t%.1f\t%.1f\t%.1f\t%.1f\n", n, c.what, c.calls(), c.per(c.wall.Seconds()), c.per(c.own), c.per(c.theirs))
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(out, "\nof each of %d containers:\n", counts[len(counts)-1])
	for _, c := range last {
		fmt.Fprintf(out, "%s: %s\n", c.what, c.methods())
	}
	return nil
}

// turn makes n containers, starts them, kills them and removes them.
func (f *fleet) turn(ctx context.Context, n int) ([]cost, error) {
	ids := make([]string, n)
	for i := range ids {
		f.made++
		ids[i] = fmt.Sprintf("%08x", f.made) + strings.Repeat("c0", 28)
	}
	machines := make([]containervm.Machine, n)
	var costs []cost
	for _, step := range []struct {
		what string
		do   func(i int) error
	}{
		{"create", func(i int) error { return f.CreateContainer(ctx, ids[i], "box", f.image.ID) }},
		{"start", func(i int) (err error) {
			machines[i], err = f.start(ctx, ids[i])
			return err
		}},
		{"kill", func(i int) error {
			if err := machines[i].Kill(); err != nil {
				return err
			}
			<-machines[i].Done()
			return machines[i].Close()
		}},
		{"remove", func(i int) error { return f.RemoveContainer(ids[i]) }},
	} {
		c, err := f.measure(step.what, n, step.do)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", step.what, err)
		}
		costs = append(costs, c)
	}
	return costs, nil
}

// start starts the VM of a container.
func (f *fleet) start(ctx context.Context, id string) (containervm.Machine, error) {
	conf := wire.Config{ID: id, Token: "secret", Args: []string{"/bin/true"}, Root: wire.Root{Serial: "root"}, Seed: []byte("seed"), Time: 1}
	text, err := conf.Strings()
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(f.store.Dir(), "containers", id)
	return f.Start(ctx, containervm.VM{ID: id, Dir: dir, Config: text, Memory: containervm.DefaultMemory, CPUs: 1, DiskSerial: "root", Boot: containervm.Boot{ISO: f.iso},
		NICs: []containervm.NIC{{End: "net0", MAC: "02:42:0a:" + id[2:4] + ":" + id[4:6] + ":" + id[6:8]}},
		Log:  filepath.Join(dir, "output.log"), Console: filepath.Join(dir, "console.log")})
}

// measure does something for each of n containers.
func (f *fleet) measure(what string, n int, do func(i int) error) (cost, error) {
	c := cost{what: what, n: n}
	before := f.calls.all()
	own, theirs, err := cpuOf(f.sim)
	if err != nil {
		return c, err
	}
	began := time.Now()
	var g errgroup.Group
	g.SetLimit(atOnce)
	for i := range n {
		g.Go(func() error { return do(i) })
	}
	if err := g.Wait(); err != nil {
		return c, err
	}
	c.wall = time.Since(began)
	ownAfter, theirsAfter, err := cpuOf(f.sim)
	c.own, c.theirs = ownAfter-own, theirsAfter-theirs
	c.names = f.calls.all()
	for name, k := range before {
		c.names[name] -= k
	}
	return c, err
}

// A cost is what one step took for all containers.
type cost struct {
	what        string
	n           int
	wall        time.Duration
	own, theirs float64 // seconds of processors
	names       map[string]int
}

// per is how many milliseconds of some seconds each container has.
func (c cost) per(seconds float64) float64 { return seconds * 1000 / float64(c.n) }

// calls is how many each container took, requests for files included.
func (c cost) calls() float64 {
	all := 0
	for _, k := range c.names {
		all += k
	}
	return float64(all) / float64(c.n)
}

// methods tells which these were.
func (c cost) methods() string {
	var text []string
	for _, name := range slices.Sorted(maps.Keys(c.names)) {
		if k := c.names[name]; k > 0 {
			text = append(text, fmt.Sprintf("%s %.2g", name, float64(k)/float64(c.n)))
		}
	}
	return strings.Join(text, ", ")
}

// calls counts what a session asks its server.
type calls struct {
	soap soap.RoundTripper
	http http.RoundTripper

	mu    sync.Mutex
	names map[string]int
}

// countCalls counts from now on. Nobody may use the session meanwhile.
func countCalls(s *datastore.Session) *calls {
	client := s.Client()
	c := &calls{soap: client.RoundTripper, http: client.Client.Client.Transport, names: map[string]int{}}
	client.RoundTripper, client.Client.Client.Transport = c, files{c}
	return c
}

func (c *calls) all() map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.names)
}

func (c *calls) count(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.names[name]++
}

// RoundTrip implements soap.RoundTripper.
func (c *calls) RoundTrip(ctx context.Context, req, res soap.HasFault) error {
	c.count(strings.TrimSuffix(reflect.TypeOf(req).Elem().Name(), "Body"))
	return c.soap.RoundTrip(ctx, req, res)
}

// files is calls, as an http.RoundTripper that counts requests for files.
type files struct{ *calls }

// RoundTrip implements http.RoundTripper.
func (f files) RoundTrip(req *http.Request) (*http.Response, error) {
	if strings.HasPrefix(req.URL.Path, "/folder") {
		f.count(req.Method + " file")
	}
	return f.http.RoundTrip(req)
}

// silent are serial ports that nobody is at.
type silent struct{}

// Dial implements vsphere.Ports.
func (silent) Dial(ctx context.Context, _, _ string) (net.Conn, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}
