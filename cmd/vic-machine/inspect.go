package main

import (
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"vic/containervm/vch"
)

// An inspected is a VCH as inspect tells of it.
type inspected struct {
	listed
	UUID      string              `json:"uuid"`
	Installer string              `json:"installer"` // version of this program
	Appliance string              `json:"appliance"` // version of the ISO; "" if it does not say
	Addresses map[string][]string `json:"addresses"` // by role
	Env       []string            `json:"env"`
	VMGroup   *vch.GroupState     `json:"vmGroup,omitempty"`
	Spec      vch.Spec            `json:"spec"`
}

func inspectCommand() *cobra.Command {
	var t targetFlags
	var name, certPath string
	cmd := &cobra.Command{
		Use:   "inspect --target HOST --user NAME --name VCH",
		Short: "Tell what is known of a VCH, and how docker reaches it",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return t.withSite(cmd, func(site *vch.Site) error {
				v, err := site.Find(cmd.Context(), name)
				if err != nil {
					return err
				}
				if certPath == "" {
					certPath = v.Spec.Name
				}
				i := inspected{listed{v.VM, v.Path, v.Spec.Name, v.Version, string(v.Power), state(cmd, v)}, v.ID, version, "", v.Addresses(), environmentOf(v, certPath), nil, v.Spec}
				if i.VMGroup, err = v.Group(cmd.Context()); err != nil {
					return err
				}
				if v.Status != nil {
					i.Appliance = v.Status.Version
				}
				if wantsJSON(cmd) {
					return printJSON(cmd, i)
				}
				return printInspected(cmd, v, i)
			})
		},
	}
	t.add(cmd)
	nameFlag(cmd, &name)
	cmd.Flags().StringVar(&certPath, "tls-cert-path", "", "`folder` of the certificates that were made; default the VCH's name")
	jsonFlag(cmd)
	cmd.AddCommand(inspectConfigCommand())
	return cmd
}

func printInspected(cmd *cobra.Command, v *vch.VCH, i inspected) error {
	w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "name\t%s\nID\t%s\npath\t%s\nUUID\t%s\npower\t%s\nstate\t%s\ninstalled by\t%s\nthis program\t%s\n", i.Name, i.ID, i.Path, i.UUID, i.Power, i.State, i.Version, i.Installer)
	if i.Appliance != "" {
		fmt.Fprintf(w, "appliance\t%s\n", i.Appliance)
	}
	for _, role := range []string{"client", "public", "management"} {
		if a := i.Addresses[role]; len(a) > 0 {
			fmt.Fprintf(w, "%s\t%s\n", role, strings.Join(a, ", "))
		}
	}
	if i.VMGroup != nil {
		fmt.Fprintf(w, "VM group\t%s\n", groupText(i.VMGroup))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if len(i.Env) == 0 {
		_, err := fmt.Fprintln(cmd.OutOrStdout(), "\nIt is not known where its API is.")
		return err
	}
	_, err := fmt.Fprintf(cmd.OutOrStdout(), "\n%s\n\n%s\n", strings.Join(i.Env, "\n"), dockerCommand(v, i.Env))
	return err
}

// groupText tells of a VM group.
func groupText(g *vch.GroupState) string {
	if !g.There {
		return g.Name + " is not there: configure --affinity-vm-group makes it again"
	}
	text := fmt.Sprintf("%s, VMs: %d", g.Name, g.Members)
	if len(g.Rules) > 0 {
		text += ", rules: " + strings.Join(g.Rules, ", ")
	}
	return text
}

func inspectConfigCommand() *cobra.Command {
	var t targetFlags
	var name string
	cmd := &cobra.Command{
		Use:   "config --target HOST --user NAME --name VCH",
		Short: "Print the command that makes the same VCH",
		Long: `Print the command line of vic-machine create that makes a VCH as this one, for a shell. Passwords are not in it, and certificates
are made anew unless they were brought.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return t.withSite(cmd, func(site *vch.Site) error {
				v, err := site.Find(cmd.Context(), name)
				if err != nil {
					return err
				}
				args := []string{"create", "--target", t.target + v.Datacenter, "--user", v.User}
				if t.thumbprint != "" {
					args = append(args, "--thumbprint", t.thumbprint)
				} else if t.caFile != "" {
					args = append(args, "--target-ca", t.caFile)
				}
				args = append(args, commandLine(v.Spec)...)
				if wantsJSON(cmd) {
					return printJSON(cmd, args)
				}
				_, err = fmt.Fprintln(cmd.OutOrStdout(), "vic-machine "+strings.Join(quoteAll(args), " "))
				return err
			})
		},
	}
	t.add(cmd)
	nameFlag(cmd, &name)
	jsonFlag(cmd)
	return cmd
}
