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
	driver string                // of volumes that are made
	at     map[string]mountPoint // by target
}

// A mountPoint is what is mounted at a place: one of the two.
type mountPoint struct {
	target string
	volume *containervm.VolumeMount
	bind   *containervm.BindMount
}

// setMounts makes mounts of what Docker has five ways to ask for. Of two for one place a later way wins over
// --volumes-from, and is refused elsewhere; an image's VOLUME gives way to all.
func (s *Server) setMounts(spec *containervm.Spec, body *createBody) error {
	h := body.HostConfig
	t := mountTable{driver: h.VolumeDriver, at: map[string]mountPoint{}}
	for _, from := range h.VolumesFrom {
		if err := s.mountsFrom(&t, from); err != nil {
			return err
		}
	}
	given := map[string]bool{}
	for _, tmpfs := range spec.Tmpfs {
		given[path.Clean(tmpfs.Target)] = true
	}
	add := func(p mountPoint, err error) error {
		if err != nil {
			return err
		}
		if given[p.target] {
			return badRequest("Duplicate mount point: %s", p.target)
		}
		given[p.target] = true
		t.at[p.target] = p
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
		if err := add(t.parseMount(m)); err != nil {
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
		v := t.anonymous(target)
		t.at[target] = mountPoint{target: target, volume: &v}
	}
	for _, target := range slices.Sorted(maps.Keys(t.at)) {
		if p := t.at[target]; p.bind != nil {
			spec.Binds = append(spec.Binds, *p.bind)
		} else {
			spec.Volumes = append(spec.Volumes, *p.volume)
		}
	}
	return nil
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
		return badRequest("invalid mode: %s", mode)
	}
	c, err := s.containers.Container(name)
	if err != nil {
		return badRequest("%w", err) // 404 would have the client pull the image
	}
	for _, v := range c.Info().Spec.Volumes {
		v.ReadOnly = v.ReadOnly || o.readOnly
		v.NoCopy = true
		t.at[v.Target] = mountPoint{target: v.Target, volume: &v}
	}
	for _, b := range c.Info().Spec.Binds {
		b.ReadOnly = b.ReadOnly || o.readOnly
		t.at[b.Target] = mountPoint{target: b.Target, bind: &b}
	}
	return nil
}

// parseBind reads -v: "[SOURCE:]TARGET[:OPTIONS]". A source that is a path is the host's.
func (t *mountTable) parseBind(text string) (p mountPoint, err error) {
	var source, mode string
	parts := strings.Split(text, ":")
	switch len(parts) {
	case 1:
		p.target = parts[0]
	case 2:
		source, p.target = parts[0], parts[1]
	case 3:
		source, p.target, mode = parts[0], parts[1], parts[2]
	}
	if len(parts) > 3 || len(parts) > 1 && source == "" || p.target == "" {
		return p, badRequest("invalid volume specification: '%s'", text)
	}
	if p.target, err = mountTarget(p.target); err != nil {
		kind := mount.TypeVolume
		if path.IsAbs(source) {
			kind = mount.TypeBind
		}
		return p, badRequest("invalid volume specification: '%s': invalid mount config for type %q: %w", text, kind, err)
	}
	o, err := parseMode(mode)
	if err != nil {
		return p, badRequest("invalid volume specification: '%s': %w", text, err)
	}
	switch {
	case source == "":
		v := t.anonymous(p.target)
		p.volume = &v
	case path.IsAbs(source):
		if o.noCopy {
			return p, badRequest("invalid volume specification: '%s': invalid mode: %s", text, mode)
		}
		p.bind = &containervm.BindMount{Source: path.Clean(source), Target: p.target, Create: true, ReadOnly: o.readOnly, Mode: mode}
	default:
		p.volume = &containervm.VolumeMount{Name: source, Target: p.target, Driver: t.driver, ReadOnly: o.readOnly, NoCopy: o.noCopy, Mode: cmp.Or(mode, "z")}
	}
	return p, nil
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
		case "private", "rprivate": // as it is
			kind = "propagation"
		case "shared", "rshared", "slave", "rslave":
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

// foreignOptions is an error for options of another type than the mount's.
func foreignOptions(m mount.Mount) error {
	for _, o := range []struct {
		field string
		of    mount.Type
		has   bool
	}{
		{"BindOptions", mount.TypeBind, m.BindOptions != nil},
		{"VolumeOptions", mount.TypeVolume, m.VolumeOptions != nil},
		{"TmpfsOptions", mount.TypeTmpfs, m.TmpfsOptions != nil},
		{"ImageOptions", mount.TypeImage, m.ImageOptions != nil},
		{"ClusterOptions", mount.TypeCluster, m.ClusterOptions != nil},
	} {
		if o.has && o.of != m.Type {
			return badRequest("field %s must not be specified", o.field)
		}
	}
	return nil
}

// parseMount reads a --mount of type volume or bind.
func (t *mountTable) parseMount(m mount.Mount) (mountPoint, error) {
	bad := func(format string, args ...any) (mountPoint, error) {
		return mountPoint{}, badRequest(`invalid mount config for type "`+string(m.Type)+`": `+format, args...)
	}
	if m.Target == "" {
		return bad("field Target must not be empty")
	}
	p := mountPoint{}
	var err error
	if p.target, err = mountTarget(m.Target); err != nil {
		return bad("%w", err)
	}
	if !slices.Contains([]mount.Consistency{"", mount.ConsistencyDefault, mount.ConsistencyFull, mount.ConsistencyCached, mount.ConsistencyDelegated}, m.Consistency) {
		return bad("unknown consistency %q", m.Consistency)
	}
	if err := foreignOptions(m); err != nil {
		return bad("%w", err)
	}
	if m.Type == mount.TypeBind {
		p.bind, err = bindMount(m, p.target)
	} else {
		p.volume, err = t.volumeMount(m, p.target)
	}
	if err != nil {
		return bad("%w", err)
	}
	return p, nil
}

func bindMount(m mount.Mount, target string) (*containervm.BindMount, error) {
	if m.Source == "" {
		return nil, badRequest("field Source must not be empty")
	}
	if !path.IsAbs(m.Source) {
		return nil, badRequest("invalid mount path: '%s' mount path must be absolute", m.Source)
	}
	b := &containervm.BindMount{Source: path.Clean(m.Source), Target: target, ReadOnly: m.ReadOnly}
	o := m.BindOptions
	if o == nil {
		return b, nil
	}
	switch o.Propagation {
	case "", mount.PropagationRPrivate, mount.PropagationPrivate:
	default:
		return nil, badRequest("mount propagation %s is not supported: the container's mounts are those of a virtual machine", o.Propagation)
	}
	if o.NonRecursive {
		return nil, badRequest("bind-recursive=disabled is not supported: what is mounted in the folder is shown too")
	}
	if o.ReadOnlyNonRecursive {
		return nil, badRequest("bind-recursive=writable is not supported: what is mounted in a read-only folder is read-only too")
	}
	b.Create = o.CreateMountpoint
	return b, nil
}

func (t *mountTable) volumeMount(m mount.Mount, target string) (*containervm.VolumeMount, error) {
	v := containervm.VolumeMount{Driver: t.driver}
	if m.Source == "" {
		v = t.anonymous(target)
	}
	v.Name, v.Target, v.ReadOnly, v.Mode = m.Source, target, m.ReadOnly, "z"
	o := m.VolumeOptions
	if o == nil {
		return &v, nil
	}
	v.NoCopy, v.Subpath = o.NoCopy, o.Subpath
	if v.Subpath != "" && m.Source == "" {
		return nil, badRequest("must not set Subpath when using anonymous volumes")
	}
	labels := maps.Clone(v.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	maps.Copy(labels, o.Labels)
	if len(labels) > 0 {
		v.Labels = labels
	}
	if d := o.DriverConfig; d != nil {
		v.Driver, v.Options = cmp.Or(d.Name, v.Driver), d.Options
	}
	return &v, nil
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
	for _, b := range spec.Binds {
		out = append(out, container.MountPoint{
			Type: mount.TypeBind, Source: b.Source, Destination: b.Target, Mode: b.Mode, RW: !b.ReadOnly, Propagation: mount.PropagationRPrivate,
		})
	}
	return out
}

// mounts says whether a container mounts one of the filter's volumes, known by name or by place.
func (f filters) mounts(spec containervm.Spec) bool {
	const key = "volume"
	return !f.has(key) || slices.ContainsFunc(spec.Volumes, func(v containervm.VolumeMount) bool {
		return f.exact(key, v.Name) || f.exact(key, v.Target)
	}) || slices.ContainsFunc(spec.Binds, func(b containervm.BindMount) bool {
		return f.exact(key, b.Source) || f.exact(key, b.Target)
	})
}
