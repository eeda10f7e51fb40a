package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"vic/containervm/appliance"
	"vic/containervm/boot"
)

// isoFlags say what is on an ISO.
type isoFlags struct {
	guest          guestFlags
	appliance, vic string
	certificates   string
	out            string
}

func isoCommand() *cobra.Command {
	var f isoFlags
	cmd := &cobra.Command{
		Use:   "iso -o FILE",
		Short: "Write a bootable ISO of the guest's kernel, initramfs and tether",
		Long: `Write an ISO 9660 image from which a BIOS boots a container VM: for hypervisors that cannot be given a
kernel directly. The same kernel, modules and tether give the same bytes.

With --appliance it is the ISO of the VM that a virtual container host runs in on vSphere, which has all that
in it and vic as well. vic-machine installs it; make appliance builds it.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return writeISO(cmd.Context(), f) },
	}
	f.guest.add(cmd)
	fl := cmd.Flags()
	fl.StringVarP(&f.out, "output", "o", "", "`file` to write")
	fl.StringVar(&f.appliance, "appliance", "", "`file` of the program that is PID 1 of an appliance: write the ISO of one")
	fl.StringVar(&f.vic, "vic", "", "`file` of vic for an appliance; default this one")
	fl.StringVar(&f.certificates, "certificates", "", "`file` of the authorities that an appliance trusts registries by, PEM; default Debian's")
	if err := cmd.MarkFlagRequired("output"); err != nil {
		panic(err) // the flag was added above
	}
	return cmd
}

func writeISO(ctx context.Context, f isoFlags) (err error) {
	if f.appliance == "" && (f.vic != "" || f.certificates != "") {
		return usageErrorf("--vic and --certificates are for --appliance")
	}
	o, err := f.guest.options()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "vic-iso-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	m, err := f.build(ctx, dir, o)
	if err != nil {
		return err
	}
	return boot.WriteISO(f.out, m, o)
}

func (f *isoFlags) build(ctx context.Context, dir string, o boot.Options) (*boot.Medium, error) {
	if f.appliance == "" {
		return boot.Build(ctx, dir, o)
	}
	a := boot.Appliance{Init: f.appliance, VIC: f.vic, Certificates: f.certificates, Release: thisBuild().version, Key: appliance.EmptyKey()}
	if a.VIC == "" {
		var err error
		if a.VIC, err = os.Executable(); err != nil {
			return nil, fmt.Errorf("find vic: %w", err)
		}
	}
	return boot.BuildAppliance(ctx, dir, o, a)
}
