package vch

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/types"
)

// A role is what the user that a VCH logs in as may do with one kind of object. Each role can look as well.
type role struct {
	name       string
	privileges []string
}

// readOnly is vSphere's own role of that kind.
const readOnly = "ReadOnly"

// The roles, by what they are given on. The privileges are those that calls of this program name in vSphere's documentation.
var (
	// storeRole is for datastores: files of images, and disks.
	storeRole = role{"vic-datastore", []string{"Datastore.AllocateSpace", "Datastore.Browse", "Datastore.FileManagement"}}
	// networkRole is for port groups that container VMs are on.
	networkRole = role{"vic-network", []string{"Network.Assign"}}
	// machineRole is for the VCH's own folder and resource pool, with all in them: to make VMs, to change, run and remove them.
	machineRole = role{"vic-machines", []string{
		"Resource.AssignVMToPool", "VApp.Import",
		"VirtualMachine.Config.AddExistingDisk", "VirtualMachine.Config.AddNewDisk", "VirtualMachine.Config.AddRemoveDevice", "VirtualMachine.Config.AdvancedConfig",
		"VirtualMachine.Config.Annotation", "VirtualMachine.Config.CPUCount", "VirtualMachine.Config.DiskExtend", "VirtualMachine.Config.EditDevice", "VirtualMachine.Config.Memory",
		"VirtualMachine.Config.RemoveDisk", "VirtualMachine.Config.Rename", "VirtualMachine.Config.Resource", "VirtualMachine.Config.Settings",
		"VirtualMachine.Interact.DeviceConnection", "VirtualMachine.Interact.PowerOff", "VirtualMachine.Interact.PowerOn", "VirtualMachine.Interact.Reset",
		"VirtualMachine.Interact.SetCDMedia", "VirtualMachine.Interact.Suspend",
		"VirtualMachine.Inventory.Create", "VirtualMachine.Inventory.CreateFromExisting", "VirtualMachine.Inventory.Delete",
	}}
	// poolRole is for a resource pool that the VCH shares with others.
	poolRole = role{"vic-pool", []string{"Resource.AssignVMToPool", "VApp.Import"}}
	lookRole = role{name: readOnly}
)

// A grant is a role on an object.
type grant struct {
	role
	object    types.ManagedObjectReference
	what      string
	propagate bool // to all that is in it
}

// grants are what the user of a VCH needs.
func (in *installation) grants(ctx context.Context) ([]grant, error) {
	s := in.site
	all := []grant{
		{lookRole, s.client.ServiceContent.RootFolder, "the root", false},
		{lookRole, s.dc.Reference(), "datacenter " + s.dc.Name(), true},
	}
	locations := []location{in.r.images, in.r.containers}
	for _, v := range in.r.volumes {
		locations = append(locations, v.location)
	}
	for _, l := range locations {
		d, err := s.open(ctx, l)
		if err != nil {
			return nil, err
		}
		if !slices.ContainsFunc(all, func(g grant) bool { return g.object == d.Reference() }) {
			all = append(all, grant{storeRole, d.Reference(), "datastore " + l.datastore, false})
		}
	}
	groups := []string{in.r.spec.Bridge}
	for _, text := range in.r.spec.ContainerNetworks {
		group, _, _ := strings.Cut(text, ":")
		groups = append(groups, group)
	}
	for _, name := range groups {
		n, err := s.find.Network(ctx, name)
		if err != nil {
			return nil, err
		}
		all = append(all, grant{networkRole, n.Reference(), "port group " + name, false})
	}
	if in.r.spec.AffinityGroup {
		all = append(all, grant{clusterRole, in.r.pool.owner, "cluster " + in.r.pool.compute(), false})
	}
	pool := grant{machineRole, in.r.pool.Reference(), "resource pool " + in.r.pool.path, true} // where the VCH's is to be
	switch {
	case !in.record.Pool:
		pool.role, pool.propagate = poolRole, false
	case in.poolRef != nil:
		pool.object, pool.what = in.poolRef.Reference(), "the VCH's resource pool"
	}
	folder := grant{machineRole, in.r.folder.Reference(), "folder of VMs " + in.r.folder.InventoryPath, true}
	if in.folderRef != nil {
		folder.object, folder.what = in.folderRef.Reference(), "the VCH's folder of VMs"
	}
	return append(all, pool, folder), nil
}

// checkPrivileges finds out whether the user of the VCH has what it needs, where nobody is to give it that.
func (in *installation) checkPrivileges(ctx context.Context, p *Problems, plan *Plan) error {
	user := in.r.spec.OpsUser
	if user == "" || in.r.spec.OpsGrant || !in.site.VCenter() {
		return nil
	}
	all, err := in.grants(ctx)
	if err != nil {
		return err
	}
	m := object.NewAuthorizationManager(in.site.client)
	for _, g := range all {
		needed := g.privileges
		if g.name == readOnly {
			needed = []string{"System.Read"}
		}
		has, err := m.HasUserPrivilegeOnEntities(ctx, []types.ManagedObjectReference{g.object}, principal(user), needed)
		if err != nil {
			plan.Warnings = append(plan.Warnings, fmt.Sprintf("--ops-user: the server does not say what %s may do: %v", user, err))
			return nil
		}
		var lacks []string
		for _, e := range has {
			for _, x := range e.PrivAvailability {
				if !x.IsGranted {
					lacks = append(lacks, x.PrivId)
				}
			}
		}
		if len(lacks) > 0 {
			p.add("ops-user", "%s may not do %s on %s: give the user what role %s has there, or add --ops-grant-perms", user, strings.Join(lacks, ", "), g.what, g.name)
		}
	}
	return nil
}

// planGrants plans to give the user of the VCH what it needs.
func (in *installation) planGrants(plan *Plan) {
	user := in.r.spec.OpsUser
	var given []grant
	plan.add("give "+user+" the roles that it needs", func(ctx context.Context, report func(Event)) error {
		all, err := in.grants(ctx)
		if err != nil {
			return err
		}
		for _, g := range all {
			note, err := in.site.give(ctx, user, g)
			if err != nil {
				return fmt.Errorf("role %s on %s: %w", g.name, g.what, err)
			}
			if note == "" {
				given = append(given, g)
				note = fmt.Sprintf("role %s on %s", g.name, g.what)
			}
			report(Event{Note: note})
		}
		return nil
	}, func(ctx context.Context) error {
		var errs error
		m := object.NewAuthorizationManager(in.site.client)
		for _, g := range given {
			if err := m.RemoveEntityPermission(ctx, g.object, principal(user), false); err != nil && !gone(err) {
				errs = errors.Join(errs, fmt.Errorf("take role %s on %s: %w", g.name, g.what, err))
			}
		}
		return errs
	})
}

// principal is how permissions call a user: DOMAIN\USER.
func principal(user string) string {
	if name, domain, ok := strings.Cut(user, "@"); ok {
		return domain + `\` + name
	}
	return user
}

// give gives a user a role on an object. It has one role there at most: one that it has already stays, and the note says so.
func (s *Site) give(ctx context.Context, user string, g grant) (note string, err error) {
	m := object.NewAuthorizationManager(s.client)
	roles, err := m.RoleList(ctx)
	if err != nil {
		return "", err
	}
	id, err := s.roleID(ctx, m, roles, g.role)
	if err != nil {
		return "", err
	}
	has, err := m.RetrieveEntityPermissions(ctx, g.object, false)
	if err != nil {
		return "", err
	}
	for _, p := range has {
		if p.Group || !strings.EqualFold(p.Principal, principal(user)) {
			continue
		}
		name := fmt.Sprint(p.RoleId)
		if r := roles.ById(p.RoleId); r != nil {
			name = r.Name
		}
		return fmt.Sprintf("%s has role %s on %s already, which stays", user, name, g.what), nil
	}
	return "", m.SetEntityPermissions(ctx, g.object, []types.Permission{{Principal: principal(user), RoleId: id, Propagate: g.propagate}})
}

// roleID finds a role, or makes it. One that lacks privileges gets them.
func (s *Site) roleID(ctx context.Context, m *object.AuthorizationManager, roles object.AuthorizationRoleList, r role) (int32, error) {
	found := roles.ByName(r.name)
	if found == nil {
		if _, err := m.AddRole(ctx, r.name, r.privileges); err != nil {
			return 0, err
		}
		var err error
		if roles, err = m.RoleList(ctx); err != nil {
			return 0, err
		}
		if found = roles.ByName(r.name); found == nil {
			return 0, errors.New("it was made, and is not there")
		}
	}
	all := slices.Clone(found.Privilege)
	for _, p := range r.privileges {
		if !slices.Contains(all, p) {
			all = append(all, p)
		}
	}
	if len(all) == len(found.Privilege) {
		return found.RoleId, nil
	}
	return found.RoleId, m.UpdateRole(ctx, found.RoleId, r.name, all)
}
