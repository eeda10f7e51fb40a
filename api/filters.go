package api

import (
	"encoding/json"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"
)

// Filters are the values a client asks for, by key: {"status": ["exited", "created"]}. Values of one
// key are alternatives, keys must all match, except where a method says otherwise.
type filters map[string][]string

// maxFilters bounds the text of the filters parameter.
const maxFilters = 64 << 10

// filtersOf reads the request's filters and refuses keys that are not in known.
func filtersOf(r *http.Request, known ...string) (filters, error) {
	f, err := parseFilters(r.URL.Query().Get("filters"))
	if err != nil {
		return nil, err
	}
	for _, key := range slices.Sorted(maps.Keys(f)) {
		if !slices.Contains(known, key) {
			return nil, badRequest("invalid filter '%s'", key)
		}
	}
	return f, nil
}

// parseFilters reads {"key":{"value":true}}, which Go clients send, and {"key":["value"]}, which others
// and old ones do. In the first shape Docker reads the values' names only, never the boolean.
func parseFilters(s string) (filters, error) {
	if s == "" {
		return nil, nil
	}
	if len(s) > maxFilters {
		return nil, badRequest("invalid filters: %d bytes are more than the %d allowed", len(s), maxFilters)
	}
	var byKey map[string]json.RawMessage
	if err := decodeJSON(strings.NewReader(s), &byKey); err != nil {
		return nil, badRequest("invalid filters: %w", err)
	}
	f := make(filters, len(byKey))
	for key, raw := range byKey {
		var set map[string]bool
		var list []string
		if err := json.Unmarshal(raw, &set); err == nil {
			list = slices.Collect(maps.Keys(set))
		} else if err := json.Unmarshal(raw, &list); err != nil {
			return nil, badRequest("invalid filters: the values of %q are neither an object of booleans nor a list of strings", key)
		}
		slices.Sort(list)
		f[key] = slices.Compact(list)
	}
	return f, nil
}

// has says whether key constrains anything.
func (f filters) has(key string) bool { return len(f[key]) > 0 }

// exact says whether one of key's values is v, or key has none.
func (f filters) exact(key, v string) bool {
	return !f.has(key) || slices.Contains(f[key], v)
}

// match is exact, except that values are regular expressions that may match a part of v.
func (f filters) match(key, v string) bool {
	if f.exact(key, v) {
		return true
	}
	return slices.ContainsFunc(f[key], func(expr string) bool {
		re, err := regexp.Compile(expr)
		return err == nil && re.MatchString(v)
	})
}

// prefix is exact, except that a value may be the beginning of v.
func (f filters) prefix(key, v string) bool {
	return !f.has(key) || slices.ContainsFunc(f[key], func(p string) bool { return strings.HasPrefix(v, p) })
}

// labels says whether labels carry all of key's values, each "name" or "name=value".
func (f filters) labels(key string, labels map[string]string) bool {
	for _, want := range f[key] {
		name, value, valued := strings.Cut(want, "=")
		got, ok := labels[name]
		if !ok || valued && got != value {
			return false
		}
	}
	return true
}

// boolean reads a key whose one value is true or false; def if it is absent.
func (f filters) boolean(key string, def bool) (bool, error) {
	if !f.has(key) {
		return def, nil
	}
	if len(f[key]) == 1 {
		switch f[key][0] {
		case "1", "true":
			return true, nil
		case "0", "false":
			return false, nil
		}
	}
	return false, badRequest("invalid filter '%s=%s'", key, f[key])
}
