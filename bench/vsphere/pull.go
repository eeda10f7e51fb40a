package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"vic/bench"
	"vic/fetch/archive"
	"vic/layerstore"
	datastore "vic/layerstore/vsphere"
)

// A comparison is what the turns have in common, and what they came to.
type comparison struct {
	work    string
	image   *archive.Archive
	sim     *simulator
	session *datastore.Session
	format  datastore.Encoding

	local, mirrored times
	sent            int64
	disks           int
}

// times are those of several pulls, in seconds: on the clock, and of processors.
type times struct{ wall, own, theirs []float64 }

// pulls pulls the image into a local store alone, and with the datastore, in turns, and prints how that compares.
func (b *comparison) pulls(ctx context.Context, runs int, out io.Writer) error {
	for turn := range runs {
		pulls := []func(context.Context, int) error{b.pullLocal, b.pullMirrored}
		if turn%2 == 1 {
			slices.Reverse(pulls)
		}
		for _, pull := range pulls {
			if err := pull(ctx, turn); err != nil {
				return err
			}
		}
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "pull of an OCI layout\tmedian, s\tbest\tCPU, s\tsimulator's, s")
	for _, k := range []struct {
		name string
		*times
	}{{"local store", &b.local}, {"and datastore", &b.mirrored}} {
		fmt.Fprintf(w, "%s\t%.2f\t%.2f\t%.2f\t%.2f\n", k.name, bench.Median(k.wall), slices.Min(k.wall), bench.Median(k.own), bench.Median(k.theirs))
	}
	fmt.Fprintf(w, "ratio\t%.2f\t%.2f\t%.2f\n", bench.Median(b.mirrored.wall)/bench.Median(b.local.wall), slices.Min(b.mirrored.wall)/slices.Min(b.local.wall),
		bench.Median(b.mirrored.own)/bench.Median(b.local.own))
	fmt.Fprintf(w, "sent\t%d MB in %d disks\n", b.sent/1e6, b.disks)
	return w.Flush()
}

func (b *comparison) pullLocal(ctx context.Context, turn int) error {
	_, err := b.pull(ctx, filepath.Join(b.work, fmt.Sprintf("local-%d", turn)), nil, &b.local)
	return err
}

func (b *comparison) pullMirrored(ctx context.Context, turn int) (err error) {
	folder := fmt.Sprintf("turn-%d", turn)
	all, err := b.session.OpenDatastore(ctx, "", datastoreName, "bench")
	if err != nil {
		return err
	}
	d, err := b.session.OpenDatastore(ctx, "", datastoreName, path.Join("bench", folder))
	if err != nil {
		return err
	}
	s, err := datastore.OpenStore(ctx, d, datastore.StoreOptions{VCH: "bench", Encoding: b.format})
	if err != nil {
		return err
	}
	img, err := b.pull(ctx, filepath.Join(b.work, fmt.Sprintf("mirrored-%d", turn)), s, &b.mirrored)
	if err != nil {
		return err
	}
	b.disks, b.sent = 0, 0
	list, err := d.List(ctx, "disks")
	for _, e := range list {
		if ok, _ := filepath.Match("*-delta.vmdk", e.Name); ok {
			b.disks, b.sent = b.disks+1, b.sent+e.Size
		}
	}
	if err == nil && b.disks == 0 {
		err = fmt.Errorf("no disk of image %s is on the datastore", img.ID)
	}
	return errors.Join(err, all.Remove(ctx, folder))
}

// pull pulls the image into a new store, which it removes.
func (b *comparison) pull(ctx context.Context, dir string, mirror layerstore.Mirror, t *times) (img *layerstore.Image, err error) {
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	s, err := layerstore.Open(dir, layerstore.Options{Mirror: mirror})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	src, err := b.image.Entries()[0].Resolve(ctx, nil)
	if err != nil {
		return nil, err
	}
	began := time.Now()
	own, theirs, err := cpuOf(b.sim)
	if err != nil {
		return nil, err
	}
	img, err = s.Pull(ctx, src, nil, layerstore.PullOptions{})
	t.wall = append(t.wall, time.Since(began).Seconds())
	ownAfter, theirsAfter, cpuErr := cpuOf(b.sim)
	t.own, t.theirs = append(t.own, ownAfter-own), append(t.theirs, theirsAfter-theirs)
	return img, errors.Join(err, cpuErr)
}

// cpuOf is how many seconds of processors this program and the simulator have used.
func cpuOf(sim *simulator) (own, theirs float64, err error) {
	var r unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &r); err != nil {
		return 0, 0, err
	}
	theirs, err = sim.cpu()
	return float64(r.Utime.Nano()+r.Stime.Nano()) / 1e9, theirs, err
}
