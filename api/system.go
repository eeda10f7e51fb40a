package api

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/api/types/system"

	"vic/fetch"
	"vic/layerstore"
)

func (s *Server) ping(w http.ResponseWriter, r *http.Request) error {
	h := w.Header()
	h.Set("Cache-Control", "no-cache, no-store, must-revalidate")
	h.Set("Pragma", "no-cache")
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("Swarm", string(swarm.LocalNodeStateInactive))
	h.Set("Builder-Version", "1") // 2 would have the client look for BuildKit
	if r.Method == http.MethodHead {
		h.Set("Content-Length", "0")
		return nil
	}
	io.WriteString(w, "OK")
	return nil
}

func (s *Server) version(w http.ResponseWriter, _ *http.Request) error {
	v := system.VersionResponse{
		Platform:      system.PlatformInfo{Name: "VIC"},
		Version:       s.host.Version,
		APIVersion:    MaxVersion,
		MinAPIVersion: MinVersion,
		Os:            "linux",
		Arch:          runtime.GOARCH,
		GitCommit:     s.host.GitCommit,
		GoVersion:     runtime.Version(),
		KernelVersion: s.host.Kernel,
		BuildTime:     s.host.BuildTime,
	}
	v.Components = []system.ComponentVersion{{
		Name:    "Engine",
		Version: v.Version,
		Details: map[string]string{
			"ApiVersion": v.APIVersion, "MinAPIVersion": v.MinAPIVersion, "Os": v.Os, "Arch": v.Arch,
			"GitCommit": v.GitCommit, "GoVersion": v.GoVersion, "KernelVersion": v.KernelVersion,
			"BuildTime": v.BuildTime, "Experimental": "false",
		},
	}}
	return writeJSON(w, http.StatusOK, v)
}

func (s *Server) info(w http.ResponseWriter, r *http.Request) error {
	images, err := s.store.Images()
	if err != nil {
		return err
	}
	resources := s.containers.Resources()
	info := system.Info{
		ID:     s.id(),
		Images: len(images),
		Driver: diskDriver,
		DriverStatus: [][2]string{
			{"Store", s.store.Dir()},
			{"Disk Capacity", fmt.Sprintf("%d GiB", s.store.Capacity()>>30)},
			{"Hypervisor", s.host.Hypervisor},
		},
		Plugins:     system.PluginsInfo{Volume: layerstore.VolumeDrivers, Network: s.networkDrivers(), Log: logDrivers},
		MemoryLimit: true, SwapLimit: false, IPv4Forwarding: true,
		NGoroutines:        runtime.NumGoroutine(),
		SystemTime:         time.Now().Format(time.RFC3339Nano),
		LoggingDriver:      jsonFile,
		CgroupDriver:       "cgroupfs", // each container's, in its own guest
		CgroupVersion:      "2",
		KernelVersion:      s.host.Kernel,
		OperatingSystem:    "VIC: containers as virtual machines",
		OSType:             "linux",
		Architecture:       machineName(runtime.GOARCH),
		IndexServerAddress: "https://index.docker.io/v1/",
		RegistryConfig:     s.registryConfig(),
		NCPU:               resources.CPUs,
		MemTotal:           resources.Memory,
		DockerRootDir:      s.store.Dir(),
		Name:               s.host.Name,
		Labels:             []string{},
		ServerVersion:      s.host.Version,
		Runtimes:           map[string]system.RuntimeWithStatus{runtimeName: {}},
		DefaultRuntime:     runtimeName,
		Swarm:              swarm.Info{LocalNodeState: swarm.LocalNodeStateInactive},
		LiveRestoreEnabled: true, // containers outlive this server
		SecurityOptions:    []string{"name=vm"},
		Warnings:           []string{},
	}
	if len(s.host.Whitelist) > 0 {
		info.DriverStatus = append(info.DriverStatus, [2]string{"Registry Whitelist Mode", "enabled"}, [2]string{"Whitelisted Registries", strings.Join(s.host.Whitelist, ", ")})
	}
	if s.host.Templates != nil {
		info.DriverStatus = append(info.DriverStatus, [2]string{"Start Templates", strconv.Itoa(s.host.Templates())}, [2]string{"Start Spares", strconv.Itoa(s.host.Spares())})
	}
	info.DriverStatus = append(info.DriverStatus, s.quotaStatus(r.Context())...)
	for _, c := range s.containers.List() {
		info.Containers++
		if c.Info().State.Status.Alive() {
			info.ContainersRunning++
		} else {
			info.ContainersStopped++
		}
	}
	return writeJSON(w, http.StatusOK, info)
}

// id names this host: the same for the same store on the same machine.
func (s *Server) id() string {
	sum := sha256.Sum256([]byte(s.host.Name + " " + s.store.Dir()))
	return fmt.Sprintf("%x-%x-%x-%x-%x", sum[0:4], sum[4:6], sum[6:8], sum[8:10], sum[10:16])
}

func (s *Server) registryConfig() *registry.ServiceConfig {
	c := &registry.ServiceConfig{
		InsecureRegistryCIDRs: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")},
		IndexConfigs: map[string]*registry.IndexInfo{
			"docker.io": {Name: "docker.io", Mirrors: []string{}, Secure: true, Official: true},
		},
		Mirrors: []string{},
	}
	for _, host := range s.host.Insecure {
		if p, err := netip.ParsePrefix(host); err == nil {
			c.InsecureRegistryCIDRs = append(c.InsecureRegistryCIDRs, p)
		} else {
			c.IndexConfigs[host] = &registry.IndexInfo{Name: host, Mirrors: []string{}}
		}
	}
	return c
}

// machineName is what uname -m prints for one of Go's architectures.
func machineName(arch string) string {
	switch arch {
	case "amd64":
		return "x86_64"
	case "arm64":
		return "aarch64"
	}
	return arch
}

func (s *Server) login(w http.ResponseWriter, r *http.Request) error {
	var auth registry.AuthConfig
	if err := decodeBody(r, &auth); err != nil {
		return err
	}
	token, err := s.registry.Login(r.Context(), auth.ServerAddress, fetch.Credentials{
		Username: auth.Username, Password: auth.Password, IdentityToken: auth.IdentityToken, RegistryToken: auth.RegistryToken,
	})
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, registry.AuthResponse{IdentityToken: token, Status: "Login Succeeded"})
}

// credentialsOf reads the credentials that come with a request for a registry.
func credentialsOf(r *http.Request) (fetch.Credentials, error) {
	c, err := fetch.ParseRegistryAuth(r.Header.Get(registry.AuthHeader))
	if err != nil {
		return c, badRequest("invalid %s header: %w", registry.AuthHeader, err)
	}
	return c, nil
}

func (s *Server) listPlugins(w http.ResponseWriter, _ *http.Request) error {
	return writeJSON(w, http.StatusOK, []struct{}{})
}

func (s *Server) noPlugin(_ http.ResponseWriter, r *http.Request) error {
	return notFound("plugin %q not found", param(r, "name"))
}

var errNoSwarm = errors.New(`This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm and try again.`)

func noSwarm(http.ResponseWriter, *http.Request) error {
	return &statusError{http.StatusServiceUnavailable, errNoSwarm}
}
