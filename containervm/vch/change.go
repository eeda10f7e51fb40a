package vch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/property"
	"github.com/vmware/govmomi/vim25/types"
)

// What an appliance was before its last change is in its extraConfig as well, written in the same step as the change: each value under its key
// after previousPrefix, and the rest, a previous, under previousKey.
const (
	previousKey    = "vic.previous"
	previousPrefix = previousKey + "."
)

// A previous is what an appliance was before its last change.
type previous struct {
	Kind     string   `json:"kind"`            // "configure" or "upgrade"
	ID       string   `json:"id"`              // of the change
	Keys     []string `json:"keys"`            // that had a value
	Added    []string `json:"added,omitempty"` // that had none
	CPUs     int32    `json:"cpus"`
	MemoryMB int64    `json:"memory"`
	ISO      string   `json:"iso"` // datastore path
}

// A target is what an appliance is to become.
type target struct {
	values   map[string]string // of extraConfig
	cpus     int32
	memoryMB int64
	iso      string // datastore path
}

// cd finds the appliance's CD-ROM.
func (v *VCH) cd() (*types.VirtualCdrom, string, error) {
	for _, d := range v.object.Config.Hardware.Device {
		if c, ok := d.(*types.VirtualCdrom); ok {
			if b, ok := c.Backing.(*types.VirtualCdromIsoBackingInfo); ok {
				return c, b.FileName, nil
			}
		}
	}
	return nil, "", errors.New("the appliance has no CD-ROM with an ISO")
}

// reconfigure makes the appliance, which is off, what it is to become, and keeps what it was.
func (v *VCH) reconfigure(ctx context.Context, kind, id string, to target) error {
	if err := v.look(ctx); err != nil {
		return err
	}
	cd, iso, err := v.cd()
	if err != nil {
		return err
	}
	was := previous{Kind: kind, ID: id, CPUs: v.object.Config.Hardware.NumCPU, MemoryMB: int64(v.object.Config.Hardware.MemoryMB), ISO: iso}
	values := map[string]string{}
	v.earlier = map[string]string{previousKey: extraConfig(v.object.Config.ExtraConfig, previousKey)}
	for _, o := range v.object.Config.ExtraConfig {
		if key := o.GetOptionValue().Key; strings.HasPrefix(key, previousPrefix) {
			v.earlier[key], values[key] = extraConfig(v.object.Config.ExtraConfig, key), ""
		}
	}
	for _, key := range sortedKeys(to.values) {
		if old := extraConfig(v.object.Config.ExtraConfig, key); old != "" {
			was.Keys = append(was.Keys, key)
			values[previousPrefix+key] = old
		} else {
			was.Added = append(was.Added, key)
		}
		values[key] = to.values[key]
	}
	text, err := json.Marshal(was)
	if err != nil {
		return err
	}
	values[previousKey] = string(text)
	return v.set(ctx, values, to, cd)
}

// set reconfigures the VM, with values of its extraConfig.
func (v *VCH) set(ctx context.Context, values map[string]string, to target, cd *types.VirtualCdrom) error {
	spec := types.VirtualMachineConfigSpec{NumCPUs: to.cpus, MemoryMB: to.memoryMB}
	for _, key := range sortedKeys(values) {
		spec.ExtraConfig = append(spec.ExtraConfig, option(key, values[key]))
	}
	changed := *cd
	changed.Backing = cdrom(cd.Key, to.iso).Backing
	changed.Connectable = connected()
	spec.DeviceChange = []types.BaseVirtualDeviceConfigSpec{change(types.VirtualDeviceConfigSpecOperationEdit, &changed)}
	return v.site.session.Do(ctx, func() (*object.Task, error) { return v.machine().Reconfigure(ctx, spec) })
}

// before is what the appliance was before its last change, nil if there is nothing.
func (v *VCH) before() (*previous, error) {
	text := extraConfig(v.object.Config.ExtraConfig, previousKey)
	if text == "" {
		return nil, nil
	}
	p := new(previous)
	if err := json.Unmarshal([]byte(text), p); err != nil {
		return nil, fmt.Errorf("read what the VCH was before: %w", err)
	}
	return p, nil
}

// specBefore is the Spec that the VCH had before its last change.
func (v *VCH) specBefore() (*Spec, error) {
	text := extraConfig(v.object.Config.ExtraConfig, previousPrefix+recordKey)
	if text == "" {
		return &v.Spec, nil
	}
	r, err := parseRecord([]byte(text))
	if err != nil {
		return nil, fmt.Errorf("read what the VCH was before: %w", err)
	}
	return &r.Spec, nil
}

// restore makes the appliance, which is off, what it was before a change, if that is the last one. If it is this process that made the change, there is
// the way back that there was before.
func (v *VCH) restore(ctx context.Context, id string) error {
	if err := v.look(ctx); err != nil {
		return err
	}
	was, err := v.before()
	if err != nil || was == nil || was.ID != id {
		return err
	}
	cd, _, err := v.cd()
	if err != nil {
		return err
	}
	values := map[string]string{previousKey: ""}
	for _, key := range was.Keys {
		values[key], values[previousPrefix+key] = extraConfig(v.object.Config.ExtraConfig, previousPrefix+key), ""
	}
	for _, key := range was.Added {
		values[key] = ""
	}
	maps.Copy(values, v.earlier)
	if err := v.set(ctx, values, target{cpus: was.CPUs, memoryMB: was.MemoryMB, iso: was.ISO}, cd); err != nil {
		return err
	}
	return v.look(ctx)
}

// look reads the VM again.
func (v *VCH) look(ctx context.Context) error {
	if err := v.site.properties(ctx, v.object.Self, &v.object, vmProperties...); err != nil {
		return fmt.Errorf("look at VM %s: %w", v.Spec.Name, err)
	}
	r, err := marked(&v.object)
	if err == nil && r == nil {
		err = fmt.Errorf("VM %s is no VCH any more", v.Spec.Name)
	}
	if err == nil {
		v.Record = *r
	}
	return err
}

// shutdownTime is how long the appliance has to end by itself.
const shutdownTime = time.Minute

// shutDown has the appliance end, or powers it off.
func (v *VCH) shutDown(ctx context.Context) error {
	vm := v.machine()
	err := vm.ShutdownGuest(ctx)
	if fault.Is(err, &types.InvalidPowerState{}) {
		return nil // it is off
	}
	if err == nil {
		ctx, cancel := context.WithTimeout(ctx, shutdownTime)
		defer cancel()
		err = property.Wait(ctx, property.DefaultCollector(v.site.client), v.object.Self, []string{"runtime.powerState"}, func(changes []types.PropertyChange) bool {
			return slices.ContainsFunc(changes, func(c types.PropertyChange) bool { return c.Val == types.VirtualMachinePowerStatePoweredOff })
		})
		if err == nil {
			return nil
		}
	}
	return v.site.powerOff(ctx, vm)
}

// checkIdle refuses what would come upon something else that is being done to the VCH.
func (v *VCH) checkIdle(ctx context.Context, p *Problems, reset bool) error {
	doing, err := v.Doing(ctx)
	if err != nil {
		return err
	}
	if doing != "" && !reset {
		p.add("reset-progress", "the VCH is in the middle of %s: give it if nobody is doing that any more", doing)
	}
	return nil
}

// planChange plans to stop the appliance, to make it what it is to become, and to start it: what fails has all as it was. The VM group is changed
// while the appliance, which changes it as well, is off.
func (v *VCH) planChange(plan *Plan, become func(ctx context.Context, id string) error, groups *regrouping, timeout time.Duration, client func() TLS) {
	name, id := v.Spec.Name, uuid.NewString()
	plan.add("shut VM "+name+" down", simple(v.shutDown), func(ctx context.Context) error {
		err := v.site.powerOn(ctx, v.machine())
		if fault.Is(err, &types.InvalidPowerState{}) {
			return nil
		}
		return err
	})
	groups.planBefore(plan)
	plan.add("reconfigure VM "+name, simple(func(ctx context.Context) error { return become(ctx, id) }), func(ctx context.Context) error {
		return v.restore(ctx, id)
	})
	groups.planAfter(plan)
	plan.add("power on "+name, simple(func(ctx context.Context) error {
		if err := v.look(ctx); err != nil {
			return err
		}
		return v.site.powerOn(ctx, v.machine())
	}), func(ctx context.Context) error { return v.site.powerOff(ctx, v.machine()) })
	plan.add("wait for the API", func(ctx context.Context, report func(Event)) error {
		return v.start(ctx, timeout, client(), report)
	}, nil)
}

// planNote plans to note what is being done to the VCH. Somebody else may have begun something since the plan was made, or even ended it.
func (v *VCH) planNote(plan *Plan, what string, reset bool) {
	last, noted := extraConfig(v.object.Config.ExtraConfig, previousKey), false
	plan.add("note that "+what+" is in progress", simple(func(ctx context.Context) error {
		var p Problems
		if err := v.checkIdle(ctx, &p, reset); err != nil {
			return err
		}
		if len(p) > 0 {
			return p
		}
		if err := v.look(ctx); err != nil {
			return err
		}
		if extraConfig(v.object.Config.ExtraConfig, previousKey) != last {
			return errors.New("the VCH was changed since this was planned")
		}
		noted = true
		r := v.Record
		r.Changing = what
		return v.putState(ctx, &r)
	}), func(ctx context.Context) error {
		if !noted { // what is noted is somebody else's
			return nil
		}
		r := v.Record
		return v.putState(ctx, &r)
	})
}

// Rollback plans to make the VCH what it was before its last configure or upgrade.
func (v *VCH) Rollback(ctx context.Context, t TLS, timeout time.Duration, reset bool) (*Plan, error) {
	var p Problems
	if err := v.checkIdle(ctx, &p, reset); err != nil {
		return nil, err
	}
	was, err := v.before()
	if err != nil {
		return nil, err
	}
	if was == nil {
		p.add("rollback", "the VCH was not changed since it was made, or is as before already")
		return nil, p
	}
	spec, err := v.specBefore()
	if err != nil {
		return nil, err
	}
	groups, err := v.regroup(ctx, &p, spec.AffinityGroup)
	if err != nil {
		return nil, err
	}
	if len(p) > 0 {
		return nil, p
	}
	plan := new(Plan)
	v.planNote(plan, "rollback", reset)
	name := v.Spec.Name
	plan.add("shut VM "+name+" down", simple(v.shutDown), nil)
	groups.planBefore(plan)
	plan.keep()
	plan.add("make VM "+name+" what it was before the last "+was.Kind, simple(func(ctx context.Context) error { return v.restore(ctx, was.ID) }), nil)
	groups.planAfter(plan)
	plan.keep()
	plan.add("power on "+name, simple(func(ctx context.Context) error { return v.site.powerOn(ctx, v.machine()) }), nil)
	plan.add("wait for the API", func(ctx context.Context, report func(Event)) error { return v.start(ctx, timeout, t, report) }, nil)
	return plan, nil
}
