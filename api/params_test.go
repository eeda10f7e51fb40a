package api

import (
	"errors"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/network"
)

func TestBoolParam(t *testing.T) {
	for text, want := range map[string]bool{
		"": false, "0": false, "no": false, "False": false, "NONE": false, "1": true, "true": true, "True": true, "yes": true, "2": true,
	} {
		r := httptest.NewRequest("GET", "/x?k="+text, nil)
		if got := boolParam(r, "k"); got != want {
			t.Errorf("%q: got %v, want %v", text, got, want)
		}
	}
}

func TestParseTime(t *testing.T) {
	for _, tt := range []struct {
		text string
		want time.Time
		ok   bool
	}{
		{"0", time.Time{}, true},
		{"1795470386", time.Unix(1795470386, 0), true},
		{"1767225600.000000000", time.Unix(1767225600, 0), true},
		{"1.5", time.Unix(1, 500000000), true},
		{"1.000000001", time.Unix(1, 1), true},
		{"-5", time.Unix(-5, 0), true},
		{"1.0000000001", time.Time{}, false},
		{"1.-5", time.Time{}, false},
		{"99999999999999", time.Time{}, false},
		{"yesterday", time.Time{}, false},
	} {
		got, err := parseTime(tt.text)
		if (err == nil) != tt.ok || !got.Equal(tt.want) {
			t.Errorf("%q: got %v, %v", tt.text, got, err)
		}
	}
}

func FuzzParseTime(f *testing.F) {
	for _, s := range []string{"0", "1795470386", "1767225600.000000000", "-1.5", "1e9", "."} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		at, err := parseTime(s)
		if err == nil && at.Year() > 9999 {
			t.Errorf("%q is in the year %d", s, at.Year())
		}
	})
}

func TestDecodeBody(t *testing.T) {
	for _, tt := range []struct {
		name, contentType, body string
		want                    string // the error; "" for none
	}{
		{"good", "application/json", `{"a":1}`, ""},
		{"charset", "application/json; charset=utf-8", `{"a":1}`, ""},
		{"spaces behind", "application/json", "{\"a\":1}\n ", ""},
		{"wrong type", "text/plain", `{}`, "unsupported Content-Type header (text/plain): must be 'application/json'"},
		{"bad", "application/json", `{invalid`, "invalid JSON: invalid character 'i' looking for beginning of object key string"},
		{"trailing", "application/json", `{}trailing`, "unexpected content after JSON"},
		{"empty", "application/json", ``, "invalid JSON: got EOF while reading request body"},
		{"nothing at all", "", ``, "invalid JSON: got EOF while reading request body"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := httptest.NewRequest("POST", "/x", strings.NewReader(tt.body))
			if tt.contentType != "" {
				r.Header.Set("Content-Type", tt.contentType)
			}
			var v struct{ A int }
			err := decodeBody(r, &v)
			if tt.want == "" && (err != nil || v.A != 1) {
				t.Errorf("got %v, %+v", err, v)
			}
			if tt.want != "" && (err == nil || err.Error() != tt.want || statusOf(err) != http.StatusBadRequest) {
				t.Errorf("got %v, want %s", err, tt.want)
			}
		})
	}
	t.Run("too large", func(t *testing.T) {
		r := httptest.NewRequest("POST", "/x", strings.NewReader(`{"b":"`+strings.Repeat("x", maxBody)+`"}`))
		r.Header.Set("Content-Type", "application/json")
		var v struct{ A int }
		if err := decodeBody(r, &v); statusOf(err) != http.StatusBadRequest {
			t.Errorf("got %v", err)
		}
	})
}

// The texts are those that moby's own tests look for.
func TestSizeParams(t *testing.T) {
	for _, tt := range []struct{ name, query, want string }{
		{"good", "h=40&w=80", ""},
		{"not there", "w=80", `invalid resize height "": invalid syntax`},
		{"empty", "h=40&w=", `invalid resize width "": invalid syntax`},
		{"no number", "h=x&w=80", `invalid resize height "x": invalid syntax`},
		{"signed", "h=%2B1&w=80", `invalid resize height "+1": invalid syntax`},
		{"negative", "h=40&w=-100", `invalid resize width "-100": value out of range`},
		{"large", "h=4294967296&w=80", `invalid resize height "4294967296": value out of range`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			size, err := sizeParams(httptest.NewRequest("POST", "/x?"+tt.query, nil))
			if tt.want == "" && (err != nil || size.Rows != 40 || size.Cols != 80) {
				t.Errorf("got %v, %v", size, err)
			}
			if tt.want != "" && (err == nil || err.Error() != tt.want || statusOf(err) != http.StatusBadRequest) {
				t.Errorf("got %v, want %s", err, tt.want)
			}
		})
	}
}

func TestCommitBody(t *testing.T) {
	for _, tt := range []struct{ name, contentType, body, want string }{
		{"none", "", "", ""},
		{"good", "application/json", `{"User":"u"}`, ""},
		{"wrong type", "text/plain", "{}", "unsupported Content-Type header (text/plain): must be 'application/json'"},
		{"bad", "application/json", "{x", "invalid JSON: invalid character 'x' looking for beginning of object key string"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := httptest.NewRequest("POST", "/commit?container=none", strings.NewReader(tt.body))
			if tt.contentType != "" {
				r.Header.Set("Content-Type", tt.contentType)
			}
			changed, err := commitBody(r)
			if tt.want == "" && (err != nil || tt.body != "" && changed.User != "u") {
				t.Errorf("got %+v, %v", changed, err)
			}
			if tt.want != "" && (err == nil || err.Error() != tt.want) {
				t.Errorf("got %v, want %s", err, tt.want)
			}
		})
	}
}

func FuzzCreateBody(f *testing.F) {
	f.Add(readFile(f, "testdata/create.json"))
	f.Add(`{"Image":"bb","HostConfig":{"PortBindings":{"80/tcp":[{"HostIp":"127.0.0.1","HostPort":"8080"}]},"ExtraHosts":["a:::1"],"Tmpfs":{"/run":"size=1m"}}}`)
	f.Add(`{"HostConfig":{"Mounts":[{"Type":"tmpfs","Target":"/x","TmpfsOptions":{"SizeBytes":1}}],"Ulimits":[{"Name":"nofile","Soft":1,"Hard":2}]}}`)
	f.Add(`{"Cmd":"true","Env":["A"],"NetworkingConfig":{"EndpointsConfig":{"bridge":null}}}`)
	f.Fuzz(func(t *testing.T, s string) {
		var body createBody
		if decodeJSON(strings.NewReader(s), &body) != nil || body.Config == nil {
			return
		}
		if body.HostConfig == nil {
			body.HostConfig = new(hostConfig)
		}
		if checkOptions(options, &body) != nil || merge(body.Config, imageOf("sh")) != nil {
			return
		}
		spec, err := specOf(&body, testResources)
		if err == nil && len(spec.Args) == 0 {
			t.Error("a spec without a command")
		}
	})
}

func TestParseFilters(t *testing.T) {
	for _, tt := range []struct {
		text string
		want filters
		ok   bool
	}{
		{"", nil, true},
		{`{}`, filters{}, true},
		{`{"status":{"exited":true,"created":true}}`, filters{"status": {"created", "exited"}}, true},
		{`{"status":["exited","exited"]}`, filters{"status": {"exited"}}, true},
		{`{"dangling":{"true":false}}`, filters{"dangling": {"true"}}, true},
		{`{"a":"b"}`, nil, false},
		{`["a"]`, nil, false},
		{`{`, nil, false},
		{`{"a":` + strings.Repeat(" ", maxFilters) + `[]}`, nil, false},
	} {
		got, err := parseFilters(tt.text)
		if (err == nil) != tt.ok || !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%.50s: got %v, %v", tt.text, got, err)
		}
	}
}

func TestFiltersOf(t *testing.T) {
	r := httptest.NewRequest("GET", "/x?filters="+url.QueryEscape(`{"nope":["x"]}`), nil)
	if _, err := filtersOf(r, "status"); err == nil || err.Error() != "invalid filter 'nope'" {
		t.Errorf("got %v", err)
	}
}

func TestFilters(t *testing.T) {
	f := filters{"name": {"^web[0-9]$", "db"}, "label": {"a", "b=1"}, "flag": {"true"}, "bad": {"("}}
	for name, want := range map[string]bool{"web1": true, "web10": false, "mydb2": true, "db": true, "x": false} {
		if f.match("name", name) != want {
			t.Errorf("name %s: want %v", name, want)
		}
	}
	if f.match("bad", "x") || !f.match("bad", "(") || !f.match("absent", "x") {
		t.Error("a bad expression matches only itself, an absent key all")
	}
	for _, tt := range []struct {
		labels map[string]string
		want   bool
	}{
		{map[string]string{"a": "x", "b": "1"}, true},
		{map[string]string{"a": "", "b": "2"}, false},
		{map[string]string{"b": "1"}, false},
		{nil, false},
	} {
		if f.labels("label", tt.labels) != tt.want {
			t.Errorf("labels %v: want %v", tt.labels, tt.want)
		}
	}
	if v, err := f.boolean("flag", false); !v || err != nil {
		t.Errorf("flag: %v, %v", v, err)
	}
	if _, err := f.boolean("name", false); err == nil {
		t.Error("a name was read as a boolean")
	}
}

func FuzzParseFilters(f *testing.F) {
	for _, s := range []string{`{"status":{"exited":true}}`, `{"label":["a=b","c"]}`, `{"until":{"24h":true}}`, `{"a":{"b":{"c":true}}}`, ``} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := parseFilters(s)
		if err != nil {
			if statusOf(err) != http.StatusBadRequest {
				t.Errorf("status %d: %v", statusOf(err), err)
			}
			return
		}
		for _, key := range slices.Collect(maps.Keys(got)) {
			got.match(key, "x")
			got.labels(key, nil)
		}
	})
}

func TestParseHostPorts(t *testing.T) {
	for _, tt := range []struct {
		text     string
		from, to uint16
		ok       bool
	}{
		{"", 0, 0, true}, {"0", 0, 0, true}, {"8080", 8080, 0, true}, {"8080-8080", 8080, 0, true}, {"65535", 65535, 0, true},
		{"8000-8010", 8000, 8010, true}, {"65536", 0, 0, false}, {"8010-8000", 0, 0, false}, {"-1", 0, 0, false}, {"x", 0, 0, false},
		{"80-", 0, 0, false}, {"0-5", 0, 0, false}, {"1-2-3", 0, 0, false},
	} {
		from, to, err := parseHostPorts(tt.text)
		if (err == nil) != tt.ok || tt.ok && (from != tt.from || to != tt.to) {
			t.Errorf("%q: got %d to %d, %v", tt.text, from, to, err)
		}
	}
}

func FuzzPorts(f *testing.F) {
	f.Add("80/tcp", "8080")
	f.Add("53/udp", "")
	f.Add("80", "8000-8010")
	f.Add("9/sctp", "0")
	f.Fuzz(func(t *testing.T, port, host string) {
		p, err := network.ParsePort(port)
		if err != nil {
			return
		}
		list, err := publishedPorts(network.PortMap{p: {{HostPort: host}}}, nil, false)
		if err == nil && (len(list) != 1 || list[0].Port == 0 || portOf(list[0]) != p) {
			t.Errorf("%s at %q: %+v", p, host, list)
		}
	})
}

func TestParseDetachKeys(t *testing.T) {
	for _, tt := range []struct {
		text string
		want []byte
		ok   bool
	}{
		{"", []byte{16, 17}, true},
		{"ctrl-p,ctrl-q", []byte{16, 17}, true},
		{"ctrl-a,x", []byte{1, 'x'}, true},
		{"ctrl-@", []byte{0}, true},
		{"ctrl-[,ctrl-_", []byte{27, 31}, true},
		{"ctrl-A", nil, false},
		{"ctrl-", nil, false},
		{"abc", nil, false},
		{",", nil, false},
		{strings.Repeat("a,", 100) + "a", nil, false},
	} {
		got, err := parseDetachKeys(tt.text)
		if !slices.Equal(got, tt.want) || (err == nil) != tt.ok {
			t.Errorf("%q: got %v, %v", tt.text, got, err)
		}
	}
}

func FuzzParseDetachKeys(f *testing.F) {
	f.Add("ctrl-p,ctrl-q")
	f.Add("a,,ctrl-\\")
	f.Fuzz(func(t *testing.T, s string) {
		keys, err := parseDetachKeys(s)
		if err == nil && (len(keys) == 0 || len(keys) > maxDetach) {
			t.Errorf("%q: %d keys", s, len(keys))
		}
	})
}

func TestParseVersion(t *testing.T) {
	for _, tt := range []struct {
		text string
		want string // the error of negotiation; "" for none
	}{
		{"1.24", ""}, {"1.51", ""}, {"1.50.1", ""},
		{"1.99", "client version 1.99 is too new. Maximum supported API version is 1.51"},
		{"2.0", "client version 2.0 is too new. Maximum supported API version is 1.51"},
		{"1.1", "client version 1.1 is too old. Minimum supported API version is 1.24, please upgrade your client to a newer version"},
		{"1.x", `invalid API version "1.x" in the request path`},
		{"1.99999999999999999999", `invalid API version "1.99999999999999999999" in the request path`},
	} {
		v, err := parseVersion(tt.text)
		if err == nil {
			err = negotiate(v)
		}
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || err.Error() != tt.want) {
			t.Errorf("%s: got %v, want %q", tt.text, err, tt.want)
		}
	}
	if minVersion.String() != MinVersion || maxVersion.String() != MaxVersion {
		t.Errorf("versions are %s and %s", minVersion, maxVersion)
	}
}

func TestStatusOf(t *testing.T) {
	if got := statusOf(errors.New("x")); got != http.StatusInternalServerError {
		t.Errorf("got %d", got)
	}
}

func TestOwnOrigin(t *testing.T) {
	for _, tt := range []struct {
		origin, host string
		want         bool
	}{
		{"http://localhost:2375", "localhost:2375", true},
		{"http://127.0.0.1", "127.0.0.1", true},
		{"http://localhost", "", true}, // on a Unix socket
		{"http://localhost", "127.0.0.1", false},
		{"http://example.org", "example.org", false},
		{"http://example.org", "", false},
		{"", "", false},
	} {
		r := httptest.NewRequest("GET", "/containers/c/attach/ws", nil)
		r.Host = tt.host
		r.Header.Set("Origin", tt.origin)
		r.Header.Set("Upgrade", "websocket")
		if got := ownOrigin(r); got != tt.want {
			t.Errorf("%q to %q: %v", tt.origin, tt.host, got)
		}
	}
}
