// Command vsphere measures what a datastore costs a pull, and with -containers what a container costs vSphere. A simulated
// vCenter on this machine, a process of its own, has the datastore.
//
// An image is pulled from an OCI layout into a new store, once without a mirror and once with the datastore as one, in turns. Both
// include all syncs of the local store. The datastore is in memory, for on the disk of the local store it would share that
// disk's bandwidth, which datastores do not. That a datastore's host is another machine cannot be had here: so CPU time is
// printed as well, of the pulling program and of the simulator, which share the processors.
//
// Containers are made, started, killed and removed, sixteen at the same time, by the driver alone: their VMs are powered on and nothing
// boots in them. Calls are counted where they leave this program.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"vic/bench/corpus"
	"vic/fetch/archive"
	datastore "vic/layerstore/vsphere"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "vsphere:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) (err error) {
	flags := flag.NewFlagSet("vsphere", flag.ContinueOnError)
	runs := flags.Int("runs", 5, "turns")
	layout := flags.String("layout", "", "OCI layout with the image; default one of 8 layers is generated")
	folder := flags.String("datastore", "/dev/shm", "folder in which the datastore's is made")
	format := flags.String("format", string(datastore.VMFSSparse), "format of the disks: vmfsSparse or hosted")
	containers := flags.String("containers", "", "make, start and remove containers instead: their `NUMBERS`, such as 1,10,100,400")
	if err := flags.Parse(args); err != nil {
		return err
	}
	var counts []int
	if *containers != "" {
		if counts, err = parseCounts(*containers); err != nil {
			return err
		}
	}
	work, err := os.MkdirTemp("", "vic-vsphere-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	if *layout == "" {
		*layout = filepath.Join(work, "image")
		sizes, err := corpus.ParseSizes("lognormal:16KiB,2")
		if err != nil {
			return err
		}
		shape := corpus.Shape{Layers: 8, Files: 8000, Sizes: sizes, Compression: "gzip"}
		if counts != nil { // what containers are made of does not matter
			shape.Layers, shape.Files = 1, 100
		}
		if _, err := corpus.Write(ctx, *layout, shape); err != nil {
			return err
		}
	}
	a, err := archive.OpenFolder(*layout)
	if err != nil {
		return err
	}
	defer a.Close() // read only
	sim, err := startSimulator(ctx, work, *folder)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, sim.stop()) }()
	session, err := datastore.Connect(ctx, sim.endpoint())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, session.Close(context.WithoutCancel(ctx))) }()

	b := comparison{work: work, image: a, sim: sim, session: session, format: datastore.Encoding(*format)}
	if counts != nil {
		return b.containers(ctx, counts, out)
	}
	return b.pulls(ctx, *runs, out)
}
