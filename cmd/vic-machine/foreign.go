package main

import (
	"slices"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// A foreign is a flag of the original vic-machine that this one has not, and what to do instead. Who types it is told so.
type foreign struct {
	commands []string // first words of their usage; none means all
	name     string
	boolean  bool
	instead  string
}

var foreigns = []foreign{
	{name: "password", instead: "others could read it: set VIC_MACHINE_PASSWORD, or name a file with --password-file"},
	{name: "id", commands: []string{"inspect", "config", "configure", "upgrade", "delete", "debug"}, instead: "give the ID to --name"},
	{name: "force", boolean: true, commands: []string{"create", "configure", "upgrade"}, instead: "what stands against a change has to be put right; whose certificate is not trusted is named by --thumbprint"},
	{name: "ops-password", commands: []string{"create", "configure"}, instead: "others could read it: set VIC_MACHINE_OPS_PASSWORD, or name a file with --ops-password-file"},
	{name: "asymmetric-routes", boolean: true, commands: []string{"create", "configure"}, instead: "leave it out: the appliance takes packets by whichever interface they come"},
	{name: "organization", commands: []string{"create", "configure"}, instead: "certificates that are made have none: bring your own with --tls-server-cert, --tls-server-key and --tls-ca"},
	{name: "certificate-key-size", commands: []string{"create", "configure"}, instead: "keys that are made are of ECDSA: bring your own with --tls-server-cert, --tls-server-key and --tls-ca"},
	{name: "bootstrap-iso", commands: []string{"create", "upgrade"}, instead: "what containers boot is made by the appliance: --appliance-iso is all there is"},
	{name: "rollback", boolean: true, commands: []string{"configure"}, instead: "vic-machine upgrade --rollback takes back a configure as well"},
	{name: "format", commands: []string{"config"}, instead: "it prints a command line, or its words as JSON with --json"},
	{name: "enable-ssh", boolean: true, commands: []string{"debug"}, instead: noShell},
	{name: "authorized-key", commands: []string{"debug"}, instead: noShell},
	{name: "rootpw", commands: []string{"debug"}, instead: noShell},
}

const noShell = "there is no shell in the appliance, nor anybody to log in as: debug collects what there is to see"

// addForeign adds the flags of a command that are refused.
func addForeign(cmd *cobra.Command) {
	for _, f := range foreigns {
		if cmd.Flags().Lookup(f.name) != nil || len(f.commands) > 0 && !slices.Contains(f.commands, cmd.Name()) {
			continue
		}
		flag := cmd.Flags().VarPF(refusal(f.instead), f.name, "", "not here: "+f.instead)
		flag.Hidden = true
		if f.boolean {
			flag.NoOptDefVal = "true"
		}
	}
}

// refused is an error about a flag that is not here. It does not have the value, which may be a password.
func refused(flags *pflag.FlagSet) (err error) {
	flags.Visit(func(f *pflag.Flag) {
		if r, ok := f.Value.(refusal); ok && err == nil {
			err = usageErrorf("--%s is not here: %s", f.Name, string(r))
		}
	})
	return err
}

// A refusal is the value of a flag that is not here, and says what to do instead.
type refusal string

func (r refusal) String() string   { return "" }
func (r refusal) Set(string) error { return nil }
func (r refusal) Type() string     { return "string" }
