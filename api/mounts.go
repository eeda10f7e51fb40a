package api

import (
	"cmp"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"

	"vic/containervm"
)

// anonymousLabel marks the volumes that nobody has given a name.
const anonymousLabel = "com.docker.volume.anonymous"

// A mountTable is what a container mounts where, besides what is in memory.
type mountTable struct {
	driver string // of volumes that are made
	order  []string
	at     map[string]containervm.VolumeMount // by target
}

// setMounts makes mounts of what Docker has five ways to ask for. Of two for one place a later way wins over
// --volumes-from, and is refused elsewhere; an image's VOLUME gives way to all.
func (s *Server) setMounts(spec *containervm.Spec, body *createBody) error {
	h := body.HostConfig
	t := mountTable{driver: h.VolumeDriver, at: map[string]containervm.VolumeMount{}}
	for _, from := range h.VolumesFrom {
		if err := s.mountsFrom(&t, from); err != nil {
			return err
		}
	}
	given := map[string]bool{}
	for _, tmpfs := range spec.Tmpfs {
		given[path.Clean(tmpfs.Target)] = true
	}
	add := func(v containervm.VolumeMount, err error) error {
		if err != nil {
			return err
		}
		if given[v.Target] {
			return badRequest("Duplicate mount point: %s", v.Target)
		}
		given[v.Target] = true
		t.put(v)
		return nil
	}
	for _, bind := range h.Binds {
		if err := add(t.parseBind(bind)); err != nil {
			return err
		}
	}
	for _, m := range h.Mounts {
		if m.Type == mount.TypeTmpfs {
			continue // setTmpfs
		}
		if err := add(t.volumeMount(m)); err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(body.Volumes)) {
		target := path.Join("/", name)
		if _, there := t.at[target]; there || given[target] {
			continue
		}
		if target == "/" {
			return badRequest("invalid volume specification: '%s': invalid specification: destination can't be '/'", name)
		}
		t.put(t.anonymous(target))
	}
	for _, target := range t.order {
		spec.Volumes = append(spec.Volumes, t.at[target])
	}
	return nil
}

func (t *mountTable) put(v containervm.VolumeMount) {
	if _, there := t.at[v.Target]; !there {
		t.order = append(t.order, v.Target)
	}
	t.at[v.Target] = v
}

func (t *mountTable) anonymous(target string) containervm.VolumeMount {
	return containervm.VolumeMount{Target: target, Driver: t.driver, Labels: map[string]string{anonymousLabel: ""}}
}

// mountsFrom takes over the mounts of another container: "NAME[:ro]".
func (s *Server) mountsFrom(t *mountTable, from string) error {
	name, mode, _ := strings.Cut(from, ":")
	if name == "" {
		return badRequest("invalid volumes-from specification: '%s'", from)
	}
	o, err := parseMode(mode)
	if err != nil {
		return badRequest("invalid mode for volumes-from: %s", mode)
	}
	c, err := s.containers.Container(name)
	if err != nil {
		return badRequest("%w", err) // 404 would have the client pull the image
	}
	for _, v := range c.Info().Spec.Volumes {
		v.ReadOnly = v.ReadOnly || o.readOnly
		v.NoCopy = true
		t.put(v)
	}
	return nil
}

// parseBind reads -v: "[SOURCE:]TARGET[:OPTIONS]".
func (t *mountTable) parseBind(text string) (v containervm.VolumeMount, err error) {
	var source, mode string
	parts := strings.Split(text, ":")
	switch len(parts) {
	case 1:
		v = t.anonymous(parts[0])
	case 2:
		source, v.Target = parts[0], parts[1]
	case 3:
		source, v.Target, mode = parts[0], parts[1], parts[2]
	default:
		return v, badRequest("invalid volume specification: '%s'", text)
	}
	if len(parts) > 1 && source == "" || v.Target == "" {
		return v, badRequest("invalid volume specification: '%s'", text)
	}
	if v.Target, err = mountTarget(v.Target); err != nil {
		return v, badRequest("invalid volume specification: '%s': %w", text, err)
	}
	o, err := parseMode(mode)
	if err != nil {
		return v, badRequest("invalid volume specification: '%s': %w", text, err)
	}
	if path.IsAbs(source) {
		return v, notImplemented("--volume %s is not supported: this host has no bind mounts yet: use a volume", text)
	}
	v.Name, v.ReadOnly, v.NoCopy, v.Mode, v.Driver = source, o.readOnly, o.noCopy, cmp.Or(mode, "z"), t.driver
	return v, nil
}

func mountTarget(target string) (string, error) {
	if !path.IsAbs(target) {
		return "", badRequest("invalid mount path: '%s' mount path must be absolute", target)
	}
	if target = path.Clean(target); target == "/" {
		return "", badRequest("invalid specification: destination can't be '/'")
	}
	return target, nil
}

type mountMode struct{ readOnly, noCopy bool }

// parseMode reads the options behind the second colon of -v.
func parseMode(mode string) (o mountMode, err error) {
	if mode == "" {
		return o, nil
	}
	var seen []string
	for word := range strings.SplitSeq(mode, ",") {
		kind := word
		switch word {
		case "ro", "rw":
			o.readOnly = word == "ro"
			kind = "rw"
		case "z", "Z": // of SELinux, which a VM of its own has no use for
			kind = "z"
		case "nocopy":
			o.noCopy = true
		case "consistent", "cached", "delegated": // for other hosts than Linux
			kind = "consistent"
		case "shared", "rshared", "slave", "rslave", "private", "rprivate":
			return o, badRequest("mount propagation %s is not supported: the container's mounts are those of a virtual machine", word)
		default:
			return o, badRequest("invalid mode: %s", mode)
		}
		if slices.Contains(seen, kind) {
			return o, badRequest("invalid mode: %s", mode)
		}
		seen = append(seen, kind)
	}
	return o, nil
}

// volumeMount reads a --mount of type volume.
func (t *mountTable) volumeMount(m mount.Mount) (v containervm.VolumeMount, err error) {
	bad := func(format string, args ...any) (containervm.VolumeMount, error) {
		return v, badRequest(`invalid mount config for type "`+string(m.Type)+`": `+format, args...)
	}
	if m.Target == "" {
		return bad("field Target must not be empty")
	}
	target, err := mountTarget(m.Target)
	if err != nil {
		return bad("%w", err)
	}
	if m.BindOptions != nil || m.TmpfsOptions != nil || m.ImageOptions != nil || m.ClusterOptions != nil {
		return bad("it has options of another type")
	}
	if !slices.Contains([]mount.Consistency{"", mount.ConsistencyDefault, mount.ConsistencyFull, mount.ConsistencyCached, mount.ConsistencyDelegated}, m.Consistency) {
		return bad("unknown consistency %q", m.Consistency)
	}
	v = containervm.VolumeMount{Driver: t.driver}
	if m.Source == "" {
		v = t.anonymous(target)
	}
	v.Name, v.Target, v.ReadOnly, v.Mode = m.Source, target, m.ReadOnly, "z"
	o := m.VolumeOptions
	if o == nil {
		return v, nil
	}
	v.NoCopy, v.Subpath = o.NoCopy, o.Subpath
	if v.Subpath != "" && m.Source == "" {
		return bad("must not set Subpath when using anonymous volumes")
	}
	labels := maps.Clone(o.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	maps.Copy(labels, v.Labels)
	if len(labels) > 0 {
		v.Labels = labels
	}
	if d := o.DriverConfig; d != nil {
		v.Driver, v.Options = cmp.Or(d.Name, v.Driver), d.Options
	}
	return v, nil
}

// mountPoints are a container's mounts as inspect shows them.
func (s *Server) mountPoints(spec containervm.Spec) []container.MountPoint {
	out := []container.MountPoint{}
	for _, v := range spec.Volumes {
		out = append(out, container.MountPoint{
			Type: mount.TypeVolume, Name: v.Name, Source: s.mountpoint(v.Name), Destination: v.Target,
			Driver: cmp.Or(v.Driver, defaultDriver), Mode: v.Mode, RW: !v.ReadOnly,
		})
	}
	return out
}

// mounts says whether a container mounts one of the filter's volumes, known by name or by place.
func (f filters) mounts(spec containervm.Spec) bool {
	const key = "volume"
	return !f.has(key) || slices.ContainsFunc(spec.Volumes, func(v containervm.VolumeMount) bool {
		return f.exact(key, v.Name) || f.exact(key, v.Target)
	})
}
