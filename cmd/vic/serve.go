package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"vic/api"
	"vic/containervm"
	"vic/containervm/boot"
	"vic/containervm/network"
	"vic/containervm/qemu"
	"vic/layerstore"
)

// serveFlags are what vic serve is told.
type serveFlags struct {
	store       string
	listen      listenPlan
	insecure    []string
	guest       guestFlags
	accel       string
	qemu        string
	hostGateway string
	debug       bool
}

func serveCommand() *cobra.Command {
	var f serveFlags
	cmd := &cobra.Command{
		Use:   "serve --store DIR",
		Short: "Run the virtual container host: the Docker API over a store and QEMU",
		Long: `Serve the Docker API. Each container is a virtual machine of its own, whose root disk is a delta over
its image's chain of VMDKs in the store.

Container VMs run on when this process ends, and are found again when it starts on the same store.
SIGINT and SIGTERM end it.

On TCP, certificates are needed on both sides (--tls-cert, --tls-key, --tls-ca), except on loopback
addresses or with --no-tls.`,
		Example: `  vic serve --store /var/lib/vic
  docker -H unix:///run/vic.sock run --rm -it alpine`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return serve(cmd.Context(), cmd, f) },
	}
	storeFlag(cmd, &f.store)
	insecureFlag(cmd, &f.insecure)
	f.guest.add(cmd)
	fl := cmd.Flags()
	fl.StringArrayVar(&f.listen.addresses, "listen", []string{"unix:///run/vic.sock"}, "`ADDRESS` to serve on, unix:///PATH or tcp://HOST:PORT (may be given several times)")
	fl.BoolVar(&f.listen.noTLS, "no-tls", false, "serve on any TCP address without certificates: whoever reaches it controls this host's containers")
	fl.StringVar(&f.listen.cert, "tls-cert", "", "`file` of the server's certificate, PEM")
	fl.StringVar(&f.listen.key, "tls-key", "", "`file` of its private key, PEM")
	fl.StringVar(&f.listen.ca, "tls-ca", "", "`file` of the authorities whose certificates clients must have, PEM")
	fl.StringVar(&f.accel, "accel", "", "`kvm` or tcg (emulation); default KVM if a virtual machine is seen to boot with it")
	fl.StringVar(&f.qemu, "qemu", "", "`file` of QEMU; default qemu-system-x86_64 in $PATH")
	fl.StringVar(&f.hostGateway, "host-gateway", "", "`IP` address of this machine that containers reach at their gateway; default none of its own services")
	fl.BoolVar(&f.debug, "debug", false, "log every request")
	return cmd
}

// serve runs the host until ctx ends.
func serve(ctx context.Context, cmd *cobra.Command, f serveFlags) (err error) {
	addresses, err := f.listen.check()
	if err != nil {
		return err
	}
	level := slog.LevelInfo
	if f.debug {
		level = slog.LevelDebug
	}
	log := logger(cmd, level)
	h, err := openHost(ctx, f, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, h.close()) }()
	server := api.New(api.Options{Store: h.store, Containers: h.containers, Registry: newRegistry(f.insecure), Host: h.facts, Log: log})
	var listeners []net.Listener
	for _, a := range addresses {
		l, err := f.listen.listen(a)
		if err != nil {
			closeAll(listeners)
			server.Close()
			return err
		}
		listeners = append(listeners, l)
	}
	return serveHTTP(ctx, server, listeners, log)
}

func closeAll(listeners []net.Listener) {
	for _, l := range listeners {
		l.Close()
	}
}

const (
	// headerTimeout is how long a client may take to say what it wants.
	headerTimeout = time.Minute
	// shutdownTimeout is how long requests may take to end once the server is to.
	shutdownTimeout = 20 * time.Second
)

// serveHTTP serves until ctx ends or a listener fails. Then what follows something, pulls and waits
// are cut short, and what is being done to a container is finished.
func serveHTTP(ctx context.Context, handler *api.Server, listeners []net.Listener, log *slog.Logger) error {
	requests, cancel := context.WithCancel(context.Background())
	defer cancel()
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true) // a connection of HTTP/2 cannot be taken over
	srv := &http.Server{
		Handler:           handler,
		BaseContext:       func(net.Listener) context.Context { return requests },
		ReadHeaderTimeout: headerTimeout,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		Protocols:         protocols,
	}
	failed := make(chan error, len(listeners))
	for _, l := range listeners {
		go func() { failed <- srv.Serve(l) }()
		log.Info("serving the Docker API", "address", l.Addr().Network()+"://"+addrOf(l))
	}
	running := len(listeners)
	var err error
	select {
	case <-ctx.Done():
		log.Info("shutting down; containers run on")
	case err = <-failed:
		running--
	}
	cancel()
	stop, cancelStop := context.WithTimeout(context.Background(), shutdownTimeout)
	defer cancelStop()
	err = errors.Join(err, srv.Shutdown(stop))
	for range running {
		if e := <-failed; !errors.Is(e, http.ErrServerClosed) {
			err = errors.Join(err, e)
		}
	}
	done := make(chan struct{})
	go func() {
		handler.Close()
		close(done)
	}()
	select {
	case <-done:
	case <-stop.Done():
		log.Warn("requests did not end in time")
	}
	return err
}

// addrOf is where a listener is reached.
func addrOf(l net.Listener) string {
	if u, ok := l.(*unixListener); ok {
		return u.path
	}
	return l.Addr().String()
}

// A host is the parts behind the API.
type host struct {
	store      *layerstore.Store
	network    *network.Network
	containers *containervm.Manager
	facts      api.Host
}

// openHost puts the parts together, bottom first.
func openHost(ctx context.Context, f serveFlags, log *slog.Logger) (_ *host, err error) {
	if f.accel != "" && f.accel != qemu.KVM && f.accel != qemu.TCG {
		return nil, usageErrorf("--accel %s: use %s or %s", f.accel, qemu.KVM, qemu.TCG)
	}
	var gateway netip.Addr
	if f.hostGateway != "" {
		if gateway, err = netip.ParseAddr(f.hostGateway); err != nil {
			return nil, usageErrorf("--host-gateway: %w", err)
		}
	}
	guest, err := f.guest.options()
	if err != nil {
		return nil, err
	}
	h := new(host)
	defer func() {
		if err != nil {
			err = errors.Join(err, h.close())
		}
	}()
	if h.store, err = layerstore.Open(f.store, layerstore.Options{Log: log}); err != nil {
		return nil, fmt.Errorf("open store %s: %w", f.store, err)
	}
	state := filepath.Join(h.store.Dir(), "boot")
	m, err := boot.Build(ctx, state, guest)
	if err != nil {
		return nil, fmt.Errorf("build what container VMs boot: %w", err)
	}
	driver := &qemu.Driver{Binary: f.qemu, Accel: f.accel, Cache: filepath.Join(state, "platform.json"), Log: log}
	platform, err := driver.Platform(ctx, m.Kernel)
	if err != nil {
		return nil, fmt.Errorf("look at QEMU: %w", err)
	}
	if h.network, err = network.New(network.Options{State: filepath.Join(state, "network.json"), HostGateway: gateway, Log: log}); err != nil {
		return nil, err
	}
	h.containers, err = containervm.Open(ctx, containervm.Options{
		Store: h.store.Dir(), Disks: h.store, Hypervisor: driver, Boot: medium{m}, Network: h.network, Log: log,
	})
	if err != nil {
		return nil, fmt.Errorf("open containers: %w", err)
	}
	h.facts, err = factsOf(m, platform, h.network.Info(), f.insecure)
	return h, err
}

// factsOf is what the API tells of this machine.
func factsOf(m *boot.Medium, p qemu.Platform, n containervm.NetworkInfo, insecure []string) (api.Host, error) {
	b := thisBuild()
	name, err := os.Hostname()
	if err != nil {
		return api.Host{}, err
	}
	var si unix.Sysinfo_t
	if err := unix.Sysinfo(&si); err != nil {
		return api.Host{}, fmt.Errorf("read the machine's memory size: %w", err)
	}
	return api.Host{
		Version: b.version, GitCommit: b.commit, BuildTime: b.time,
		Name:       name,
		Kernel:     m.Version,
		Hypervisor: fmt.Sprintf("QEMU, %s, %s", p.Machine, p.Accel),
		Memory:     int64(si.Totalram) * int64(si.Unit),
		Network:    n,
		Insecure:   insecure,
	}, nil
}

// close lets go of the parts, top first. Container VMs run on.
func (h *host) close() error {
	var err error
	if h.containers != nil {
		err = errors.Join(err, h.containers.Close())
	}
	if h.network != nil {
		err = errors.Join(err, h.network.Close())
	}
	if h.store != nil {
		err = errors.Join(err, h.store.Close())
	}
	return err
}
