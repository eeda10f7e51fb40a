package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"sync"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"vic/api"
	"vic/fetch"
)

// serveFlags are what vic serve is told.
type serveFlags struct {
	store       string
	listen      listenPlan
	insecure    []string
	whitelist   []string
	driver      string
	guest       guestFlags
	qemu        qemuFlags
	vsphere     vsphereFlags
	quota       quotaFlags
	hostGateway string
	metricsAddr string
	logLevel    string
	logFormat   string
}

func serveCommand() *cobra.Command {
	var f serveFlags
	cmd := &cobra.Command{
		Use:   "serve --store DIR",
		Short: "Run the virtual container host: the Docker API over a store and QEMU or vSphere",
		Long: `Serve the Docker API. Each container is a virtual machine of its own, whose root disk is a delta over
its image's chain of VMDKs in the store.

Container VMs run on when this process ends, and are found again when it starts on the same store.
SIGINT and SIGTERM end it. SIGHUP makes it read its certificates again.

With --driver vsphere the virtual machines are vSphere's, in a resource pool, and their disks are on its
datastores; the store here keeps what was pulled. vic-machine installs this as an appliance.

On TCP, certificates are needed on both sides (--tlsverify; vic certs makes them), except on loopback
addresses or with --open-tcp. Files that are not named are ca.pem, cert.pem and key.pem in
$DOCKER_CERT_PATH, or else in ~/.docker.`,
		Example: `  vic serve --store /var/lib/vic
  docker -H unix:///run/vic.sock run --rm -it alpine

  VIC_PASSWORD=... vic serve --store /var/lib/vic --driver vsphere --name vch1 \
    --target vcenter.example.com --thumbprint 1A:2B:... --user vic@vsphere.local \
    --compute-resource /DC/host/Cluster/Resources/vch1 --image-store datastore1/vic \
    --bridge-network vch1-bridge --bridge-interface eth1 --serial-address tcp://10.0.0.5:2377`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return serve(cmd.Context(), cmd, f) },
	}
	storeFlag(cmd, &f.store)
	insecureFlag(cmd, &f.insecure)
	cmd.Flags().StringArrayVar(&f.whitelist, "whitelist-registry", nil, "the only registries to pull from and to push to, `REGISTRY`: HOST[:PORT], *.DOMAIN[:PORT] or CIDR (may be given several times); default all")
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
	fl.StringVar(&f.driver, "driver", qemuDriver, "what runs container VMs: `qemu` or vsphere")
	f.qemu.add(cmd)
	f.vsphere.add(cmd)
	f.quota.add(cmd)
	fl.StringVar(&f.hostGateway, "host-gateway", "", "`IP` address of this machine that containers reach at their gateway; default none of its own services")
	return cmd
}

// serve runs the host until ctx ends.
func serve(ctx context.Context, cmd *cobra.Command, f serveFlags) (err error) {
	if err := f.checkDriver(cmd.Flags()); err != nil {
		return err
	}
	if err := f.quota.parse(); err != nil {
		return err
	}
	if err := fetch.CheckWhitelist(f.whitelist); err != nil {
		return usageErrorf("--whitelist-registry: %w", err)
	}
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
	h.facts.Whitelist = f.whitelist
	registry := newRegistry(f.insecure)
	registry.Whitelist = f.whitelist
	metrics := newMetrics()
	server := api.New(api.Options{
		Store: h.store, Containers: h.containers, Registry: registry, Host: h.facts, Metrics: metrics, Log: log,
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
