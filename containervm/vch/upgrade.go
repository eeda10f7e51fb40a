package vch

import (
	"context"
	"errors"
	"io/fs"
	"path"
	"slices"
	"time"

	"vic/layerstore/vsphere"
)

// UpgradeOptions say what an appliance is to boot.
type UpgradeOptions struct {
	ISO     ISO
	Version string        // of this program
	TLS     TLS           // of which the client's pair counts
	Timeout time.Duration // of the appliance's start
	Reset   bool          // whatever else is noted to be in progress
}

// Upgrade plans to have the appliance boot another ISO. Containers run on as they are. If the appliance does not come up, it boots again what it
// booted before; Rollback does that later.
func (v *VCH) Upgrade(ctx context.Context, o UpgradeOptions) (*Plan, error) {
	var p Problems
	if err := v.checkIdle(ctx, &p, o.Reset); err != nil {
		return nil, err
	}
	_, booted, err := v.cd()
	if err != nil {
		return nil, err
	}
	_, key, err := v.sealed(ctx)
	if err != nil {
		return nil, err
	}
	d, _, err := v.containers(ctx)
	if err != nil {
		return nil, err
	}
	in := &installation{site: v.site, o: CreateOptions{ISO: o.ISO}, r: &resolved{container: d}}
	if err := in.nameISO(); err != nil {
		p.add("appliance-iso", "%v", err)
	}
	in.key = key
	if d.Path(in.iso) == booted {
		p.add("appliance-iso", "the VCH boots this one already")
	}
	if err := v.site.checkRoom(ctx, &p, d, o.ISO.Size); err != nil {
		return nil, err
	}
	if len(p) > 0 {
		return nil, p
	}
	keep := []string{path.Base(in.iso), path.Base(booted)}
	plan := new(Plan)
	v.planNote(plan, "upgrade", o.Reset)
	plan.add("upload "+d.Path(in.iso), in.upload, func(ctx context.Context) error { return d.RemoveAll(ctx, in.iso) })
	v.planChange(plan, func(ctx context.Context, id string) error {
		r := v.Record
		r.Version = o.Version
		text, err := r.marshal()
		if err != nil {
			return err
		}
		return v.reconfigure(ctx, "upgrade", id, target{map[string]string{recordKey: string(text)}, v.Spec.CPUs, v.Spec.MemoryMB, d.Path(in.iso)})
	}, nil, o.Timeout, func() TLS { return o.TLS })
	plan.add("remove ISOs that are not needed to go back", func(ctx context.Context, report func(Event)) error {
		if err := removeISOs(ctx, d, keep); err != nil { // the VCH runs nonetheless
			report(Event{Note: err.Error()})
		}
		return nil
	}, nil)
	return plan, nil
}

// removeISOs removes the ISOs of appliances but for some.
func removeISOs(ctx context.Context, d *vsphere.Datastore, keep []string) error {
	list, err := d.List(ctx, ".")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, f := range list {
		if ok, _ := path.Match("appliance-*.iso", f.Name); !ok || f.Dir || slices.Contains(keep, f.Name) {
			continue
		}
		if err := d.RemoveAll(ctx, f.Name); err != nil {
			return err
		}
	}
	return nil
}
