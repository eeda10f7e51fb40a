package vsphere

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/session"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// An Endpoint says where a vCenter or an ESXi host is, and who asks.
type Endpoint struct {
	// Server is HOST, HOST:PORT, or a URL; what it lacks is https and /sdk.
	Server         string
	User, Password string
	// Thumbprint is the SHA-1 or SHA-256 digest of the server's certificate, in hex with colons. Without it
	// the certificate must be one that CAFile, or the machine if that is "", trusts.
	Thumbprint string
	CAFile     string // PEM
	// KeepAlive is how often the server is asked something so that it does not take the session for idle. 0 means 5 minutes; vCenter's own
	// limit is 30.
	KeepAlive time.Duration
	Log       *slog.Logger
}

const keepAlive = 5 * time.Minute

// idleConnections is how many connections to the server are kept for calls to come. Calls that are made at once have one each, and
// most of what another costs is its handshake.
const idleConnections = 16

// answerTime is how long the server may take to answer what was sent. It answers calls for updates after waitSeconds at the latest.
const answerTime = 2 * time.Minute

// A Session is a login to a vCenter or an ESXi host.
type Session struct {
	client *vim25.Client
	user   *url.Userinfo
	log    *slog.Logger
	retry  backOff
	tasks  waiter

	ctx    context.Context // of what works for the session by itself; ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup // of keep

	lost atomic.Pointer[error] // see Lose

	login sync.Mutex // held while logging in; guards what follows
	epoch int        // how many logins there were
	here  context.Context
	leave context.CancelFunc // ends here
}

// An UntrustedError says that a server's certificate is not one that is trusted.
type UntrustedError struct {
	Host       string
	Thumbprint string // its SHA-256 digest
	Err        error
}

func (e *UntrustedError) Error() string {
	return fmt.Sprintf("the certificate of %s is not trusted: %v; if it is the one you expect, name its thumbprint %s", e.Host, e.Err, e.Thumbprint)
}

func (e *UntrustedError) Unwrap() error { return e.Err }

// Connect logs in. The error is an *UntrustedError if the server's certificate is not to be trusted.
func Connect(ctx context.Context, e Endpoint) (*Session, error) {
	u, err := soap.ParseURL(e.Server)
	if err != nil || u == nil || u.Host == "" {
		return nil, fmt.Errorf("%q is no server: want HOST or https://HOST/sdk", e.Server)
	}
	u.User = nil // not to be shown in errors
	sc := soap.NewClient(u, false)
	if e.CAFile != "" {
		if err := sc.SetRootCAs(e.CAFile); err != nil {
			return nil, fmt.Errorf("read trusted certificates: %w", err)
		}
	}
	if e.Thumbprint != "" {
		sc.SetThumbprint(u.Host, strings.ToUpper(e.Thumbprint))
	}
	sc.UserAgent = "vic"
	sc.DefaultTransport().MaxIdleConnsPerHost = idleConnections
	sc.DefaultTransport().ResponseHeaderTimeout = answerTime
	sc.Transport = reusing{sc.Transport}
	client, err := vim25.NewClient(ctx, sc)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", u.Host, untrusted(ctx, u, err))
	}
	s := &Session{client: client, user: url.UserPassword(e.User, e.Password), log: e.Log, retry: defaultBackOff}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.tasks = waiter{s: s, tasks: map[types.ManagedObjectReference]*awaited{}}
	s.here, s.leave = context.WithCancel(s.ctx)
	client.RoundTripper = &authenticated{s, client.RoundTripper}
	if err := s.authenticate(ctx, 0); err != nil {
		s.cancel()
		return nil, fmt.Errorf("log in to %s as %s: %w", u.Host, e.User, err)
	}
	s.wg.Go(func() { s.keep(cmp.Or(e.KeepAlive, keepAlive)) })
	return s, nil
}

// untrusted makes an *UntrustedError of an error in verifying a certificate.
func untrusted(ctx context.Context, u *url.URL, err error) error {
	if !soap.IsCertificateUntrusted(err) {
		return err
	}
	return &UntrustedError{u.Host, thumbprint(ctx, u), err}
}

// thumbprint is that of the server's certificate, "" if it cannot be had.
func thumbprint(ctx context.Context, u *url.URL) string {
	address := u.Host
	if u.Port() == "" {
		address += ":443"
	}
	d := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true}} // nothing is said: its certificate is all that is wanted
	conn, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return ""
	}
	defer conn.Close()
	return soap.ThumbprintSHA256(conn.(*tls.Conn).ConnectionState().PeerCertificates[0])
}

// Client is the session's client: its calls log in again where they have to.
func (s *Session) Client() *vim25.Client { return s.client }

// Lose notes that whoever watches vSphere has lost it, nil that it is found again. As long as it is lost nothing long is begun.
func (s *Session) Lose(err error) {
	if err == nil {
		s.lost.Store(nil)
		return
	}
	s.lost.Store(&err)
}

// available is the error that vSphere was lost by, nil if it was not.
func (s *Session) available() error {
	if err := s.lost.Load(); err != nil {
		return unavailable(*err)
	}
	return nil
}

// authenticate logs in, unless somebody else has since epoch was seen.
func (s *Session) authenticate(ctx context.Context, epoch int) error {
	s.login.Lock()
	defer s.login.Unlock()
	if s.epoch != epoch {
		return nil
	}
	if err := session.NewManager(s.client).Login(ctx, s.user); err != nil {
		return err
	}
	if s.epoch++; s.epoch > 1 {
		s.log.Info("logged in to vSphere again", "server", s.client.URL().Host)
		s.leave()
		s.here, s.leave = context.WithCancel(s.ctx)
	}
	return nil
}

// Login ends when somebody finds the server to have ended the session, and has logged in anew: what was made in it, as a property collector, is
// gone, and who waits for it may wait in vain.
func (s *Session) Login() context.Context {
	s.login.Lock()
	defer s.login.Unlock()
	return s.here
}

func (s *Session) seen() int {
	s.login.Lock()
	defer s.login.Unlock()
	return s.epoch
}

// keep keeps the session alive: the server takes who only waits for idle. A session that it has ended is found out thereby.
func (s *Session) keep(every time.Duration) {
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			s.touch()
		case <-s.ctx.Done():
			return
		}
	}
}

// touch asks the server for its time. What fails is tried again the next time.
func (s *Session) touch() {
	ctx, cancel := context.WithTimeout(s.ctx, time.Minute)
	defer cancel()
	if _, err := methods.GetCurrentTime(ctx, s.client); err != nil && s.ctx.Err() == nil {
		s.log.Warn("keep the vSphere session", "error", err)
	}
}

// Close logs out.
func (s *Session) Close(ctx context.Context) error {
	s.cancel()
	s.wg.Wait()
	s.tasks.wg.Wait()
	err := session.NewManager(s.client).Logout(ctx)
	s.client.CloseIdleConnections()
	return err
}

// authenticated logs in again, and asks again, where a call finds the session gone.
type authenticated struct {
	s    *Session
	next soap.RoundTripper
}

func (a *authenticated) RoundTrip(ctx context.Context, req, res soap.HasFault) error {
	switch req.(type) {
	case *methods.LoginBody, *methods.LogoutBody:
		return a.next.RoundTrip(ctx, req, res)
	}
	epoch := a.s.seen()
	err := a.next.RoundTrip(ctx, req, res)
	if err == nil {
		err = withheld(res)
	}
	if !fault.Is(err, &types.NotAuthenticated{}) {
		return err
	}
	if loginErr := a.s.authenticate(ctx, epoch); loginErr != nil {
		return errors.Join(err, loginErr)
	}
	reflect.ValueOf(res).Elem().SetZero() // it has the fault
	return a.next.RoundTrip(ctx, req, res)
}

// withheld is the error of an answer that has objects without their properties since the session is gone: who asks for properties is let in
// without one.
func withheld(res soap.HasFault) error {
	var objects []types.ObjectContent
	switch body := res.(type) {
	case *methods.RetrievePropertiesBody:
		if body.Res != nil {
			objects = body.Res.Returnval
		}
	case *methods.RetrievePropertiesExBody:
		if body.Res != nil && body.Res.Returnval != nil {
			objects = body.Res.Returnval.Objects
		}
	}
	for _, o := range objects {
		for _, p := range o.MissingSet {
			if f, ok := p.Fault.Fault.(*types.NotAuthenticated); ok {
				return soap.WrapVimFault(f)
			}
		}
	}
	return nil
}
