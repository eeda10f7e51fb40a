package build

import (
	"maps"
	"slices"
	"strings"
)

// proxyArgs may be given without an ARG, and stand in no image's history.
var proxyArgs = map[string]bool{
	"HTTP_PROXY": true, "http_proxy": true, "HTTPS_PROXY": true, "https_proxy": true, "FTP_PROXY": true, "ftp_proxy": true,
	"NO_PROXY": true, "no_proxy": true, "ALL_PROXY": true, "all_proxy": true,
}

// buildArgs are the variables that ARG declares and --build-arg gives values.
type buildArgs struct {
	given      map[string]*string // by the client
	declared   map[string]*string // in this stage, with their defaults
	meta       map[string]*string // before the first stage
	referenced map[string]bool    // by any ARG
}

func newBuildArgs(given map[string]*string) *buildArgs {
	return &buildArgs{given: given, declared: map[string]*string{}, meta: map[string]*string{}, referenced: map[string]bool{}}
}

// forStage are those that a new stage begins with.
func (a *buildArgs) forStage() *buildArgs {
	b := newBuildArgs(a.given)
	maps.Copy(b.meta, a.meta)
	return b
}

func (a *buildArgs) add(key string, value *string) {
	a.declared[key] = value
	a.referenced[key] = true
}

// allowed are the variables with their values that instructions see, sorted.
func (a *buildArgs) allowed() []string { return a.values(a.declared) }

// forFrom are those that FROM sees.
func (a *buildArgs) forFrom() []string { return a.values(a.meta) }

func (a *buildArgs) values(declared map[string]*string) []string {
	var env []string
	add := func(key string) {
		value := a.given[key]
		if value == nil {
			value = declared[key]
		}
		if value == nil {
			value = a.meta[key]
		}
		if value != nil {
			env = append(env, key+"="+*value)
		}
	}
	for key := range declared {
		add(key)
	}
	for key := range proxyArgs {
		if _, ok := declared[key]; !ok {
			add(key)
		}
	}
	slices.Sort(env)
	return env
}

// beside are the allowed variables that env does not have.
func (a *buildArgs) beside(env []string) []string { return beside(a.allowed(), env) }

// beside are the variables that env does not have.
func beside(vars, env []string) []string {
	var out []string
	for _, v := range vars {
		key, _, _ := strings.Cut(v, "=")
		if !slices.ContainsFunc(env, func(e string) bool { return strings.HasPrefix(e, key+"=") }) {
			out = append(out, v)
		}
	}
	return out
}

// recorded leaves those out that are not to be kept in an image.
func (a *buildArgs) recorded(env []string) []string {
	var kept []string
	for _, v := range env {
		key, _, _ := strings.Cut(v, "=")
		if _, declared := a.declared[key]; declared || !proxyArgs[key] {
			kept = append(kept, v)
		}
	}
	return kept
}

// warn tells of what was given and no ARG wanted.
func (a *buildArgs) warn(out Output) {
	var left []string
	for _, key := range slices.Sorted(maps.Keys(a.given)) {
		if !proxyArgs[key] && !a.referenced[key] {
			left = append(left, key)
		}
	}
	if len(left) > 0 {
		out.Say("[Warning] One or more build-args [" + strings.Join(left, " ") + "] were not consumed\n")
	}
}
