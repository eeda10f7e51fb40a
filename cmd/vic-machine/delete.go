package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"vic/containervm/vch"
)

func deleteCommand() *cobra.Command {
	var t targetFlags
	var f planFlags
	var name string
	var o vch.DeleteOptions
	cmd := &cobra.Command{
		Use:   "delete --target HOST --user NAME --name VCH",
		Short: "Remove a VCH with its containers",
		Long: `Remove a VCH: its container VMs, its appliance, its resource pool and its folder. VMs of others that are in these stay, and
so do the pool and the folder then. Images' disks that another VCH needs stay, and volumes unless --volumes is given. If it
breaks off, the same command goes on.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return t.withSite(cmd, func(site *vch.Site) error {
				v, err := site.Find(cmd.Context(), name)
				if err != nil {
					return err
				}
				plan, err := v.Delete(cmd.Context(), o)
				if err != nil {
					return err
				}
				done, err := f.run(cmd, plan)
				if err != nil || !done {
					return err
				}
				if wantsJSON(cmd) {
					return printJSON(cmd, map[string]string{"deleted": v.Spec.Name})
				}
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "VCH %s is deleted\n", v.Spec.Name)
				return err
			})
		},
	}
	t.add(cmd)
	nameFlag(cmd, &name)
	cmd.Flags().BoolVarP(&o.Force, "force", "f", false, "also if containers run, or something else is being done to the VCH")
	cmd.Flags().BoolVar(&o.Volumes, "volumes", false, "also remove its volume stores, with all that is in them")
	f.add(cmd, false)
	jsonFlag(cmd)
	return cmd
}
