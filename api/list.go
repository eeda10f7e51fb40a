package api

import (
	"cmp"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"vic/containervm"
)

// A containerSummary is a container in a list. The address of a port that is not published is absent,
// which the published type cannot say.
type containerSummary struct {
	container.Summary
	Ports []portSummary
}

type portSummary struct {
	IP          string `json:",omitempty"`
	PrivatePort uint16
	PublicPort  uint16 `json:",omitempty"`
	Type        string
}

func (s *Server) listContainers(w http.ResponseWriter, r *http.Request) error {
	f, err := filtersOf(r, "ancestor", "before", "exited", "expose", "health", "id", "is-task", "isolation", "label", "name",
		"network", "publish", "since", "status", "volume")
	if err != nil {
		return err
	}
	limit, err := intParam(r, "limit", 0)
	if err != nil {
		return err
	}
	match, err := s.containerMatcher(f)
	if err != nil {
		return err
	}
	everything := boolParam(r, "all") || limit > 0 || f.has("status") // a limit and a state ask for those that do not run, too
	sized := boolParam(r, "size")
	var disks map[string]int64
	if sized {
		if disks, err = s.containers.DiskBytes(r.Context()); err != nil {
			return err
		}
	}
	now, names := time.Now(), s.linkNames()
	out := []containerSummary{}
	for _, c := range s.containers.List() {
		info := c.Info()
		if !everything && !info.State.Status.Alive() || !match(info, names[info.ID]) {
			continue
		}
		sum := s.summaryOf(info, now)
		sum.Names = append(sum.Names, names[info.ID]...)
		if versionOf(r).less(version{1, 46}) {
			sum.HostConfig.Annotations = nil
		}
		if sized {
			sum.SizeRw = disks[info.ID]
			sum.SizeRootFs = s.rootSize(info, sum.SizeRw)
		}
		out = append(out, sum)
		if limit > 0 && len(out) == limit {
			break
		}
	}
	return writeJSON(w, http.StatusOK, out)
}

func (s *Server) summaryOf(info containervm.Info, now time.Time) containerSummary {
	sum := containerSummary{Summary: container.Summary{
		ID:      info.ID,
		Names:   []string{"/" + info.Name},
		Image:   info.Spec.Image,
		ImageID: info.Spec.ImageID.String(),
		Command: commandText(info.Spec.Args),
		Created: info.Created.Unix(),
		Labels:  info.Spec.Labels,
		State:   container.ContainerState(info.State.Status),
		Status:  statusText(info.State, now),
		Mounts:  s.mountPoints(info.Spec),
	}, Ports: []portSummary{}}
	if sum.Labels == nil {
		sum.Labels = map[string]string{}
	}
	// The name may have been given to another image since.
	if img, err := s.store.Image(info.Spec.Image); err != nil || img.ID != info.Spec.ImageID {
		sum.Image = info.Spec.ImageID.String()
	}
	settings := s.networkSettings(info)
	sum.HostConfig.NetworkMode, sum.HostConfig.Annotations = info.Spec.Network.Mode, createdOf(info).HostConfig.Annotations
	sum.NetworkSettings = &container.NetworkSettingsSummary{Networks: settings.Networks}
	for port, bindings := range settings.Ports {
		if len(bindings) == 0 {
			sum.Ports = append(sum.Ports, portSummary{PrivatePort: port.Num(), Type: string(port.Proto())})
		}
		for _, b := range bindings {
			host, _ := strconv.ParseUint(b.HostPort, 10, 16)
			sum.Ports = append(sum.Ports, portSummary{addrString(b.HostIP), port.Num(), uint16(host), string(port.Proto())})
		}
	}
	slices.SortFunc(sum.Ports, func(a, b portSummary) int {
		return cmp.Or(cmp.Compare(a.PrivatePort, b.PrivatePort), cmp.Compare(a.Type, b.Type), cmp.Compare(a.IP, b.IP))
	})
	return sum
}

// containerMatcher returns what says whether a container, which has further names by links, passes the filters.
func (s *Server) containerMatcher(f filters) (func(containervm.Info, []string) bool, error) {
	if err := checkContainerFilters(f); err != nil {
		return nil, err
	}
	images := make(map[string]bool)
	for _, ref := range f["ancestor"] {
		if img, err := s.store.Image(ref); err == nil {
			images[img.ID.String()] = true
		}
		images[ref] = true
	}
	var before, since time.Time
	for key, at := range map[string]*time.Time{"before": &before, "since": &since} {
		for _, ref := range f[key] {
			c, err := s.containers.Container(ref)
			if err != nil {
				return nil, err
			}
			*at = c.Info().Created
		}
	}
	ports := make(map[string][]network.PortRange)
	for _, key := range []string{"publish", "expose"} {
		for _, text := range f[key] {
			r, err := network.ParsePortRange(text)
			if err != nil {
				return nil, badRequest("invalid filter '%s=%s': %w", key, text, err)
			}
			ports[key] = append(ports[key], r)
		}
	}
	return func(info containervm.Info, links []string) bool {
		return f.match("id", info.ID) && (f.nameMatches(info.Name) || slices.ContainsFunc(links, f.nameMatches)) && f.exact("status", string(info.State.Status)) &&
			(!f.has("exited") || info.State.Status == containervm.Exited && slices.Contains(f["exited"], strconv.Itoa(info.State.ExitCode))) &&
			(len(images) == 0 || images[info.Spec.ImageID.String()] || images[info.Spec.Image]) &&
			(before.IsZero() || info.Created.Before(before)) && (since.IsZero() || info.Created.After(since)) &&
			f.labels("label", info.Spec.Labels) &&
			f.exact("health", healthStatus(info.State.Health)) && f.exact("is-task", "false") && f.exact("isolation", "default") &&
			s.onNetwork(f, info) &&
			f.mounts(info.Spec) &&
			portsMatch(ports, s.networkSettings(info).Ports)
	}, nil
}

// onNetwork says whether a container is on one of the networks that are looked for, by name or the beginning of an ID.
func (s *Server) onNetwork(f filters, info containervm.Info) bool {
	if !f.has("network") {
		return true
	}
	for name, e := range s.networkSettings(info).Networks {
		if f.exact("network", name) || e.NetworkID != "" && f.prefix("network", e.NetworkID) {
			return true
		}
	}
	return false
}

// checkContainerFilters refuses values that no container could have.
func checkContainerFilters(f filters) error {
	for _, v := range f["status"] {
		if err := container.ValidateContainerState(container.ContainerState(v)); err != nil {
			return badRequest("invalid filter 'status=%s'", v)
		}
	}
	for _, v := range f["health"] {
		if err := container.ValidateHealthStatus(container.HealthStatus(v)); err != nil {
			return badRequest("invalid filter 'health=%s'", v)
		}
	}
	for _, v := range f["exited"] {
		if _, err := strconv.Atoi(v); err != nil {
			return badRequest("invalid filter 'exited=%s'", v)
		}
	}
	_, err := f.boolean("is-task", false)
	return err
}

// nameMatches matches a container's name with and without its slash.
func (f filters) nameMatches(name string) bool {
	return f.match("name", name) || f.match("name", "/"+name)
}

// portsMatch says whether one of the wanted ports is published, and one exposed, as far as any are
// wanted.
func portsMatch(want map[string][]network.PortRange, have network.PortMap) bool {
	for key, ranges := range want {
		if !slices.ContainsFunc(ranges, func(r network.PortRange) bool {
			for port, bindings := range have {
				if r.Proto() != port.Proto() {
					continue
				}
				if key == "expose" && r.Start() <= port.Num() && port.Num() <= r.End() {
					return true
				}
				for _, b := range bindings {
					host, err := strconv.ParseUint(b.HostPort, 10, 16)
					if key == "publish" && err == nil && r.Start() <= uint16(host) && uint16(host) <= r.End() {
						return true
					}
				}
			}
			return false
		}) {
			return false
		}
	}
	return true
}
