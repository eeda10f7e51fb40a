package vch

import (
	"context"
	"encoding/json"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/vmware/govmomi/event"
	"github.com/vmware/govmomi/property"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"vic/layerstore/vsphere"
)

// What Debug collects at most.
const (
	maxLogBytes      = 16 << 20 // of the end of the appliance's console, which has its log, and of what the host says of it
	maxGuestLogBytes = 64 << 10 // of the end of a container VM's
	maxGuestLogs     = 500
	maxEvents        = 1000
)

// Debug collects what there is to see of a VCH, from vSphere alone: the appliance may be off, or broken. Each piece is given to put, under
// a name like a file's, with slashes; its error ends the collection. What cannot be collected is said in the last piece, "missing.txt", and
// returned. No piece has passwords or private keys, or what containers have written to their standard output.
func (v *VCH) Debug(ctx context.Context, put func(name string, content []byte) error) (missing []string, err error) {
	c := &collection{v: v, put: put}
	c.json(ctx, "vch.json", func() (any, error) { return v.state(ctx) })
	c.json(ctx, "status.json", func() (any, error) { return v.debugStatus(), nil })
	c.json(ctx, "config.json", func() (any, error) { return v.config() }) // without what is sealed
	c.json(ctx, "vms.json", func() (any, error) { return c.vms(ctx) })
	c.json(ctx, "hosts.json", func() (any, error) { return c.hosts(ctx) })
	c.piece(ctx, "events.txt", func() ([]byte, error) { return c.events(ctx) })
	c.piece(ctx, "tasks.txt", func() ([]byte, error) { return c.tasks(ctx) })
	c.files(ctx)
	if c.err == nil && len(c.missing) > 0 {
		c.err = put("missing.txt", []byte(strings.Join(c.missing, "\n")+"\n"))
	}
	return c.missing, c.err
}

// A collection is a Debug on its way.
type collection struct {
	v       *VCH
	put     func(name string, content []byte) error
	missing []string
	err     error // of put, or of ctx
}

// piece collects one piece.
func (c *collection) piece(ctx context.Context, name string, get func() ([]byte, error)) {
	if c.err == nil {
		c.err = ctx.Err()
	}
	if c.err != nil {
		return
	}
	content, err := get()
	if err != nil {
		c.missing = append(c.missing, fmt.Sprintf("%s: %v", name, err))
		return
	}
	c.err = c.put(name, content)
}

func (c *collection) json(ctx context.Context, name string, get func() (any, error)) {
	c.piece(ctx, name, func() ([]byte, error) {
		x, err := get()
		if err != nil {
			return nil, err
		}
		text, err := json.MarshalIndent(x, "", "  ")
		return append(text, '\n'), err
	})
}

// debugStatus is how the appliance is, as far as vSphere knows.
func (v *VCH) debugStatus() map[string]any {
	return map[string]any{"vm": v.VM, "path": v.Path, "power": v.Power, "status": v.Status, "addresses": v.Addresses(), "api": v.APIAddress(), "guest": v.object.Guest}
}

// A vmState is a VM in vms.json.
type vmState struct {
	Name       string                              `json:"name"`
	Container  string                              `json:"container,omitempty"` // ID; "" is the appliance
	Power      types.VirtualMachinePowerState      `json:"power"`
	Connection types.VirtualMachineConnectionState `json:"connection"`
	Host       string                              `json:"host,omitempty"`     // managed object ID
	Question   string                              `json:"question,omitempty"` // that the VM waits for an answer of
	Issues     []string                            `json:"issues,omitempty"`
}

func (c *collection) vms(ctx context.Context) (any, error) {
	containers, err := c.v.containerVMs(ctx)
	if err != nil {
		return nil, err
	}
	ids := map[types.ManagedObjectReference]string{c.v.object.Self: ""}
	refs := []types.ManagedObjectReference{c.v.object.Self}
	for _, x := range containers {
		ids[x.Self] = x.id
		refs = append(refs, x.Self)
	}
	var all []mo.VirtualMachine
	if err := property.DefaultCollector(c.v.site.client).Retrieve(ctx, refs, []string{"name", "runtime", "configIssue"}, &all); err != nil {
		return nil, err
	}
	out := []vmState{}
	for _, vm := range all {
		s := vmState{Name: vm.Name, Container: ids[vm.Self], Power: vm.Runtime.PowerState, Connection: vm.Runtime.ConnectionState}
		if vm.Runtime.Host != nil {
			s.Host = vm.Runtime.Host.Value
		}
		if q := vm.Runtime.Question; q != nil {
			s.Question = q.Text
		}
		for _, e := range vm.ConfigIssue {
			s.Issues = append(s.Issues, e.GetEvent().FullFormattedMessage)
		}
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b vmState) int { return strings.Compare(a.Container, b.Container) })
	return out, nil
}

// hosts are those that VMs of the VCH can be on.
func (c *collection) hosts(ctx context.Context) (any, error) {
	var p Problems
	pool, err := c.v.site.pool(ctx, &p, c.v.Spec.ComputeResource)
	if err == nil && len(p) > 0 {
		err = p
	}
	if err != nil {
		return nil, err
	}
	var refs []types.ManagedObjectReference
	for _, h := range pool.hosts {
		refs = append(refs, h.Self)
	}
	var all []mo.HostSystem
	if err := property.DefaultCollector(c.v.site.client).Retrieve(ctx, refs, []string{"name", "runtime.connectionState", "runtime.inMaintenanceMode", "config.product"}, &all); err != nil {
		return nil, err
	}
	out := []map[string]any{}
	for _, h := range all {
		x := map[string]any{"id": h.Self.Value, "name": h.Name, "connection": h.Runtime.ConnectionState, "maintenance": h.Runtime.InMaintenanceMode}
		if h.Config != nil {
			x["product"] = h.Config.Product.FullName
		}
		if open, err := c.v.site.firewallOpen(ctx, h); err == nil {
			x["serialPortsLetOut"] = open
		}
		out = append(out, x)
	}
	return out, nil
}

// events are the last ones of the VMs of the VCH, and of its pool and folder.
func (c *collection) events(ctx context.Context) ([]byte, error) {
	roots := []types.ManagedObjectReference{c.v.object.Self}
	if c.v.FolderID != "" {
		roots = []types.ManagedObjectReference{{Type: "Folder", Value: c.v.FolderID}}
	}
	if c.v.PoolID != "" {
		roots = append(roots, types.ManagedObjectReference{Type: "ResourcePool", Value: c.v.PoolID})
	}
	m := event.NewManager(c.v.site.client)
	var all []types.BaseEvent
	for _, root := range roots {
		found, err := m.QueryEvents(ctx, types.EventFilterSpec{MaxCount: maxEvents,
			Entity: &types.EventFilterSpecByEntity{Entity: root, Recursion: types.EventFilterSpecRecursionOptionAll}})
		if err != nil {
			return nil, err
		}
		all = append(all, found...)
	}
	slices.SortStableFunc(all, func(a, b types.BaseEvent) int { return a.GetEvent().CreatedTime.Compare(b.GetEvent().CreatedTime) })
	var b strings.Builder
	told := map[int32]bool{}
	for _, x := range all {
		if e := x.GetEvent(); !told[e.Key] {
			told[e.Key] = true
			fmt.Fprintf(&b, "%s %T %s %s\n", e.CreatedTime.UTC().Format(time.RFC3339), x, e.UserName, oneLine(e.FullFormattedMessage))
		}
	}
	return []byte(strings.ReplaceAll(b.String(), "*types.", "")), nil
}

// tasks are those that vSphere has done lately, of all users.
func (c *collection) tasks(ctx context.Context) ([]byte, error) {
	var m mo.TaskManager
	if err := c.v.site.properties(ctx, *c.v.site.client.ServiceContent.TaskManager, &m, "recentTask"); err != nil {
		return nil, err
	}
	var all []mo.Task
	if len(m.RecentTask) > 0 {
		if err := property.DefaultCollector(c.v.site.client).Retrieve(ctx, m.RecentTask, []string{"info"}, &all); err != nil {
			return nil, err
		}
	}
	var b strings.Builder
	for _, t := range all {
		fmt.Fprintf(&b, "%s %s %s %s", t.Info.QueueTime.UTC().Format(time.RFC3339), t.Info.DescriptionId, t.Info.EntityName, t.Info.State)
		if t.Info.Error != nil {
			b.WriteString(" " + oneLine(t.Info.Error.LocalizedMessage))
		}
		b.WriteByte('\n')
	}
	return []byte(b.String()), nil
}

func oneLine(text string) string { return strings.Join(strings.Fields(text), " ") }

// guestLog matches files of container VMs that are of use; not what containers have written, output-N.log.
var guestLog = regexp.MustCompile(`^[0-9a-f]{64}/(console-[0-9]+|vmware)\.log$`)

// files lists the stores, and collects logs.
func (c *collection) files(ctx context.Context) {
	c.store(ctx, "container-store.txt", func() (location, error) { return c.v.Spec.containers() }, func(d *vsphere.Datastore, all []vsphere.Entry) {
		left := maxGuestLogs
		for _, e := range all {
			switch {
			case path.Dir(e.Name) == applianceFolder && path.Ext(e.Name) == ".log":
				c.log(ctx, d, e, maxLogBytes)
			case guestLog.MatchString(e.Name) && left > 0:
				left--
				c.log(ctx, d, e, maxGuestLogBytes)
			}
		}
		if left == 0 {
			c.missing = append(c.missing, fmt.Sprintf("logs of container VMs: of the first %d only", maxGuestLogs))
		}
	})
	c.store(ctx, "image-store.txt", func() (location, error) { return c.v.Spec.images() }, nil)
	for _, text := range c.v.Spec.VolumeStores {
		v, err := parseVolumeStore(text)
		c.store(ctx, "volume-store-"+v.label+".txt", func() (location, error) { return v.location, err }, nil)
	}
}

// store lists a store, and does something with what is in it.
func (c *collection) store(ctx context.Context, name string, where func() (location, error), with func(*vsphere.Datastore, []vsphere.Entry)) {
	var d *vsphere.Datastore
	var all []vsphere.Entry
	c.piece(ctx, name, func() ([]byte, error) {
		l, err := where()
		if err != nil {
			return nil, err
		}
		if d, err = c.v.site.open(ctx, l); err != nil {
			return nil, err
		}
		space, err := d.Space(ctx)
		if err != nil {
			return nil, err
		}
		if all, err = d.Tree(ctx, "."); err != nil {
			return nil, err
		}
		var b strings.Builder
		fmt.Fprintf(&b, "%s on %s: %s of %s free\n", d.Path("."), space.Kind(), units.BytesSize(float64(space.Free)), units.BytesSize(float64(space.Capacity)))
		for _, e := range all {
			fmt.Fprintf(&b, "%15d %s\n", e.Size, e.Name)
		}
		return []byte(b.String()), nil
	})
	if len(all) > 0 && with != nil {
		with(d, all)
	}
}

// log collects the end of a file.
func (c *collection) log(ctx context.Context, d *vsphere.Datastore, e vsphere.Entry, most int64) {
	c.piece(ctx, "logs/"+e.Name, func() ([]byte, error) {
		text := make([]byte, min(e.Size, most))
		if err := d.ReadRange(ctx, e.Name, text, e.Size-int64(len(text))); err != nil {
			return nil, err
		}
		return text, nil
	})
}
