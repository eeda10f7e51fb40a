package vch

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/view"
	"github.com/vmware/govmomi/vim25/types"

	"vic/api/certificate"
	"vic/bench/oracle"
	"vic/bench/vcsim"
	"vic/containervm/appliance"
	"vic/layerstore/vsphere"
)

// A lab is a simulated vSphere in which appliances come up: their API is a stand-in on this machine.
type lab struct {
	*testing.T
	*vcsim.Server
	site    *Site
	iso     []byte
	dir     string // of certificates
	ip      string // of all appliances
	refuses atomic.Bool
}

func newLab(t *testing.T, o vcsim.Options) *lab {
	t.Helper()
	if !o.ESX && o.Switched == nil {
		o.Switched = []string{"bridge", "other"}
	}
	if o.ESX {
		o.PortGroups = append(o.PortGroups, "bridge", "other")
	}
	s, err := vcsim.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	l := &lab{T: t, Server: s, dir: t.TempDir()}
	l.ip = "127." + strconv.Itoa(1+int(random(t)%250)) + "." + strconv.Itoa(int(random(t))) + "." + strconv.Itoa(1+int(random(t)%250))
	l.iso = applianceISO(t)
	session, err := vsphere.Connect(t.Context(), vsphere.Endpoint{Server: s.URL().Host, User: "administrator", Password: "vic", Thumbprint: s.Thumbprint()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { session.Close(context.Background()) })
	if l.site, err = Open(t.Context(), session, ""); err != nil {
		t.Fatal(err)
	}
	plan, err := l.site.Firewall(t.Context(), "", true)
	if err != nil {
		t.Fatal(err)
	}
	if err := plan.Run(t.Context(), RunOptions{}); err != nil {
		t.Fatal(err)
	}
	s.OnTask(l.boot)
	return l
}

func random(t *testing.T) byte {
	var b [1]byte
	if _, err := rand.Read(b[:]); err != nil {
		t.Fatal(err)
	}
	return b[0]
}

// boot gives an appliance that is powered on its address.
func (l *lab) boot(t *simulator.Task, run func() vcsim.Outcome) vcsim.Outcome {
	o := run()
	if t.Info.DescriptionId != "VirtualMachine.powerOn" || o.Fault != nil {
		return o
	}
	vm, ok := l.Service.Context.Map.Get(*t.Info.Entity).(*simulator.VirtualMachine)
	if ok && extraConfig(vm.Config.ExtraConfig, recordKey) != "" {
		l.Service.Context.Update(vm, []types.PropertyChange{{Name: "guest.ipAddress", Val: l.ip}})
	}
	return o
}

// serve is the API of an appliance.
func (l *lab) serve(names ...string) {
	l.Helper()
	if err := certificate.Make(l.dir, append(names, l.ip), time.Now(), 1); err != nil {
		l.Fatal(err)
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(l.dir, "server", "cert.pem"), filepath.Join(l.dir, "server", "key.pem"))
	if err != nil {
		l.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(l.file("ca", "cert.pem"))
	listener, err := tls.Listen("tcp", net.JoinHostPort(l.ip, "2376"), &tls.Config{Certificates: []tls.Certificate{pair}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert})
	if err != nil {
		l.Fatal(err)
	}
	srv := &http.Server{ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/_ping" || l.refuses.Load() {
			http.Error(w, "no", http.StatusServiceUnavailable)
			return
		}
		io.WriteString(w, "OK")
	})}
	go srv.Serve(listener)
	l.Cleanup(func() { srv.Close() })
}

func (l *lab) file(elem ...string) []byte {
	l.Helper()
	text, err := os.ReadFile(filepath.Join(append([]string{l.dir}, elem...)...))
	if err != nil {
		l.Fatal(err)
	}
	return text
}

// applianceISO is one that has a place for a key, and nothing to boot.
func applianceISO(t *testing.T) []byte {
	t.Helper()
	oracle.Need(t, "xorriso")
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, appliance.KeyFile), appliance.EmptyKey(), 0o600); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "appliance.iso")
	if msg, err := exec.Command("xorriso", "-as", "mkisofs", "-quiet", "-o", out, dir).CombinedOutput(); err != nil {
		t.Fatalf("xorriso: %v\n%s", err, msg)
	}
	text, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// options are those of a VCH named vch1, which needs serve to have been called.
func (l *lab) options() CreateOptions {
	l.Helper()
	return CreateOptions{
		Spec: Spec{
			Name: "vch1", ImageStore: "datastore1", StateSize: 10, Bridge: "bridge", BridgeRange: "172.16.0.0/12", Public: Network{PortGroup: "VM Network"},
			TLS: MutualTLS, TLSNames: []string{l.ip}, CPUs: 1, MemoryMB: 2048,
		},
		Access: Access{Target: l.URL().Host, Thumbprint: l.Thumbprint(), User: "administrator", Password: "vic"},
		TLS: TLS{CA: l.file("server", "ca.pem"), Cert: l.file("server", "cert.pem"), Key: l.file("server", "key.pem"),
			ClientCert: l.file("client", "cert.pem"), ClientKey: l.file("client", "key.pem")},
		ISO: ISO{bytes.NewReader(l.iso), int64(len(l.iso))}, Version: "v1", Timeout: time.Minute,
	}
}

// create makes a VCH.
func (l *lab) create(o CreateOptions) *VCH {
	l.Helper()
	plan, err := l.site.Create(l.Context(), o)
	if err != nil {
		l.Fatal(err)
	}
	if err := plan.Run(l.Context(), RunOptions{}); err != nil {
		l.Fatal(err)
	}
	return l.find(o.Spec.Name)
}

func (l *lab) find(name string) *VCH {
	l.Helper()
	v, err := l.site.Find(l.Context(), name)
	if err != nil {
		l.Fatal(err)
	}
	return v
}

// delete removes a VCH.
func (l *lab) delete(name string, o DeleteOptions) {
	l.Helper()
	plan, err := l.find(name).Delete(l.Context(), o)
	if err != nil {
		l.Fatal(err)
	}
	if err := plan.Run(l.Context(), RunOptions{}); err != nil {
		l.Fatal(err)
	}
}

// everything lists the inventory, the groups of clusters, and the files of all datastores.
func (l *lab) everything() []string {
	l.Helper()
	c, err := l.Administrator(l.Context())
	if err != nil {
		l.Fatal(err)
	}
	v, err := view.NewManager(c).CreateContainerView(l.Context(), c.ServiceContent.RootFolder, nil, true)
	if err != nil {
		l.Fatal(err)
	}
	all, err := v.Find(l.Context(), []string{"ManagedEntity"}, nil)
	if err == nil {
		err = v.Destroy(l.Context())
	}
	if err != nil {
		l.Fatal(err)
	}
	var out []string
	for _, ref := range all {
		path, err := find.InventoryPath(l.Context(), c, ref)
		if err != nil {
			l.Fatal(err)
		}
		out = append(out, path)
	}
	for name, members := range l.groups() {
		out = append(out, fmt.Sprintf("group %s: %v", name, members))
	}
	for name, dir := range l.Folders() {
		err := filepath.Walk(dir, func(path string, fi os.FileInfo, err error) error {
			if err == nil && path != dir {
				out = append(out, fmt.Sprintf("[%s] %s", name, strings.TrimPrefix(path, dir+"/")))
			}
			return err
		})
		if err != nil {
			l.Fatal(err)
		}
	}
	slices.Sort(out)
	return out
}

// same compares two states of everything.
func (l *lab) same(got, want []string) {
	l.Helper()
	for _, x := range got {
		if !slices.Contains(want, x) {
			l.Errorf("there is now %s", x)
		}
	}
	for _, x := range want {
		if !slices.Contains(got, x) {
			l.Errorf("there is no more %s", x)
		}
	}
}

// addVM makes a VM, not by this package.
func (l *lab) addVM(spec types.VirtualMachineConfigSpec, pool, folder string) *object.VirtualMachine {
	l.Helper()
	c, err := l.Administrator(l.Context())
	if err != nil {
		l.Fatal(err)
	}
	f := find.NewFinder(c)
	dc, err := f.DefaultDatacenter(l.Context())
	if err != nil {
		l.Fatal(err)
	}
	f.SetDatacenter(dc)
	p, err := f.ResourcePool(l.Context(), pool)
	if err != nil {
		l.Fatal(err)
	}
	d, err := f.Folder(l.Context(), folder)
	if err != nil {
		l.Fatal(err)
	}
	task, err := d.CreateVM(l.Context(), spec, p, nil)
	if err != nil {
		l.Fatal(err)
	}
	info, err := task.WaitForResult(l.Context(), nil)
	if err != nil {
		l.Fatal(err)
	}
	return object.NewVirtualMachine(c, info.Result.(types.ManagedObjectReference))
}

func TestCreateDelete(t *testing.T) {
	for _, tt := range []struct {
		name    string
		o       vcsim.Options
		objects []string // of the VCH
	}{
		{"vCenter", vcsim.Options{}, []string{"/DC0/host/DC0_C0/Resources/vch1", "/DC0/vm/vch1", "/DC0/vm/vch1/vch1"}},
		{"ESXi", vcsim.Options{ESX: true}, []string{"/ha-datacenter/host/localhost.localdomain/Resources/vch1", "/ha-datacenter/vm/vch1"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := newLab(t, tt.o)
			l.serve()
			before := l.everything()
			plan, err := l.site.Create(t.Context(), l.options())
			if err != nil {
				t.Fatal(err)
			}
			l.same(l.everything(), before) // a plan does nothing
			if err := plan.Run(t.Context(), RunOptions{}); err != nil {
				t.Fatal(err)
			}
			all := l.everything()
			for _, want := range append(tt.objects, "[datastore1] vch1/vch.json", "[datastore1] vch1/state.vmdk", "[datastore1] vch1/appliance/appliance.vmx", "[datastore1] vic") {
				if !slices.Contains(all, want) {
					t.Errorf("there is no %s", want)
				}
			}
			v := l.find("vch1")
			if doing, err := v.Doing(t.Context()); doing != "" || err != nil || v.Power != types.VirtualMachinePowerStatePoweredOn || v.APIAddress() != l.ip+":2376" {
				t.Errorf("got %q, %v, %s, %s", doing, err, v.Power, v.APIAddress())
			}
			if got := l.find(v.VM); got.ID != v.ID {
				t.Errorf("by its ID: %+v", got.Record)
			}
			_, err = l.site.Create(t.Context(), l.options())
			if err == nil || !strings.Contains(err.Error(), "there is a VCH vch1 already") {
				t.Errorf("again: %v", err)
			}
			l.delete("vch1", DeleteOptions{})
			l.same(l.everything(), before)
			if _, err := l.site.Find(t.Context(), "vch1"); err == nil || !strings.Contains(err.Error(), "there is no VCH") {
				t.Errorf("after it is deleted: %v", err)
			}
		})
	}
}
