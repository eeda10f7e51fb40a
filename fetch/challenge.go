package fetch

import "strings"

// A challenge is one way to authenticate that a WWW-Authenticate header
// offers (RFC 9110, section 11.6.1):
//
//	WWW-Authenticate: Bearer realm="https://auth.example/token",service="registry",scope="repository:a/b:pull"
//	                  Basic realm="Registry"
//
// One header may hold several, separated by commas like the parameters are.
type challenge struct {
	scheme string            // lower case
	params map[string]string // names in lower case
}

// Limits of what is read of WWW-Authenticate.
const (
	maxChallengeHeader = 16 << 10 // bytes in all
	maxChallenges      = 8
	maxChallengeParams = 32 // of one challenge
)

// parseChallenges reads all WWW-Authenticate headers of a reply. What is
// malformed is left out, what follows it in the same header too. The first of
// several parameters with one name counts.
func parseChallenges(headers []string) []challenge {
	var all []challenge
	budget := maxChallengeHeader
	for _, h := range headers {
		if budget -= len(h); budget < 0 {
			break
		}
		all = append(all, parseChallengeHeader(h)...)
	}
	return all[:min(len(all), maxChallenges)]
}

// parseChallengeHeader reads one header:
//
//	header    = challenge *( "," challenge )
//	challenge = token [ 1*SP ( token68 / param *( "," param ) ) ]
//	param     = token "=" ( token / quoted-string )
func parseChallengeHeader(h string) []challenge {
	var cs []challenge
	for len(cs) < maxChallenges {
		h = strings.TrimLeft(h, " \t,")
		word, rest := cutToken(h)
		if word == "" {
			break
		}
		rest = strings.TrimLeft(rest, " \t")
		if len(cs) > 0 && strings.HasPrefix(rest, "=") {
			name := strings.ToLower(word)
			value, after, ok := cutValue(strings.TrimLeft(rest[1:], " \t"))
			if !ok {
				break
			}
			if p := cs[len(cs)-1].params; len(p) < maxChallengeParams {
				if _, dup := p[name]; !dup {
					p[name] = value
				}
			}
			if h = strings.TrimLeft(after, " \t"); h != "" && h[0] != ',' {
				break
			}
			continue
		}
		if strings.HasPrefix(rest, "=") {
			break // a parameter of no challenge
		}
		cs = append(cs, challenge{scheme: strings.ToLower(word), params: map[string]string{}})
		h = skipToken68(rest)
	}
	return cs
}

// cutToken takes a token (RFC 9110, section 5.6.2) off the front of s.
func cutToken(s string) (token, rest string) {
	i := 0
	for i < len(s) && isTokenChar(s[i]) {
		i++
	}
	return s[:i], s[i:]
}

// cutValue takes a token or a quoted string off the front of s.
func cutValue(s string) (value, rest string, ok bool) {
	if !strings.HasPrefix(s, `"`) {
		value, rest = cutToken(s)
		return value, rest, value != ""
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch c := s[i]; {
		case c == '"':
			return b.String(), s[i+1:], true
		case c == '\\' && i+1 < len(s):
			i++
			b.WriteByte(s[i])
		case c < ' ' && c != '\t', c == 0x7f:
			return "", "", false
		default:
			b.WriteByte(c)
		}
	}
	return "", "", false
}

// skipToken68 skips the other form that a challenge can have ("Negotiate
// oYG2MIGz=="), of which we know no scheme.
func skipToken68(s string) string {
	i := 0
	for i < len(s) && (isTokenChar(s[i]) || s[i] == '/') {
		i++
	}
	end := i
	for end < len(s) && s[end] == '=' {
		end++
	}
	after := strings.TrimLeft(s[end:], " \t")
	if i > 0 && (after == "" || after[0] == ',') {
		return after
	}
	return s
}

func isTokenChar(c byte) bool {
	switch {
	case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		return true
	}
	return strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0
}
