package api

import (
	"slices"
	"strings"

	"vic/containervm"
)

// parseLinks reads NAME:ALIAS, or NAME.
func parseLinks(links []string) ([]containervm.Link, error) {
	var out []containervm.Link
	for _, text := range links {
		name, alias, ok := strings.Cut(text, ":")
		name = strings.TrimPrefix(name, "/")
		if !ok {
			alias = name
		}
		alias = alias[strings.LastIndex(alias, "/")+1:] // inspect shows /CONTAINER/ALIAS
		if name == "" || alias == "" || strings.Contains(alias, ":") {
			return nil, badRequest("bad format for links: %s", text)
		}
		out = append(out, containervm.Link{Container: name, Alias: alias})
	}
	return out, nil
}

// legacyLinks are a container's links on the network bridge, by the ID of the container that each leads to. One has the
// name /CONTAINER/ALIAS.
func (s *Server) legacyLinks(info containervm.Info) map[string][]string {
	links := make(map[string][]string)
	for _, e := range info.Spec.Network.Endpoints {
		if e.Network != containervm.Bridge {
			continue
		}
		for _, l := range e.Links {
			if c, err := s.containers.Container(l.Container); err == nil {
				links[c.ID()] = append(links[c.ID()], "/"+info.Name+"/"+l.Alias)
			}
		}
	}
	return links
}

// linkNames are the names that links give to containers, by ID.
func (s *Server) linkNames() map[string][]string {
	names := make(map[string][]string)
	for _, c := range s.containers.List() {
		for id, links := range s.legacyLinks(c.Info()) {
			names[id] = append(names[id], links...)
		}
	}
	for _, list := range names {
		slices.Sort(list)
	}
	return names
}

// shownLinks are a container's links as inspect has them: /TARGET:/CONTAINER/ALIAS.
func (s *Server) shownLinks(info containervm.Info) []string {
	var shown []string
	for id, links := range s.legacyLinks(info) {
		c, err := s.containers.Container(id)
		if err != nil {
			continue // it is gone by now
		}
		for _, name := range links {
			shown = append(shown, "/"+c.Info().Name+":"+name)
		}
	}
	slices.Sort(shown)
	return shown
}
