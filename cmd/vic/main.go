// Command vic is a virtual container host: vic serve answers the Docker API and runs each container as a
// virtual machine whose root disk is a chain of VMDKs. Its other commands work on the same store without
// a daemon, beside a running one if there is one.
//
// This package reads the flags and the environment, which no other does, and puts the parts together.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"
)

// version is set by the linker (-X main.version=...).
var version = "unknown"

// memoryLimit is what the Go runtime tries to stay below: without it the heap grows to twice
// of what is in use before it is looked through, and a layer of a million files has 190 MiB.
const memoryLimit = 384 << 20

func main() { os.Exit(program()) }

// program is the whole of it. It returns the exit status.
func program() int {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryLimit)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "vic:", err)
		return exitCode(err)
	}
	return 0
}

// exitCode is 2 for a mistake in the command line, 1 for all else that goes wrong.
func exitCode(err error) int {
	if _, usage := errors.AsType[*usageError](err); usage {
		return 2
	}
	return 1
}

// run carries out one command line. It ends early, with whatever it does tidied up, when ctx does.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	root := &cobra.Command{
		Use:   "vic",
		Short: "Run containers as virtual machines, with image layers as virtual disks",
		Long: `vic runs every container as a virtual machine and keeps every image layer as a virtual disk (VMDK).

vic serve is the daemon: point a docker client at it. The other commands work on the same store
without a daemon, and safely beside a running one.

The exit status is 0 if all went well, 2 for a mistake in the command line, and 1 if something failed
or is damaged.`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(
		serveCommand(), initCommand(),
		pullCommand(), seedCommand(), pushCommand(), saveCommand(), rmCommand(),
		lsCommand(), duCommand(), diskCommand(), catCommand(), diffCommand(), exportCommand(), convertCommand(), mountCommand(),
		volumeCommand(), checkCommand(), gcCommand(), flattenCommand(),
		benchCommand(), isoCommand(), certsCommand(), versionCommand(),
	)
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
		c.RunE = func(cmd *cobra.Command, args []string) error {
			begun = true
			return do(cmd, args)
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

// build is what this program knows of its own making.
type build struct {
	version, commit, time string
}

func thisBuild() build {
	b := build{version: version}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.commit = s.Value[:min(12, len(s.Value))]
		case "vcs.time":
			b.time = s.Value
		}
	}
	return b
}
