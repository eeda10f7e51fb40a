package api

import (
	"context"
	"net/http"
	"strconv"
	"strings"
)

// A version of the Docker API.
type version struct{ major, minor int }

// The versions of the API that a Server speaks. MaxVersion is the last one whose replies still have the
// shape that every client in use reads; 1.52 changed /system/df and dropped fields.
const (
	MinVersion = "1.24"
	MaxVersion = "1.51"
)

var (
	minVersion = version{1, 24}
	maxVersion = version{1, 51}
)

func (v version) String() string {
	return strconv.Itoa(v.major) + "." + strconv.Itoa(v.minor)
}

func (v version) less(o version) bool {
	return v.major < o.major || v.major == o.major && v.minor < o.minor
}

// parseVersion reads "1.50". Further parts, as in "1.50.2", mean nothing to Docker either.
func parseVersion(s string) (version, error) {
	parts := strings.Split(s, ".")
	var v [2]int
	for i := range v {
		if i >= len(parts) {
			break
		}
		n, err := strconv.ParseUint(parts[i], 10, 16)
		if err != nil {
			return version{}, badRequest("invalid API version %q in the request path", s)
		}
		v[i] = int(n)
	}
	return version{v[0], v[1]}, nil
}

// negotiate says whether a request of version v is one this server answers.
func negotiate(v version) error {
	switch {
	case v.less(minVersion):
		return badRequest("client version %s is too old. Minimum supported API version is %s, please upgrade your client to a newer version", v, MinVersion)
	case maxVersion.less(v):
		return badRequest("client version %s is too new. Maximum supported API version is %s", v, MaxVersion)
	}
	return nil
}

type versionKey struct{}

// versionOf is the version the request came with; the newest for a path without one.
func versionOf(r *http.Request) version {
	if v, ok := r.Context().Value(versionKey{}).(version); ok {
		return v
	}
	return maxVersion
}

func withVersion(r *http.Request, v version) *http.Request {
	return r.WithContext(context.WithValue(r.Context(), versionKey{}, v))
}
