package main

import (
	"os"

	"github.com/spf13/cobra"

	"vic/containervm/vch"
)

func upgradeCommand() *cobra.Command {
	var t targetFlags
	var f planFlags
	var c createFlags
	var name string
	var reset, rollback bool
	cmd := &cobra.Command{
		Use:   "upgrade --target HOST --user NAME --name VCH",
		Short: "Have a VCH's appliance boot the ISO of this version",
		Long: `Have the appliance of a VCH boot the ISO of this version. Containers run on as they are. If the appliance does not come up, it boots again what it
booted before. With --rollback, the VCH becomes what it was before its last configure or upgrade.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return t.withSite(cmd, func(site *vch.Site) error {
				v, err := site.Find(cmd.Context(), name)
				if err != nil {
					return err
				}
				if c.certPath == "" {
					c.certPath = v.Spec.Name
				}
				var iso *os.File // nil to go back
				if !rollback {
					if iso, err = openISO(c.iso); err != nil {
						return err
					}
					defer iso.Close() // read only
				}
				plan, err := upgradePlan(cmd, v, &c, iso, reset)
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
			})
		},
	}
	t.add(cmd)
	nameFlag(cmd, &name)
	c.addChanging(cmd)
	c.addISO(cmd)
	cmd.Flags().BoolVar(&rollback, "rollback", false, "make the VCH what it was before its last configure or upgrade")
	resetFlag(cmd, &reset)
	f.add(cmd, false)
	jsonFlag(cmd)
	return cmd
}

// upgradePlan plans an upgrade, or without an ISO to go back.
func upgradePlan(cmd *cobra.Command, v *vch.VCH, c *createFlags, iso *os.File, reset bool) (*vch.Plan, error) {
	var client vch.TLS
	var err error
	if client.ClientCert, client.ClientKey, err = clientPair(c.certPath); err != nil {
		return nil, err
	}
	if iso == nil {
		return v.Rollback(cmd.Context(), client, c.timeout, reset)
	}
	fi, err := iso.Stat()
	if err != nil {
		return nil, err
	}
	return v.Upgrade(cmd.Context(), vch.UpgradeOptions{ISO: vch.ISO{ReaderAt: iso, Size: fi.Size()}, Version: version, TLS: client, Timeout: c.timeout, Reset: reset})
}
