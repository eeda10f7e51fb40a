package vch

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"strconv"

	"github.com/docker/go-units"

	"vic/containervm/vmname"
	"vic/layerstore/vsphere"
)

const (
	// maxBaseImageSize is what an ext4 file system of containers is made for, GiB; minBridgeBits and maxBridgeBits bound prefixes of bridge networks.
	maxBaseImageSize             = 2048
	minBridgeBits, maxBridgeBits = 8, 29
)

// checkLimits checks numbers that bound what the VCH takes, and the names that it gives.
func (s *Spec) checkLimits(p *Problems) {
	if s.StorageQuota < 0 {
		p.add("storage-quota", "it is GiB, or 0 for no limit")
	}
	if s.Containers < 0 {
		p.add("containers", "it is a number, or 0 for no limit")
	}
	if s.BaseImageSize < 0 || s.BaseImageSize > maxBaseImageSize {
		p.add("base-image-size", "root disks of containers have 1 to %d GiB", maxBaseImageSize)
	}
	if prefix, err := netip.ParsePrefix(s.BridgeRange); s.BridgeWidth != 0 && err == nil && (s.BridgeWidth < max(prefix.Bits(), minBridgeBits) || s.BridgeWidth > maxBridgeBits) {
		p.add("bridge-network-width", "%d: it is the bits of the prefix of each bridge network, between those of %s and %d", s.BridgeWidth, prefix, maxBridgeBits)
	}
	if err := vmname.Convention(s.NameConvention).Check(); err != nil {
		p.add("container-name-convention", "%v", err)
	}
}

// limitArgs are the arguments of vic serve for all that.
func (s *Spec) limitArgs() (args []string) {
	gib := func(n int64) string { return strconv.FormatInt(n, 10) + "GiB" }
	for _, x := range []struct {
		flag string
		is   bool
		text string
	}{
		{"--base-image-size", s.BaseImageSize > 0, gib(s.BaseImageSize)},
		{"--storage-quota", s.StorageQuota > 0, gib(s.StorageQuota)},
		{"--containers", s.Containers > 0, strconv.Itoa(s.Containers)},
		{"--affinity-vm-group", s.AffinityGroup, s.Name},
		{"--container-name-convention", s.NameConvention != "", s.NameConvention},
		{"--bridge-network-width", s.BridgeWidth > 0, strconv.Itoa(s.BridgeWidth)},
	} {
		if x.is {
			args = append(args, x.flag, x.text)
		}
	}
	return args
}

// checkStores sees whether the datastores hold what the Spec says of sizes.
func (s *Site) checkStores(ctx context.Context, p *Problems, r *resolved) error {
	if q := r.spec.StorageQuota << 30; q > 0 && r.container != nil {
		space, err := r.container.Space(ctx)
		if err != nil {
			return err
		}
		// What a VCH has already counts as well, so of one that is there all that can be said is that it is no larger than the datastore.
		if q > space.Capacity {
			p.add("storage-quota", "datastore %s has %s in all", r.containers.datastore, units.BytesSize(float64(space.Capacity)))
		} else if q > space.Free {
			r.warnings = append(r.warnings, fmt.Sprintf("--storage-quota: datastore %s has %s free, and a quota of %d GiB", r.containers.datastore, units.BytesSize(float64(space.Free)), r.spec.StorageQuota))
		}
	}
	if r.spec.BaseImageSize > 0 && r.imageData != nil {
		has, err := vsphere.StoreCapacity(ctx, r.imageData)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return fmt.Errorf("look at image store %s: %w", r.images, err)
		case has != r.spec.BaseImageSize<<30:
			p.add("base-image-size", "the disks of image store %s have %s: leave the option out, or take another store", r.images, units.BytesSize(float64(has)))
		}
	}
	return nil
}

// checkBridge sees whether another VCH has addresses of the bridge networks on the same port group.
func checkBridge(p *Problems, spec *Spec, all []*VCH) {
	own, err := netip.ParsePrefix(spec.BridgeRange)
	if err != nil {
		return // told of already
	}
	for _, v := range all {
		if other, err := netip.ParsePrefix(v.Spec.BridgeRange); err == nil && v.Spec.Name != spec.Name && v.Spec.Bridge == spec.Bridge && own.Overlaps(other) {
			p.add("bridge-network", "port group %s is that of VCH %s as well, with bridge networks in %s: take another port group", spec.Bridge, v.Spec.Name, other)
		}
	}
}
