package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"sync"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
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
	noTemplates bool
	noSpare     bool
	hostGateway string
	metricsAddr string
	logLevel    string
	logFormat   string
}

func serveCommand() *cobra.Command {
	var f serveFlags
	cmd := &cobra.Command{
		Use:   "serve --store DIR",
		Short: "Run the virtual container host: the Docker API over a store and QEMU",
		Long: `Serve the Docker API. Each container is a virtual machine of its own, whose root disk is a delta over
its image's chain of VMDKs in the store.

Container VMs run on when this process ends, and are found again when it starts on the same store.
SIGINT and SIGTERM end it. SIGHUP makes it read its certificates again.

On TCP, certificates are needed on both sides (--tlsverify; vic certs makes them), except on loopback
addresses or with --open-tcp. Files that are not named are ca.pem, cert.pem and key.pem in
$DOCKER_CERT_PATH, or else in ~/.docker.`,
		Example: `  vic serve --store /var/lib/vic
  docker -H unix:///run/vic.sock run --rm -it alpine`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return serve(cmd.Context(), cmd, f) },
	}
	storeFlag(cmd, &f.store)
	insecureFlag(cmd, &f.insecure)
	f.guest.add(cmd)
	fl := cmd.Flags()
	fl.StringArrayVarP(&f.listen.addresses, "host", "H", []string{"unix:///run/vic.sock"}, "`ADDRESS` to serve on, unix:///PATH or tcp://HOST:PORT (may be given several times; --listen is the same)")
	fl.SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		if name == "listen" {
			name = "host"
		}
		return pflag.NormalizedName(name)
	})
	fl.BoolVar(&f.listen.tls, "tls", false, "use TLS on TCP, without asking clients for certificates")
	fl.BoolVar(&f.listen.verify, "tlsverify", false, "use TLS on TCP, and let in only clients with a certificate")
	fl.StringVar(&f.listen.files.ca, "tlscacert", "", "`file` of the authorities whose certificates clients must have, PEM")
	fl.StringVar(&f.listen.files.cert, "tlscert", "", "`file` of the server's certificate, PEM")
	fl.StringVar(&f.listen.files.key, "tlskey", "", "`file` of its private key, PEM")
	fl.BoolVar(&f.listen.open, "open-tcp", false, "let anybody in who reaches a TCP address, without a certificate: they control this host's containers")
	fl.StringVar(&f.metricsAddr, "metrics-addr", "", "`HOST:PORT` of /metrics for Prometheus; default none")
	fl.StringVar(&f.logLevel, "log-level", "info", "least `LEVEL` to log: debug (every request), info, warn or error")
	fl.StringVar(&f.logFormat, "log-format", "text", "`FORMAT` of the log: text or json")
	fl.StringVar(&f.accel, "accel", "", "`kvm` or tcg (emulation); default KVM if a virtual machine is seen to boot with it")
	fl.StringVar(&f.qemu, "qemu", "", "`file` of QEMU; default qemu-system-x86_64 in $PATH")
	fl.BoolVar(&f.noSpare, "no-spare", false, "keep no container VM ready; by default one like the last runs without a container, and the next starts in it")
	fl.BoolVar(&f.noTemplates, "no-templates", false, "boot every container VM; by default most begin as copies of one that has booted, and share what they do not change of its memory")
	fl.StringVar(&f.hostGateway, "host-gateway", "", "`IP` address of this machine that containers reach at their gateway; default none of its own services")
	return cmd
}

// serve runs the host until ctx ends.
func serve(ctx context.Context, cmd *cobra.Command, f serveFlags) (err error) {
	addresses, err := f.listen.check()
	if err != nil {
		return err
	}
	log, err := newLog(cmd.ErrOrStderr(), f.logLevel, f.logFormat)
	if err != nil {
		return err
	}
	certs, err := openCertificates(f.listen)
	if err != nil {
		return err
	}
	h, err := openHost(ctx, f, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, h.close()) }()
	metrics := newMetrics()
	server := api.New(api.Options{
		Store: h.store, Containers: h.containers, Registry: newRegistry(f.insecure), Host: h.facts, Metrics: metrics, Log: log,
	})
	var listeners []net.Listener
	fail := func(err error) error {
		closeAll(listeners)
		server.Close()
		return err
	}
	for _, a := range addresses {
		l, err := a.listen(certs)
		if err != nil {
			return fail(err)
		}
		listeners = append(listeners, l)
	}
	if f.metricsAddr != "" {
		stop, err := serveMetrics(f.metricsAddr, metrics, log)
		if err != nil {
			return fail(err)
		}
		defer stop()
	}
	defer onHangup(certs, log)()
	if err := notifyReady(); err != nil {
		log.Warn("tell that the API is served", "error", err)
	}
	return serveHTTP(ctx, server, listeners, log)
}

// onHangup reads the certificates again at each SIGHUP, until the function it returns is called.
func onHangup(certs *certificates, log *slog.Logger) (stop func()) {
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, unix.SIGHUP)
	var wg sync.WaitGroup
	wg.Go(func() {
		for range hangup {
			if certs == nil {
				log.Info("SIGHUP: there are no certificates to read again")
			} else if err := certs.read(); err != nil {
				log.Error("certificates not read again: those before stay", "error", err)
			} else {
				log.Info("certificates read again")
			}
		}
	})
	return func() {
		signal.Stop(hangup)
		close(hangup)
		wg.Wait()
	}
}

// A host is the parts behind the API.
type host struct {
	store      *layerstore.Store
	driver     *qemu.Driver
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
	if !f.noTemplates {
		driver.Templates = filepath.Join(state, "templates")
		driver.Spare = !f.noSpare
	}
	h.driver = driver
	platform, err := driver.Platform(ctx, m.Kernel)
	if err != nil {
		return nil, fmt.Errorf("look at QEMU: %w", err)
	}
	h.containers, err = containervm.Open(ctx, containervm.Options{
		Store: h.store.Dir(), Disks: h.store, Volumes: h.store, Hypervisor: driver, Boot: medium{m},
		Networks: network.New(network.Options{HostGateway: gateway, Log: log}), Log: log,
	})
	if err != nil {
		return nil, fmt.Errorf("open containers: %w", err)
	}
	h.facts, err = factsOf(m, platform, f.insecure)
	h.facts.Templates, h.facts.Spares = driver.Ready, driver.Spares
	return h, err
}

// factsOf is what the API tells of this machine.
func factsOf(m *boot.Medium, p qemu.Platform, insecure []string) (api.Host, error) {
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
		Insecure:   insecure,
	}, nil
}

// close lets go of the parts, top first. Container VMs run on.
func (h *host) close() error {
	var err error
	if h.containers != nil {
		err = errors.Join(err, h.containers.Close())
	}
	if h.driver != nil {
		err = errors.Join(err, h.driver.Close())
	}
	if h.store != nil {
		err = errors.Join(err, h.store.Close())
	}
	return err
}
