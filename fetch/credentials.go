package fetch

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// Credentials prove who pulls. The zero value is anonymous. Of several kinds
// that are set, the first of these is used: RegistryToken, IdentityToken,
// Username and Password.
type Credentials struct {
	Username string
	Password string

	// IdentityToken is a refresh token, exchanged for access tokens.
	IdentityToken string

	// RegistryToken is sent to the registry as it is.
	RegistryToken string
}

// authEntry is how docker writes credentials: in X-Registry-Auth, in the body
// of POST /auth, and in the "auths" of its configuration.
type authEntry struct {
	Username      string `json:"username"`
	Password      string `json:"password"`
	Auth          string `json:"auth"` // base64 of username:password
	IdentityToken string `json:"identitytoken"`
	RegistryToken string `json:"registrytoken"`
}

// maxAuthHeader limits X-Registry-Auth, in bytes.
const maxAuthHeader = 64 << 10

// ParseRegistryAuth reads the value of an X-Registry-Auth header: the JSON of
// credentials in base64, in either alphabet, padded or not. No value, and an
// empty object, are anonymous.
func ParseRegistryAuth(header string) (Credentials, error) {
	header = strings.TrimSpace(header)
	if header == "" {
		return Credentials{}, nil
	}
	if len(header) > maxAuthHeader {
		return Credentials{}, fmt.Errorf("parse X-Registry-Auth: %d bytes are too many", len(header))
	}
	b, err := decodeBase64(header)
	if err != nil {
		// What was not decoded may still be a password: leave it out.
		return Credentials{}, errors.New("parse X-Registry-Auth: not base64")
	}
	var e authEntry
	if err := json.Unmarshal(b, &e); err != nil {
		return Credentials{}, errors.New("parse X-Registry-Auth: not the JSON of credentials")
	}
	return e.credentials()
}

// ParseRegistryConfig reads what docker build sends in the header X-Registry-Config: the entries
// of a configuration file, in base64. "" is an empty configuration.
func ParseRegistryConfig(header string) (*Config, error) {
	if header == "" {
		return new(Config), nil
	}
	auths, err := decodeBase64(header)
	if err != nil {
		return nil, errors.New("not base64")
	}
	c, err := ParseConfig([]byte(`{"auths":` + string(auths) + `}`))
	if err != nil {
		return nil, errors.New("not the JSON of credentials") // which may be in the error
	}
	return c, nil
}

// credentials decodes the auth field if there is no username.
func (e authEntry) credentials() (Credentials, error) {
	c := Credentials{
		Username:      e.Username,
		Password:      e.Password,
		IdentityToken: e.IdentityToken,
		RegistryToken: e.RegistryToken,
	}
	if c.Username == "" && c.Password == "" && e.Auth != "" {
		b, err := decodeBase64(e.Auth)
		if err != nil {
			return Credentials{}, errors.New("decode auth: not base64")
		}
		user, password, ok := strings.Cut(string(b), ":")
		if !ok || user == "" {
			return Credentials{}, errors.New("decode auth: no user name and password in it")
		}
		c.Username, c.Password = user, strings.Trim(password, "\x00")
	}
	return c, nil
}

// decodeBase64 takes the standard and the URL alphabet, with and without
// padding: clients send all four.
func decodeBase64(s string) ([]byte, error) {
	s = strings.TrimRight(s, "=")
	if strings.ContainsAny(s, "+/") {
		return base64.RawStdEncoding.DecodeString(s)
	}
	return base64.RawURLEncoding.DecodeString(s)
}
