package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/distribution/reference"
	"github.com/docker/go-units"
	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"vic/layerstore"
	datastore "vic/layerstore/vsphere"
)

// diskText is how disks are shown to people: as IDs are, and what tells those of one layer apart.
func diskText(name string) string {
	chain, id, ok := strings.Cut(name, "-")
	if !ok || len(chain) < 12 {
		return name
	}
	return chain[:12] + "-" + id
}

func listRemote(cmd *cobra.Command, s *datastore.Store, asJSON bool) error {
	u, err := s.Usage(cmd.Context())
	if err != nil {
		return err
	}
	if asJSON {
		return printJSON(cmd, u)
	}
	w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "IMAGE\tID\tVCH\tDISKS\tSIZE")
	for _, img := range u.Images {
		for _, name := range orNone(img.Names) {
			id := "<damaged>"
			if img.ID.Validate() == nil {
				id = short(img.ID)
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\n", name, id, img.VCH, len(img.Disks), units.HumanSize(float64(img.Size)))
		}
	}
	fmt.Fprintln(w, "\nDISK\tPARENT\tSIZE\tIMAGES")
	for _, d := range u.Disks {
		parent := "-"
		if d.Parent != "" {
			parent = diskText(d.Parent)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\n", diskText(d.Name), parent, units.HumanSize(float64(d.Size)), d.Images)
	}
	return w.Flush()
}

// remoteUsage is what vic du tells of a store on a datastore, in bytes.
type remoteUsage struct {
	Images []remoteImageUsage `json:"images"`
	Disks  int                `json:"disks"` // their number
	Size   int64              `json:"size"`  // of all disks
	Unused int64              `json:"unused"`
}

type remoteImageUsage struct {
	imageUsage
	VCHs []string `json:"vchs"` // that have it
}

func duRemote(cmd *cobra.Command, s *datastore.Store, asJSON bool) error {
	all, err := s.Usage(cmd.Context())
	if err != nil {
		return err
	}
	u := remoteUsageOf(all)
	if asJSON {
		return printJSON(cmd, u)
	}
	size := func(n int64) string { return units.HumanSize(float64(n)) }
	w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "IMAGE\tID\tVCHS\tSIZE\tSHARED\tOWN")
	for _, i := range u.Images {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", orNone(i.Names)[0], short(i.ID), strings.Join(i.VCHs, ","), size(i.Size), size(i.Shared), size(i.Own))
	}
	fmt.Fprintf(w, "\n%d disks\t\t\t%s\t\t%s unused\n", u.Disks, size(u.Size), size(u.Unused))
	return w.Flush()
}

// remoteUsageOf makes one of the images that several VCHs have.
func remoteUsageOf(all *datastore.Usage) remoteUsage {
	u := remoteUsage{Images: []remoteImageUsage{}, Disks: len(all.Disks)}
	disks := map[string]datastore.DiskUsage{}
	for _, d := range all.Disks {
		disks[d.Name] = d
		if u.Size += d.Size; d.Images == 0 {
			u.Unused += d.Size
		}
	}
	counted := map[digest.Digest]map[string]bool{} // disks of each image
	for _, x := range all.Images {
		if x.ID.Validate() != nil {
			continue // vic check tells of it
		}
		i := slices.IndexFunc(u.Images, func(y remoteImageUsage) bool { return y.ID == x.ID })
		if i < 0 {
			i = len(u.Images)
			u.Images = append(u.Images, remoteImageUsage{imageUsage: imageUsage{ID: x.ID, Names: []string{}}})
			counted[x.ID] = map[string]bool{}
		}
		y := &u.Images[i]
		y.VCHs = append(y.VCHs, x.VCH)
		for _, name := range x.Names {
			if !slices.Contains(y.Names, name) {
				y.Names = append(y.Names, name)
			}
		}
		for _, name := range x.Disks {
			if counted[x.ID][name] {
				continue
			}
			counted[x.ID][name] = true
			d := disks[name]
			if y.Size += d.Size; d.Images > 1 {
				y.Shared += d.Size
			} else {
				y.Own += d.Size
			}
		}
	}
	return u
}

func gcRemote(cmd *cobra.Command, s *datastore.Store, asJSON bool) error {
	swept, err := s.Sweep(cmd.Context())
	slices.Sort(swept.Disks)
	if asJSON {
		out := sweep{Layers: []digest.Digest{}, Disks: append([]string{}, swept.Disks...), Bytes: swept.Bytes}
		return errors.Join(err, printJSON(cmd, out))
	}
	for _, name := range swept.Disks {
		fmt.Fprintln(cmd.OutOrStdout(), "deleted ", name)
	}
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "%d disks removed, %s freed\n", len(swept.Disks), units.HumanSize(float64(swept.Bytes)))
	return err
}

// checkRemote checks a store on a datastore, and compares it with one of this machine if one is named.
func checkRemote(cmd *cobra.Command, s *datastore.Store, dir string, f checkFlags) error {
	if f.repair {
		o := layerstore.Options{Capacity: s.Capacity(), Log: logger(cmd, slog.LevelWarn)}
		return withStoreOrNew(dir, "vic-repair-", o, func(local *layerstore.Store) error { return repairDisks(cmd, s, local, dir != "", f) })
	}
	if dir != "" {
		return withStore(cmd, dir, func(local *layerstore.Store) error { return checkDisks(cmd, s, local, f) })
	}
	return checkDisks(cmd, s, nil, f)
}

func checkDisks(cmd *cobra.Command, s *datastore.Store, local *layerstore.Store, f checkFlags) error {
	m := newMeter(cmd.ErrOrStderr(), "check")
	defer m.clear()
	result := checked{Findings: []layerstore.Finding{}, Repaired: []layerstore.Repaired{}}
	o := datastore.CheckOptions{Deep: f.deep, Local: local, Progress: m.set}
	done, err := s.Check(cmd.Context(), o, func(x layerstore.Finding) {
		result.Findings = append(result.Findings, x)
		if !f.asJSON {
			m.clear()
			fmt.Fprint(cmd.OutOrStdout(), findingText(x))
		}
	})
	if err != nil {
		return err
	}
	m.clear()
	result.Left = result.Findings
	if !f.asJSON {
		fmt.Fprintln(cmd.OutOrStdout(), checkedText(done, f.deep, local != nil))
	}
	return result.end(cmd, f.asJSON)
}

// repairDisks mends a store on a datastore from one of this machine, which gets the images that it lacks. It is compared with that if it was named.
func repairDisks(cmd *cobra.Command, s *datastore.Store, local *layerstore.Store, compare bool, f checkFlags) error {
	m := newMeter(cmd.ErrOrStderr(), "check")
	bar := newProgress(cmd.ErrOrStderr(), "repair", "fetched")
	out := cmd.OutOrStdout()
	clear := func() { m.clear(); bar.clear() }
	defer clear()
	result := checked{Findings: []layerstore.Finding{}, Repaired: []layerstore.Repaired{}, Left: []layerstore.Finding{}}
	o := datastore.RepairOptions{CheckOptions: datastore.CheckOptions{Deep: f.deep, Progress: m.set}, From: local}
	if compare {
		o.Local = local
	}
	find := fetcher(newRegistry(f.insecure))
	o.Fetch = func(ctx context.Context, name string) error {
		ref, err := reference.ParseDockerRef(name)
		if err != nil {
			return err
		}
		src, err := find(ctx, ref)
		if err != nil {
			return advise(err, reference.Domain(ref))
		}
		_, err = local.Pull(ctx, src, ref, layerstore.PullOptions{Progress: func(e layerstore.ProgressEvent) {
			if e.Layer != "" {
				bar.layer(e)
			}
		}})
		return err
	}
	tell := func(x layerstore.Finding, still string) {
		if !f.asJSON {
			clear()
			fmt.Fprint(out, still, findingText(x))
		}
	}
	left, done, err := s.Repair(cmd.Context(), o, func(x layerstore.Finding) {
		result.Findings = append(result.Findings, x)
		tell(x, "")
	}, func(r layerstore.Repaired) {
		result.Repaired = append(result.Repaired, r)
		if !f.asJSON {
			clear()
			fmt.Fprintln(out, "repair:", r.Done)
		}
	})
	if err != nil {
		return err
	}
	for _, x := range left {
		tell(x, "still ")
	}
	result.Left = append(result.Left, left...)
	if clear(); !f.asJSON {
		fmt.Fprintln(out, checkedText(done, f.deep, compare))
	}
	return result.end(cmd, f.asJSON)
}

// checkedText says how much a check has looked at.
func checkedText(c *datastore.Checked, deep, compared bool) string {
	text := fmt.Sprintf("%d disks of %d images", c.Disks, c.Images)
	if deep {
		text += fmt.Sprintf(", the checksums of %d", c.Summed)
	}
	if compared {
		text += fmt.Sprintf(", the content of %d compared with layers of the local store, which lacks those of %d", c.Compared, c.Unknown)
	}
	if c.Foreign > 0 {
		text += fmt.Sprintf("; %d only ESXi can read", c.Foreign)
	}
	return text
}

// rmRemote removes images that were brought for VCHs to come.
func rmRemote(cmd *cobra.Command, s *datastore.Store, refs []string) error {
	var failed error
	for _, ref := range refs {
		failed = errors.Join(failed, rmSeed(cmd, s, ref))
	}
	swept, err := s.Sweep(cmd.Context())
	for _, name := range swept.Disks {
		fmt.Fprintln(cmd.OutOrStdout(), "deleted ", name)
	}
	return errors.Join(failed, err)
}

// rmSeed removes a name of an image, and with the last the image.
func rmSeed(cmd *cobra.Command, s *datastore.Store, ref string) error {
	ctx, out := cmd.Context(), cmd.OutOrStdout()
	images, err := s.Images(ctx)
	if err != nil {
		return err
	}
	seeds := slices.DeleteFunc(slices.Clone(images), func(img *datastore.Image) bool { return !slices.Contains(img.VCHs, datastore.Seeds) })
	img, err := datastore.FindImage(seeds, ref)
	if errors.Is(err, layerstore.ErrNotFound) {
		if other, otherErr := datastore.FindImage(images, ref); otherErr == nil {
			return fmt.Errorf("image %q is of VCH %s: remove it there, with docker rmi", ref, strings.Join(other.VCHs, ", "))
		}
	}
	if err != nil {
		return err
	}
	named, err := reference.ParseDockerRef(ref)
	if err == nil && slices.Contains(img.Names, named.String()) {
		left, err := s.RemoveName(ctx, img.ID, named.String())
		if err != nil {
			return err
		}
		fmt.Fprintln(out, "untagged", reference.FamiliarString(named))
		if len(left) > 0 {
			return nil
		}
	}
	if err := s.Forget(ctx, img.ID); err != nil {
		return err
	}
	_, err = fmt.Fprintln(out, "deleted ", img.ID)
	return err
}
