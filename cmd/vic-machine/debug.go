package main

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"vic/containervm/vch"
)

func debugCommand() *cobra.Command {
	var t targetFlags
	var name, out string
	cmd := &cobra.Command{
		Use:   "debug --target HOST --user NAME --name VCH",
		Short: "Collect what there is to see of a VCH that does not work",
		Long: `Collect into a .tar.gz what there is to see of a VCH, from vSphere alone, so also if the appliance does not come up: its console, which has
the log of vic serve, and what the host logs of it; its configuration without what is secret; its VMs, hosts, events and tasks; what is in its
stores; and the consoles of its containers' VMs, but not what containers have written. There is no shell in the appliance to log in to. For a
log of every request, use vic-machine configure --debug.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return t.withSite(cmd, func(site *vch.Site) error { return debug(cmd, site, name, out) })
		},
	}
	t.add(cmd)
	nameFlag(cmd, &name)
	cmd.Flags().StringVarP(&out, "output", "o", "", "`file` that is made; default NAME-debug-TIME.tar.gz")
	jsonFlag(cmd)
	return cmd
}

// debug makes the file. One that is not whole does not stay.
func debug(cmd *cobra.Command, site *vch.Site, name, out string) (err error) {
	v, err := site.Find(cmd.Context(), name)
	if err != nil {
		return err
	}
	now := time.Now()
	folder := v.Spec.Name + "-debug-" + now.UTC().Format("20060102T150405Z")
	if out == "" {
		out = folder + ".tar.gz"
	}
	f, err := os.OpenFile(out, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err = errors.Join(err, f.Close()); err != nil {
			err = errors.Join(err, os.Remove(out))
		}
	}()
	z := gzip.NewWriter(f)
	w := tar.NewWriter(z)
	pieces := []string{}
	missing, err := v.Debug(cmd.Context(), func(name string, content []byte) error {
		h := &tar.Header{Name: folder + "/" + name, Mode: 0o600, Size: int64(len(content)), ModTime: now, Format: tar.FormatPAX}
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		pieces = append(pieces, name)
		_, err := w.Write(content)
		return err
	})
	if err = errors.Join(err, w.Close(), z.Close()); err != nil {
		return fmt.Errorf("write %s: %w", out, err)
	}
	if wantsJSON(cmd) {
		return printJSON(cmd, map[string]any{"file": out, "pieces": pieces, "missing": append([]string{}, missing...)})
	}
	for _, m := range missing {
		fmt.Fprintln(cmd.ErrOrStderr(), "warning: not collected:", m)
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s has %d files about VCH %s\n", out, len(pieces), v.Spec.Name)
	return err
}
