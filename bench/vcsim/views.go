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

// manageViews has lists that can be changed while somebody waits for updates of what is on them.
func (s *Server) manageViews(c *vim25.Client) error {
	m, ok := s.Service.Context.Map.Get(*c.ServiceContent.ViewManager).(*simulator.ViewManager)
	if !ok {
		return errors.New("the simulator's view manager is not its own")
	}
	s.Service.Context.Map.Put(&viewManager{m})
	return nil
}

type viewManager struct{ *simulator.ViewManager }

// CreateListView implements ViewManager.CreateListView.
func (m *viewManager) CreateListView(ctx *simulator.Context, req *types.CreateListView) soap.HasFault {
	list := &listView{&simulator.ListView{}}
	list.Self.Type = "ListView"
	list.View = slices.Clone(req.Obj)
	if gone := unknown(ctx, req.Obj); len(gone) > 0 {
		return &methods.CreateListViewBody{Fault_: simulator.Fault("", &types.ManagedObjectNotFound{Obj: gone[0]})}
	}
	ctx.Session.Put(list)
	return &methods.CreateListViewBody{Res: &types.CreateListViewResponse{Returnval: list.Self}}
}

// A listView tells filters of a change without its own lock: who waits for updates holds that of a filter and then takes the list's. The
// simulator's tells them with the lock, and now and then both wait for ever.
type listView struct{ *simulator.ListView }

// Lock and Unlock have the simulator call methods without the lock.
func (*listView) Lock()   {}
func (*listView) Unlock() {}

// ModifyListView implements ListView.ModifyListView.
func (v *listView) ModifyListView(ctx *simulator.Context, req *types.ModifyListView) soap.HasFault {
	ctx.Map.WithLock(ctx, v.Self, func() {
		v.View = slices.DeleteFunc(append(slices.Clone(v.View), req.Add...), func(ref types.ManagedObjectReference) bool { return slices.Contains(req.Remove, ref) })
	})
	ctx.Update(v, nil)
	return &methods.ModifyListViewBody{Res: &types.ModifyListViewResponse{Returnval: unknown(ctx, req.Add)}}
}

// ResetListView implements ListView.ResetListView.
func (v *listView) ResetListView(ctx *simulator.Context, req *types.ResetListView) soap.HasFault {
	ctx.Map.WithLock(ctx, v.Self, func() { v.View = slices.Clone(req.Obj) })
	ctx.Update(v, nil)
	return &methods.ResetListViewBody{Res: &types.ResetListViewResponse{Returnval: unknown(ctx, req.Obj)}}
}

// unknown are those objects that are not there.
func unknown(ctx *simulator.Context, refs []types.ManagedObjectReference) []types.ManagedObjectReference {
	return slices.DeleteFunc(slices.Clone(refs), func(ref types.ManagedObjectReference) bool { return ctx.Session.Get(ref) != nil })
}
