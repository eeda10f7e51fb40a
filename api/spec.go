package api

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/sys/signal"

	"vic/containervm"
)

// A created is what inspect tells of how a container was made. It is kept with the container, in
// Spec.Extra.
type created struct {
	Config     *container.Config     `json:"config"`
	HostConfig *container.HostConfig `json:"hostConfig"`
}

// specOf makes a container's spec of a create body whose Config is merged with the image's. The body's
// values are brought into the form in which inspect shows them.
func specOf(body *createBody, most containervm.Resources) (containervm.Spec, error) {
	c, h := body.Config, &body.HostConfig.HostConfig
	s := containervm.Spec{
		Image:        c.Image,
		Args:         command(c),
		Env:          c.Env,
		Dir:          c.WorkingDir,
		User:         c.User,
		Groups:       h.GroupAdd,
		Hostname:     c.Hostname,
		Domain:       c.Domainname,
		TTY:          c.Tty,
		OpenStdin:    c.OpenStdin,
		StdinOnce:    c.StdinOnce,
		AutoRemove:   h.AutoRemove,
		ReadOnlyRoot: h.ReadonlyRootfs,
		ShmSize:      h.ShmSize,
		Sysctls:      h.Sysctls,
		Labels:       c.Labels,
	}
	if h.ShmSize < 0 {
		return s, badRequest("SHM size can not be less than 0")
	}
	if err := checkCPUs(&h.Resources, most); err != nil {
		return s, err
	}
	if err := setResources(&s, &h.Resources, most); err != nil {
		return s, err
	}
	for _, set := range []func(*containervm.Spec, *createBody) error{setPrivileges, setHealth, setStop, setSize, setTmpfs, setUlimits, setNetwork, setLog} {
		if err := set(&s, body); err != nil {
			return s, err
		}
	}
	if err := container.ValidateRestartPolicy(h.RestartPolicy); err != nil {
		return s, badRequest("%w", err)
	}
	if h.RestartPolicy.Name == "" {
		h.RestartPolicy.Name = container.RestartPolicyDisabled
	}
	s.Restart = containervm.RestartPolicy{Name: string(h.RestartPolicy.Name), MaxRetries: h.RestartPolicy.MaximumRetryCount}
	h.Runtime = runtimeName
	extra, err := json.Marshal(created{c, h})
	if err != nil {
		return s, fmt.Errorf("encode container config: %w", err)
	}
	s.Extra = extra
	return s, nil
}

func setStop(s *containervm.Spec, body *createBody) error {
	if name := body.StopSignal; name != "" {
		sig, err := signal.ParseSignal(name)
		if err != nil {
			return badRequest("invalid signal: %s", name)
		}
		s.StopSignal = sig
	}
	if body.StopTimeout != nil {
		s.StopGrace = grace(*body.StopTimeout)
	}
	return nil
}

// grace turns a number of seconds, less than zero for ever, into a duration.
func grace(seconds int) *time.Duration {
	const most = 1 << 30 // seconds, 34 years
	d := time.Duration(min(max(seconds, -1), most)) * time.Second
	return &d
}

func setSize(s *containervm.Spec, body *createBody) error {
	rows, cols := body.HostConfig.ConsoleSize[0], body.HostConfig.ConsoleSize[1]
	size, err := sizeOf(uint64(rows), uint64(cols))
	s.Size = size
	return err
}

func sizeOf(rows, cols uint64) (containervm.Size, error) {
	if rows > 1<<16-1 || cols > 1<<16-1 {
		return containervm.Size{}, badRequest("a terminal of %d by %d is too large", rows, cols)
	}
	return containervm.Size{Rows: uint16(rows), Cols: uint16(cols)}, nil
}

// tmpfsDefaults are Docker's mount options for every tmpfs, ahead of the user's.
var tmpfsDefaults = []string{"noexec", "nosuid", "nodev"}

func setTmpfs(s *containervm.Spec, body *createBody) error {
	h := body.HostConfig
	for _, target := range slices.Sorted(maps.Keys(h.Tmpfs)) {
		t := containervm.Tmpfs{Target: target, Options: slices.Clone(tmpfsDefaults)}
		if opts := h.Tmpfs[target]; opts != "" {
			t.Options = append(t.Options, strings.Split(opts, ",")...)
		}
		s.Tmpfs = append(s.Tmpfs, t)
	}
	for _, m := range h.Mounts {
		if m.Type != mount.TypeTmpfs {
			continue
		}
		t, err := tmpfsOf(m)
		if err != nil {
			return err
		}
		s.Tmpfs = append(s.Tmpfs, t)
	}
	for _, t := range s.Tmpfs {
		if _, err := mountTarget(t.Target); err != nil {
			return err
		}
	}
	return nil
}

// tmpfsOf reads a --mount of type tmpfs.
func tmpfsOf(m mount.Mount) (containervm.Tmpfs, error) {
	t := containervm.Tmpfs{Target: m.Target, Options: slices.Clone(tmpfsDefaults)}
	if m.Source != "" {
		return t, badRequest(`invalid mount config for type "tmpfs": field Source must not be specified`)
	}
	if err := foreignOptions(m); err != nil {
		return t, badRequest(`invalid mount config for type "tmpfs": %w`, err)
	}
	if m.ReadOnly {
		t.Options = append(t.Options, "ro")
	}
	if o := m.TmpfsOptions; o != nil {
		if o.SizeBytes < 0 {
			return t, badRequest(`invalid mount config for type "tmpfs": its size is less than 0`)
		}
		if o.SizeBytes > 0 {
			t.Options = append(t.Options, fmt.Sprintf("size=%d", o.SizeBytes))
		}
		if o.Mode != 0 {
			t.Options = append(t.Options, fmt.Sprintf("mode=%o", o.Mode))
		}
		for _, kv := range o.Options {
			t.Options = append(t.Options, strings.Join(kv, "="))
		}
	}
	return t, nil
}

func setUlimits(s *containervm.Spec, body *createBody) error {
	for _, u := range body.HostConfig.Ulimits {
		if u == nil {
			return badRequest("a ulimit is null")
		}
		l, err := u.GetRlimit()
		if err != nil {
			return badRequest("%w", err)
		}
		// -1 is unlimited, and all ones is RLIM_INFINITY.
		s.Rlimits = append(s.Rlimits, containervm.Rlimit{Resource: l.Type, Soft: l.Soft, Hard: l.Hard})
	}
	return nil
}

func setNetwork(s *containervm.Spec, body *createBody) error {
	h := body.HostConfig
	mode := cmp.Or(h.NetworkMode, network.NetworkDefault)
	if mode.IsDefault() {
		mode = network.NetworkBridge
	}
	if body.NetworkDisabled {
		mode = network.NetworkNone
	}
	h.NetworkMode = mode
	n := &s.Network
	n.Mode = string(mode)
	n.DNS, n.DNSSearch, n.DNSOptions = h.DNS, h.DNSSearch, h.DNSOptions
	var err error
	if n.Ports, err = publishedPorts(h.PortBindings, body.ExposedPorts, h.PublishAllPorts); err != nil {
		return err
	}
	if len(n.Ports) > 0 && mode.IsNone() {
		return badRequest("conflicting options: port publishing and the network mode none")
	}
	// Docker exposes what is published.
	for port := range h.PortBindings {
		if body.ExposedPorts == nil {
			body.ExposedPorts = make(network.PortSet)
		}
		body.ExposedPorts[port] = struct{}{}
	}
	for _, line := range h.ExtraHosts {
		host, err := parseExtraHost(line)
		if err != nil {
			return err
		}
		n.Hosts = append(n.Hosts, host)
	}
	return setEndpoints(n, body)
}

// setEndpoints reads which networks the container is to be on.
func setEndpoints(n *containervm.NetworkSpec, body *createBody) error {
	mode := n.Mode
	links, err := parseLinks(body.HostConfig.Links)
	if err != nil {
		return err
	}
	configs := make(map[string]*network.EndpointSettings)
	if body.NetworkingConfig != nil {
		for name, e := range body.NetworkingConfig.EndpointsConfig {
			if name == network.NetworkDefault {
				name = network.NetworkBridge
			}
			if e == nil {
				e = new(network.EndpointSettings)
			}
			configs[name] = e
		}
	}
	if mode == network.NetworkNone {
		if len(links) > 0 {
			return badRequest("conflicting options: container type network can't be used with links. This would result in undefined behavior")
		}
		e := cmp.Or(configs[mode], new(network.EndpointSettings))
		delete(configs, mode)
		if len(configs) > 0 {
			return badRequest("container cannot be connected to multiple networks with one of the networks in private (none) mode")
		}
		if e.IPAMConfig != nil || len(e.Aliases) > 0 || len(e.MacAddress) > 0 || body.MacAddress != "" {
			return badRequest("conflicting options: an address or alias and the network mode none")
		}
		n.Endpoints = []containervm.EndpointSpec{}
		return nil
	}
	if configs[mode] == nil {
		configs[mode] = new(network.EndpointSettings)
	}
	for _, name := range slices.Sorted(maps.Keys(configs)) {
		e, err := endpointSpec(name, configs[name])
		if err != nil {
			return err
		}
		if name == mode {
			e.Links = append(e.Links, links...)
			if body.MacAddress != "" {
				if e.MAC != "" && !strings.EqualFold(e.MAC, body.MacAddress) {
					return badRequest("the container-wide MAC address must match the endpoint-specific MAC address for the main network, or be left empty")
				}
				e.MAC = body.MacAddress
			}
		}
		n.Endpoints = append(n.Endpoints, e)
	}
	return nil
}

// parseExtraHost reads "name:address"; host-gateway stands for the address of the network's gateway.
func parseExtraHost(line string) (containervm.Host, error) {
	i := strings.IndexAny(line, ":=") // an IPv6 address has more colons
	if i <= 0 || i == len(line)-1 {
		return containervm.Host{}, badRequest("bad format for add-host: %q", line)
	}
	host := containervm.Host{Names: []string{line[:i]}}
	text := line[i+1:]
	if text == "host-gateway" {
		return host, nil
	}
	addr, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(text, "["), "]"))
	if err != nil || addr.Zone() != "" {
		return host, badRequest("invalid IP address in add-host: %q", text)
	}
	host.Addr = addr
	return host, nil
}
