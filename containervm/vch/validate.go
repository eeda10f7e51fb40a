package vch

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"vic/api/certificate"
	"vic/layerstore/vsphere"
)

// What a Spec may be.
const (
	maxName      = 31 // NetBIOS and the original product have it so; and the store's folder is named by it
	minMemoryMB  = 1024
	minStateSize = 1    // GiB
	maxStateSize = 2048 // GiB
)

var nameForm = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`)

// A volumeStore is one of a Spec's.
type volumeStore struct {
	location
	label string
}

// resolved is a Spec with what its words stand for.
type resolved struct {
	spec       *Spec
	pool       *pool
	folder     *object.Folder // in which the VCH's own folder is made
	images     location
	containers location
	volumes    []volumeStore
	net        *resolvedNetworks
	imageData  *vsphere.Datastore
	container  *vsphere.Datastore
	seen       []*object.Datastore // all of them that some host has
	warnings   []string
}

// resolve finds what the words of a Spec stand for, and collects what stands against it as far as that does not depend on what has been made
// already. Without problems it is complete.
func (s *Site) resolve(ctx context.Context, p *Problems, spec *Spec) (*resolved, error) {
	r := &resolved{spec: spec}
	if len(spec.Name) > maxName || !nameForm.MatchString(spec.Name) {
		p.add("name", "%q is no name of a VCH: want 1 to %d letters, digits, dots, dashes and underscores, a letter or digit first", spec.Name, maxName)
	}
	if spec.CPUs < 1 {
		p.add("endpoint-cpu", "the appliance needs 1 CPU at least")
	}
	if spec.MemoryMB < minMemoryMB || spec.MemoryMB%4 != 0 {
		p.add("endpoint-memory", "the appliance needs %d MiB at least, and a multiple of 4", minMemoryMB)
	}
	if spec.StateSize < minStateSize || spec.StateSize > maxStateSize {
		p.add("state-size", "the appliance's disk has %d to %d GiB", minStateSize, maxStateSize)
	}
	checkShares(p, "cpu", spec.CPU)
	checkShares(p, "memory", spec.Memory)
	spec.checkURLs(p)
	spec.checkLimits(p)
	switch {
	case spec.OpsGrant && spec.OpsUser == "":
		p.add("ops-grant-perms", "name the user with --ops-user")
	case spec.OpsGrant && !s.VCenter():
		p.add("ops-grant-perms", "an ESXi host has no folders to give roles on: give them by hand")
	}
	var err error
	if r.pool, err = s.pool(ctx, p, spec.ComputeResource); err != nil {
		return nil, err
	}
	var hosts []mo.HostSystem
	if r.pool != nil {
		hosts = r.pool.hosts
		if err := s.checkHosts(ctx, p, hosts); err != nil {
			return nil, err
		}
		if !r.pool.divisible && (spec.CPU != Shares{} || spec.Memory != Shares{}) {
			p.add("", "--cpu and --memory, with their kin, bound a resource pool, and there are none in a cluster without DRS")
		}
		if !r.pool.divisible {
			r.warnings = append(r.warnings, "the cluster has no DRS: the VMs are in its own resource pool, and vSphere does not move them for want of CPU or memory")
		}
	}
	s.checkGroup(p, r)
	if r.folder, err = s.vmFolder(ctx, p, spec.Folder); err != nil {
		return nil, err
	}
	if err := s.stores(ctx, p, r); err != nil {
		return nil, err
	}
	if err := s.checkStores(ctx, p, r); err != nil {
		return nil, err
	}
	r.warnings = append(r.warnings, spec.unreachable(ctx)...)
	if r.net, err = s.networks(ctx, p, spec, hosts); err != nil {
		return nil, err
	}
	return r, nil
}

// checkURLs checks what is no inventory object.
func (s *Spec) checkURLs(p *Problems) {
	for _, x := range []struct{ option, value string }{{"http-proxy", s.HTTPProxy}, {"https-proxy", s.HTTPS}} {
		if u, err := url.Parse(x.value); x.value != "" && (err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "") {
			p.add(x.option, "%q is no proxy: want http://HOST:PORT", redacted(x.value))
		} else if x.value != "" && u.User != nil {
			p.add(x.option, "a password does not belong here: whoever may look at the VCH could read it")
		}
	}
	if u, err := url.Parse(s.Syslog); s.Syslog != "" && (err != nil || u.Scheme != "udp" && u.Scheme != "tcp" || u.Hostname() == "" || u.Path != "") {
		p.add("syslog-address", "%q is no address: want udp://HOST[:PORT] or tcp://HOST[:PORT]", s.Syslog)
	}
	s.checkRegistries(p)
}

// redacted is a URL that may be shown.
func redacted(text string) string {
	if u, err := url.Parse(text); err == nil {
		return u.Redacted()
	}
	return "it"
}

func checkShares(p *Problems, option string, s Shares) {
	if s.Limit < 0 || s.Reservation < 0 || s.Limit > 0 && s.Reservation > s.Limit {
		p.add(option, "a limit and a reservation are positive numbers, and no more is reserved than the limit")
	}
	if _, err := sharesInfo(s.Shares); err != nil {
		p.suggest(option+"-shares", err.Error(), []string{"low", "normal", "high", "a number"})
	}
}

// sharesInfo is what vSphere takes for shares.
func sharesInfo(text string) (*types.SharesInfo, error) {
	switch text {
	case "":
		text = string(types.SharesLevelNormal)
	case "low", "normal", "high":
	default:
		n, err := strconv.ParseInt(text, 10, 32)
		if err != nil || n < 1 {
			return nil, fmt.Errorf("%q says nothing of shares", text)
		}
		return &types.SharesInfo{Level: types.SharesLevelCustom, Shares: int32(n)}, nil
	}
	return &types.SharesInfo{Level: types.SharesLevel(text)}, nil
}

// vmFolder finds the folder of VMs in which the VCH's own is made.
func (s *Site) vmFolder(ctx context.Context, p *Problems, name string) (*object.Folder, error) {
	if name == "" {
		return s.folders.VmFolder, nil
	}
	if !s.VCenter() {
		p.add("folder", "an ESXi host has no folders of VMs")
		return nil, nil
	}
	if !strings.HasPrefix(name, "/") {
		name = path.Join(s.folders.VmFolder.InventoryPath, name)
	}
	return lookup(ctx, p, "folder", func(ctx context.Context) (*object.Folder, error) {
		f, err := s.find.Folder(ctx, name)
		if err == nil && !strings.HasPrefix(f.InventoryPath+"/", s.folders.VmFolder.InventoryPath+"/") {
			return nil, &find.NotFoundError{}
		}
		return f, err
	}, func(ctx context.Context) ([]string, error) {
		all, err := s.find.FolderList(ctx, path.Join(s.folders.VmFolder.InventoryPath, "*"))
		return namesOf(all), err
	})
}

// containers is where the container store is.
func (s *Spec) containers() (location, error) {
	if s.ContainerStore != "" {
		return parseLocation(s.ContainerStore, s.Name)
	}
	images, err := s.images()
	if err != nil {
		return location{}, err
	}
	return location{images.datastore, s.Name}, nil
}

// images is where the image store is.
func (s *Spec) images() (location, error) { return parseLocation(s.ImageStore, "vic") }

// stores finds the datastores.
func (s *Site) stores(ctx context.Context, p *Problems, r *resolved) error {
	spec := r.spec
	var err error
	if r.images, err = spec.images(); err != nil {
		p.add("image-store", "%v", err)
	}
	if r.containers, err = spec.containers(); err != nil && spec.ContainerStore != "" {
		p.add("container-store", "%v", err)
	}
	for _, text := range spec.VolumeStores {
		if strings.HasPrefix(text, "nfs://") {
			p.add("volume-store", "%q: volumes are disks on a datastore; an NFS share has to be mounted as one by the hosts", text)
			continue
		}
		v, err := parseVolumeStore(text)
		if err != nil {
			p.add("volume-store", "%v", err)
			continue
		}
		if slices.ContainsFunc(r.volumes, func(o volumeStore) bool { return o.label == v.label }) {
			p.add("volume-store", "label %q is there twice", v.label)
		}
		r.volumes = append(r.volumes, v)
	}
	if r.imageData, err = s.store(ctx, p, r, "image-store", r.images); err != nil {
		return err
	}
	if spec.ContainerStore != "" || r.imageData != nil { // else it is told of already
		if r.container, err = s.store(ctx, p, r, "container-store", r.containers); err != nil {
			return err
		}
	}
	places := []location{r.images, r.containers}
	if r.images.overlaps(r.containers) {
		p.add("container-store", "it and the image store overlap: %s and %s", r.containers, r.images)
	}
	for _, v := range r.volumes {
		if _, err := s.store(ctx, p, r, "volume-store", v.location); err != nil {
			return err
		}
		if i := slices.IndexFunc(places, v.overlaps); i >= 0 {
			p.add("volume-store", "%s and %s overlap", v.location, places[i])
		}
		places = append(places, v.location)
	}
	r.checkSeen(p)
	return nil
}

// checkSeen sees whether there is a host that has all datastores: a container's VM may have disks on each of them.
func (r *resolved) checkSeen(p *Problems) {
	if r.pool == nil || len(r.pool.hosts) == 0 || len(r.seen) == 0 {
		return
	}
	some := slices.ContainsFunc(r.pool.hosts, func(h mo.HostSystem) bool {
		return !slices.ContainsFunc(r.seen, func(ds *object.Datastore) bool { return !slices.Contains(h.Datastore, ds.Reference()) })
	})
	if !some {
		names := namesOf(r.seen)
		slices.Sort(names)
		p.add("", "no host of %s has all of these datastores: %s", rootPoolPath(r.pool.path), strings.Join(slices.Compact(names), ", "))
	}
}

// parseVolumeStore takes DATASTORE/PATH:LABEL apart.
func parseVolumeStore(text string) (volumeStore, error) {
	i := strings.LastIndex(text, ":")
	l, err := parseLocation(text[:max(i, 0)], "")
	if err != nil || !nameForm.MatchString(text[i+1:]) {
		return volumeStore{}, fmt.Errorf("%q is no store of volumes: want DATASTORE/PATH:LABEL", text)
	}
	return volumeStore{l, text[i+1:]}, nil
}

// store opens a datastore that hosts have.
func (s *Site) store(ctx context.Context, p *Problems, r *resolved, option string, l location) (*vsphere.Datastore, error) {
	if l == (location{}) { // told of already
		return nil, nil
	}
	found, err := lookup(ctx, p, option, func(ctx context.Context) (*object.Datastore, error) { return s.find.Datastore(ctx, l.datastore) },
		func(ctx context.Context) ([]string, error) {
			all, err := s.find.DatastoreList(ctx, "*")
			return namesOf(all), err
		})
	if err != nil || found == nil {
		return nil, err
	}
	if r.pool != nil && !slices.Contains(r.pool.stores, found.Reference()) {
		p.add(option, "the hosts of %s do not have datastore %s", rootPoolPath(r.pool.path), l.datastore)
	} else if r.pool != nil {
		r.seen = append(r.seen, found)
		for _, h := range r.pool.hosts {
			if !slices.Contains(h.Datastore, found.Reference()) {
				r.warnings = append(r.warnings, fmt.Sprintf("host %s does not have datastore %s: no container VMs can be there", h.Name, l.datastore))
			}
		}
	}
	return s.open(ctx, l)
}

// checkRoom sees whether the files of a VCH fit.
func (s *Site) checkRoom(ctx context.Context, p *Problems, d *vsphere.Datastore, need int64) error {
	space, err := d.Space(ctx)
	if err != nil {
		return err
	}
	if space.Free < need {
		p.add("container-store", "datastore %s has %s free, and the appliance alone needs %s", d.Path("."), units.BytesSize(float64(space.Free)), units.BytesSize(float64(need)))
	}
	return nil
}

// TLS is what the Docker API shows its clients, and whom it trusts, PEM.
type TLS struct {
	CA, Cert, Key []byte
	// ClientCert and ClientKey are a client's. Without them it is enough that the server shows its own.
	ClientCert, ClientKey []byte
}

// checkTLS sees whether clients can trust the server.
func (o *CreateOptions) checkTLS(p *Problems) {
	s, t := &o.Spec, o.TLS
	if s.TLS == NoTLS {
		if len(t.Cert) > 0 {
			p.add("no-tls", "certificates are of no use without TLS")
		}
		return
	}
	if o.MakeTLS != nil {
		if s.TLS == MutualTLS && len(s.ServerNames()) == 0 {
			p.add("tls-cname", "name what clients reach the VCH by: without a static address it is not known what to make the certificate for")
		}
		return
	}
	if s.TLS == MutualTLS {
		if _, err := certificate.Parse(t.CA); err != nil {
			p.add("tls-ca", "%v", err)
		}
	}
	pair, err := tls.X509KeyPair(t.Cert, t.Key)
	if err != nil {
		p.add("tls-server-cert", "%v", strings.TrimPrefix(err.Error(), "tls: "))
		return
	}
	if err := certificate.CheckServer(pair.Leaf, time.Now()); err != nil {
		p.add("tls-server-cert", "%v", err)
	}
	for _, name := range s.TLSNames {
		if err := pair.Leaf.VerifyHostname(name); err != nil {
			p.add("tls-cname", "the certificate is not for %s: %v", name, strings.TrimPrefix(err.Error(), "x509: "))
		}
	}
	if s.TLS == MutualTLS {
		if err := chained(pair, t.CA); err != nil {
			p.add("tls-ca", "clients that trust the authority do not trust the server: %v", err)
		}
	}
}

// chained says whether a certificate leads to one of the authorities, or to one that this machine trusts.
func chained(pair tls.Certificate, authorities []byte) error {
	between := x509.NewCertPool()
	for _, der := range pair.Certificate[1:] {
		if c, err := x509.ParseCertificate(der); err == nil {
			between.AddCert(c)
		}
	}
	_, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: rootsWith(authorities), Intermediates: between})
	return err
}

// rootsWith are the authorities that this machine trusts, and some more.
func rootsWith(authorities []byte) *x509.CertPool {
	roots, err := x509.SystemCertPool()
	if err != nil { // it has none
		roots = x509.NewCertPool()
	}
	roots.AppendCertsFromPEM(authorities)
	return roots
}

// ServerNames are those that a server's certificate for the VCH is to have: what was asked for, and a static address.
func (s *Spec) ServerNames() []string {
	names := slices.Clone(s.TLSNames)
	for _, n := range []Network{s.Client, s.Public} { // the API is on all; these are those that clients know
		if ip, _, err := net.ParseCIDR(n.IP); err == nil && !slices.Contains(names, ip.String()) {
			names = append(names, ip.String())
		}
	}
	return names
}

// listOrNone lists a folder of a datastore; one that is not there is empty, and there is false.
func listOrNone(ctx context.Context, d *vsphere.Datastore, folder string) (list []vsphere.Entry, there bool, err error) {
	list, err = d.List(ctx, folder)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false, nil
	}
	return list, err == nil, err
}
