package vch

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/license"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/property"
	"github.com/vmware/govmomi/view"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// A pool is a resource pool that VCHs are made in.
type pool struct {
	*object.ResourcePool
	path   string                         // in the inventory
	owner  types.ManagedObjectReference   // compute resource
	hosts  []mo.HostSystem                // their names, networks and datastores
	stores []types.ManagedObjectReference // of the compute resource
	// divisible says that there can be pools in it: not without DRS.
	divisible bool
	config    *types.ClusterConfigInfoEx // of the cluster; nil if it is a host that is in none
}

// rootPoolPath is the path of the pool that is all of the compute resource of another.
func rootPoolPath(p string) string {
	head, _, _ := strings.Cut(p, "/Resources")
	return head + "/Resources"
}

// pool finds the pool of the option compute-resource: a pool, or the one that is all of a cluster or a host. nil and a problem if there is
// none.
func (s *Site) pool(ctx context.Context, p *Problems, name string) (*pool, error) {
	found, err := lookup(ctx, p, "compute-resource", func(ctx context.Context) (*object.ResourcePool, error) {
		if name == "" {
			return s.find.DefaultResourcePool(ctx)
		}
		r, err := s.find.ResourcePool(ctx, name)
		if err == nil || !isLookup(err) {
			return r, err
		}
		c, computeErr := s.find.ComputeResource(ctx, name)
		if computeErr != nil {
			return nil, computeErr
		}
		root, rootErr := c.ResourcePool(ctx)
		if rootErr == nil {
			root.InventoryPath = path.Join(c.InventoryPath, "Resources")
		}
		return root, rootErr
	}, s.poolNames)
	if err != nil || found == nil {
		return nil, err
	}
	r := &pool{ResourcePool: found, path: found.InventoryPath, divisible: true}
	var m mo.ResourcePool
	if err := s.properties(ctx, found.Reference(), &m, "owner"); err != nil {
		return nil, fmt.Errorf("look at resource pool %s: %w", r.path, err)
	}
	r.owner = m.Owner
	var c mo.ComputeResource
	if err := s.properties(ctx, r.owner, &c, "host", "datastore", "configurationEx"); err != nil {
		return nil, fmt.Errorf("look at compute resource of %s: %w", r.path, err)
	}
	r.stores = c.Datastore
	if len(c.Host) > 0 {
		if err := property.DefaultCollector(s.client).Retrieve(ctx, c.Host, []string{"name", "network", "datastore", "summary.managementServerIp"}, &r.hosts); err != nil {
			return nil, fmt.Errorf("look at hosts of %s: %w", r.path, err)
		}
	}
	if cluster, ok := c.ConfigurationEx.(*types.ClusterConfigInfoEx); ok {
		r.divisible, r.config = cluster.DrsConfig.Enabled != nil && *cluster.DrsConfig.Enabled, cluster
	}
	return r, nil
}

// poolNames are what the option compute-resource can be.
func (s *Site) poolNames(ctx context.Context) (names []string, err error) {
	v, err := view.NewManager(s.client).CreateContainerView(ctx, s.dc.Reference(), []string{"ResourcePool"}, true)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, v.Destroy(context.WithoutCancel(ctx))) }()
	all, err := v.Find(ctx, []string{"ResourcePool"}, nil)
	if err != nil {
		return nil, err
	}
	for _, ref := range all {
		p, err := find.InventoryPath(ctx, s.client, ref)
		if err != nil {
			return nil, err
		}
		names = append(names, strings.TrimPrefix(strings.TrimSuffix(p, "/Resources"), s.folders.HostFolder.InventoryPath+"/"))
	}
	slices.Sort(names)
	return names, nil
}

// SerialPort is where the appliance awaits the serial ports of container VMs.
const SerialPort = 2377

// serialFeature is the feature of a licence that lets VMs have serial ports on a network.
const serialFeature = "serialuri:2"

// checkHosts sees whether the hosts let VMs have serial ports on a network: by licence and by firewall.
func (s *Site) checkHosts(ctx context.Context, p *Problems, hosts []mo.HostSystem) error {
	if len(hosts) == 0 {
		p.add("compute-resource", "it has no hosts")
	}
	for _, h := range hosts {
		if m := h.Summary.ManagementServerIp; m != "" && !s.VCenter() {
			p.add("target", "host %s is managed by the vCenter %s: change --target to that", h.Name, m)
		}
	}
	var closed, unlicensed []string
	for _, h := range hosts {
		open, err := s.firewallOpen(ctx, h)
		if err != nil {
			return err
		}
		if !open {
			closed = append(closed, h.Name)
		}
		licensed, err := s.licensed(ctx, h)
		if err != nil {
			return err
		}
		if !licensed {
			unlicensed = append(unlicensed, h.Name)
		}
	}
	if len(closed) > 0 {
		p.add("", "the firewalls of these hosts do not let VMs' serial ports reach the VCH (TCP port %d): %s; vic-machine update firewall --allow opens them",
			SerialPort, strings.Join(closed, ", "))
	}
	if len(unlicensed) > 0 {
		p.add("", "the licences of these hosts have no serial ports on a network, which container VMs need: %s", strings.Join(unlicensed, ", "))
	}
	return nil
}

// licensed says whether a host's licence has what VCHs need; true where the server does not say.
func (s *Site) licensed(ctx context.Context, host mo.HostSystem) (bool, error) {
	m := license.NewManager(s.client)
	if !s.VCenter() {
		all, err := m.List(ctx)
		if err != nil {
			return false, fmt.Errorf("look at licences: %w", err)
		}
		return len(all) == 0 || len(all.WithFeature(serialFeature)) > 0, nil
	}
	a, err := m.AssignmentManager(ctx)
	if err != nil {
		return false, fmt.Errorf("look at licences: %w", err)
	}
	all, err := a.QueryAssigned(ctx, host.Self.Value)
	if err != nil {
		return false, fmt.Errorf("look at licence of host %s: %w", host.Name, err)
	}
	for _, l := range all {
		if license.HasFeature(l.AssignedLicense, serialFeature) {
			return true, nil
		}
	}
	return len(all) == 0, nil
}
