package api

import (
	"strings"
	"testing"

	"vic/containervm"
)

func TestSetLog(t *testing.T) {
	for _, tt := range []struct {
		name, body string
		want       containervm.LogSpec
		shown      string // driver
		word       string // of the refusal
	}{
		{"nothing", `{}`, containervm.LogSpec{}, "json-file", ""},
		{"json-file", `{"Type":"json-file","Config":{"max-size":"10m"}}`, containervm.LogSpec{Room: 10_000_000}, "json-file", ""},
		{"files", `{"Config":{"max-size":"10m","max-file":"3"}}`, containervm.LogSpec{Room: 30_000_000}, "json-file", ""},
		{"local", `{"Type":"local"}`, containervm.LogSpec{Room: 100 << 20}, "local", ""},
		{"local, smaller", `{"Type":"local","Config":{"max-size":"1m"}}`, containervm.LogSpec{Room: 5 << 20}, "local", ""},
		{"none", `{"Type":"none"}`, containervm.LogSpec{Room: unreadRoom, Unread: true}, "none", ""},
		{"one file", `{"Config":{"max-file":"1"}}`, containervm.LogSpec{}, "json-file", ""},
		{"files without a size", `{"Config":{"max-file":"3"}}`, containervm.LogSpec{}, "json-file", ""},
		{"driver of nobody's", `{"Type":"nope"}`, containervm.LogSpec{}, "", "logger: no log driver named 'nope' is registered"},
		{"no files", `{"Config":{"max-size":"1m","max-file":"0"}}`, containervm.LogSpec{}, "", `invalid value for max-file: "0"`},
		{"no size", `{"Config":{"max-size":"big"}}`, containervm.LogSpec{}, "", `invalid value for max-size: "big"`},
		{"size below 0", `{"Config":{"max-size":"-1"}}`, containervm.LogSpec{}, "", `invalid value for max-size: "-1"`},
		{"too large", `{"Config":{"max-size":"8000p","max-file":"2000000000"}}`, containervm.LogSpec{}, "", "too large"},
		{"other option", `{"Type":"local","Config":{"compress":"true"}}`, containervm.LogSpec{}, "", "unknown log opt 'compress' for local log driver"},
		{"labels", `{"Config":{"labels":"a,b","env-regex":"^(F|L)"}}`, containervm.LogSpec{}, "json-file", ""},
		{"bad pattern", `{"Config":{"labels-regex":"("}}`, containervm.LogSpec{}, "", "invalid value for labels-regex"},
		{"option of none", `{"Type":"none","Config":{"max-size":"1m"}}`, containervm.LogSpec{}, "", "unknown log opt 'max-size' for none log driver"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, body, err := specFrom(t, `{"Image":"x","HostConfig":{"LogConfig":`+tt.body+`}}`, imageOf("a"))
			if tt.word != "" {
				if err == nil || !strings.Contains(err.Error(), tt.word) {
					t.Errorf("got %v, want %q", err, tt.word)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if s.Log != tt.want || body.HostConfig.LogConfig.Type != tt.shown {
				t.Errorf("got %+v, %q, want %+v, %q", s.Log, body.HostConfig.LogConfig.Type, tt.want, tt.shown)
			}
		})
	}
}

func TestLogAttributes(t *testing.T) {
	labels, env := map[string]string{"foo": "bar", "other": "x"}, []string{"baz=q ux", "OS_NAME=a,b", "no=1"}
	for _, tt := range []struct {
		opts map[string]string
		want string
	}{
		{nil, ""},
		{map[string]string{"labels": "foo,absent", "env": "baz"}, "baz=q+ux,foo=bar"},
		{map[string]string{"labels-regex": "^o", "env-regex": "^OS_"}, "OS_NAME=a%2Cb,other=x"},
	} {
		if got, err := logAttributes(tt.opts, labels, env); err != nil || got != tt.want {
			t.Errorf("%v: got %q, %v, want %q", tt.opts, got, err, tt.want)
		}
	}
}
