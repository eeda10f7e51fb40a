package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"vic/containervm/vch"
)

// fixed are the flags of a Spec that cannot be changed later: where the VCH is, and what its interfaces are on.
var fixed = []string{"name", "compute-resource", "folder", "image-store", "container-store", "state-size", "base-image-size", "bridge-network", "public-network", "client-network", "management-network"}

// renewing are those that the server's certificate depends on.
var renewing = []string{"tls-cname", "no-tls", "no-tlsverify", "public-network-ip", "client-network-ip", "renew-certificates"}

func configureCommand() *cobra.Command {
	var t targetFlags
	var f planFlags
	var c configureFlags
	cmd := &cobra.Command{
		Use:   "configure --target HOST --user NAME --name VCH",
		Short: "Change a VCH",
		Long: `Change a VCH. What is not given stays; flags that can be given several times replace all that they said before. The appliance starts
again, while containers run on. If it does not come up, it is made what it was. Without other flags, it gets the thumbprint, and the
password if it logs in as the same user, that are given now.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return t.withSite(cmd, func(site *vch.Site) error { return configure(cmd, site, &t, &f, &c) })
		},
	}
	t.add(cmd)
	c.add(cmd)
	nameFlag(cmd, &c.name)
	f.add(cmd, false)
	jsonFlag(cmd)
	return cmd
}

// configureFlags are those of configure beside a Spec's.
type configureFlags struct {
	createFlags
	name  string
	reset bool
	renew bool
}

func (c *configureFlags) add(cmd *cobra.Command) {
	var unused vch.Spec
	all := pflag.NewFlagSet("", pflag.ContinueOnError)
	specFlags(all, &unused)
	all.VisitAll(func(f *pflag.Flag) {
		if !slices.Contains(fixed, f.Name) {
			cmd.Flags().AddFlag(f)
		}
	})
	cmd.Flags().BoolVar(&c.renew, "renew-certificates", false, "make the server's and a client's certificates anew")
	resetFlag(cmd, &c.reset)
	c.createFlags.addChanging(cmd)
	c.createFlags.addOps(cmd)
}

// resetFlag adds --reset-progress to a command.
func resetFlag(cmd *cobra.Command, reset *bool) {
	cmd.Flags().BoolVar(reset, "reset-progress", false, "also if something else is in progress that nobody is doing any more")
}

// configure changes a VCH.
func configure(cmd *cobra.Command, site *vch.Site, t *targetFlags, f *planFlags, c *configureFlags) error {
	v, err := site.Find(cmd.Context(), c.name)
	if err != nil {
		return err
	}
	spec, err := changedSpec(cmd.Flags(), v.Spec)
	if err != nil {
		return err
	}
	if c.certPath == "" {
		c.certPath = spec.Name
	}
	o := vch.ConfigureOptions{Spec: spec, Version: version, Timeout: c.timeout, Reset: c.reset}
	if err := t.trust(cmd.Context()); err != nil {
		return err
	}
	o.Access = vch.Access{Target: t.target, Thumbprint: t.thumbprint, CAFile: t.caFile, User: t.user, Password: t.password}
	if spec.OpsUser != "" && (spec.OpsUser != v.Spec.OpsUser || c.opsPasswordFile != "" || os.Getenv("VIC_MACHINE_OPS_PASSWORD") != "") {
		if o.Access.OpsPassword, err = password(cmd, "VIC_MACHINE_OPS_PASSWORD", "", c.opsPasswordFile, "Password of "+spec.OpsUser); err != nil {
			return err
		}
		o.NewOpsPassword = true
	}
	if err := c.certificates(cmd, &o, v); err != nil {
		return err
	}
	if cmd.Flags().Changed("registry-ca") {
		if o.RegistryCAs, err = readCAs(spec.RegistryCAs); err != nil {
			return err
		}
	}
	plan, err := v.Configure(cmd.Context(), o)
	if err != nil {
		return err
	}
	done, err := f.run(cmd, plan)
	if err != nil || !done {
		return err
	}
	if v, err = site.Find(cmd.Context(), v.VM); err != nil {
		return err
	}
	return tell(cmd, v, c.certPath)
}

// changedSpec is a Spec with what the flags say otherwise.
func changedSpec(flags *pflag.FlagSet, spec vch.Spec) (vch.Spec, error) {
	var bound vch.Spec
	all := pflag.NewFlagSet("", pflag.ContinueOnError)
	specFlags(all, &bound)
	bound = spec
	var err error
	flags.Visit(func(f *pflag.Flag) {
		to := all.Lookup(f.Name)
		if to == nil || slices.Contains(fixed, f.Name) || err != nil {
			return
		}
		if from, ok := f.Value.(pflag.SliceValue); ok {
			// One without text takes all back.
			err = to.Value.(pflag.SliceValue).Replace(slices.DeleteFunc(from.GetSlice(), func(s string) bool { return s == "" }))
			return
		}
		if off, ok := to.Value.(*tlsFlag); ok && f.Value.String() == "false" && *off.mode == off.is {
			*off.mode = vch.MutualTLS
			return
		}
		err = to.Value.Set(f.Value.String())
	})
	return bound, err
}

// certificates reads those that were brought, or has them made where they depend on what changes.
func (c *configureFlags) certificates(cmd *cobra.Command, o *vch.ConfigureOptions, v *vch.VCH) error {
	changed := func(names ...string) bool {
		return slices.ContainsFunc(names, func(n string) bool { return cmd.Flags().Changed(n) })
	}
	brought := changed("tls-server-cert", "tls-server-key", "tls-ca")
	made := v.Spec.TLSCert == "" && v.Spec.TLSKey == "" && v.Spec.TLSCA == ""
	if brought || changed(renewing...) && made || c.renew {
		if c.renew && !brought { // in place of those that were brought before
			o.Spec.TLSCert, o.Spec.TLSKey, o.Spec.TLSCA = "", "", ""
		}
		create := vch.CreateOptions{}
		if err := readTLS(&o.Spec, &create, c.certPath); err != nil {
			return err
		}
		o.TLS, o.MakeTLS, o.MakeTLSText = create.TLS, create.MakeTLS, create.MakeTLSText
	}
	var err error
	if o.TLS.ClientCert, o.TLS.ClientKey, err = clientPair(c.certPath); err != nil {
		return err
	}
	return nil
}

// clientPair reads the certificate of a client and its key, if they are where they were made.
func clientPair(certPath string) (cert, key []byte, err error) {
	cert, err = os.ReadFile(filepath.Join(certPath, "client", "cert.pem"))
	if err == nil {
		key, err = os.ReadFile(filepath.Join(certPath, "client", "key.pem"))
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read a client's certificate: %w", err)
	}
	return cert, key, nil
}
