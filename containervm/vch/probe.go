package vch

import (
	"context"

	"vic/layerstore/vsphere"
)

// Probe tries what can be done with disks on a datastore, DATASTORE[/PATH], and what VCHs should do there. What it makes it removes. Tried, which may
// be nil, is told of each trial.
func (s *Site) Probe(ctx context.Context, computeResource, store string, tried func(vsphere.Trial)) (*vsphere.ProbeReport, error) {
	var p Problems
	r := &resolved{spec: &Spec{ImageStore: store}}
	var err error
	if r.pool, err = s.pool(ctx, &p, computeResource); err != nil {
		return nil, err
	}
	if r.images, err = r.spec.images(); err != nil {
		p.add("image-store", "%v", err)
	}
	if r.imageData, err = s.store(ctx, &p, r, "image-store", r.images); err != nil {
		return nil, err
	}
	if len(p) > 0 {
		return nil, p
	}
	return r.imageData.Probe(ctx, vsphere.ProbeOptions{Place: vsphere.Place{Pool: r.pool.path}, Tried: tried})
}
