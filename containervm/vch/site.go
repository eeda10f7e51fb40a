package vch

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/property"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/types"

	"vic/layerstore/vsphere"
)

// A Site is a datacenter: where VCHs are.
type Site struct {
	session *vsphere.Session
	client  *vim25.Client
	find    *find.Finder
	dc      *object.Datacenter
	folders *object.DatacenterFolders
}

// Open finds a datacenter by its name or inventory path; "" means the only one there is. The error of a wrong name is Problems, of the option
// target.
func Open(ctx context.Context, s *vsphere.Session, datacenter string) (*Site, error) {
	site := &Site{session: s, client: s.Client(), find: find.NewFinder(s.Client(), false)}
	var err error
	if site.dc, err = site.find.DatacenterOrDefault(ctx, datacenter); err != nil {
		if !isLookup(err) {
			return nil, fmt.Errorf("find datacenter: %w", err)
		}
		all, listErr := site.find.DatacenterList(ctx, "*")
		if listErr != nil && !isLookup(listErr) {
			return nil, fmt.Errorf("list datacenters: %w", listErr)
		}
		return nil, Problems{{"target", strings.TrimPrefix(err.Error(), "find: ") + "; name one as HOST/DATACENTER", namesOf(all)}}
	}
	site.find.SetDatacenter(site.dc)
	if site.folders, err = site.dc.Folders(ctx); err != nil {
		return nil, fmt.Errorf("look at datacenter %s: %w", site.dc.Name(), err)
	}
	return site, nil
}

// isLookup says whether an error is of a name that is not there or stands for several things.
func isLookup(err error) bool {
	var none *find.NotFoundError
	var noDefault *find.DefaultNotFoundError
	var several *find.MultipleFoundError
	var severalDefaults *find.DefaultMultipleFoundError
	return errors.As(err, &none) || errors.As(err, &noDefault) || errors.As(err, &several) || errors.As(err, &severalDefaults)
}

// namesOf are the names of inventory objects.
func namesOf[T interface{ Name() string }](all []T) []string {
	var out []string
	for _, o := range all {
		out = append(out, o.Name())
	}
	return out
}

// lookup finds something for an option. What is not found, or not unique, becomes a problem with the names there are.
func lookup[T any](ctx context.Context, p *Problems, option string, find func(context.Context) (T, error), list func(context.Context) ([]string, error)) (T, error) {
	found, err := find(ctx)
	if err == nil || !isLookup(err) {
		return found, err
	}
	var zero T
	all, listErr := list(ctx)
	if listErr != nil && !isLookup(listErr) {
		return zero, listErr
	}
	p.suggest(option, err.Error(), all)
	return zero, nil
}

// properties reads some of an object's.
func (s *Site) properties(ctx context.Context, ref types.ManagedObjectReference, into any, names ...string) error {
	return property.DefaultCollector(s.client).RetrieveOne(ctx, ref, names, into)
}

// A location is a folder on a datastore.
type location struct {
	datastore, folder string
}

// parseLocation takes DATASTORE[/PATH] apart.
func parseLocation(text, folder string) (location, error) {
	datastore, at, err := vsphere.ParseLocation(text, folder)
	if err == nil && at == "" {
		err = fmt.Errorf("%q names no folder: want DATASTORE/PATH", text)
	}
	return location{datastore, at}, err
}

func (l location) String() string { return l.datastore + "/" + l.folder }

// overlaps says whether one of two locations is in the other.
func (l location) overlaps(m location) bool {
	return l.datastore == m.datastore && (l.folder == m.folder || strings.HasPrefix(l.folder, m.folder+"/") || strings.HasPrefix(m.folder, l.folder+"/"))
}

// open opens a location, whose folder need not be there.
func (s *Site) open(ctx context.Context, l location) (*vsphere.Datastore, error) {
	return s.session.OpenDatastore(ctx, s.dc.InventoryPath, l.datastore, l.folder)
}

// VCenter says whether the site is a vCenter's, and not a single ESXi host.
func (s *Site) VCenter() bool { return s.client.IsVC() }

// Datacenter is its inventory path.
func (s *Site) Datacenter() string { return s.dc.InventoryPath }
