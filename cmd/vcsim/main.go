// Command vcsim is a simulated vSphere, as a process: a vCenter or an ESXi host whose datastores are folders of this machine and whose VMs
// run in QEMU. It is for tests and for those who develop; see package bench/vcsim.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/url"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"vic/bench/vcsim"
	"vic/bench/vcsim/bridge"
)

const usage = `usage: vcsim [flags]

Runs a simulated vSphere until it is interrupted. It prints where it is and then nothing:
the URL, the certificate's thumbprint, and the folder of each datastore.

flags:
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	switch err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); {
	case errors.Is(err, flag.ErrHelp):
	case errors.Is(err, errUsage):
		os.Exit(2)
	case err != nil:
		fmt.Fprintln(os.Stderr, "vcsim:", err)
		os.Exit(1)
	}
}

// errUsage is a mistake in the command line, which has been told.
var errUsage = errors.New("usage")

// options are the command line's.
type options struct {
	vcsim.Options
	networks map[string]string
	idle     bool
	json     bool
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	o, err := parse(args, stderr)
	if err != nil {
		return err
	}
	s, err := vcsim.Start(ctx, o.Options)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	if !o.idle {
		b, err := bridge.Attach(s, bridge.Options{Networks: o.networks, Log: slog.New(slog.NewTextHandler(stderr, nil))})
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, b.Close()) }()
	}
	if err := show(stdout, s, o); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

func parse(args []string, stderr io.Writer) (o options, err error) {
	f := flag.NewFlagSet("vcsim", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.Usage = func() {
		fmt.Fprint(stderr, usage)
		f.PrintDefaults()
	}
	o.networks = map[string]string{}
	o.User = url.UserPassword("administrator", "vic")
	f.BoolVar(&o.ESX, "esx", false, "be one ESXi host instead of a vCenter")
	f.IntVar(&o.Hosts, "hosts", 0, "`number` of hosts of the vCenter's cluster; 0 means 2")
	f.StringVar(&o.Address, "listen", "127.0.0.1:0", "`address` to listen at")
	f.BoolVar(&o.Plain, "plain", false, "speak HTTP instead of HTTPS")
	f.DurationVar(&o.Idle, "session", 0, "`time` after which an idle session ends; 0 means never")
	f.BoolVar(&o.idle, "no-qemu", false, "let VMs not run")
	f.BoolVar(&o.json, "json", false, "print JSON")
	f.Func("user", "`NAME:PASSWORD` of who may log in; administrator:vic without", func(text string) error {
		name, password, ok := strings.Cut(text, ":")
		if !ok || name == "" || password == "" {
			return errors.New("not NAME:PASSWORD")
		}
		o.User = url.UserPassword(name, password)
		return nil
	})
	f.Func("datastore", "`NAME=DIR[,TYPE]`, a datastore; TYPE is VMFS5, VMFS6, NFS or vsan (several)", func(text string) error {
		name, rest, ok := strings.Cut(text, "=")
		dir, kind, _ := strings.Cut(rest, ",")
		if !ok || name == "" || dir == "" {
			return errors.New("not NAME=DIR")
		}
		o.Datastores = append(o.Datastores, vcsim.Datastore{Name: name, Dir: dir, Type: kind})
		return nil
	})
	list := func(to *[]string) func(string) error {
		return func(text string) error {
			if text == "" {
				return errors.New("no name")
			}
			*to = append(*to, text)
			return nil
		}
	}
	f.Func("portgroup", "`NAME` of a port group, beside VM Network (several)", list(&o.PortGroups))
	f.Func("dvportgroup", "`NAME` of a distributed port group (several)", list(&o.Switched))
	f.Func("pool", "`NAME` of a resource pool (several)", list(&o.Pools))
	f.Func("network", "`NAME=SOCKET`: the VMs' interfaces on that network connect to the unix socket of a switch (several)", func(text string) error {
		name, socket, ok := strings.Cut(text, "=")
		if !ok || name == "" || socket == "" {
			return errors.New("not NAME=SOCKET")
		}
		o.networks[name] = socket
		return nil
	})
	if err := f.Parse(args); errors.Is(err, flag.ErrHelp) {
		return o, err
	} else if err != nil {
		return o, errUsage
	}
	if f.NArg() > 0 {
		fmt.Fprintf(stderr, "vcsim: there are no arguments beside flags, but %q\n", f.Args())
		return o, errUsage
	}
	return o, nil
}

// show prints where everything is.
func show(w io.Writer, s *vcsim.Server, o options) error {
	folders := s.Folders()
	if o.json {
		return json.NewEncoder(w).Encode(struct {
			URL        string            `json:"url"`
			Thumbprint string            `json:"thumbprint,omitempty"`
			Datastores map[string]string `json:"datastores"`
		}{s.URL().String(), s.Thumbprint(), folders})
	}
	fmt.Fprintf(w, "URL         %s\n", s.URL())
	if t := s.Thumbprint(); t != "" {
		fmt.Fprintf(w, "thumbprint  %s\n", t)
	}
	for _, name := range slices.Sorted(maps.Keys(folders)) {
		if _, err := fmt.Fprintf(w, "datastore   %s  %s\n", name, folders[name]); err != nil {
			return err
		}
	}
	return nil
}
