package main

import (
	"fmt"
	"text/tabwriter"

	"github.com/docker/go-units"
	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"vic/layerstore"
	datastore "vic/layerstore/vsphere"
)

// usage is what the layers of a store take on the datastore, in bytes.
type usage struct {
	Images []imageUsage `json:"images"`
	Layers int          `json:"layers"` // their number
	Size   int64        `json:"size"`   // of all layers
	Unused int64        `json:"unused"` // of layers that no image has
}

type imageUsage struct {
	ID     digest.Digest `json:"id"`
	Names  []string      `json:"names"`
	Size   int64         `json:"size"`
	Shared int64         `json:"shared"` // with other images
	Own    int64         `json:"own"`    // what removing the image would free, if no container needs it
}

func duCommand() *cobra.Command {
	var store storeFlags
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "du {--store DIR | --image-store DATASTORE}",
		Short: "Tell what images take, shared and alone",
		Long: `Tell how many bytes the layers of each image take on the datastore, and how many of them it shares with
other images. OWN is what removing the image frees, if no container needs it. Unused layers are those
of no image: vic gc removes them, unless a container or a pull in flight needs them.

On a datastore it is the disks that are counted, of the images of all VCHs.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return store.with(cmd, only{}, func(s *layerstore.Store) error {
				u, err := usageOf(s)
				if err != nil {
					return err
				}
				if asJSON {
					return printJSON(cmd, u)
				}
				return u.print(cmd)
			}, func(s *datastore.Store) error { return duRemote(cmd, s, asJSON) })
		},
	}
	store.add(cmd)
	jsonFlag(cmd, &asJSON)
	return cmd
}

func usageOf(s *layerstore.Store) (*usage, error) {
	images, err := s.Images()
	if err != nil {
		return nil, err
	}
	layers, err := s.Layers()
	if err != nil {
		return nil, err
	}
	u := &usage{Images: []imageUsage{}, Layers: len(layers)}
	index := make(map[digest.Digest]int)
	for _, img := range images {
		index[img.ID] = len(u.Images)
		u.Images = append(u.Images, imageUsage{ID: img.ID, Names: namesOf(img)})
	}
	for _, l := range layers {
		u.Size += l.Stored
		if len(l.Images) == 0 {
			u.Unused += l.Stored
		}
		for _, id := range l.Images {
			i, ok := index[id]
			if !ok {
				continue // an image that came meanwhile
			}
			iu := &u.Images[i]
			iu.Size += l.Stored
			if len(l.Images) > 1 {
				iu.Shared += l.Stored
			} else {
				iu.Own += l.Stored
			}
		}
	}
	return u, nil
}

func (u *usage) print(cmd *cobra.Command) error {
	size := func(n int64) string { return units.HumanSize(float64(n)) }
	w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "IMAGE\tID\tSIZE\tSHARED\tOWN")
	for _, i := range u.Images {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", orNone(i.Names)[0], short(i.ID), size(i.Size), size(i.Shared), size(i.Own))
	}
	fmt.Fprintf(w, "\n%d layers\t\t%s\t\t%s unused\n", u.Layers, size(u.Size), size(u.Unused))
	return w.Flush()
}

// namesOf are an image's tags, or its names by digest if it has none.
func namesOf(img *layerstore.Image) []string {
	if names := img.RepoTags(); len(names) > 0 {
		return names
	}
	return append([]string{}, img.RepoDigests()...)
}

// orNone is what is shown of names.
func orNone(names []string) []string {
	if len(names) == 0 {
		return []string{"<none>"}
	}
	return names
}
