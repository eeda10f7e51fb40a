package main

import (
	"github.com/spf13/cobra"

	"vic/containervm/vch"
)

func updateCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "update", Short: "Change settings of ESXi hosts that VCHs need"}
	cmd.AddCommand(updateFirewallCommand())
	return cmd
}

func updateFirewallCommand() *cobra.Command {
	var t targetFlags
	var f planFlags
	var compute string
	var allow, deny bool
	cmd := &cobra.Command{
		Use:   "firewall --target HOST --user NAME --allow|--deny",
		Short: "Let VMs' serial ports through the firewalls of ESXi hosts, or not",
		Long: `Enable the ruleset ` + vch.Ruleset + ` in the firewall of each host of a compute resource, by which the serial ports of container VMs reach their
VCH, or disable it.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if allow == deny {
				return usageErrorf("give one of --allow and --deny")
			}
			return t.withSite(cmd, func(site *vch.Site) error {
				plan, err := site.Firewall(cmd.Context(), computeResource(compute), allow)
				if err != nil {
					return err
				}
				done, err := f.run(cmd, plan)
				if err == nil && done && wantsJSON(cmd) {
					err = printJSON(cmd, map[string][]string{"changed": append([]string{}, plan.Steps()...)})
				}
				return err
			})
		},
	}
	t.add(cmd)
	cmd.Flags().StringVarP(&compute, "compute-resource", "r", "", "inventory `path` of a cluster, a host or a resource pool; default the only one there is")
	cmd.Flags().BoolVar(&allow, "allow", false, "enable the ruleset")
	cmd.Flags().BoolVar(&deny, "deny", false, "disable the ruleset")
	f.add(cmd, false)
	jsonFlag(cmd)
	return cmd
}
