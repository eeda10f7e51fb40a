package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

func versionCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the version of vic-machine",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if wantsJSON(cmd) {
				return printJSON(cmd, map[string]string{"version": version})
			}
			_, err := fmt.Fprintln(cmd.OutOrStdout(), "vic-machine", version)
			return err
		},
	}
	jsonFlag(cmd)
	return cmd
}
