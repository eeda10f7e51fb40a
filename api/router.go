package api

import (
	"cmp"
	"net/http"
	"slices"
	"strings"

	"github.com/go-chi/chi/v5"
)

// A handler answers a request, or returns an error and leaves the reply to its caller. One that began a
// reply returns nil.
type handler func(w http.ResponseWriter, r *http.Request) error

// A route is a line of the route table. In its path {x} stands for one segment, {x*} for one or more:
// names of images contain slashes.
type route struct {
	method, path string
	serve        handler
}

// anyMethod in a route stands for all of them.
const anyMethod = "*"

// mux makes the routes a chi router. What it does not know is a 404 in Docker's words, for a wrong
// method too.
func mux(routes []route) http.Handler {
	m := chi.NewRouter()
	m.NotFound(pageNotFound)
	m.MethodNotAllowed(pageNotFound)
	type tree struct{ method, prefix string }
	deep := make(map[tree][]deepRoute)
	for _, r := range routes {
		prefix, rest, found := strings.Cut(r.path, "{")
		if name, suffix, isDeep := strings.Cut(rest, "*}"); found && isDeep {
			t := tree{r.method, prefix}
			deep[t] = append(deep[t], deepRoute{name, suffix, r})
			continue
		}
		if r.method == anyMethod {
			m.Handle(r.path, answer(r))
		} else {
			m.Method(r.method, r.path, answer(r))
		}
	}
	for t, rs := range deep {
		// The longest suffix first: DELETE /images/{name*} would take everything.
		slices.SortFunc(rs, func(a, b deepRoute) int { return cmp.Compare(len(b.suffix), len(a.suffix)) })
		if t.method == anyMethod {
			m.Handle(t.prefix+"*", deepRoutes(rs))
		} else {
			m.Method(t.method, t.prefix+"*", deepRoutes(rs))
		}
	}
	return m
}

// deepRoutes are the routes below one prefix whose parameter spans segments, told apart by what follows
// it. chi's wildcard takes the whole rest of a path.
type deepRoutes []deepRoute

type deepRoute struct {
	param, suffix string
	route         route
}

func (d deepRoutes) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	rest := chi.URLParam(r, "*")
	for _, dr := range d {
		if name, ok := strings.CutSuffix(rest, dr.suffix); ok && name != "" {
			chi.RouteContext(r.Context()).URLParams.Add(dr.param, name)
			answer(dr.route).ServeHTTP(w, r)
			return
		}
	}
	pageNotFound(w, r)
}

func answer(rt route) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		rt.found(r)
		if err := rt.serve(w, r); err != nil {
			writeError(w, err)
		}
	}
}

func pageNotFound(w http.ResponseWriter, _ *http.Request) {
	writeError(w, notFound("page not found"))
}

// param is a part of the request's path.
func param(r *http.Request, name string) string { return chi.URLParam(r, name) }

// prepare does what is the same for every request: it names the server and its version on the reply,
// takes the version off the path, and brings the path into one form. Then it calls next.
func (s *Server) prepare(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Api-Version", MaxVersion)
		h.Set("Ostype", "linux")
		h.Set("Docker-Experimental", "false")
		h.Set("Server", "Docker/"+s.host.Version+" (linux)")
		// A page in somebody's browser can reach a loopback address. Browsers tell where a request comes
		// from, clients of the API do not.
		if r.Header.Get("Origin") != "" && !ownOrigin(r) || r.Header.Get("Sec-Fetch-Site") != "" {
			writeError(w, &statusError{http.StatusForbidden, errBrowser})
			return
		}
		if r.Method == http.MethodOptions {
			return // of no route in particular, as in Docker
		}
		path := r.URL.Path // unescaped: an image name may come with %2F
		v := maxVersion
		if rest, ok := strings.CutPrefix(path, "/v"); ok && rest != "" && '0' <= rest[0] && rest[0] <= '9' {
			text, rest, _ := strings.Cut(rest, "/")
			path = "/" + rest
			var err error
			// skopeo moves images in version 1.22 and cannot be told another.
			if v, err = parseVersion(text); err == nil && !(v.less(minVersion) && strings.HasPrefix(path, "/images/")) {
				err = negotiate(v)
			}
			if err != nil {
				writeError(w, err)
				return
			}
		}
		// docker inspect /name asks for /containers//name/json.
		for strings.Contains(path, "//") {
			path = strings.ReplaceAll(path, "//", "/")
		}
		r = withVersion(r, v)
		u := *r.URL
		u.Path, u.RawPath = path, ""
		r.URL = &u
		prompt(w, r)
		next.ServeHTTP(w, r)
	})
}
