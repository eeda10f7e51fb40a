package vcsim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// A Datastore is a folder of this machine.
type Datastore struct {
	Name string
	Dir  string // "" means a temporary folder
	Type string // VMFS5, VMFS6, NFS or VSAN; "" means VMFS6
	// Hosts is how many hosts have it: the first ones, or, if it is negative, the last ones; 0 means all.
	Hosts int
	// Objects tells that its disks are objects, as on vVol, and always on vSAN: of each the descriptor is a file, which names the object.
	Objects bool
}

// The types of datastores.
const (
	VMFS5 = "VMFS5"
	VMFS6 = "VMFS6"
	NFS   = "NFS"
	VSAN  = "vsan"
)

// furnish adds what the options ask for, by the API.
func (s *Server) furnish(ctx context.Context, o Options) error {
	c, err := s.Administrator(ctx)
	if err != nil {
		return err
	}
	f := find.NewFinder(c)
	dc, err := f.DefaultDatacenter(ctx)
	if err != nil {
		return err
	}
	f.SetDatacenter(dc)
	hosts, err := f.HostSystemList(ctx, "*/*")
	if err != nil {
		return err
	}
	if o.ESX {
		host := s.Service.Context.Map.Get(hosts[0].Reference()).(*simulator.HostSystem)
		s.Service.Context.Update(host, []types.PropertyChange{{Name: "summary.managementServerIp", Val: o.Manager}})
	}
	if len(o.Datastores) == 0 {
		o.Datastores = []Datastore{{Name: "datastore1"}}
	}
	for _, d := range o.Datastores {
		if err := s.addDatastore(ctx, hosts, d); err != nil {
			return fmt.Errorf("add datastore %q: %w", d.Name, err)
		}
	}
	for _, name := range o.PortGroups {
		if err := s.addPortGroup(ctx, f, hosts, name); err != nil {
			return fmt.Errorf("add port group %q: %w", name, err)
		}
	}
	if len(o.Switched) > 0 {
		if err := addSwitched(ctx, f, o.Switched); err != nil {
			return fmt.Errorf("add distributed port groups: %w", err)
		}
	}
	if len(o.Pools) > 0 {
		root, err := f.ResourcePool(ctx, "*/Resources")
		if err != nil {
			return err
		}
		for _, name := range o.Pools {
			if _, err := root.Create(ctx, name, types.DefaultResourceConfigSpec()); err != nil {
				return fmt.Errorf("add resource pool %q: %w", name, err)
			}
		}
	}
	return errors.Join(s.manageDisks(c), s.managePermissions(c), s.manageUpdates(c))
}

// addDatastore mounts a folder on all hosts.
func (s *Server) addDatastore(ctx context.Context, hosts []*object.HostSystem, d Datastore) error {
	if d.Name == "" || s.Folder(d.Name) != "" {
		return errors.New("no name of its own")
	}
	if d.Type == "" {
		d.Type = VMFS6
	}
	if !slices.Contains([]string{VMFS5, VMFS6, NFS, VSAN}, d.Type) {
		return fmt.Errorf("type %q is not VMFS5, VMFS6, NFS or VSAN", d.Type)
	}
	if d.Dir == "" {
		if s.temp == "" {
			var err error
			if s.temp, err = os.MkdirTemp("", "vcsim-"); err != nil {
				return err
			}
		}
		d.Dir = filepath.Join(s.temp, fmt.Sprint(len(s.datastores)))
		if err := os.Mkdir(d.Dir, 0700); err != nil {
			return err
		}
	}
	dir, err := filepath.Abs(d.Dir)
	if err != nil {
		return err
	}
	if fi, err := os.Stat(dir); err != nil {
		return err
	} else if !fi.IsDir() {
		return fmt.Errorf("%s is no folder", dir)
	}
	switch n := len(hosts); {
	case d.Hosts > n || d.Hosts < -n:
		return fmt.Errorf("%d hosts of %d are to have it", d.Hosts, n)
	case d.Hosts > 0:
		hosts = hosts[:d.Hosts]
	case d.Hosts < 0:
		hosts = hosts[n+d.Hosts:]
	}
	for _, h := range hosts {
		sys, err := h.ConfigManager().DatastoreSystem(ctx)
		if err != nil {
			return err
		}
		if _, err := sys.CreateLocalDatastore(ctx, d.Name, dir); err != nil {
			return err
		}
	}
	d.Dir = dir
	s.datastores[d.Name] = d
	for _, e := range s.Service.Context.Map.All("Datastore") {
		if ds := e.(*simulator.Datastore); ds.Name == d.Name {
			s.Service.Context.WithLock(ds, func() { pretend(ds, d.Type) })
		}
	}
	return nil
}

// pretend has a datastore look like one of a type: for the simulator all are of the type OTHER.
func pretend(ds *simulator.Datastore, kind string) {
	info := ds.Info.GetDatastoreInfo()
	ds.Capability.VmfsSparseSupported = types.NewBool(kind == VMFS5 || kind == NFS)
	ds.Capability.SeSparseSupported = types.NewBool(kind == VMFS5 || kind == VMFS6)
	ds.Capability.VsanSparseSupported = types.NewBool(kind == VSAN)
	ds.Capability.TopLevelDirectoryCreateSupported = types.NewBool(kind != VSAN)
	if kind == VSAN {
		ds.Summary.Type = string(types.HostFileSystemVolumeFileSystemTypeVsan)
		ds.Info = &types.VsanDatastoreInfo{DatastoreInfo: *info, MembershipUuid: "52f3a1de-0000-0000-0000-000000000001"}
		return
	}
	if kind == NFS {
		ds.Summary.Type = string(types.HostFileSystemVolumeFileSystemTypeNFS)
		ds.Info = &types.NasDatastoreInfo{DatastoreInfo: *info, Nas: &types.HostNasVolume{
			HostFileSystemVolume: types.HostFileSystemVolume{Type: ds.Summary.Type, Name: ds.Name, Capacity: ds.Summary.Capacity},
			RemoteHost:           "nfs.example.com", RemotePath: "/export/" + ds.Name,
		}}
		return
	}
	major, version := int32(6), "6.82"
	if kind == VMFS5 {
		major, version = 5, "5.81"
	}
	ds.Summary.Type = string(types.HostFileSystemVolumeFileSystemTypeVMFS)
	ds.Info = &types.VmfsDatastoreInfo{DatastoreInfo: *info, Vmfs: &types.HostVmfsVolume{
		HostFileSystemVolume: types.HostFileSystemVolume{Type: ds.Summary.Type, Name: ds.Name, Capacity: ds.Summary.Capacity},
		BlockSizeMb:          1, MajorVersion: major, Version: version,
	}}
}

// addPortGroup adds a port group to the switch of each host. The simulator adds it to that of one, and tells nobody.
func (s *Server) addPortGroup(ctx context.Context, f *find.Finder, hosts []*object.HostSystem, name string) error {
	sys, err := hosts[0].ConfigManager().NetworkSystem(ctx)
	if err != nil {
		return err
	}
	if err := sys.AddPortGroup(ctx, types.HostPortGroupSpec{Name: name, VswitchName: "vSwitch0"}); err != nil {
		return err
	}
	n, err := f.Network(ctx, name)
	if err != nil {
		return err
	}
	for _, h := range hosts {
		host, ok := s.Service.Context.Map.Get(h.Reference()).(*simulator.HostSystem)
		if !ok {
			return fmt.Errorf("host %s is not the simulator's own", h.Name())
		}
		s.Service.Context.WithLock(host, func() {
			if !slices.Contains(host.Network, n.Reference()) {
				host.Network = append(slices.Clip(host.Network), n.Reference()) // hosts may have one array
			}
		})
	}
	return nil
}

// addSwitched adds port groups to the distributed switch.
func addSwitched(ctx context.Context, f *find.Finder, names []string) error {
	n, err := f.Network(ctx, "DVS0")
	if err != nil {
		return err
	}
	dvs, ok := n.(*object.DistributedVirtualSwitch)
	if !ok {
		return fmt.Errorf("DVS0 is a %T", n)
	}
	var specs []types.DVPortgroupConfigSpec
	for _, name := range names {
		specs = append(specs, types.DVPortgroupConfigSpec{Name: name, NumPorts: 8,
			Type: string(types.DistributedVirtualPortgroupPortgroupTypeEarlyBinding)})
	}
	t, err := dvs.AddPortgroup(ctx, specs)
	if err != nil {
		return err
	}
	return t.WaitEx(ctx)
}
