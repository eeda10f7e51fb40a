package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"vic/api"
	"vic/containervm"
	"vic/containervm/boot"
	"vic/containervm/network"
	"vic/containervm/qemu"
	"vic/layerstore"
)

// What runs container VMs.
const (
	qemuDriver    = "qemu"
	vsphereDriver = "vsphere"
)

// checkDriver refuses flags that the driver has no use for, or cannot work with, and reads the others.
func (f *serveFlags) checkDriver(flags *pflag.FlagSet) error {
	names := map[string][]string{qemuDriver: f.qemu.names, vsphereDriver: f.vsphere.names}
	if names[f.driver] == nil {
		return usageErrorf("--driver %s: use %s or %s", f.driver, qemuDriver, vsphereDriver)
	}
	var err error
	for driver, names := range names {
		if driver == f.driver {
			continue
		}
		flags.Visit(func(fl *pflag.Flag) {
			if slices.Contains(names, fl.Name) {
				err = errors.Join(err, usageErrorf("--%s is of no use with --driver %s", fl.Name, f.driver))
			}
		})
	}
	if q := f.qemu; q.accel != "" && q.accel != qemu.KVM && q.accel != qemu.TCG {
		err = errors.Join(err, usageErrorf("--accel %s: use %s or %s", q.accel, qemu.KVM, qemu.TCG))
	}
	if f.driver == vsphereDriver {
		var vErr error
		f.vsphere.settings, vErr = f.vsphere.parse()
		err = errors.Join(err, vErr)
	}
	return err
}

// named calls add and returns the names of the flags that it has added.
func named(fl *pflag.FlagSet, add func()) []string {
	before := map[string]bool{}
	fl.VisitAll(func(f *pflag.Flag) { before[f.Name] = true })
	add()
	var names []string
	fl.VisitAll(func(f *pflag.Flag) {
		if !before[f.Name] {
			names = append(names, f.Name)
		}
	})
	return names
}

// qemuFlags are what vic serve is told of QEMU.
type qemuFlags struct {
	accel       string
	binary      string
	noTemplates bool
	noSpare     bool

	names []string // of the flags
}

func (q *qemuFlags) add(cmd *cobra.Command) {
	fl := cmd.Flags()
	q.names = named(fl, func() {
		fl.StringVar(&q.accel, "accel", "", "`kvm` or tcg (emulation); default KVM if a virtual machine is seen to boot with it")
		fl.StringVar(&q.binary, "qemu", "", "`file` of QEMU; default qemu-system-x86_64 in $PATH")
		fl.BoolVar(&q.noSpare, "no-spare", false, "keep no container VM ready; by default one like the last runs without a container, and the next starts in it")
		fl.BoolVar(&q.noTemplates, "no-templates", false, "boot every container VM; by default most begin as copies of one that has booted, and share what they do not change of its memory")
	})
}

// A host is the parts behind the API.
type host struct {
	store      *layerstore.Store
	containers *containervm.Manager
	facts      api.Host

	closers []func() error // of the parts, bottom first
}

// openHost puts the parts together, bottom first.
func openHost(ctx context.Context, f serveFlags, log *slog.Logger) (_ *host, err error) {
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
	networks := network.Options{HostGateway: gateway, Log: log}
	if f.driver == vsphereDriver {
		return h, h.openVSphere(ctx, f, guest, networks, log)
	}
	return h, h.openQEMU(ctx, f, guest, networks, log)
}

func (h *host) openQEMU(ctx context.Context, f serveFlags, guest boot.Options, networks network.Options, log *slog.Logger) (err error) {
	q := f.qemu
	if h.store, err = layerstore.Open(f.store, layerstore.Options{Log: log}); err != nil {
		return fmt.Errorf("open store %s: %w", f.store, err)
	}
	h.closers = append(h.closers, h.store.Close)
	m, state, err := h.buildMedium(ctx, guest)
	if err != nil {
		return err
	}
	driver := &qemu.Driver{Binary: q.binary, Accel: q.accel, Cache: filepath.Join(state, "platform.json"), Log: log}
	if !q.noTemplates {
		driver.Templates = filepath.Join(state, "templates")
		driver.Spare = !q.noSpare
	}
	h.closers = append(h.closers, driver.Close)
	platform, err := driver.Platform(ctx, m.Kernel)
	if err != nil {
		return fmt.Errorf("look at QEMU: %w", err)
	}
	h.containers, err = containervm.Open(ctx, containervm.Options{
		Store: h.store.Dir(), Disks: h.store, Volumes: h.store, Hypervisor: driver, Boot: medium{m, ""}, Networks: network.New(networks), Quota: f.quota.quota, Log: log,
	})
	if err != nil {
		return fmt.Errorf("open containers: %w", err)
	}
	h.closers = append(h.closers, h.containers.Close)
	h.facts, err = factsOf(m, fmt.Sprintf("QEMU, %s, %s", platform.Machine, platform.Accel), f.insecure)
	h.facts.Templates, h.facts.Spares = driver.Ready, driver.Spares
	return err
}

// buildMedium builds what container VMs boot, in the folder state of the store.
func (h *host) buildMedium(ctx context.Context, guest boot.Options) (m *boot.Medium, state string, err error) {
	state = filepath.Join(h.store.Dir(), "boot")
	if m, err = boot.Build(ctx, state, guest); err != nil {
		return nil, "", fmt.Errorf("build what container VMs boot: %w", err)
	}
	return m, state, nil
}

// factsOf is what the API tells of this machine.
func factsOf(m *boot.Medium, hypervisor string, insecure []string) (api.Host, error) {
	b := thisBuild()
	name, err := os.Hostname()
	if err != nil {
		return api.Host{}, err
	}
	return api.Host{
		Version: b.version, GitCommit: b.commit, BuildTime: b.time,
		Name:       name,
		Kernel:     m.Version,
		Hypervisor: hypervisor,
		Insecure:   insecure,
	}, nil
}

// close lets go of the parts, top first. Container VMs run on.
func (h *host) close() error {
	var err error
	for _, c := range slices.Backward(h.closers) {
		err = errors.Join(err, c())
	}
	return err
}
