package vch

import (
	"context"
	"fmt"

	"github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/types"
)

// persistenceKey is the setting of a vCenter by which serial ports on a network stay connected to where they were when a VM is moved. Without
// it, they are not there after a vMotion.
const persistenceKey = "config.vpxd.SerialPort.PersistNetworkBacking"

// planPersistence plans to set that, where it is not. It stays when the VCH goes: others need it.
func (s *Site) planPersistence(ctx context.Context, plan *Plan) error {
	if !s.VCenter() || s.client.ServiceContent.Setting == nil {
		return nil
	}
	m := object.NewOptionManager(s.client, *s.client.ServiceContent.Setting)
	found, err := m.Query(ctx, persistenceKey)
	if err != nil && !fault.Is(err, &types.InvalidName{}) { // nobody has set it yet
		return fmt.Errorf("look at the setting %s of the vCenter: %w", persistenceKey, err)
	}
	for _, o := range found {
		if v := o.GetOptionValue(); v.Key == persistenceKey && (v.Value == "true" || v.Value == true) {
			return nil
		}
	}
	plan.add("set "+persistenceKey+" of the vCenter, which keeps serial ports over a vMotion", simple(func(ctx context.Context) error {
		return m.Update(ctx, []types.BaseOptionValue{option(persistenceKey, "true")})
	}), nil)
	return nil
}
