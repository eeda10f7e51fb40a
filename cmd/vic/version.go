package main

import (
	"fmt"
	"runtime"

	"github.com/spf13/cobra"

	"vic/api"
)

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version of this program and of the Docker API it speaks",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			b := thisBuild()
			out := cmd.OutOrStdout()
			fmt.Fprintf(out, "vic         %s\n", b.version)
			if b.commit != "" {
				fmt.Fprintf(out, "commit      %s (%s)\n", b.commit, b.time)
			}
			fmt.Fprintf(out, "Docker API  %s to %s\n", api.MinVersion, api.MaxVersion)
			_, err := fmt.Fprintf(out, "Go          %s %s/%s\n", runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return err
		},
	}
}
