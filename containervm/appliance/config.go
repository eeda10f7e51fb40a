package appliance

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path"
	"slices"
	"strings"

	"vic/tether/wire"
)

const (
	// InfoKey and a number is the key of a string of the Config in the VM's extraConfig.
	InfoKey = "guestinfo.vic.appliance."
	// prefix begins each of those strings.
	prefix = "vic-appliance1:"

	// StateFolder is where the state disk is mounted, and Store what vic serve is told with --store.
	StateFolder = "/var/lib/vic"
	Store       = StateFolder + "/store"
	// Folder is the one for files that only this VCH has.
	Folder = "/etc/vic"
	// Roots is the folder of the certificates that vic serve trusts registries by, beside those of the ISO.
	Roots = "/etc/ssl/certs"
	// StateUnit is the unit number of the state disk at the first paravirtual SCSI controller.
	StateUnit = 0
)

// Config is what an appliance is and runs. Its writer sets it while the VM is off; the guest reads it at every boot.
type Config struct {
	// Version of the program that wrote it, for people.
	Version string `json:"version"`
	// Name of the VCH.
	Name string `json:"name"`
	// Hostname of the VM. "" means Name, with dashes for what no host name has.
	Hostname string `json:"hostname,omitempty"`
	// Args are those of vic serve, which also gets --store.
	Args []string `json:"args"`
	// Env is KEY=VALUE, beside PATH and HOME. What is secret goes into Secrets.
	Env []string `json:"env,omitempty"`
	// NICs are all interfaces of the VM, in the order in which their default routes are preferred.
	NICs []NIC `json:"nics"`
	// DNS has name servers and domains to search, before those of DHCP.
	DNS wire.DNS `json:"dns,omitzero"`
	// Files are written before vic serve starts, below Folder or Roots.
	Files []File `json:"files,omitempty"`
	// Syslog is udp://HOST[:PORT] or tcp://HOST[:PORT], where the log goes as well; the port is 514. "" is nowhere.
	Syslog string `json:"syslog,omitempty"`

	// Secrets are files likewise that nobody reads in the VM's extraConfig.
	Secrets []File `json:"-"`
}

// NIC is an interface. The guest calls it Name, by which vic serve's flags (--bridge-interface) and the Status speak of it: the
// role that it has, "client", "public", "management", "bridge", or one of them. It is set up as wire.NIC says; one with
// neither DHCP nor addresses is only up.
type NIC struct {
	wire.NIC
	// Routes lead to certain destinations by gateways of this interface.
	Routes []Route `json:"routes,omitempty"`
}

// Route is a static one.
type Route struct {
	To  netip.Prefix `json:"to"`
	Via netip.Addr   `json:"via"`
}

// File is one that is written at each boot, readable for root alone.
type File struct {
	Path    string `json:"path"`
	Content []byte `json:"content"`
}

// sealedConfig is the text that is packed.
type sealedConfig struct {
	Open   json.RawMessage `json:"open"`
	Sealed []byte          `json:"sealed"`
}

// GuestInfo encodes c as keys and values of the VM's extraConfig, with its secrets sealed by the key in the VM's ISO. Keys of an
// earlier configuration may stay beside these. The error is wire.ErrConfigTooLarge if all that, deflated, exceeds about 45 KB.
func (c *Config) GuestInfo(k Key) (map[string]string, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	open, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	secrets, err := json.Marshal(c.Secrets)
	if err != nil {
		return nil, err
	}
	sealed, err := k.seal(secrets, open)
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(sealedConfig{open, sealed})
	if err != nil {
		return nil, err
	}
	values, err := wire.Pack(prefix, text)
	if err != nil {
		return nil, err
	}
	return wire.Keyed(InfoKey, values), nil
}

// Read decodes a Config without its Secrets. get returns the value of a key of extraConfig; its error is returned.
func Read(get func(key string) (string, error)) (*Config, error) {
	s, err := read(get)
	if err != nil {
		return nil, err
	}
	return s.config()
}

// ReadSealed decodes a Config with its Secrets. The error is ErrKey if it was not sealed by this key, or was changed since.
func ReadSealed(get func(key string) (string, error), k Key) (*Config, error) {
	s, err := read(get)
	if err != nil {
		return nil, err
	}
	secrets, err := k.unseal(s.Sealed, s.Open)
	if err != nil {
		return nil, err
	}
	c, err := s.config()
	if err != nil {
		return nil, err
	}
	if err := strict(secrets, &c.Secrets); err != nil {
		return nil, fmt.Errorf("parse secrets: %w", err)
	}
	return c, c.check()
}

func read(get func(key string) (string, error)) (*sealedConfig, error) {
	values, err := wire.ReadKeyed(InfoKey, prefix, get)
	if err != nil {
		return nil, err
	}
	text, err := wire.Unpack(prefix, values)
	if err != nil {
		return nil, err
	}
	s := new(sealedConfig)
	if err := strict(text, s); err != nil {
		return nil, fmt.Errorf("parse configuration: %w", err)
	}
	return s, nil
}

func (s *sealedConfig) config() (*Config, error) {
	c := new(Config)
	if err := strict(s.Open, c); err != nil {
		return nil, fmt.Errorf("parse configuration: %w", err)
	}
	return c, c.check()
}

// strict decodes JSON and refuses what the appliance would pass over.
func strict(text []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	return d.Decode(into)
}

// check refuses what an appliance could not do.
func (c *Config) check() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf("appliance: "+format, args...)) }
	if c.Name == "" || len(c.Name) > 80 || strings.ContainsFunc(c.Name, func(r rune) bool { return r < ' ' || r == '/' }) {
		bad("%.90q is no name of a VCH", c.Name)
	}
	if h := c.Hostname; len(h) > maxHostname || dashed(h) != h {
		bad("%.70q is no host name", h)
	}
	for _, e := range c.Env {
		if name, _, ok := strings.Cut(e, "="); !ok || name == "" || strings.Contains(e, "\x00") {
			bad("environment variable %.40q is not KEY=VALUE", e)
		}
	}
	for _, a := range c.Args {
		if strings.Contains(a, "\x00") {
			bad("argument %.40q has a NUL", a)
		}
	}
	names := map[string]bool{"lo": true}
	for _, n := range c.NICs {
		if n.Name == "" || len(n.Name) > 15 || names[n.Name] || strings.ContainsAny(n.Name, "/: \t\n\x00%") || n.Name == "." || n.Name == ".." {
			bad("%.20q is no name of an interface, or of two", n.Name)
		}
		names[n.Name] = true
		if _, err := net.ParseMAC(n.MAC); err != nil {
			bad("interface %s: %w", n.Name, err)
		}
		for _, r := range n.Routes {
			if !r.To.IsValid() || !r.Via.IsValid() || r.To.Addr().Is4() != r.Via.Is4() {
				bad("interface %s: no route to %v by %v", n.Name, r.To, r.Via)
			}
		}
	}
	paths := map[string]bool{}
	for _, f := range slices.Concat(c.Files, c.Secrets) {
		dir := path.Dir(f.Path)
		if path.Clean(f.Path) != f.Path || dir != Folder && dir != Roots && !strings.HasPrefix(dir, Folder+"/") || strings.Contains(f.Path, "\x00") {
			bad("file %.100q is not below %s or in %s", f.Path, Folder, Roots)
		}
		if paths[f.Path] {
			bad("file %s is there twice", f.Path)
		}
		paths[f.Path] = true
	}
	if _, _, err := c.SyslogAddress(); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// maxHostname is what Linux takes.
const maxHostname = 64

// HostName is what the VM is called.
func (c *Config) HostName() string {
	if c.Hostname != "" {
		return c.Hostname
	}
	h := dashed(c.Name)
	return h[:min(len(h), maxHostname)]
}

// dashed has dashes in place of what may not be in a host name.
func dashed(name string) string {
	return strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r == '.' {
			return r
		}
		return '-'
	}, name)
}

// SyslogAddress takes Syslog apart as net.Dial wants it. Both are "" if there is none.
func (c *Config) SyslogAddress() (network, address string, err error) {
	if c.Syslog == "" {
		return "", "", nil
	}
	u, err := url.Parse(c.Syslog)
	if err != nil || u.Scheme != "udp" && u.Scheme != "tcp" || u.Hostname() == "" || u.Path != "" || u.RawQuery != "" || u.User != nil || u.Fragment != "" {
		return "", "", fmt.Errorf("appliance: syslog address %q is not udp://HOST[:PORT] or tcp://HOST[:PORT]", c.Syslog)
	}
	port := u.Port()
	if port == "" {
		port = "514"
	}
	return u.Scheme, net.JoinHostPort(u.Hostname(), port), nil
}
