package fetch

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/docker/docker-credential-helpers/client"
	"github.com/docker/docker-credential-helpers/credentials"
)

// A Config holds the credentials of a docker client's configuration file
// (~/.docker/config.json):
//
//	{"auths": {"localhost:5000": {"auth": "dXNlcjpwYXNzd29yZA=="},
//	           "https://index.docker.io/v1/": {"identitytoken": "..."}},
//	 "credHelpers": {"gcr.io": "gcloud"},
//	 "credsStore": "pass"}
//
// Names in credHelpers and credsStore are those of programs
// docker-credential-NAME. The zero value has no credentials. It is safe for
// concurrent use.
type Config struct {
	auths   map[string]authEntry
	helpers map[string]string // by registry
	store   string
}

// Limits of what is read.
const (
	maxConfig       = 4 << 20 // bytes of a configuration file
	maxHelperOutput = 1 << 20 // bytes of what a credential helper prints
)

// LoadConfig reads a configuration file. A file that does not exist has no
// credentials.
func LoadConfig(path string) (*Config, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return new(Config), nil
	}
	if err != nil {
		return nil, fmt.Errorf("read docker configuration: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err != nil {
		return nil, fmt.Errorf("read docker configuration: %w", err)
	}
	if len(b) > maxConfig {
		return nil, fmt.Errorf("read docker configuration: %s has more than %d bytes", path, maxConfig)
	}
	c, err := ParseConfig(b)
	if err != nil {
		return nil, fmt.Errorf("read docker configuration %s: %w", path, err)
	}
	return c, nil
}

// ParseConfig reads the contents of a configuration file. No contents at all
// have no credentials.
func ParseConfig(b []byte) (*Config, error) {
	var doc struct {
		Auths       map[string]authEntry `json:"auths"`
		CredHelpers map[string]string    `json:"credHelpers"`
		CredsStore  string               `json:"credsStore"`
	}
	if len(bytes.TrimSpace(b)) == 0 {
		return new(Config), nil
	}
	if err := json.Unmarshal(b, &doc); err != nil {
		// The text of the error may quote the file, and the file has secrets.
		if se, ok := errors.AsType[*json.SyntaxError](err); ok {
			return nil, fmt.Errorf("not JSON at byte %d", se.Offset)
		}
		return nil, errors.New("not the JSON of a docker configuration")
	}
	for name, e := range doc.Auths {
		if _, err := e.credentials(); err != nil {
			return nil, fmt.Errorf("auths of %q: %w", name, err)
		}
	}
	for name, h := range doc.CredHelpers {
		if !validHelper(h) {
			return nil, fmt.Errorf("credHelpers of %q: %q is no name of a program", name, h)
		}
	}
	if !validHelper(doc.CredsStore) {
		return nil, fmt.Errorf("credsStore: %q is no name of a program", doc.CredsStore)
	}
	return &Config{auths: doc.Auths, helpers: doc.CredHelpers, store: doc.CredsStore}, nil
}

// Credentials returns those for a registry, named by the domain of a reference
// (reference.Domain). It asks the registry's credential helper if there is one,
// else the credentials store, else the file. Having none is not an error:
// they are anonymous.
func (c *Config) Credentials(ctx context.Context, domain string) (Credentials, error) {
	key := domain
	if apiHost(domain) == hubHost {
		key = hubKey
	}
	helper := c.store
	for _, name := range []string{domain, key} {
		if h := c.helpers[name]; h != "" {
			helper = h
		}
	}
	if helper != "" {
		creds, found, err := askHelper(ctx, helper, key)
		if err != nil {
			return Credentials{}, fmt.Errorf("credentials for %s from docker-credential-%s: %w", domain, helper, err)
		}
		if found {
			return creds, nil
		}
	}
	e, ok := c.auths[key]
	if !ok {
		e = c.findAuth(key)
	}
	return e.credentials()
}

// findAuth finds an entry that names the registry as an address, as old
// clients wrote it. Of several, the first in alphabetical order counts.
func (c *Config) findAuth(key string) authEntry {
	var names []string
	for name := range c.auths {
		if apiHost(name) == apiHost(key) {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return authEntry{}
	}
	return c.auths[slices.Min(names)]
}

var helperName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)

func validHelper(name string) bool { return name == "" || helperName.MatchString(name) }

// askHelper runs a credential helper.
func askHelper(ctx context.Context, name, key string) (creds Credentials, found bool, err error) {
	got, err := client.Get(func(args ...string) client.Program {
		cmd := exec.CommandContext(ctx, "docker-credential-"+name, args...)
		cmd.WaitDelay = time.Second // for children of it that keep its output open
		return &helperProgram{cmd: cmd}
	}, key)
	switch {
	case ctx.Err() != nil:
		return Credentials{}, false, context.Cause(ctx)
	case credentials.IsErrCredentialsNotFound(err):
		return Credentials{}, false, nil
	case err != nil:
		return Credentials{}, false, err
	case got.Username == "<token>":
		return Credentials{IdentityToken: got.Secret}, true, nil
	}
	return Credentials{Username: got.Username, Password: got.Secret}, true, nil
}

// A helperProgram is a client.Program that ends with its context, prints
// nothing to our standard error and not more than it should.
type helperProgram struct{ cmd *exec.Cmd }

func (p *helperProgram) Input(in io.Reader) { p.cmd.Stdin = in }

// Output runs the program.
func (p *helperProgram) Output() ([]byte, error) {
	var out, stderr boundedBuffer
	p.cmd.Stdout, p.cmd.Stderr = &out, &stderr
	err := p.cmd.Run()
	if out.overflow {
		return nil, fmt.Errorf("more than %d bytes of output", maxHelperOutput)
	}
	if err != nil && stderr.buf.Len() > 0 {
		err = fmt.Errorf("%w: %s", err, strings.TrimSpace(printable(stderr.buf.String(), maxMessage)))
	}
	return out.buf.Bytes(), err
}

// A boundedBuffer keeps the beginning of what is written to it.
type boundedBuffer struct {
	buf      bytes.Buffer
	overflow bool
}

func (b *boundedBuffer) Write(p []byte) (int, error) {
	if room := maxHelperOutput - b.buf.Len(); len(p) > room {
		b.buf.Write(p[:room])
		b.overflow = true
	} else {
		b.buf.Write(p)
	}
	return len(p), nil
}
