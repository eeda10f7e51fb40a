package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"vic/containervm/vch"
	"vic/layerstore/vsphere"
)

func probeCommand() *cobra.Command {
	var t targetFlags
	var compute, store string
	cmd := &cobra.Command{
		Use:   "probe --target HOST --user NAME --image-store DATASTORE",
		Short: "Try what can be done with disks on a datastore",
		Long: `Try on a real datastore what cannot be known otherwise: in which formats its hosts take disks, and how. It makes small files and VMs there,
whose names begin with vic-probe-, and removes them. It prints what was tried, and how VCHs should store images there; the exit
status is 1 if nothing works.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return t.withSite(cmd, func(site *vch.Site) error {
				p := newProgress(cmd.ErrOrStderr())
				report, err := site.Probe(cmd.Context(), computeResource(compute), store, func(x vsphere.Trial) { p.line(fmt.Sprintf("%s: %s", x.Name, x.Outcome)) })
				if err != nil {
					return err
				}
				if wantsJSON(cmd) {
					err = printJSON(cmd, report)
				} else {
					err = report.Print(cmd.OutOrStdout())
				}
				if err == nil && report.Encoding == "" {
					err = errors.New("no way to store images there works")
				}
				return err
			})
		},
	}
	t.add(cmd)
	cmd.Flags().StringVarP(&compute, "compute-resource", "r", "", "inventory `path` of a cluster, a host or a resource pool; default the only one there is")
	cmd.Flags().StringVarP(&store, "image-store", "i", "", "`DATASTORE[/PATH]` to try, in a folder of its own below PATH")
	jsonFlag(cmd)
	return cmd
}
