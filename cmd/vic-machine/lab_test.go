package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"

	"vic/bench/oracle"
	"vic/bench/vcsim"
	"vic/containervm/appliance"
)

// A lab is a simulated vSphere in which appliances come up: their API is a stand-in on this machine, which shows the certificates that
// vic-machine has made.
type lab struct {
	*testing.T
	*vcsim.Server
	dir string // of certificates, and of the ISO
	ip  string // of all appliances

	mu     sync.Mutex
	server *http.Server // nil before an appliance was powered on
}

func newLab(t *testing.T, o vcsim.Options) *lab {
	t.Helper()
	s, err := vcsim.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	b := func() string { return strconv.Itoa(1 + rand.IntN(250)) }
	l := &lab{T: t, Server: s, dir: t.TempDir(), ip: "127." + b() + "." + b() + "." + b()}
	t.Cleanup(l.stop)
	oracle.Need(t, "xorriso")
	files := t.TempDir()
	if err := os.WriteFile(filepath.Join(files, appliance.KeyFile), appliance.EmptyKey(), 0o600); err != nil {
		t.Fatal(err)
	}
	if msg, err := exec.Command("xorriso", "-as", "mkisofs", "-quiet", "-o", filepath.Join(l.dir, "appliance.iso"), files).CombinedOutput(); err != nil {
		t.Fatalf("xorriso: %v\n%s", err, msg)
	}
	s.OnTask(l.boot)
	for name, value := range map[string]string{"TARGET": s.URL().Host, "THUMBPRINT": s.Thumbprint(), "USER": "administrator", "PASSWORD": "vic", "TIMEOUT": "20s",
		"APPLIANCE_ISO": filepath.Join(l.dir, "appliance.iso"), "TLS_CERT_PATH": filepath.Join(l.dir, "certs")} {
		t.Setenv("VIC_MACHINE_"+name, value)
	}
	return l
}

func (l *lab) stop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.server != nil {
		l.server.Close()
	}
	l.server = nil
}

// boot gives an appliance that is powered on its address, and an API.
func (l *lab) boot(t *simulator.Task, run func() vcsim.Outcome) vcsim.Outcome {
	o := run()
	vm, ok := l.Service.Context.Map.Get(*t.Info.Entity).(*simulator.VirtualMachine)
	if t.Info.DescriptionId != "VirtualMachine.powerOn" || o.Fault != nil || !ok || !strings.Contains(vm.Config.Annotation, "vic-machine") {
		return o
	}
	l.stop()
	pair, err := tls.LoadX509KeyPair(filepath.Join(l.dir, "certs", "server", "cert.pem"), filepath.Join(l.dir, "certs", "server", "key.pem"))
	if err != nil {
		l.Error(err)
		return o
	}
	text, err := os.ReadFile(filepath.Join(l.dir, "certs", "ca", "cert.pem"))
	if err != nil {
		l.Error(err)
		return o
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(text)
	listener, err := tls.Listen("tcp", net.JoinHostPort(l.ip, "2376"), &tls.Config{Certificates: []tls.Certificate{pair}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert})
	if err != nil {
		l.Error(err)
		return o
	}
	server := &http.Server{ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug),
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "OK") })}
	l.mu.Lock()
	l.server = server
	l.mu.Unlock()
	go server.Serve(listener)
	l.Service.Context.Update(vm, []types.PropertyChange{{Name: "guest.ipAddress", Val: l.ip}})
	return o
}

// machine runs one command line.
func machine(t *testing.T, args ...string) (out, errOut string, err error) {
	t.Helper()
	var o, e bytes.Buffer
	err = run(t.Context(), args, strings.NewReader(""), &o, &e)
	return o.String(), e.String(), err
}

// ok runs one that goes well, and returns what it printed.
func (l *lab) ok(args ...string) string {
	l.Helper()
	out, errOut, err := machine(l.T, args...)
	if err != nil {
		l.Fatalf("vic-machine %s: %v\n%s%s", strings.Join(args, " "), err, out, errOut)
	}
	return out
}

// create is a command line that makes a VCH, followed by more.
func (l *lab) create(more ...string) []string {
	return append([]string{"create", "--name", "vch1", "--image-store", "datastore1", "--bridge-network", "bridge", "--tls-cname", l.ip}, more...)
}

// writing are the calls that change something.
func (l *lab) writing() map[string]int {
	all := l.Calls()
	for name := range all {
		for _, reads := range []string{"Retrieve", "CreateContainerView", "CreateFilter", "CreatePropertyCollector", "DestroyPropertyCollector", "DestroyPropertyFilter", "DestroyView",
			"WaitForUpdates", "ContinueRetrieve", "Login", "Logout", "Query", "FindByInventoryPath", "SearchDatastore", "FindByUuid", "GET ", "HEAD ", "CurrentTime", "AcquireGenericServiceTicket"} {
			if strings.HasPrefix(name, reads) {
				delete(all, name)
			}
		}
	}
	return all
}

// judged is what VMware's command line says.
func (l *lab) judged(govc string, args ...string) string {
	l.Helper()
	cmd := exec.Command(govc, args...)
	cmd.Env = append(os.Environ(), "GOVC_URL="+l.URL().String(), "GOVC_INSECURE=1", "GOVMOMI_HOME="+l.TempDir())
	text, err := cmd.CombinedOutput()
	if err != nil {
		l.Fatalf("govc %v: %v\n%s", args, err, text)
	}
	return string(text)
}

// unmount takes a datastore from a host.
func (l *lab) unmount(host, datastore string) {
	l.Helper()
	m := l.Service.Context.Map
	for _, e := range m.All("HostSystem") {
		h := e.(*simulator.HostSystem)
		if h.Name != host {
			continue
		}
		left := slices.DeleteFunc(slices.Clone(h.Datastore), func(ref types.ManagedObjectReference) bool {
			return m.Get(ref).(*simulator.Datastore).Name == datastore
		})
		l.Service.Context.Update(h, []types.PropertyChange{{Name: "datastore", Val: left}})
	}
}

// extra is a value of a VM's extraConfig.
func (l *lab) extra(vm, key string) string {
	for _, e := range l.Service.Context.Map.All("VirtualMachine") {
		if m := e.(*simulator.VirtualMachine); m.Name == vm {
			for _, o := range m.Config.ExtraConfig {
				if v := o.GetOptionValue(); v.Key == key {
					text, _ := v.Value.(string)
					return text
				}
			}
		}
	}
	return ""
}
