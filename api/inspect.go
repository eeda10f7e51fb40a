package api

import (
	"encoding/json"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/storage"

	"vic/containervm"
)

// A containerReply is what inspect tells of a container, with the fields of NetworkSettings that
// clients of versions up to 1.51 read.
type containerReply struct {
	container.InspectResponse
	NetworkSettings networkSettings
}

type networkSettings struct {
	Bridge                 string
	SandboxID              string
	SandboxKey             string
	HairpinMode            bool
	LinkLocalIPv6Address   string
	LinkLocalIPv6PrefixLen int
	Ports                  network.PortMap
	EndpointID             string
	Gateway                string
	GlobalIPv6Address      string
	GlobalIPv6PrefixLen    int
	IPAddress              string
	IPPrefixLen            int
	IPv6Gateway            string
	MacAddress             string
	Networks               map[string]*network.EndpointSettings
}

func (s *Server) inspectContainer(w http.ResponseWriter, r *http.Request) error {
	c, err := s.container(r)
	if err != nil {
		return err
	}
	info := c.Info()
	made := createdOf(info)
	reply := containerReply{InspectResponse: container.InspectResponse{
		ID:           info.ID,
		Created:      info.Created.UTC().Format(time.RFC3339Nano),
		Args:         []string{},
		State:        stateOf(info.State),
		Image:        info.Spec.ImageID.String(),
		LogPath:      info.LogPath,
		Name:         "/" + info.Name,
		RestartCount: info.Restarts,
		Driver:       diskDriver,
		Platform:     "linux",
		HostConfig:   made.HostConfig,
		GraphDriver:  &storage.DriverData{Name: diskDriver, Data: map[string]string{"Disk": info.DiskPath}},
		Mounts:       s.mountPoints(info.Spec),
		Config:       made.Config,
		ExecIDs:      c.Execs(),
	}, NetworkSettings: s.networkSettings(info)}
	reply.HostConfig.Links = s.shownLinks(info)
	if versionOf(r).less(version{1, 45}) {
		for name, e := range reply.NetworkSettings.Networks {
			if container.NetworkMode(name).IsUserDefined() {
				e.Aliases = withoutRepeats(e.Aliases, info.ID[:min(12, len(info.ID))], made.Config.Hostname)
			}
		}
	}
	if args := info.Spec.Args; len(args) > 0 { // a damaged container has none
		reply.Path, reply.Args = args[0], args[1:]
	}
	if boolParam(r, "size") {
		rw, err := c.DiskBytes(r.Context())
		if err != nil {
			return err
		}
		root := s.rootSize(info, rw)
		reply.SizeRw, reply.SizeRootFs = &rw, &root
	}
	return writeJSON(w, http.StatusOK, reply)
}

// withoutRepeats adds to names those that are not among them.
func withoutRepeats(names []string, more ...string) []string {
	names = slices.Clone(names)
	for _, name := range more {
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

// createdOf is how a container was made. Clients count on neither part being absent.
func createdOf(info containervm.Info) created {
	var c created
	if err := json.Unmarshal(info.Spec.Extra, &c); err != nil || c.Config == nil || c.HostConfig == nil {
		// Not made by this server, or damaged: what the container runs by is known all the same.
		c.Config = &container.Config{
			User: info.Spec.User, Tty: info.Spec.TTY, OpenStdin: info.Spec.OpenStdin, StdinOnce: info.Spec.StdinOnce,
			Env: info.Spec.Env, Cmd: info.Spec.Args, Image: info.Spec.Image, WorkingDir: info.Spec.Dir, Labels: info.Spec.Labels,
			Hostname: info.Spec.Hostname, Domainname: info.Spec.Domain,
		}
		c.HostConfig = &container.HostConfig{AutoRemove: info.Spec.AutoRemove, NetworkMode: container.NetworkMode(info.Spec.Network.Mode)}
	}
	if c.HostConfig.CgroupnsMode == "" {
		c.HostConfig.CgroupnsMode = container.CgroupnsModePrivate
	}
	if n := c.HostConfig.MemorySwappiness; n != nil && *n < 0 {
		c.HostConfig.MemorySwappiness = nil // a client's word for none
	}
	if c.Config.Hostname == "" {
		c.Config.Hostname = info.ID[:min(12, len(info.ID))]
	}
	return c
}

func stateOf(st containervm.State) *container.State {
	return &container.State{
		Status:     container.ContainerState(st.Status),
		Running:    st.Status.Alive(),
		Paused:     st.Status == containervm.Paused,
		Restarting: st.Status == containervm.Restarting,
		Dead:       st.Status == containervm.Dead,
		OOMKilled:  st.OOM,
		Health:     healthOf(st.Health),
		Pid:        st.PID,
		ExitCode:   st.ExitCode,
		Error:      st.Error,
		StartedAt:  st.Started.UTC().Format(time.RFC3339Nano), // the zero time is 0001-01-01T00:00:00Z
		FinishedAt: st.Finished.UTC().Format(time.RFC3339Nano),
	}
}

func (s *Server) networkSettings(info containervm.Info) networkSettings {
	n := networkSettings{Ports: network.PortMap{}, Networks: make(map[string]*network.EndpointSettings)}
	if info.Spec.Network.Mode == network.NetworkNone {
		n.Networks[network.NetworkNone] = &network.EndpointSettings{NetworkID: noneID}
	}
	for _, e := range info.Spec.Network.Endpoints {
		n.Networks[e.Network] = endpointSettings(e)
	}
	if len(info.Endpoints) == 0 {
		return n
	}
	n.SandboxID = info.ID
	for port := range createdOf(info).Config.ExposedPorts {
		n.Ports[port] = nil
	}
	for _, ep := range info.Endpoints {
		e := n.Networks[ep.Network]
		if e == nil {
			continue // it is being disconnected
		}
		e.NetworkID, e.EndpointID, e.MacAddress, e.DNSNames = ep.NetworkID, ep.ID, macOf(ep.MAC), ep.Names
		e.Gateway = ep.Gateway
		if ep.IP.IsValid() { // else it is a DHCP server's to say
			e.IPAddress, e.IPPrefixLen = ep.IP.Addr(), ep.IP.Bits()
		}
		if ep.IP6.IsValid() {
			e.IPv6Gateway, e.GlobalIPv6Address, e.GlobalIPv6PrefixLen = ep.Gateway6, ep.IP6.Addr(), ep.IP6.Bits()
		}
		if ep.Network == containervm.Bridge { // where clients looked before there were several
			n.EndpointID, n.MacAddress = ep.ID, ep.MAC
			n.Gateway, n.IPAddress, n.IPPrefixLen = addrString(ep.Gateway), addrString(ep.IP.Addr()), ep.IP.Bits()
			n.IPv6Gateway, n.GlobalIPv6Address, n.GlobalIPv6PrefixLen = addrString(ep.Gateway6), addrString(ep.IP6.Addr()), e.GlobalIPv6PrefixLen
		}
		for _, b := range ep.Ports {
			port := portOf(b)
			n.Ports[port] = append(n.Ports[port], network.PortBinding{HostIP: b.HostIP, HostPort: strconv.Itoa(int(b.HostPort))})
		}
	}
	return n
}

// endpointSettings is what a container's place in a network is to be.
func endpointSettings(e containervm.EndpointSpec) *network.EndpointSettings {
	out := &network.EndpointSettings{NetworkID: e.ID, Aliases: e.Aliases, GwPriority: e.Priority, MacAddress: macOf(e.MAC)}
	if e.IP.IsValid() || e.IP6.IsValid() {
		out.IPAMConfig = &network.EndpointIPAMConfig{IPv4Address: e.IP, IPv6Address: e.IP6}
	}
	for _, l := range e.Links {
		out.Links = append(out.Links, l.Container+":"+l.Alias)
	}
	return out
}

func macOf(s string) network.HardwareAddr {
	mac, err := net.ParseMAC(s)
	if err != nil {
		return nil
	}
	return network.HardwareAddr(mac)
}

func addrString(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

// rootSize is the bytes that a container's own disk and its image's take on the datastore together.
func (s *Server) rootSize(info containervm.Info, rw int64) int64 {
	root := rw
	if img, err := s.store.Image(info.Spec.ImageID.String()); err == nil {
		root += img.Size()
	}
	return root
}
