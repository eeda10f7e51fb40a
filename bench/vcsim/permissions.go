package vcsim

import (
	"errors"
	"slices"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// managePermissions has permissions added to those of others, as vSphere does; the simulator's own take their place.
func (s *Server) managePermissions(c *vim25.Client) error {
	m, ok := s.Service.Context.Map.Get(*c.ServiceContent.AuthorizationManager).(*simulator.AuthorizationManager)
	if !ok {
		return errors.New("the simulator's authorization manager is not its own")
	}
	s.Service.Context.Map.Put(&authorizationManager{m})
	return nil
}

type authorizationManager struct {
	*simulator.AuthorizationManager
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
