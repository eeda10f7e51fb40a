package main

import (
	"errors"
	"fmt"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"vic/containervm/vch"
)

// A listed is a VCH as ls tells of it.
type listed struct {
	ID      string `json:"id"`
	Path    string `json:"path"`
	Name    string `json:"name"`
	Version string `json:"version"`
	Power   string `json:"power"`
	State   string `json:"state"`
}

func lsCommand() *cobra.Command {
	var t targetFlags
	var compute string
	cmd := &cobra.Command{
		Use:   "ls --target HOST --user NAME",
		Short: "List VCHs",
		Long: `List the VCHs of a datacenter: the ID and path of the appliance, the version of the vic-machine that installed it last, and
its state: what the appliance says of itself, or what is being done to it.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return t.withSite(cmd, func(site *vch.Site) error {
				all, unreadable := site.List(cmd.Context(), compute)
				list := []listed{}
				for _, v := range all {
					list = append(list, listed{v.VM, v.Path, v.Spec.Name, v.Version, string(v.Power), state(cmd, v)})
				}
				if wantsJSON(cmd) {
					return errors.Join(unreadable, printJSON(cmd, list))
				}
				w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
				fmt.Fprintln(w, "ID\tPATH\tNAME\tVERSION\tPOWER\tSTATE")
				for _, l := range list {
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", l.ID, l.Path, l.Name, l.Version, l.Power, l.State)
				}
				return errors.Join(unreadable, w.Flush())
			})
		},
	}
	t.add(cmd)
	cmd.Flags().StringVarP(&compute, "compute-resource", "r", "", "inventory `path` of a cluster, a host or a resource pool; default the datacenter")
	jsonFlag(cmd)
	return cmd
}

// state is a word for how a VCH is.
func state(cmd *cobra.Command, v *vch.VCH) string {
	doing, err := v.Doing(cmd.Context())
	switch {
	case err != nil:
		return "unknown: " + err.Error()
	case doing != "":
		return doing + " in progress"
	case v.Status != nil && v.Status.Error != "":
		return string(v.Status.State) + ": " + v.Status.Error
	case v.Status != nil:
		return string(v.Status.State)
	}
	return "installed"
}
