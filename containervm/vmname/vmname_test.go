package vmname

import (
	"strings"
	"testing"
)

func TestConvention(t *testing.T) {
	id, long := strings.Repeat("0123456789ab", 6)[:64], strings.Repeat("x", 100)
	for _, tt := range []struct{ convention, name, want string }{
		{"", "web", "web-0123456789ab"},
		{"", long, long[:67] + "-0123456789ab"},
		{"{name}", "web", "web"},
		{"{name}", long, long[:80]},
		{"prod {id}", "web", "prod 0123456789ab"},
		{"{id}.{name}.corp", long, "0123456789ab." + long[:62] + ".corp"},
	} {
		c := Convention(tt.convention)
		if got := c.Name(tt.name, id); got != tt.want || c.Check() != nil || len(got) > 80 {
			t.Errorf("%q: %q, want %q, %v", tt.convention, got, tt.want, c.Check())
		}
	}
	for bad, want := range map[string]string{
		"web": "neither {name} nor {id}", "{name}{name}": "twice", "{Name}": "neither", "{name}/x": "do not belong", "{name}{": "do not belong", "{id}\n": "do not belong",
		"{id}" + long: "100 characters beside",
	} {
		if err := Convention(bad).Check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", bad, err, want)
		}
	}
}
