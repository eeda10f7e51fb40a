package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"vic/containervm"
	"vic/containervm/boot"
)

// guestFlags say what container VMs boot.
type guestFlags struct {
	kernel, modules, tether string
}

func (g *guestFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&g.kernel, "kernel", "", "`file` of the kernel for container VMs; default kernel/vmlinuz beside vic, which make kernel builds, or the newest in /boot")
	cmd.Flags().StringVar(&g.modules, "modules", "", "`folder` of the kernel's modules; default the one that kernel/vmlinuz is in, or /lib/modules/VERSION")
	cmd.Flags().StringVar(&g.tether, "tether", "", "`file` of the program that is PID 1 of container VMs; default tether beside vic")
}

// options finds what no flag names beside the program.
func (g *guestFlags) options() (boot.Options, error) {
	exe, err := os.Executable()
	if err != nil {
		return boot.Options{}, fmt.Errorf("find what is beside vic: %w", err)
	}
	return g.beside(filepath.Dir(exe))
}

// beside finds what no flag names in a folder.
func (g *guestFlags) beside(folder string) (boot.Options, error) {
	o := boot.Options{Kernel: g.kernel, Modules: g.modules, Tether: g.tether}
	if o.Tether == "" {
		o.Tether = filepath.Join(folder, "tether")
	}
	if o.Kernel == "" && o.Modules == "" {
		own := filepath.Join(folder, "kernel")
		if _, err := os.Stat(filepath.Join(own, "vmlinuz")); err == nil {
			o.Kernel, o.Modules = filepath.Join(own, "vmlinuz"), own
		}
	}
	if _, err := os.Stat(o.Tether); errors.Is(err, fs.ErrNotExist) {
		return o, fmt.Errorf("there is no tether at %s: build it (make) or name it with --tether", o.Tether)
	}
	return o, nil
}

// A medium is a containervm.Booter of files that have been built.
type medium struct {
	*boot.Medium
	iso string // "" if there is none
}

func (m medium) Boot(context.Context) (containervm.Boot, error) {
	return containervm.Boot{Kernel: m.Kernel, Initrd: m.Initrd, Cmdline: m.Cmdline, ISO: m.iso}, nil
}
