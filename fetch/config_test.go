package fetch

import (
	"context"
	"encoding/base64"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestConfigCredentials(t *testing.T) {
	conf, err := ParseConfig([]byte(`{
		"auths": {
			"https://index.docker.io/v1/": {"auth": "aHVidXNlcjpodWI6cGFzcw=="},
			"localhost:5000": {"auth": "dTpw"},
			"https://old.example/v1/": {"username": "o", "password": "x"},
			"token.example": {"auth": "PHRva2VuPjo=", "identitytoken": "id"},
			"reg.example": {"registrytoken": "reg"},
			"helped.example": {}
		},
		"HttpHeaders": {"X": "y"}, "detachKeys": "ctrl-e,e"
	}`))
	if err != nil {
		t.Fatal(err)
	}
	for domain, want := range map[string]Credentials{
		"docker.io":       {Username: "hubuser", Password: "hub:pass"},
		"index.docker.io": {Username: "hubuser", Password: "hub:pass"},
		"localhost:5000":  {Username: "u", Password: "p"},
		"localhost":       {},
		"localhost:5001":  {},
		"old.example":     {Username: "o", Password: "x"},
		"token.example":   {Username: "<token>", IdentityToken: "id"},
		"reg.example":     {RegistryToken: "reg"},
		"helped.example":  {},
		"other.example":   {},
	} {
		got, err := conf.Credentials(t.Context(), domain)
		if err != nil || got != want {
			t.Errorf("%s: %+v, %v", domain, got, err)
		}
	}
}

// writeHelper puts a program docker-credential-NAME on the PATH.
func writeHelper(t *testing.T, name, script string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "docker-credential-"+name), []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

func TestCredentialHelpers(t *testing.T) {
	writeHelper(t, "store", `read url
case "$1 $url" in
"get https://index.docker.io/v1/") echo '{"ServerURL":"x","Username":"hub","Secret":"s"}';;
"get token.example") echo '{"Username":"<token>","Secret":"identity"}';;
"get broken.example") echo 'the keyring is locked' >&2; echo 'no'; exit 1;;
"get loud.example") head -c 3000000 /dev/zero;;
"get garbage.example") echo '{';;
"get slow.example") echo started > "$STARTED"; sleep 1000;;
*) echo 'credentials not found in native keychain'; exit 1;;
esac`)
	writeHelper(t, "own", `echo '{"Username":"own","Secret":"o"}'`)
	conf, err := ParseConfig([]byte(`{
		"auths": {"file.example": {"auth": "dTpw"}, "own.example": {}},
		"credHelpers": {"own.example": "own", "missing.example": "is-not-there"},
		"credsStore": "store"
	}`))
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		domain string
		want   Credentials
		msg    string
	}{
		{"docker.io", Credentials{Username: "hub", Password: "s"}, ""},
		{"token.example", Credentials{IdentityToken: "identity"}, ""},
		{"own.example", Credentials{Username: "own", Password: "o"}, ""},
		{"unknown.example", Credentials{}, ""},
		{"file.example", Credentials{Username: "u", Password: "p"}, ""},
		{"broken.example", Credentials{}, "the keyring is locked"},
		{"loud.example", Credentials{}, "more than 1048576 bytes of output"},
		{"garbage.example", Credentials{}, "unexpected EOF"},
		{"missing.example", Credentials{}, "docker-credential-is-not-there"},
	} {
		t.Run(tc.domain, func(t *testing.T) {
			got, err := conf.Credentials(t.Context(), tc.domain)
			if got != tc.want {
				t.Errorf("got %+v, want %+v", got, tc.want)
			}
			if tc.msg == "" && err != nil || tc.msg != "" && (err == nil || !strings.Contains(err.Error(), tc.msg)) {
				t.Errorf("error: %v", err)
			}
		})
	}
	t.Run("cancelled", func(t *testing.T) {
		started := filepath.Join(t.TempDir(), "started")
		t.Setenv("STARTED", started)
		if err := makeFIFO(started); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			os.ReadFile(started) // returns when the helper has written
			cancel()
		}()
		if _, err := conf.Credentials(ctx, "slow.example"); !errors.Is(err, context.Canceled) {
			t.Errorf("error: %v", err)
		}
	})
}

func TestLoadConfig(t *testing.T) {
	dir := t.TempDir()
	c, err := LoadConfig(filepath.Join(dir, "config.json"))
	if err != nil {
		t.Fatalf("no file: %v", err)
	}
	if got, err := c.Credentials(t.Context(), "docker.io"); err != nil || got != (Credentials{}) {
		t.Errorf("no file: %+v, %v", got, err)
	}
	if _, err := LoadConfig(dir); err == nil {
		t.Error("a folder was read")
	}
	secret := base64.StdEncoding.EncodeToString([]byte("nocolon-s3cret"))
	for name, text := range map[string]string{
		"not JSON":        `{"auths": {"a": {"auth": "` + secret,
		"wrong type":      `{"auths": {"a": {"auth": 1}}, "x": "` + secret + `"}`,
		"auth not base64": `{"auths": {"a": {"auth": "%%%s3cret"}}}`,
		"auth no colon":   `{"auths": {"a": {"auth": "` + secret + `"}}}`,
		"helper is path":  `{"credHelpers": {"a": "../../bin/s3"}}`,
		"store is option": `{"credsStore": "-x y"}`,
	} {
		path := filepath.Join(dir, "bad.json")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := LoadConfig(path)
		if err == nil {
			t.Errorf("%s: no error", name)
		} else if strings.Contains(err.Error(), secret) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: the error tells the secret: %v", name, err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "huge.json"), make([]byte, maxConfig+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadConfig(filepath.Join(dir, "huge.json")); err == nil {
		t.Error("a huge file was read")
	}
}

func TestParseRegistryAuth(t *testing.T) {
	// Characters that the two alphabets of base64 have in different places.
	text := `{"username":"ü?>~","password":"p","serveraddress":"x","email":""}`
	want := Credentials{Username: "ü?>~", Password: "p"}
	for name, in := range map[string]string{
		"URL alphabet":              base64.URLEncoding.EncodeToString([]byte(text)),
		"URL alphabet, unpadded":    base64.RawURLEncoding.EncodeToString([]byte(text)),
		"standard alphabet":         base64.StdEncoding.EncodeToString([]byte(text)),
		"standard alphabet, padded": base64.RawStdEncoding.EncodeToString([]byte(text)) + " ",
	} {
		if got, err := ParseRegistryAuth(in); err != nil || got != want {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	for in, want := range map[string]Credentials{
		"":       {},
		"e30=":   {},
		"e30":    {},
		"bnVsbA": {},
		base64.URLEncoding.EncodeToString([]byte(`{"identitytoken":"i"}`)): {IdentityToken: "i"},
		base64.URLEncoding.EncodeToString([]byte(`{"registrytoken":"r"}`)): {RegistryToken: "r"},
		base64.URLEncoding.EncodeToString([]byte(`{"auth":"dTpwOnE="}`)):   {Username: "u", Password: "p:q"},
	} {
		if got, err := ParseRegistryAuth(in); err != nil || got != want {
			t.Errorf("%q: %+v, %v", in, got, err)
		}
	}
	for _, in := range []string{"%", "e30=e30=", base64.StdEncoding.EncodeToString([]byte(`{"username":1}`)), "aGVsbG8=", strings.Repeat("A", maxAuthHeader+1)} {
		if got, err := ParseRegistryAuth(in); err == nil || got != (Credentials{}) {
			t.Errorf("%.20q: %+v, %v", in, got, err)
		}
	}
}

func FuzzParseConfig(f *testing.F) {
	f.Add([]byte(`{"auths":{"https://index.docker.io/v1/":{"auth":"dTpw"},"r.example":{"identitytoken":"x","auth":"PHRva2VuPjo="}}}`))
	f.Add([]byte(`{"auths":{"localhost:5000":{}},"credsStore":"desktop","credHelpers":{"gcr.io":"gcloud"}}`))
	f.Add([]byte(`{"auths":{"a":{"auth":"Og=="}}}`))
	f.Add([]byte(" "))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := ParseConfig(b)
		if err != nil {
			return
		}
		if !validHelper(c.store) || strings.ContainsAny(c.store, "/ \x00") {
			t.Errorf("store %q", c.store)
		}
		c.store, c.helpers = "", nil // run no programs
		for name := range c.auths {
			if _, err := c.Credentials(t.Context(), name); err != nil {
				t.Errorf("credentials of %q: %v", name, err)
			}
		}
	})
}

func FuzzParseRegistryAuth(f *testing.F) {
	f.Add("eyJ1c2VybmFtZSI6InUiLCJwYXNzd29yZCI6InAifQ==")
	f.Add("eyJpZGVudGl0eXRva2VuIjoiaSJ9")
	f.Add("e30=")
	f.Fuzz(func(t *testing.T, s string) {
		c, err := ParseRegistryAuth(s)
		if err != nil && c != (Credentials{}) {
			t.Errorf("credentials with an error")
		}
	})
}
