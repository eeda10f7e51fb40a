package vcsim

import (
	"errors"
	"slices"
	"strings"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// managePermissions has permissions added to those of others, as vSphere does; the simulator's own take their place. Who asks what a user
// may do is told what the permissions say; the simulator says all.
func (s *Server) managePermissions(c *vim25.Client) error {
	m, ok := s.Service.Context.Map.Get(*c.ServiceContent.AuthorizationManager).(*simulator.AuthorizationManager)
	if !ok {
		return errors.New("the simulator's authorization manager is not its own")
	}
	s.Service.Context.Map.Put(&authorizationManager{m, s.url.User.Username()})
	return nil
}

type authorizationManager struct {
	*simulator.AuthorizationManager
	admin string // who may do all where no permission is about the user
}

// SetEntityPermissions implements AuthorizationManager.SetEntityPermissions.
func (m *authorizationManager) SetEntityPermissions(ctx *simulator.Context, req *types.SetEntityPermissions) soap.HasFault {
	got := m.RetrieveEntityPermissions(ctx, &types.RetrieveEntityPermissions{This: req.This, Entity: req.Entity}).(*methods.RetrieveEntityPermissionsBody)
	all := slices.Clone(got.Res.Returnval)
	for _, p := range req.Permission {
		all = slices.DeleteFunc(all, func(x types.Permission) bool { return x.Principal == p.Principal && x.Group == p.Group })
		all = append(all, p)
	}
	return m.AuthorizationManager.SetEntityPermissions(&types.SetEntityPermissions{This: req.This, Entity: req.Entity, Permission: all})
}

// HasUserPrivilegeOnEntities implements AuthorizationManager.HasUserPrivilegeOnEntities. It knows nothing of groups.
func (m *authorizationManager) HasUserPrivilegeOnEntities(ctx *simulator.Context, req *types.HasUserPrivilegeOnEntities) soap.HasFault {
	res := new(types.HasUserPrivilegeOnEntitiesResponse)
	for _, e := range req.Entities {
		has := m.privileges(ctx, e, req.UserName)
		x := types.EntityPrivilege{Entity: e}
		for _, id := range req.PrivId {
			x.PrivAvailability = append(x.PrivAvailability, types.PrivilegeAvailability{PrivId: id, IsGranted: slices.Contains(has, id)})
		}
		res.Returnval = append(res.Returnval, x)
	}
	return &methods.HasUserPrivilegeOnEntitiesBody{Res: res}
}

// privileges are those of a user on an object, by the permission that is nearest above.
func (m *authorizationManager) privileges(ctx *simulator.Context, entity types.ManagedObjectReference, user string) []string {
	roles := object.AuthorizationRoleList(m.RoleList)
	for at := &entity; at != nil; {
		got := m.RetrieveEntityPermissions(ctx, &types.RetrieveEntityPermissions{Entity: *at}).(*methods.RetrieveEntityPermissionsBody)
		for _, p := range got.Res.Returnval {
			if !p.Group && strings.EqualFold(p.Principal, user) && (p.Propagate || *at == entity) {
				return roles.ById(p.RoleId).Privilege
			}
		}
		at = ctx.Map.Get(*at).(mo.Entity).Entity().Parent
	}
	if user == m.admin {
		return roles.ByName("Admin").Privilege
	}
	return nil
}
