package main

import (
	"bufio"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/vmware/govmomi/vim25/soap"
	"golang.org/x/term"

	"vic/containervm/vch"
	"vic/layerstore/vsphere"
)

// variable is the environment's name of a flag.
func variable(flag string) string {
	return "VIC_MACHINE_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// targetFlags say which vSphere, and who asks.
type targetFlags struct {
	target       string
	user         string
	passwordFile string
	thumbprint   string
	caFile       string

	password string // as it was found
}

func (f *targetFlags) add(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.StringVarP(&f.target, "target", "t", "", "`HOST[:PORT][/DATACENTER]` of the vCenter or ESXi host")
	fl.StringVarP(&f.user, "user", "u", "", "`name` to log in by")
	fl.StringVar(&f.passwordFile, "password-file", "", "`file` whose first line is the password; default $VIC_MACHINE_PASSWORD, or it is asked for")
	fl.StringVar(&f.thumbprint, "thumbprint", "", "`digest` of the target's certificate, SHA-256 or SHA-1, in hex with colons")
	fl.StringVar(&f.caFile, "target-ca", "", "`file` of the authority of the target's certificate, PEM")
}

// complete fills in what is in the environment of govc. It returns the datacenter, "" if none is named.
func (f *targetFlags) complete(cmd *cobra.Command) (datacenter string, err error) {
	if f.target == "" {
		if u, err := soap.ParseURL(os.Getenv("GOVC_URL")); err == nil && u != nil {
			f.target = u.Host
			if u.User != nil {
				password, _ := u.User.Password()
				f.user, f.password = cmp.Or(f.user, u.User.Username()), password
			}
		}
	}
	text := f.target
	if i := strings.Index(text, "://"); i >= 0 { // as GOVC_URL
		u, err := url.Parse(text)
		if err != nil || u.Scheme != "https" {
			return "", usageErrorf("--target: want HOST[:PORT][/DATACENTER]") // the text may have a password
		}
		if _, has := u.User.Password(); has {
			return "", usageErrorf("--target: a password does not belong in the command line: see --password-file")
		}
		f.user = cmp.Or(f.user, u.User.Username())
		text = u.Host + strings.TrimPrefix(u.Path, "/sdk")
	}
	if strings.Contains(text, "@") {
		return "", usageErrorf("--target: name the user with --user")
	}
	f.target, datacenter, _ = strings.Cut(text, "/")
	if f.target == "" {
		return "", usageErrorf("name a vCenter or an ESXi host with --target")
	}
	f.user = cmp.Or(f.user, os.Getenv("GOVC_USERNAME"))
	if f.user == "" {
		return "", usageErrorf("name who logs in with --user")
	}
	f.caFile = cmp.Or(f.caFile, os.Getenv("GOVC_TLS_CA_CERTS"))
	if f.password == "" || f.passwordFile != "" || os.Getenv("VIC_MACHINE_PASSWORD") != "" {
		f.password, err = password(cmd, "VIC_MACHINE_PASSWORD", "GOVC_PASSWORD", f.passwordFile, "Password of "+f.user)
	}
	return cmp.Or(datacenter, os.Getenv("GOVC_DATACENTER")), err
}

// maxPassword bounds what is read of a file of a password.
const maxPassword = 4 << 10

// password finds a password: in a file, in the environment, or by asking on a terminal.
func password(cmd *cobra.Command, variable, another, file, prompt string) (string, error) {
	if file != "" {
		f, err := os.Open(file)
		if err != nil {
			return "", fmt.Errorf("read password: %w", err)
		}
		defer f.Close()
		line, err := bufio.NewReader(io.LimitReader(f, maxPassword)).ReadString('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return "", fmt.Errorf("read password: %w", err)
		}
		return strings.TrimRight(line, "\r\n"), nil
	}
	if p := cmp.Or(os.Getenv(variable), os.Getenv(another)); p != "" {
		return p, nil
	}
	in, ok := cmd.InOrStdin().(*os.File)
	if !ok || !term.IsTerminal(int(in.Fd())) {
		return "", usageErrorf("no password: set %s, or name a file", variable)
	}
	fmt.Fprint(cmd.ErrOrStderr(), prompt+": ")
	p, err := term.ReadPassword(int(in.Fd()))
	fmt.Fprintln(cmd.ErrOrStderr())
	return string(p), err
}

// session logs in.
func (f *targetFlags) session(ctx context.Context) (*vsphere.Session, error) {
	s, err := vsphere.Connect(ctx, vsphere.Endpoint{Server: f.target, User: f.user, Password: f.password, Thumbprint: f.thumbprint, CAFile: f.caFile})
	if untrusted, ok := errors.AsType[*vsphere.UntrustedError](err); ok {
		return nil, fmt.Errorf("the certificate of %s is not trusted: %w; if it is the one that you expect, give --thumbprint %s", untrusted.Host, untrusted.Err, untrusted.Thumbprint)
	}
	return s, err
}

// withSite runs fn with the datacenter that the flags name.
func (f *targetFlags) withSite(cmd *cobra.Command, fn func(*vch.Site) error) error {
	datacenter, err := f.complete(cmd)
	if err != nil {
		return err
	}
	s, err := f.session(cmd.Context())
	if err != nil {
		return err
	}
	defer s.Close(context.WithoutCancel(cmd.Context())) // else it ends by itself
	site, err := vch.Open(cmd.Context(), s, datacenter)
	if err != nil {
		return err
	}
	return fn(site)
}

// trust completes what the appliance trusts the target by: where this machine trusts its certificate without being told to, that very one.
func (f *targetFlags) trust(ctx context.Context) error {
	if f.thumbprint != "" || f.caFile != "" {
		return nil
	}
	address := f.target
	if _, _, err := net.SplitHostPort(address); err != nil {
		address = net.JoinHostPort(address, "443")
	}
	conn, err := new(tls.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("look at the certificate of %s: %w", f.target, err)
	}
	defer conn.Close()
	f.thumbprint = soap.ThumbprintSHA256(conn.(*tls.Conn).ConnectionState().PeerCertificates[0])
	return nil
}

// nameFlag adds --name to a command.
func nameFlag(cmd *cobra.Command, name *string) {
	cmd.Flags().StringVarP(name, "name", "n", "virtual-container-host", "`NAME` of the VCH, or the ID of its VM, such as vm-12")
}

// computeResource is the flag, or what govc calls it.
func computeResource(flag string) string { return cmp.Or(flag, os.Getenv("GOVC_RESOURCE_POOL")) }
