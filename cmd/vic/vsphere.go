package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strings"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"vic/containervm"
	"vic/containervm/boot"
	"vic/containervm/network"
	"vic/containervm/vmname"
	"vic/containervm/vsphere"
	"vic/layerstore"
	datastore "vic/layerstore/vsphere"
)

// vsphereFlags are what vic serve is told of vSphere.
type vsphereFlags struct {
	siteFlags
	pool, folder               string
	name                       string
	imageStore, containerStore string
	volumeStores               []string
	encoding                   string
	bridge, bridgeInterface    string
	bridgeRange                string
	bridgeWidth                int
	convention                 string
	group                      string
	baseSize                   string
	serial, serialListen       string
	containerNetworks          containerNetworkFlags

	settings vsphereSettings // when parse has read the flags
	names    []string        // of the flags
}

func (v *vsphereFlags) add(cmd *cobra.Command) {
	fl := cmd.Flags()
	v.names = named(fl, func() {
		v.siteFlags.add(fl)
		fl.StringVar(&v.pool, "compute-resource", "", "inventory `path` of the resource pool for container VMs; default the only one")
		fl.StringVar(&v.folder, "vm-folder", "", "inventory `path` of the folder for container VMs; default the datacenter's")
		fl.StringVar(&v.name, "name", "virtual-container-host", "`name` of this virtual container host; no other on the same stores may have it")
		fl.StringVar(&v.imageStore, "image-store", "", "`DATASTORE[/FOLDER]` of the images' disks, which several hosts may share")
		fl.StringVar(&v.containerStore, "container-store", "", "`DATASTORE[/FOLDER]` of container VMs; default a folder with --name on the image store's datastore")
		fl.StringArrayVar(&v.volumeStores, "volume-store", nil, "`DATASTORE/FOLDER:LABEL` of volumes; docker volume create --opt VolumeStore=LABEL chooses, and \"default\" is for those that do not (may be given several times)")
		fl.StringVar(&v.encoding, "image-format", "", "`format` of the disks of an image store that is made: vmfsSparse, blockWriter, flattened, or hosted, which only simulated hosts take; default what suits the datastore")
		fl.StringVar(&v.bridge, "bridge-network", "", "`port group` of the networks that this host carries, such as bridge; without it there are none but container networks")
		fl.StringVar(&v.bridgeInterface, "bridge-interface", "", "`name` of this machine's network interface on that port group")
		fl.StringVar(&v.bridgeRange, "bridge-network-range", "172.16.0.0/12", "`CIDR` range of which bridge networks get subnets")
		fl.IntVar(&v.bridgeWidth, "bridge-network-width", 0, "`bits` of the prefixes that the range is divided into; default what makes sixteen of it")
		fl.StringVar(&v.convention, "container-name-convention", "", "what the VMs of containers are called, a `text` with {name} or {id} in it; default {name}-{id}")
		fl.StringVar(&v.group, "affinity-vm-group", "", "`name` of a DRS group of the cluster that the VMs of containers are made members of; default none")
		fl.StringVar(&v.baseSize, "base-image-size", "", "`size` of the root disks of containers, of an image store that is made; default 64GiB, or what the store there is has")
		v.containerNetworks.add(fl)
		fl.StringVar(&v.serial, "serial-address", "", "`tcp://HOST:PORT` where ESXi hosts reach this host, for the serial ports of VMs; HOST may be the name of a network interface")
		fl.StringVar(&v.serialListen, "serial-listen", "", "`HOST:PORT` to listen on for them; default all addresses of this machine, at the port of --serial-address")
	})
}

// vsphereSettings are what the flags say that is more than text.
type vsphereSettings struct {
	images, containers location
	volumes            map[string]location // by label
	bridges            netip.Prefix        // of what subnets are chosen
	external           []containervm.ContainerNetwork
	serialHost         string // of --serial-address: a host's or an interface's name, or an address
	serialPort         string
	capacity           int64 // of root disks, bytes; 0 is that of the store
}

// parse reads the flags. The error has all that is wrong with them.
func (v *vsphereFlags) parse() (set vsphereSettings, err error) {
	errs := []error{v.siteFlags.check("--driver vsphere")}
	for _, f := range []struct{ name, value string }{{"image-store", v.imageStore}, {"serial-address", v.serial}, {"name", v.name}} {
		if f.value == "" {
			errs = append(errs, usageErrorf("--driver vsphere needs --%s", f.name))
		}
	}
	if (v.bridge == "") != (v.bridgeInterface == "") {
		errs = append(errs, usageErrorf("--bridge-network and --bridge-interface are of no use without one another"))
	}
	if set.images, err = parseLocation("image-store", v.imageStore, imageFolder); v.imageStore != "" {
		errs = append(errs, err)
	}
	if set.containers = (location{set.images.datastore, v.name}); v.containerStore != "" {
		set.containers, err = parseLocation("container-store", v.containerStore, v.name)
		errs = append(errs, err)
	}
	set.volumes = map[string]location{}
	for _, text := range v.volumeStores {
		errs = append(errs, set.addVolumes(text))
	}
	if v.serial != "" {
		set.serialHost, set.serialPort, err = parseSerial(v.serial)
		errs = append(errs, err)
	}
	if set.bridges, err = netip.ParsePrefix(v.bridgeRange); err != nil {
		errs = append(errs, usageErrorf("--bridge-network-range: %w", err))
	} else if !set.bridges.Addr().Is4() || set.bridges.Bits() > maxRangeBits {
		errs = append(errs, usageErrorf("--bridge-network-range %s: it must be of IPv4 and have %d bits at most, for it is divided into sixteen", v.bridgeRange, maxRangeBits))
	}
	if w := v.bridgeWidth; w != 0 && (w < set.bridges.Bits() || w > network.MaxWidth) {
		errs = append(errs, usageErrorf("--bridge-network-width %d: it must be between the %d bits of the range and %d", w, set.bridges.Bits(), network.MaxWidth))
	}
	if err := vmname.Convention(v.convention).Check(); err != nil {
		errs = append(errs, usageErrorf("--container-name-convention: %w", err))
	}
	if v.baseSize != "" {
		if set.capacity, err = units.RAMInBytes(v.baseSize); err != nil || set.capacity <= 0 {
			errs = append(errs, usageErrorf("--base-image-size %s: it must be a size, such as 64GiB", v.baseSize))
		}
	}
	if set.external, err = v.containerNetworks.parse(); err != nil {
		errs = append(errs, usageErrorf("%w", err))
	}
	return set, errors.Join(errs...)
}

// maxRangeBits is the longest prefix of the range that bridge networks are taken from.
const maxRangeBits = 26

// A location is a folder on a datastore.
type location struct{ datastore, folder string }

// parseLocation reads a flag that has one. Folder is that of one that names none.
func parseLocation(flag, text, folder string) (location, error) {
	name, at, err := datastore.ParseLocation(text, folder)
	if err != nil {
		return location{}, usageErrorf("--%s: %w", flag, err)
	}
	return location{name, at}, nil
}

// open opens it on a session.
func (l location) open(ctx context.Context, session *datastore.Session, datacenter, flag string) (*datastore.Datastore, error) {
	d, err := session.OpenDatastore(ctx, datacenter, l.datastore, l.folder)
	if err != nil {
		return nil, fmt.Errorf("--%s: %w", flag, err)
	}
	return d, nil
}

// addVolumes reads a --volume-store.
func (set *vsphereSettings) addVolumes(text string) error {
	where, label, ok := cutLast(text, ":")
	name, folder, err := datastore.ParseLocation(where, "")
	if !ok || label == "" || err != nil || folder == "" {
		return usageErrorf("--volume-store %s: it must be DATASTORE/FOLDER:LABEL", text)
	}
	if _, twice := set.volumes[label]; twice {
		return usageErrorf("--volume-store: there are two of the label %s", label)
	}
	set.volumes[label] = location{name, folder}
	return nil
}

func (h *host) openVSphere(ctx context.Context, f serveFlags, guest boot.Options, networks network.Options, log *slog.Logger) (err error) {
	v, set := f.vsphere, f.vsphere.settings
	session, logout, err := v.connect(ctx, log)
	if err != nil {
		return err
	}
	h.closers = append(h.closers, logout)
	own, err := ownVM(ctx, session, log)
	if err != nil {
		return err
	}
	volumes, err := h.openVolumes(ctx, v, session, own, log)
	if err != nil {
		return err
	}
	images, err := h.openImages(ctx, v, session, f.store, volumes, own, log)
	if err != nil {
		return err
	}
	h.adoptVolumes(ctx, volumes, log)
	containers, err := set.containers.open(ctx, session, v.datacenter, "container-store")
	if err != nil {
		return err
	}
	m, state, err := h.buildMedium(ctx, guest)
	if err != nil {
		return err
	}
	iso := filepath.Join(state, "container.iso")
	if err := boot.WriteISO(iso, m, guest); err != nil {
		return err
	}
	ports, proxy, err := h.serveSerial(set.serialHost, set.serialPort, v.serialListen, filepath.Join(state, "serial.pem"), log)
	if err != nil {
		return err
	}
	o := vsphere.Options{
		Session: session, Pool: v.pool, Folder: v.folder, Local: h.store, Images: images, Volumes: volumes, Own: own, Containers: containers,
		Ports: ports, Proxy: proxy, Bridge: v.bridge, Name: v.name, Convention: vmname.Convention(v.convention), Group: v.group, Log: log,
	}
	if v.bridge != "" {
		segment, err := network.OpenSegment(v.bridgeInterface, log)
		if err != nil {
			return fmt.Errorf("--bridge-interface: %w", err)
		}
		h.closers = append(h.closers, segment.Close)
		o.Segment, networks.Segment, networks.Range, networks.Width = segment, segment, set.bridges, v.bridgeWidth
	}
	driver, err := vsphere.New(ctx, o)
	if err != nil {
		return err
	}
	h.closers = append(h.closers, driver.Close)
	h.containers, err = containervm.Open(ctx, containervm.Options{
		Store: h.store.Dir(), Disks: driver, Volumes: h.store, Hypervisor: driver, Boot: medium{m, iso}, Networks: network.New(networks), ContainerNetworks: set.external, Quota: f.quota.quota, Log: log,
	})
	if err != nil {
		return fmt.Errorf("open containers: %w", err)
	}
	h.closers = append(h.closers, h.containers.Close)
	h.closers = append(h.closers, h.tidy(images, driver, log))
	about := session.Client().ServiceContent.About
	h.facts, err = factsOf(m, fmt.Sprintf("%s, %s", about.FullName, about.InstanceUuid), f.insecure)
	return err
}

// openImages opens the image store on its datastore, and the local one, whose images it has as well.
func (h *host) openImages(ctx context.Context, v vsphereFlags, session *datastore.Session, local string, volumes *datastore.Volumes, own *datastore.OwnVM, log *slog.Logger) (*datastore.Store, error) {
	d, err := v.settings.images.open(ctx, session, v.datacenter, "image-store")
	if err != nil {
		return nil, err
	}
	images, err := datastore.OpenStore(ctx, d, datastore.StoreOptions{
		VCH: v.name, Capacity: v.settings.capacity, Encoding: datastore.Encoding(v.encoding), Own: own, Place: datastore.Place{Pool: v.pool, Folder: v.folder}, Log: log,
	})
	if err != nil {
		return nil, err
	}
	if h.store, err = layerstore.Open(local, layerstore.Options{Capacity: images.Capacity(), Mirror: images, VolumeDisks: volumes, Log: log}); err != nil {
		return nil, fmt.Errorf("open store %s: %w", local, err)
	}
	h.closers = append(h.closers, h.store.Close)
	return images, nil
}

// openVolumes opens the folders of volumes.
func (h *host) openVolumes(ctx context.Context, v vsphereFlags, session *datastore.Session, own *datastore.OwnVM, log *slog.Logger) (*datastore.Volumes, error) {
	folders := map[string]*datastore.Datastore{}
	for label, l := range v.settings.volumes {
		d, err := l.open(ctx, session, v.datacenter, "volume-store")
		if err != nil {
			return nil, err
		}
		folders[label] = d
	}
	return datastore.NewVolumes(folders, datastore.VolumesOptions{
		VCH: v.name, Place: datastore.Place{Pool: v.pool, Folder: v.folder}, Own: own, Log: log,
		Format: func(capacity int64) (*layerstore.Disk, error) { return h.store.EmptyVolume(capacity) },
	}), nil
}

// adoptVolumes takes over what there is in volume stores. What is wrong there is no reason not to start.
func (h *host) adoptVolumes(ctx context.Context, volumes *datastore.Volumes, log *slog.Logger) {
	if err := volumes.Recover(ctx); err != nil {
		log.Warn("tidy volume stores", "error", err)
	}
	_, damaged, err := h.store.Volumes()
	for _, err := range append(damaged, err, h.store.SettleVolumes(ctx)) {
		if err != nil {
			log.Warn("look for volumes", "error", err)
		}
	}
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// ownVM is the virtual machine in which this process runs; nil if that is none of the target's.
func ownVM(ctx context.Context, session *datastore.Session, log *slog.Logger) (*datastore.OwnVM, error) {
	uuid, err := datastore.BIOSUUID()
	if err != nil { // none of VMware's
		log.Debug("this machine is no virtual machine of vSphere", "reason", err)
		return nil, nil
	}
	own, err := session.FindOwnVM(ctx, uuid, datastore.LinuxDevices{})
	if errors.Is(err, datastore.ErrUnavailable) {
		return nil, err
	}
	if err != nil { // another vSphere's, perhaps
		log.Info("disks of images cannot be written through this machine", "reason", err)
		return nil, nil
	}
	return own, nil
}
