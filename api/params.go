package api

import (
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// maxBody bounds a JSON request body. A create request of a large compose project has some tens of KiB.
const maxBody = 4 << 20

// boolParam reads a query parameter as Docker does: absent, empty, 0, no, false and none are false in
// any case of letters, everything else is true.
func boolParam(r *http.Request, key string) bool {
	return truth(r.URL.Query().Get(key))
}

func truth(text string) bool {
	switch strings.ToLower(strings.TrimSpace(text)) {
	case "", "0", "no", "false", "none":
		return false
	}
	return true
}

// intParam reads a whole number; def if the parameter is absent or empty.
func intParam(r *http.Request, key string, def int) (int, error) {
	s := r.URL.Query().Get(key)
	if s == "" {
		return def, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		return 0, badRequest("invalid value %q for %s: it must be a whole number", s, key)
	}
	return n, nil
}

// timeParam reads "seconds[.fraction]" since 1970, the form in which clients send times; the zero
// time if the parameter is absent, empty or 0.
func timeParam(r *http.Request, key string) (time.Time, error) {
	s := r.URL.Query().Get(key)
	if s == "" {
		return time.Time{}, nil
	}
	t, err := parseTime(s)
	if err != nil {
		return time.Time{}, badRequest("invalid value %q for %s: %w", s, key, err)
	}
	return t, nil
}

func parseTime(s string) (time.Time, error) {
	whole, fraction, _ := strings.Cut(s, ".")
	sec, err := strconv.ParseInt(whole, 10, 64)
	if err != nil {
		return time.Time{}, errors.New("it must be seconds since 1970 with up to nine decimals")
	}
	var nano int64
	if fraction != "" {
		if len(fraction) > 9 {
			return time.Time{}, errors.New("it has more than nine decimals")
		}
		n, err := strconv.ParseUint(fraction, 10, 32)
		if err != nil {
			return time.Time{}, errors.New("its fraction is not a number")
		}
		nano = int64(n)
		for range 9 - len(fraction) {
			nano *= 10
		}
	}
	if sec == 0 && nano == 0 {
		return time.Time{}, nil
	}
	// Beyond the year 9999 a time cannot be printed as RFC 3339.
	const most = 253402300799
	if sec > most || sec < -most {
		return time.Time{}, errors.New("it is out of range")
	}
	return time.Unix(sec, nano), nil
}

// decodeBody reads the request's JSON body into v, which must be a pointer. Unknown fields are ignored,
// as Docker ignores them; what is wrong with a body is said in Docker's words.
func decodeBody(r *http.Request, v any) error {
	if ct := r.Header.Get("Content-Type"); ct != "" || r.ContentLength != 0 {
		if t, _, err := mime.ParseMediaType(ct); err != nil || t != "application/json" {
			return badRequest("unsupported Content-Type header (%s): must be 'application/json'", ct)
		}
	}
	return decodeJSON(http.MaxBytesReader(nil, r.Body, maxBody), v)
}

func decodeJSON(body io.Reader, v any) error {
	dec := json.NewDecoder(body)
	if err := dec.Decode(v); err != nil {
		if errors.Is(err, io.EOF) {
			return badRequest("invalid JSON: got EOF while reading request body")
		}
		return badRequest("invalid JSON: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return badRequest("unexpected content after JSON")
	}
	return nil
}
