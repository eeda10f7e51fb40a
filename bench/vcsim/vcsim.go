// Package vcsim runs a vSphere without VMware: govmomi's simulator, of a vCenter or of one ESXi host, set up as a test or a
// developer asks, behind an HTTP server that fails on request.
//
//	client ──► front ──► simulator ──► tasks ──► folders of this machine: the datastores
//	           faults     SOAP, REST,   faults, hooks
//	           of the     /folder
//	           network
//
// Start returns a Server that listens on loopback. A datastore is a folder: what is uploaded to /folder/PATH?dsName=NAME is
// the file PATH in it. The simulator keeps the inventory in memory, and carries out what concerns files; VMs do not run.
// Package vcsim/bridge lets them run, by a hook around the simulator's tasks (OnTask).
//
// # What differs from the simulator as it comes
//
//   - /folder asks for a session, as vSphere does, and refuses methods that the simulator takes for others.
//   - An upload that did not come whole is no success.
//   - Datastores have the types, versions and capabilities of VMFS, NFS and vSAN; disks may be objects, as on vSAN and vVol.
//   - A disk that is created is there, as a flat one or as a delta over its parent, and is deleted with all of its files.
//   - A virtual machine is destroyed when its folder is gone, not before.
//   - What is sent to an NFC lease becomes the disk's content.
//   - A permission that is set leaves those of others.
//   - Updates of properties are what has changed; the simulator's take time that grows with the square of the objects, and hang now and then.
//   - Close does not wait for clients.
//
// # Faults
//
// What goes wrong on request:
//
//	DropSessions    every session ends, as when vCenter starts again
//	FailTask        a task ends in an error, before or after it did what it is for
//	FillDatastore   uploads, those of NFC leases included, fail when so many bytes have come
//	BreakUpload     the connection of the next upload breaks on its way
//	HoldUpload      an upload stands still on its way
//	Away, Return    nothing answers
//	Ask             a virtual machine stands still until somebody has answered
//	Service         the simulator itself: its AddFaultRule makes calls fail
//	Administrator   a client that none of this concerns: what it does is done behind the others' backs
package vcsim

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"os"
	"sync"
	"time"

	"github.com/vmware/govmomi"
	"github.com/vmware/govmomi/session"
	"github.com/vmware/govmomi/simulator"
	_ "github.com/vmware/govmomi/vapi/simulator" // the REST API, for tags
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// Options say what there is.
type Options struct {
	ESX        bool          // one ESXi host instead of a vCenter
	Manager    string        // address of the vCenter that manages the ESXi host; "" means none does
	Hosts      int           // in the cluster of the vCenter; 0 means 2
	Datastores []Datastore   // none means one, "datastore1", in a temporary folder
	PortGroups []string      // beside "VM Network"; all hosts have all of them
	Switched   []string      // distributed port groups of a vCenter, on its switch "DVS0", beside the simulator's own "DC0_DVPG0"
	Pools      []string      // resource pools below the cluster's or the host's own
	Address    string        // of the listener; "" means any port of 127.0.0.1
	User       *url.Userinfo // the only one who may log in; nil means "administrator", with the password "vic"
	Plain      bool          // HTTP instead of HTTPS
	Idle       time.Duration // after which a session ends; 0 means never
}

// A Server is a simulated vSphere. Its methods may be called concurrently.
type Server struct {
	// Service is the simulator.
	Service *simulator.Service

	model      *simulator.Model
	url        url.URL
	tls        *tls.Config // nil: HTTP
	cert       *x509.Certificate
	datastores map[string]Datastore // by their names
	temp       string               // "" if there is none

	hooks hooks
	front front

	mu       sync.Mutex
	listener *listening // nil while it is away
}

// listening is an HTTP server and the goroutine that serves.
type listening struct {
	http *http.Server
	done chan struct{}
}

// Start makes a vSphere and serves it until Close.
func Start(ctx context.Context, o Options) (_ *Server, err error) {
	s := &Server{datastores: map[string]Datastore{}}
	s.front.s = s
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("vcsim: %w", err), s.Close())
		}
	}()
	if o.ESX && len(o.Switched) > 0 {
		return nil, errors.New("an ESXi host has no distributed port groups")
	}
	if o.ESX && o.Hosts > 1 {
		return nil, errors.New("an ESXi host is one host")
	}
	if o.User == nil {
		o.User = url.UserPassword("administrator", "vic")
	}
	if o.Address == "" {
		o.Address = "127.0.0.1:0"
	}
	if err := s.makeModel(o); err != nil {
		return nil, err
	}
	if err := s.listen(o); err != nil {
		return nil, err
	}
	return s, s.furnish(ctx, o)
}

// makeModel makes an inventory without datastores and VMs.
func (s *Server) makeModel(o Options) error {
	m := simulator.VPX()
	if o.ESX {
		m = simulator.ESX()
	} else {
		m.Host, m.ClusterHost = 0, max(o.Hosts, 1)
		if o.Hosts == 0 {
			m.ClusterHost = 2
		}
		m.Portgroup = 0
		if len(o.Switched) > 0 {
			m.Portgroup = 1 // makes the switch
		}
	}
	m.Machine, m.Datastore = 0, 0
	s.model = m
	if err := m.Create(); err != nil {
		return fmt.Errorf("make inventory: %w", err)
	}
	s.Service = m.Service
	s.hooks.failures = &s.front.failures
	m.Map().AddHandler(&s.hooks)
	return nil
}

// listen starts the front. The simulator's own HTTP server chooses the address and registers what there is to serve, and ends:
// it could neither be away nor close while a client is there.
func (s *Server) listen(o Options) error {
	l, err := net.Listen("tcp", o.Address) // the simulator panics at an address that it cannot have
	if err != nil {
		return err
	}
	o.Address = l.Addr().String()
	if err := l.Close(); err != nil {
		return err
	}
	svc := s.Service
	svc.RegisterEndpoints = true
	svc.Listen = &url.URL{Host: o.Address, User: o.User}
	if !o.Plain {
		svc.TLS = new(tls.Config)
	}
	if o.Idle != 0 {
		idle := &types.OptionValue{Key: "config.vmacore.soap.sessionTimeout", Value: o.Idle.String()}
		svc.Context.Map.OptionManager().UpdateOptions(&types.UpdateOptions{ChangedValue: []types.BaseOptionValue{idle}})
	}
	own := svc.NewServer()
	s.url = *own.URL
	if !o.Plain {
		s.tls, s.cert = own.Server.TLS, own.Certificate()
	}
	own.Close()
	return s.Return()
}

// URL is where the API is, with a user who may log in.
func (s *Server) URL() *url.URL {
	u := s.url
	return &u
}

// Thumbprint is the SHA-1 of the server's certificate, as vSphere shows it; "" without TLS.
func (s *Server) Thumbprint() string {
	if s.cert == nil {
		return ""
	}
	return soap.ThumbprintSHA1(s.cert)
}

// Folder is the folder that a datastore is, "" if there is no such datastore.
func (s *Server) Folder(datastore string) string { return s.datastores[datastore].Dir }

// Folders are the folders of all datastores, by their names.
func (s *Server) Folders() map[string]string {
	all := map[string]string{}
	for name, d := range s.datastores {
		all[name] = d.Dir
	}
	return all
}

// Client logs in. The caller logs it out.
func (s *Server) Client(ctx context.Context) (*govmomi.Client, error) {
	sc := soap.NewClient(s.URL(), false)
	if s.tls != nil {
		sc.SetThumbprint(s.url.Host, s.Thumbprint())
	}
	vc, err := vim25.NewClient(ctx, sc)
	if err != nil {
		return nil, err
	}
	c := &govmomi.Client{Client: vc, SessionManager: session.NewManager(vc)}
	if err := c.Login(ctx, s.url.User); err != nil {
		return nil, err
	}
	return c, nil
}

// Administrator returns a client inside the simulator, past the network and without a session: it is never away and never
// logged out. Its calls are not counted.
func (s *Server) Administrator(ctx context.Context) (*vim25.Client, error) {
	return vim25.NewClient(ctx, s.Service)
}

// Close ends the server, with its connections, and removes the temporary folder, if it made one. The datastores that were given stay.
func (s *Server) Close() error {
	err := s.Away()
	if s.model != nil && s.model.Service != nil {
		s.model.Remove()
	}
	if s.temp != "" {
		err = errors.Join(err, os.RemoveAll(s.temp))
	}
	return err
}

// Away has vCenter be gone: its connections break and nobody listens any more. What it knows it keeps.
func (s *Server) Away() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.listener == nil {
		return nil
	}
	err := s.listener.http.Close()
	<-s.listener.done
	s.listener = nil
	return err
}

// Return has it listen again, at the same address.
func (s *Server) Return() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.listener != nil {
		return nil
	}
	l, err := net.Listen("tcp", s.url.Host)
	if err != nil {
		return err
	}
	h := &http.Server{Handler: &s.front, ErrorLog: log.New(io.Discard, "", 0)} // what clients do wrong they may
	done := make(chan struct{})
	go func() {
		defer close(done)
		if s.tls != nil {
			l = tls.NewListener(l, s.tls)
		}
		_ = h.Serve(l) // ends by Close
	}()
	s.listener = &listening{h, done}
	return nil
}
