package vch

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"vic/containervm/appliance"
)

// ConfigureOptions say what a VCH is to become.
type ConfigureOptions struct {
	Spec Spec // all of it; what Fixed says cannot differ from the VCH's
	// Access is as whom and by which trust the change is made. The password counts if it is of whom the VCH logs in as.
	Access Access
	// NewOpsPassword says that Access has the password of Spec.OpsUser.
	NewOpsPassword bool
	// TLS is what the API shows its clients from now on; without a Cert, and without MakeTLS, what it has shown. The client's pair counts in any case.
	TLS         TLS
	MakeTLS     func() (TLS, error)
	MakeTLSText string
	// RegistryCAs are authorities of registries, PEM. None means those that it has had, unless Spec.RegistryCAs is empty.
	RegistryCAs [][]byte
	Version     string
	Timeout     time.Duration
	Reset       bool // whatever else is noted to be in progress
}

// Configure plans to change a VCH. Containers run on meanwhile; the API is away while the appliance starts again. If it does not come up, it is
// made what it was.
func (v *VCH) Configure(ctx context.Context, o ConfigureOptions) (*Plan, error) {
	s := v.site
	var p Problems
	if err := v.checkIdle(ctx, &p, o.Reset); err != nil {
		return nil, err
	}
	r, err := s.resolve(ctx, &p, &o.Spec)
	if err != nil {
		return nil, err
	}
	create := CreateOptions{Spec: o.Spec, Access: o.Access, TLS: o.TLS, MakeTLS: o.MakeTLS, RegistryCAs: o.RegistryCAs, Version: o.Version}
	if len(o.TLS.Cert) > 0 || o.MakeTLS != nil || o.Spec.TLS == NoTLS {
		create.checkTLS(&p)
	}
	if o.NewOpsPassword {
		if err := s.checkAccess(ctx, &p, create); err != nil {
			return nil, err
		}
	}
	checkCAs(&p, o.RegistryCAs)
	all, err := s.List(ctx, "")
	if err != nil {
		return nil, err
	}
	checkBridge(&p, &o.Spec, all)
	old, key, err := v.sealed(ctx)
	if err != nil {
		return nil, err
	}
	groups, err := v.regroup(ctx, &p, o.Spec.AffinityGroup)
	if err != nil {
		return nil, err
	}
	in := &installation{site: s, o: create, r: r, key: key, record: v.Record}
	if err := in.takeOver(&p, v, old, o.NewOpsPassword); err != nil {
		return nil, err
	}
	if len(p) > 0 {
		return nil, p
	}
	in.poolRef = r.pool.ResourcePool
	if v.Pool {
		in.poolRef = object.NewResourcePool(s.client, types.ManagedObjectReference{Type: "ResourcePool", Value: v.PoolID})
	}
	in.folderRef = object.NewFolder(s.client, types.ManagedObjectReference{Type: "Folder", Value: v.FolderID})
	plan := &Plan{Warnings: r.warnings}
	if err := in.checkPrivileges(ctx, &p, plan); err != nil {
		return nil, err
	}
	if len(p) > 0 {
		return nil, p
	}
	v.planNote(plan, "configure", o.Reset)
	if o.MakeTLS != nil {
		plan.add(o.MakeTLSText, simple(func(context.Context) (err error) {
			in.o.TLS, err = o.MakeTLS()
			return err
		}), nil)
	}
	for _, vs := range r.volumes {
		in.planFolder(plan, "volume store", vs.location)
	}
	if o.Spec.OpsGrant {
		in.planGrants(plan)
	}
	if err := v.planPool(ctx, plan, &o.Spec); err != nil {
		return nil, err
	}
	v.planChange(plan, func(ctx context.Context, id string) error { return in.become(ctx, v, id) }, groups, o.Timeout, func() TLS { return in.o.TLS })
	return plan, nil
}

// sealed reads the configuration of the appliance with its secrets, and their key.
func (v *VCH) sealed(ctx context.Context) (*appliance.Config, appliance.Key, error) {
	d, l, err := v.containers(ctx)
	if err != nil {
		return nil, appliance.Key{}, err
	}
	_, iso, err := v.cd()
	if err != nil {
		return nil, appliance.Key{}, err
	}
	var p object.DatastorePath
	name, found := "", p.FromString(iso)
	if found {
		name, found = strings.CutPrefix(p.Path, l.folder+"/")
	}
	if !found {
		return nil, appliance.Key{}, fmt.Errorf("the appliance boots %s, which is not in its container store", iso)
	}
	key, err := readKey(ctx, d, name)
	if err != nil {
		return nil, key, fmt.Errorf("read the key in %s: %w", iso, err)
	}
	c, err := appliance.ReadSealed(func(key string) (string, error) { return extraConfig(v.object.Config.ExtraConfig, key), nil }, key)
	return c, key, err
}

// takeOver completes what is to be from what was: secrets and certificates that stay, and the addresses of the interfaces.
func (in *installation) takeOver(p *Problems, v *VCH, old *appliance.Config, newOpsPassword bool) error {
	files := filesOf(old)
	spec := in.r.spec
	in.record.Spec, in.record.Version, in.record.Target = *spec, in.o.Version, in.o.Access.Target
	switch {
	case spec.OpsUser != v.Spec.OpsUser && spec.OpsUser != "" && !newOpsPassword:
		p.add("ops-user", "its password is needed")
	case spec.OpsUser != "" && !newOpsPassword:
		in.o.Access.OpsPassword = string(files[passwordFile])
	case spec.OpsUser == "" && v.Spec.OpsUser == "" && in.o.Access.User != v.User:
		in.o.Access.User, in.o.Access.Password = v.User, string(files[passwordFile])
	}
	in.record.User = in.o.Access.User
	if spec.TLS != NoTLS && len(in.o.TLS.Cert) == 0 && in.o.MakeTLS == nil {
		in.o.TLS.CA, in.o.TLS.Cert, in.o.TLS.Key = files[tlsCA], files[tlsCert], files[tlsKey]
		in.o.checkTLS(p) // what it has may not be for what is to be
	}
	for i := 0; len(spec.RegistryCAs) > 0 && len(in.o.RegistryCAs) <= i && files[registryCA(i)] != nil; i++ {
		in.o.RegistryCAs = append(in.o.RegistryCAs, files[registryCA(i)])
	}
	macs := map[string]string{}
	for _, n := range old.NICs {
		macs[n.Name] = n.MAC
	}
	for i := range in.r.net.nics {
		n := &in.r.net.nics[i]
		if n.MAC = macs[n.Name]; n.MAC == "" {
			return fmt.Errorf("the appliance has no interface %s", n.Name)
		}
	}
	return nil
}

// filesOf are the files of an appliance.
func filesOf(c *appliance.Config) map[string][]byte {
	files := map[string][]byte{}
	for _, f := range slices.Concat(c.Files, c.Secrets) {
		files[f.Path] = f.Content
	}
	return files
}

// become makes the appliance what it is to be.
func (in *installation) become(ctx context.Context, v *VCH, id string) error {
	extra, err := in.extraConfig()
	if err != nil {
		return err
	}
	values := map[string]string{}
	for _, o := range extra {
		values[o.GetOptionValue().Key] = o.GetOptionValue().Value.(string)
	}
	_, iso, err := v.cd()
	if err != nil {
		return err
	}
	return v.reconfigure(ctx, "configure", id, target{values, in.r.spec.CPUs, in.r.spec.MemoryMB, iso})
}

// planPool plans to bound the VCH's resource pool otherwise.
func (v *VCH) planPool(ctx context.Context, plan *Plan, spec *Spec) error {
	if v.PoolID == "" || spec.CPU == v.Spec.CPU && spec.Memory == v.Spec.Memory {
		return nil
	}
	ref := types.ManagedObjectReference{Type: "ResourcePool", Value: v.PoolID}
	var m mo.ResourcePool
	if err := v.site.properties(ctx, ref, &m, "config"); err != nil {
		return fmt.Errorf("look at the VCH's resource pool: %w", err)
	}
	pool := object.NewResourcePool(v.site.client, ref)
	plan.add("bound resource pool "+v.Spec.Name, simple(func(ctx context.Context) error {
		to := types.DefaultResourceConfigSpec()
		if err := spec.allocate(&to); err != nil {
			return err
		}
		return pool.UpdateConfig(ctx, "", &to)
	}), func(ctx context.Context) error { return pool.UpdateConfig(ctx, "", &m.Config) })
	return nil
}
