package main

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"vic/layerstore"
)

// volumeInfo is what vic volume tells of a volume as JSON.
type volumeInfo struct {
	*layerstore.Volume
	Stored int64    `json:"stored"` // bytes on the datastore
	Disk   string   `json:"disk"`   // path of the descriptor
	Users  []string `json:"users"`  // IDs of the containers that mount it
}

func volumeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "volume",
		Short: "List, make, enlarge and remove volumes",
		Long: `List, make, look at, enlarge and remove the volumes of a store: disks with a file system that containers
mount and that outlive them. A vic serve on the same store may be running.`,
	}
	cmd.AddCommand(volumeLsCommand(), volumeCreateCommand(), volumeInspectCommand(), volumeRmCommand(), volumeGrowCommand())
	return cmd
}

func volumeInfoOf(s *layerstore.Store, v *layerstore.Volume) (volumeInfo, error) {
	i := volumeInfo{Volume: v, Users: append([]string{}, v.Users...), Disk: s.VolumePath(v)}
	var err error
	i.Stored, err = s.VolumeStored(v.Name)
	return i, err
}

func volumeLsCommand() *cobra.Command {
	var dir string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "ls --store DIR",
		Short: "List volumes",
		Long: `List the volumes of a store: how large each is, what it takes on the datastore, and how many containers
mount it, whether they run or not. Volumes that are damaged are told of on standard error, and the exit status is 1
then.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return withStore(cmd, dir, func(s *layerstore.Store) error {
				all, damaged, err := s.Volumes()
				if err != nil {
					return err
				}
				infos := []volumeInfo{}
				for _, v := range all {
					i, err := volumeInfoOf(s, v)
					if errors.Is(err, layerstore.ErrNotFound) {
						continue // removed meanwhile
					}
					if err != nil {
						damaged = append(damaged, err)
						continue
					}
					infos = append(infos, i)
				}
				if asJSON {
					err = printJSON(cmd, infos)
				} else {
					err = printVolumes(cmd, infos)
				}
				return errors.Join(append(damaged, err)...)
			})
		},
	}
	storeFlag(cmd, &dir)
	jsonFlag(cmd, &asJSON)
	return cmd
}

func printVolumes(cmd *cobra.Command, infos []volumeInfo) error {
	w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tCAPACITY\tSTORED\tCREATED\tCONTAINERS")
	for _, i := range infos {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\n", i.Name, units.BytesSize(float64(i.Capacity)), units.BytesSize(float64(i.Stored)), i.Created.Format(time.DateTime), len(i.Users))
	}
	return w.Flush()
}

func volumeCreateCommand() *cobra.Command {
	var dir, size string
	var labels []string
	cmd := &cobra.Command{
		Use:   "create --store DIR NAME",
		Short: "Make a volume",
		Long: `Make an empty volume, or do nothing if there is one of that name and size. Only what is written to it takes
room on the datastore.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o := layerstore.VolumeOptions{Name: args[0]}
			if size != "" {
				o.Options = map[string]string{"size": size}
			}
			for _, l := range labels {
				key, value, _ := strings.Cut(l, "=")
				if key == "" {
					return usageErrorf("--label %q has no name", l)
				}
				if o.Labels == nil {
					o.Labels = map[string]string{}
				}
				o.Labels[key] = value
			}
			return withStore(cmd, dir, func(s *layerstore.Store) error {
				v, _, err := s.CreateVolume(o)
				if err != nil {
					return err
				}
				_, err = fmt.Fprintln(cmd.OutOrStdout(), v.Name)
				return err
			})
		},
	}
	storeFlag(cmd, &dir)
	cmd.Flags().StringVar(&size, "size", "", "`size` of the volume, such as 10g; default 64 GiB")
	cmd.Flags().StringArrayVar(&labels, "label", nil, "`NAME=VALUE` of a label (may be given several times)")
	return cmd
}

func volumeInspectCommand() *cobra.Command {
	var dir string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "inspect --store DIR NAME",
		Short: "Tell what is known of a volume",
		Long: `Tell what is known of a volume: its size, labels and options, which containers mount it, and where its disk
is. QEMU's tools open the disk while no container runs with it: qemu-img convert, qemu-nbd.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return withStore(cmd, dir, func(s *layerstore.Store) error {
				v, err := s.Volume(args[0])
				if err != nil {
					return err
				}
				i, err := volumeInfoOf(s, v)
				if err != nil {
					return err
				}
				if asJSON {
					return printJSON(cmd, i)
				}
				w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
				fmt.Fprintf(w, "name\t%s\ncreated\t%s\ncapacity\t%s\nstored\t%s\ndisk\t%s\n",
					i.Name, i.Created.Format(time.RFC3339), units.BytesSize(float64(i.Capacity)), units.BytesSize(float64(i.Stored)), i.Disk)
				for _, m := range []struct {
					what string
					of   map[string]string
				}{{"label", i.Labels}, {"option", i.Options}} {
					for _, k := range slices.Sorted(maps.Keys(m.of)) {
						fmt.Fprintf(w, "%s\t%s\n", m.what, shown(cmd.OutOrStdout(), k+"="+m.of[k]))
					}
				}
				for _, id := range i.Users {
					fmt.Fprintf(w, "container\t%s\n", id)
				}
				return w.Flush()
			})
		},
	}
	storeFlag(cmd, &dir)
	jsonFlag(cmd, &asJSON)
	return cmd
}

func volumeRmCommand() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "rm --store DIR NAME...",
		Short: "Remove volumes with all that is in them",
		Long: `Remove volumes with all that is in them, also those that are damaged. A volume that a container mounts,
whether it runs or not, stays.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return withStore(cmd, dir, func(s *layerstore.Store) error {
				var failed error
				for _, name := range args {
					err := s.RemoveVolume(name)
					if err == nil {
						_, err = fmt.Fprintln(cmd.OutOrStdout(), "removed", name)
					}
					failed = errors.Join(failed, err)
				}
				return failed
			})
		},
	}
	storeFlag(cmd, &dir)
	return cmd
}

func volumeGrowCommand() *cobra.Command {
	var f volumeStoreFlags
	cmd := &cobra.Command{
		Use:   "grow (--store DIR | --volume-store DATASTORE/FOLDER) NAME SIZE",
		Short: "Enlarge a volume",
		Long: `Enlarge a volume's disk to a size such as 100g. No container that mounts it may be running, but for one on
vSphere that writes it. The file system takes the new room when the next container that mounts the volume writable
starts.`,
		Example: `  vic volume grow --store /var/lib/vic data 200g
  vic volume grow --volume-store ssd1/volumes --target vcenter.example.org --user vic@vsphere.local data 200g`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			size, err := units.RAMInBytes(args[1])
			if err != nil {
				return usageErrorf("SIZE %s: %w", args[1], err)
			}
			return f.with(cmd, func(s *layerstore.Store) error {
				v, err := s.GrowVolume(args[0], size)
				if err != nil {
					return err
				}
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s has %s\n", v.Name, units.BytesSize(float64(v.Capacity)))
				return err
			})
		},
	}
	f.add(cmd)
	return cmd
}
