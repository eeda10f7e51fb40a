// Command vic-machine installs virtual container hosts on vSphere, and looks after them: it runs on the administrator's machine.
//
// This package reads the flags and the environment, which no other does; package containervm/vch does the work.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"vic/containervm/vch"
)

// version is set by the linker (-X main.version=...).
var version = "unknown"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "vic-machine:", err)
		os.Exit(exitCode(err))
	}
}

// exitCode is 2 for a mistake in the command line, 1 for all else that goes wrong.
func exitCode(err error) int {
	if _, usage := errors.AsType[*usageError](err); usage {
		return 2
	}
	return 1
}

// A usageError is a mistake in the command line.
type usageError struct{ error }

func (e *usageError) Unwrap() error { return e.error }

func usageErrorf(format string, args ...any) error { return &usageError{fmt.Errorf(format, args...)} }

// rootCommand has all commands.
func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "vic-machine",
		Short: "Install virtual container hosts on vSphere",
		Long: `vic-machine installs virtual container hosts (VCHs) on a vCenter or an ESXi host, and looks after them.

Each flag can also be given in the environment: --compute-resource as VIC_MACHINE_COMPUTE_RESOURCE, and so on. What is
in neither is taken from govc's GOVC_URL, GOVC_USERNAME, GOVC_PASSWORD, GOVC_DATACENTER, GOVC_RESOURCE_POOL and
GOVC_TLS_CA_CERTS. Passwords are no flags, for others could read them: they are in VIC_MACHINE_PASSWORD and
VIC_MACHINE_OPS_PASSWORD, in files, or asked for.

The exit status is 0 if all went well, 2 for a mistake in the command line, and 1 for all else.`,
		SilenceUsage:      true,
		SilenceErrors:     true,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
	}
	root.AddCommand(createCommand(), lsCommand(), inspectCommand(), configureCommand(), upgradeCommand(), deleteCommand(), debugCommand(), updateCommand(), probeCommand(), versionCommand())
	return root
}

// run carries out one command line. It ends early, with whatever it did undone, when ctx does.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	root := rootCommand()
	// What goes wrong before a command begins is a mistake in how it was called.
	begun := false
	commands := root.Commands()
	for i := 0; i < len(commands); i++ {
		c := commands[i]
		commands = append(commands, c.Commands()...)
		do := c.RunE
		if do == nil {
			continue // it has commands of its own
		}
		addForeign(c)
		c.RunE = func(cmd *cobra.Command, args []string) error {
			if err := refused(cmd.Flags()); err != nil {
				return err
			}
			if err := environment(cmd.Flags()); err != nil {
				return err
			}
			begun = true
			err := do(cmd, args)
			if problems, ok := errors.AsType[vch.Problems](err); ok && wantsJSON(cmd) {
				return errors.Join(err, printJSON(cmd, map[string]any{"problems": problems}))
			}
			return err
		}
	}
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err != nil && !begun {
		err = &usageError{err}
	}
	return err
}

// environment sets the flags that were not given from VIC_MACHINE_*.
func environment(flags *pflag.FlagSet) error {
	var err error
	flags.VisitAll(func(f *pflag.Flag) {
		if _, foreign := f.Value.(refusal); foreign {
			return // VIC_MACHINE_PASSWORD is none
		}
		if value := os.Getenv(variable(f.Name)); value != "" && !f.Changed && err == nil {
			if setErr := flags.Set(f.Name, value); setErr != nil {
				err = usageErrorf("%s: %w", variable(f.Name), setErr)
			}
		}
	})
	return err
}
