package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"vic/containervm"
	"vic/containervm/qemu/qmp"
)

// unplugTurn is how long a guest may take to let go of a device before it is asked again: it does not hear
// the first time while it is still booting.
const unplugTurn = 2 * time.Second

// deviceID names the device at an end, whose back end has the end's own name.
func deviceID(end string) string { return "nic-" + end }

var errNoMonitor = errors.New("qemu: the VM's monitor does not answer")

// carried refuses an interface on a network of the hypervisor's: QEMU has none.
func carried(nic containervm.NIC) error {
	if nic.Network != "" {
		return fmt.Errorf("%w: network %q is none of QEMU's: interfaces are on networks of the VCH's own", containervm.ErrInvalid, nic.Network)
	}
	return nil
}

// AddNIC implements containervm.Machine.
func (m *machine) AddNIC(ctx context.Context, nic containervm.NIC) error {
	if err := carried(nic); err != nil {
		return err
	}
	if err := m.RemoveNIC(ctx, nic.End); err != nil {
		return err
	}
	netdev := map[string]any{
		"type": "stream", "id": nic.End, "server": true,
		"addr": map[string]any{"type": "unix", "path": socket(m.vm, nic.End)},
	}
	if _, err := m.mon.Execute(ctx, "netdev_add", netdev); err != nil {
		return fmt.Errorf("add network interface %s: %w", nic.End, err)
	}
	// QEMU 7.2 takes the link for up until it listens, which it does when it has nothing else to do, and crashes if the guest
	// sends a packet before: nobody is there to take it.
	if _, err := m.mon.Execute(ctx, "set_link", map[string]any{"name": nic.End, "up": false}); err != nil {
		return errors.Join(fmt.Errorf("add network interface %s: %w", nic.End, err), m.removeNetdev(context.WithoutCancel(ctx), nic.End))
	}
	device := map[string]any{
		"driver": "virtio-net-pci", "id": deviceID(nic.End), "bus": slots, "netdev": nic.End, "mac": nic.MAC, "romfile": "",
	}
	if _, err := m.mon.Execute(ctx, "device_add", device); err != nil {
		return errors.Join(fmt.Errorf("add network interface %s: %w", nic.End, err), m.removeNetdev(context.WithoutCancel(ctx), nic.End))
	}
	return nil
}

// RemoveNIC implements containervm.Machine.
func (m *machine) RemoveNIC(ctx context.Context, end string) error {
	if m.mon == nil {
		return errNoMonitor
	}
	for gone := m.mon.AwaitDeleted(deviceID(end)); ; {
		_, err := m.mon.Execute(ctx, "device_del", map[string]any{"id": deviceID(end)})
		if qmp.NotFound(err) {
			break
		}
		var refused *qmp.Error
		if err != nil && !errors.As(err, &refused) { // else the guest has been asked already
			return fmt.Errorf("remove network interface %s: %w", end, err)
		}
		turn := time.NewTimer(unplugTurn)
		select {
		case <-gone:
			turn.Stop()
		case <-turn.C:
			continue
		case <-m.done:
			turn.Stop()
			return nil
		case <-ctx.Done():
			turn.Stop()
			return fmt.Errorf("remove network interface %s: the guest does not let go of it: %w", end, ctx.Err())
		}
		break
	}
	if err := m.removeNetdev(ctx, end); err != nil {
		return fmt.Errorf("remove network interface %s: %w", end, err)
	}
	return nil
}

// removeNetdev removes a back end with its socket, if it is there.
func (m *machine) removeNetdev(ctx context.Context, end string) error {
	if _, err := m.mon.Execute(ctx, "netdev_del", map[string]any{"id": end}); err != nil && !qmp.NotFound(err) {
		return err
	}
	if err := os.Remove(socket(m.vm, end)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
