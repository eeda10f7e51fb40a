package fetch

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestParseChallenges(t *testing.T) {
	for _, tc := range []struct {
		name    string
		headers []string
		want    []challenge
	}{
		{"Docker Hub", []string{`Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/nginx:pull"`},
			[]challenge{{"bearer", map[string]string{"realm": "https://auth.docker.io/token", "service": "registry.docker.io", "scope": "repository:library/nginx:pull"}}}},
		{"docker-registry with htpasswd", []string{`Basic realm="vic"`}, []challenge{{"basic", map[string]string{"realm": "vic"}}}},
		{"comma in a value", []string{`Bearer realm="https://r/t",scope="repository:a:pull,push"`},
			[]challenge{{"bearer", map[string]string{"realm": "https://r/t", "scope": "repository:a:pull,push"}}}},
		{"two headers", []string{`Bearer realm="a"`, `Basic realm="b"`},
			[]challenge{{"bearer", map[string]string{"realm": "a"}}, {"basic", map[string]string{"realm": "b"}}}},
		{"two in one", []string{`Bearer realm="a",service="s", Basic realm="b"`},
			[]challenge{{"bearer", map[string]string{"realm": "a", "service": "s"}}, {"basic", map[string]string{"realm": "b"}}}},
		{"white space and letter case", []string{"\tBEARER  Realm = \"a\" ,\t, SERVICE=s "},
			[]challenge{{"bearer", map[string]string{"realm": "a", "service": "s"}}}},
		{"token68", []string{`Negotiate oYG2MIGz+/==, Basic realm="b"`},
			[]challenge{{"negotiate", map[string]string{}}, {"basic", map[string]string{"realm": "b"}}}},
		{"no parameters", []string{`Negotiate, NTLM`}, []challenge{{"negotiate", map[string]string{}}, {"ntlm", map[string]string{}}}},
		{"quoted pairs", []string{`Basic realm="a \"b\" \\c"`}, []challenge{{"basic", map[string]string{"realm": `a "b" \c`}}}},
		{"twice the same", []string{`Basic realm="a",realm="b"`}, []challenge{{"basic", map[string]string{"realm": "a"}}}},
		{"empty value", []string{`Basic realm=""`}, []challenge{{"basic", map[string]string{"realm": ""}}}},
		{"nothing", []string{"", " , "}, nil},
		{"parameter of nothing", []string{`realm="a"`}, nil},
		{"open quote", []string{`Bearer realm="a`}, []challenge{{"bearer", map[string]string{}}}},
		{"ends in a backslash", []string{`Bearer realm="a\`}, []challenge{{"bearer", map[string]string{}}}},
		{"no comma", []string{`Bearer realm="a" service="b"`}, []challenge{{"bearer", map[string]string{"realm": "a"}}}},
		{"control character", []string{"Bearer realm=\"a\x00b\",service=s"}, []challenge{{"bearer", map[string]string{}}}},
		{"binary", []string{"\xff\xfe"}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := parseChallenges(tc.headers); !reflect.DeepEqual(got, tc.want) {
				t.Errorf("got %v, want %v", got, tc.want)
			}
		})
	}
}

func TestParseChallengesBounds(t *testing.T) {
	many := strings.Repeat("Basic, ", 100)
	if got := parseChallenges([]string{many}); len(got) != maxChallenges {
		t.Errorf("%d challenges", len(got))
	}
	if got := parseChallenges([]string{many, many, many}); len(got) != maxChallenges {
		t.Errorf("%d challenges in three headers", len(got))
	}
	var params strings.Builder
	for i := range 1000 {
		fmt.Fprintf(&params, ",p%d=x", i)
	}
	if got := parseChallenges([]string{"Basic " + params.String()}); len(got) != 1 || len(got[0].params) != maxChallengeParams {
		t.Errorf("%v", got)
	}
	if got := parseChallenges([]string{`Basic realm="` + strings.Repeat("x", maxChallengeHeader) + `"`}); got != nil {
		t.Error("a header of any length is read")
	}
}

// formatChallenges is the canonical form of challenges.
func formatChallenges(cs []challenge) string {
	var parts []string
	for _, c := range cs {
		s := c.scheme
		for i, name := range slices.Sorted(maps.Keys(c.params)) {
			s += []string{" ", ","}[min(i, 1)] + name + `="` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(c.params[name]) + `"`
		}
		parts = append(parts, s)
	}
	return strings.Join(parts, ", ")
}

func FuzzParseChallenges(f *testing.F) {
	for _, s := range []string{
		`Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/nginx:pull",error="insufficient_scope"`,
		`Basic realm="basic-realm"`,
		`Bearer realm="https://ghcr.io/token",service="ghcr.io",scope="repository:user/image:pull"`,
		`Digest realm="a, b=\"c\"", nonce=abc, Basic realm=x`,
		`Negotiate oYG2MIGz==, NTLM`,
		`Bearer realm="`, `=,=,=`, `a b`, `a b=`,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		cs := parseChallenges([]string{s})
		if len(cs) > maxChallenges {
			t.Fatalf("%d challenges", len(cs))
		}
		for _, c := range cs {
			if c.scheme == "" || c.scheme != strings.ToLower(c.scheme) || len(c.params) > maxChallengeParams {
				t.Errorf("challenge %v", c)
			}
		}
		text := formatChallenges(cs)
		if len(text) > maxChallengeHeader {
			return
		}
		for _, c := range cs {
			for _, v := range c.params {
				if strings.ContainsFunc(v, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) {
					return // a quoted pair may hold what cannot be written without one
				}
			}
		}
		if again := parseChallenges([]string{text}); !reflect.DeepEqual(again, cs) {
			t.Errorf("%q\nparsed  %v\nwritten %q\nparsed  %v", s, cs, text, again)
		}
	})
}
