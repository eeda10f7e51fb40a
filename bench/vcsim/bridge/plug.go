package bridge

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"reflect"

	"github.com/vmware/govmomi/simulator"

	"vic/containervm/qemu/qmp"
)

// replug makes a machine's hardware what the VM's configuration says now. The caller holds the VM's lock.
func (b *Bridge) replug(vm *simulator.VirtualMachine, m *machine) error {
	h, err := b.hardware(vm)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(h.serials) != len(m.serials) {
		return errors.New("serial ports cannot come or go while the VM runs")
	}
	for i, s := range h.serials {
		if !reflect.DeepEqual(s, m.serials[i]) {
			if err := m.connect(b.ctx, i, s); err != nil {
				return err
			}
			m.serials[i] = s
		}
	}
	for key, p := range m.plugged {
		if !reflect.DeepEqual(p, h.plugged[key]) {
			if err := m.unplug(b.ctx, key); err != nil {
				return err
			}
		}
	}
	for key, p := range h.plugged {
		if _, there := m.plugged[key]; !there {
			if err := m.plug(b.ctx, key, p); err != nil {
				return err
			}
		}
	}
	return nil
}

// connect leads a serial port elsewhere.
func (m *machine) connect(ctx context.Context, port int, to backend) error {
	chardev := to.chardev
	var x *proxied
	if to.proxy != nil {
		path := filepath.Join(m.dir, fmt.Sprintf("serial%d", port))
		var err error
		if x, err = newProxied(path, *to.proxy, m.log); err != nil {
			return err
		}
		socket := map[string]any{"addr": map[string]any{"type": "unix", "data": map[string]any{"path": path}}, "server": false}
		chardev = newBackend("socket", socket).chardev
	}
	if err := m.execute(ctx, "chardev-change", map[string]any{"id": fmt.Sprintf("serial%d", port), "backend": chardev}); err != nil {
		if x != nil {
			err = errors.Join(err, x.close())
		}
		return err
	}
	old := m.proxied[port]
	m.proxied[port] = x
	if old != nil {
		return old.close()
	}
	return nil
}

// plug adds a device; after an error it is not there.
func (m *machine) plug(ctx context.Context, key int32, p part) (err error) {
	undo := func(command string, args map[string]any) {
		if err != nil {
			err = errors.Join(err, m.execute(ctx, command, args))
		}
	}
	if p.block != nil {
		if err := m.execute(ctx, "blockdev-add", p.block); err != nil {
			return err
		}
		defer func() { undo("blockdev-del", map[string]any{"node-name": p.block["node-name"]}) }()
	}
	if p.net != nil {
		if err := m.execute(ctx, "netdev_add", p.net); err != nil {
			return err
		}
		defer func() { undo("netdev_del", map[string]any{"id": p.net["id"]}) }()
		if p.bridge != "" {
			if err := attach(p.net["ifname"].(string), p.bridge); err != nil {
				return err
			}
		}
		if err := m.listen(ctx, key, p); err != nil {
			return err
		}
	}
	if err := m.execute(ctx, "device_add", p.device); err != nil {
		return err
	}
	m.plugged[key] = p
	return nil
}

// unplug removes a device. A guest has to agree to the loss of an interface.
func (m *machine) unplug(ctx context.Context, key int32) error {
	p := m.plugged[key]
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	id, _ := p.device["id"].(string)
	gone := m.mon.AwaitDeleted(id)
	if err := m.execute(ctx, "device_del", map[string]any{"id": id}); err != nil {
		return err
	}
	select {
	case <-gone:
	case <-m.done:
		return qmp.ErrGone
	case <-ctx.Done():
		return fmt.Errorf("the guest does not let %s go: %w", id, ctx.Err())
	}
	delete(m.plugged, key)
	if p.block != nil {
		return m.execute(ctx, "blockdev-del", map[string]any{"node-name": p.block["node-name"]})
	}
	if err := m.unlisten(ctx, key); err != nil {
		return err
	}
	return m.execute(ctx, "netdev_del", map[string]any{"id": p.net["id"]})
}
