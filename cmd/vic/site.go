package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	datastore "vic/layerstore/vsphere"
)

// siteFlags say where a vSphere is, and who asks.
type siteFlags struct {
	target, user, passwordFile string
	thumbprint, targetCA       string
	datacenter                 string
}

func (s *siteFlags) add(fl *pflag.FlagSet) {
	fl.StringVar(&s.target, "target", "", "`HOST[:PORT]` of the vCenter or ESXi host")
	fl.StringVar(&s.user, "user", "", "`name` to log in with; the password is in $VIC_PASSWORD or --password-file")
	fl.StringVar(&s.passwordFile, "password-file", "", "`file` with the password")
	fl.StringVar(&s.thumbprint, "thumbprint", "", "SHA-1 or SHA-256 `digest` of the target's certificate, in hex with colons; without it an authority must vouch for it")
	fl.StringVar(&s.targetCA, "target-ca", "", "`file` of the authorities that vouch for the target's certificate, PEM; default those of this machine")
	fl.StringVar(&s.datacenter, "datacenter", "", "`name` of the datacenter; default the only one")
}

// check says what is wrong with the flags, or missing for what needs them.
func (s *siteFlags) check(what string) error {
	var errs []error
	for _, f := range []struct{ name, value string }{{"target", s.target}, {"user", s.user}} {
		if f.value == "" {
			errs = append(errs, usageErrorf("%s needs --%s", what, f.name))
		}
	}
	if s.thumbprint != "" && s.targetCA != "" {
		errs = append(errs, usageErrorf("--thumbprint and --target-ca: give one of them"))
	}
	return errors.Join(errs...)
}

// password is $VIC_PASSWORD or what the file says, less the newline at its end.
func (s *siteFlags) password() (string, error) {
	if s.passwordFile == "" {
		if p, ok := os.LookupEnv("VIC_PASSWORD"); ok {
			return p, nil
		}
		return "", usageErrorf("there is no password for %s: set VIC_PASSWORD or give --password-file", s.user)
	}
	text, err := os.ReadFile(s.passwordFile)
	if err != nil {
		return "", err
	}
	return strings.TrimRight(string(text), "\r\n"), nil
}

// connect logs in, until what it returns is called.
func (s *siteFlags) connect(ctx context.Context, log *slog.Logger) (*datastore.Session, func() error, error) {
	password, err := s.password()
	if err != nil {
		return nil, nil, err
	}
	session, err := datastore.Connect(ctx, datastore.Endpoint{
		Server: s.target, User: s.user, Password: password, Thumbprint: s.thumbprint, CAFile: s.targetCA, Log: log,
	})
	if err != nil {
		return nil, nil, err
	}
	return session, func() error {
		ctx, cancel := context.WithTimeout(context.Background(), logoutTime)
		defer cancel()
		if err := session.Close(ctx); err != nil && !errors.Is(err, datastore.ErrUnavailable) { // it ends by itself
			return err
		}
		return nil
	}, nil
}

// open logs in, and opens the location that a flag names for the time of a function.
func (s *siteFlags) open(cmd *cobra.Command, l location, flag string, do func(*datastore.Datastore, *slog.Logger) error) (err error) {
	log := logger(cmd, slog.LevelWarn)
	session, logout, err := s.connect(cmd.Context(), log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, logout()) }()
	d, err := l.open(cmd.Context(), session, s.datacenter, flag)
	if err != nil {
		return err
	}
	return do(d, log)
}

// refuse is an error about each of these flags that is given.
func refuse(fl *pflag.FlagSet, names []string, why string) (err error) {
	for _, name := range names {
		if fl.Changed(name) {
			err = errors.Join(err, usageErrorf("--%s %s", name, why))
		}
	}
	return err
}

// logoutTime bounds the wait for a vCenter that does not answer a farewell.
const logoutTime = 5 * time.Second

// imageFolder is the folder of an image store on a datastore if none is named.
const imageFolder = "vic"
