package api

import (
	"encoding/json"
	"errors"
	"net/url"
	"strconv"
	"strings"

	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/container"

	"vic/api/build"
)

// A buildRequest is what a client says of a build.
type buildRequest struct {
	build  build.Options
	names  []reference.Named // for the image
	host   hostConfig        // of the containers of its steps
	quiet  bool
	pull   bool   // images to begin with, although they are there
	remote string // where the context is; "" is in the body
	id     string // to cancel it by
}

// A buildOption is a parameter of POST /build and what is done with it. One that is absent or empty asks for
// nothing. Every parameter of Docker's has exactly one line in buildOptions.
type buildOption struct {
	key string
	set func(b *buildRequest, values []string) error
}

var errBuildKit = errors.New("this host has Docker's classic builder: set DOCKER_BUILDKIT=0, or build with a buildx builder of its own and bring the image by docker push and pull, or docker save and load")

// buildOptions is what becomes of the parameters of a build. What they say of containers goes through the table
// options as well.
var buildOptions = []buildOption{
	{"dockerfile", setText(func(b *buildRequest) *string { return &b.build.File })},
	{"t", setNames},
	{"extrahosts", func(b *buildRequest, v []string) error { b.host.ExtraHosts = v; return nil }},
	{"remote", setText(func(b *buildRequest) *string { return &b.remote })},
	{"q", setFlag(func(b *buildRequest) *bool { return &b.quiet })},
	{"nocache", setFlag(func(b *buildRequest) *bool { return &b.build.NoCache })},
	{"cachefrom", setJSON("cache sources", func(b *buildRequest) any { return &b.build.CacheFrom })},
	{"pull", setFlag(func(b *buildRequest) *bool { return &b.pull })},
	{"rm", setFlag(func(b *buildRequest) *bool { return &b.build.Remove })},
	{"forcerm", setFlag(func(b *buildRequest) *bool { return &b.build.ForceRemove })},
	{"memory", setNumber(func(b *buildRequest) *int64 { return &b.host.Memory })},
	{"memswap", setNumber(func(b *buildRequest) *int64 { return &b.host.MemorySwap })},
	{"cpushares", setNumber(func(b *buildRequest) *int64 { return &b.host.CPUShares })},
	{"cpusetcpus", setText(func(b *buildRequest) *string { return &b.host.CpusetCpus })},
	{"cpusetmems", setText(func(b *buildRequest) *string { return &b.host.CpusetMems })},
	{"cpuperiod", setNumber(func(b *buildRequest) *int64 { return &b.host.CPUPeriod })},
	{"cpuquota", setNumber(func(b *buildRequest) *int64 { return &b.host.CPUQuota })},
	{"cgroupparent", setText(func(b *buildRequest) *string { return &b.host.CgroupParent })},
	{"buildargs", setJSON("build args", func(b *buildRequest) any { return &b.build.Args })},
	{"shmsize", setNumber(func(b *buildRequest) *int64 { return &b.host.ShmSize })},
	{"ulimits", setJSON("ulimit settings", func(b *buildRequest) any { return &b.host.Ulimits })},
	{"labels", setJSON("labels", func(b *buildRequest) any { return &b.build.Labels })},
	{"networkmode", func(b *buildRequest, v []string) error { b.host.NetworkMode = container.NetworkMode(v[0]); return nil }},
	{"platform", setPlatform},
	{"target", setText(func(b *buildRequest) *string { return &b.build.Target })},
	{"isolation", func(b *buildRequest, v []string) error { b.host.Isolation = container.Isolation(v[0]); return nil }},
	{"buildid", setText(func(b *buildRequest) *string { return &b.id })},
	{"squash", refuseFlag("squash is only supported with experimental mode")},
	{"securityopt", refuse("The daemon on this platform does not support setting security options on build")},
	{"outputs", func(_ *buildRequest, v []string) error {
		return refuseJSON(v[0], "--output needs BuildKit: "+errBuildKit.Error())
	}},
	{"session", func(*buildRequest, []string) error { return notImplemented("%w", errBuildKit) }},
	{"version", func(_ *buildRequest, v []string) error {
		switch v[0] {
		case "1":
			return nil
		case "2":
			return notImplemented("%w", errBuildKit)
		}
		return badRequest("invalid version %s", v[0])
	}},
}

// buildRequestOf reads the parameters of a build.
func buildRequestOf(q url.Values) (*buildRequest, error) {
	b := &buildRequest{host: hostConfig{HostConfig: container.HostConfig{LogConfig: container.LogConfig{Type: noLog}}}}
	b.build.Remove = true
	for _, o := range buildOptions {
		if values := q[o.key]; len(values) > 0 && (values[0] != "" || len(values) > 1) {
			if err := o.set(b, values); err != nil {
				return nil, err
			}
		}
	}
	return b, checkOptions(options, &createBody{HostConfig: &b.host})
}

func setText(at func(*buildRequest) *string) func(*buildRequest, []string) error {
	return func(b *buildRequest, v []string) error { *at(b) = v[0]; return nil }
}

func setFlag(at func(*buildRequest) *bool) func(*buildRequest, []string) error {
	return func(b *buildRequest, v []string) error { *at(b) = truth(v[0]); return nil }
}

func setNumber(at func(*buildRequest) *int64) func(*buildRequest, []string) error {
	return func(b *buildRequest, v []string) (err error) {
		if *at(b), err = strconv.ParseInt(v[0], 10, 64); err != nil {
			err = badRequest("invalid value %q: it must be a whole number", v[0])
		}
		return err
	}
}

func setJSON(what string, at func(*buildRequest) any) func(*buildRequest, []string) error {
	return func(b *buildRequest, v []string) error {
		if err := json.Unmarshal([]byte(v[0]), at(b)); err != nil {
			return badRequest("error reading %s: %w", what, err)
		}
		return nil
	}
}

func refuse(why string) func(*buildRequest, []string) error {
	return func(*buildRequest, []string) error { return badRequest("%s", why) }
}

func refuseFlag(why string) func(*buildRequest, []string) error {
	return func(_ *buildRequest, v []string) error {
		if !truth(v[0]) {
			return nil
		}
		return badRequest("%s", why)
	}
}

// refuseJSON refuses a list that has something in it.
func refuseJSON(list, why string) error {
	if s := strings.Join(strings.Fields(list), ""); s == "[]" || s == "null" {
		return nil
	}
	return badRequest("%s", why)
}

// setNames reads the names for the image, each once.
func setNames(b *buildRequest, list []string) error {
	seen := make(map[string]bool)
	for _, text := range list {
		if text == "" {
			continue
		}
		name, err := reference.ParseNormalizedNamed(text)
		if err != nil {
			return badRequest("%w", err)
		}
		if _, isDigest := name.(reference.Canonical); isDigest {
			return badRequest("build tag cannot contain a digest")
		}
		if name = reference.TagNameOnly(name); !seen[name.String()] {
			seen[name.String()] = true
			b.names = append(b.names, name)
		}
	}
	return nil
}

func setPlatform(b *buildRequest, v []string) (err error) {
	b.build.Platform, err = parsePlatform(v[0])
	return err
}
