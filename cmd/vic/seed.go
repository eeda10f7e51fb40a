package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"vic/fetch"
	"vic/fetch/archive"
	"vic/layerstore"
	datastore "vic/layerstore/vsphere"
)

func seedCommand() *cobra.Command {
	var store storeFlags
	var seed seedFlags
	var list, platform, name string
	var insecure []string
	sd := &seeding{}
	cmd := &cobra.Command{
		Use:   "seed {--store DIR | --image-store DATASTORE} [-f FILE] [SOURCE...]",
		Short: "Bring many images into a store",
		Long: `Bring images into a store before they are needed, several at a time. A vic serve on the same store may
be running, and has each image as soon as it is complete.

A SOURCE is one of these:

  REF, docker://REF         an image in a registry
  /PATH, ./PATH, ../PATH    an archive, or a folder with an OCI image layout
  FILE.tar (.gz, .zst)      an archive; .tgz too
  oci:FOLDER[:IMAGE]        an OCI image layout
  oci-archive:FILE[:IMAGE], docker-archive:FILE[:IMAGE]
                            an archive
  -                         an archive on standard input

An archive is a tar of an OCI image layout or what docker save writes, plain or compressed with gzip or
zstd. IMAGE chooses one of its images by tag or name; without it, all come. Images get the names that the
archive gives them. One of which the archive knows but a tag, or nothing, has no name then, unless NAME
gives it one.

FILE has a source in each line, and a NAME for it behind a space if its own will not do. Empty lines and
what follows a # are left out.

With --image-store, images are brought to a store on a datastore, which is made if it is not there: VCHs that
pull one of them later find its disks. They belong to no VCH, and stay until vic rm --image-store removes
them. They pass through a store of this machine, --store or a temporary one in $TMPDIR, where an image
takes as much room as on the datastore.

An image that fails does not stop the others; if any did, the exit code is 1.`,
		Example: `  vic seed --store /var/lib/vic debian:12 nginx:1.29
  vic seed --store /var/lib/vic -f images.txt
  vic seed --store /var/lib/vic oci:./debian:12 --name debian:12
  docker save app:1 | vic seed --store /var/lib/vic -
  vic seed --target vcenter --user admin --thumbprint 1A:2B:... --image-store datastore1/vic debian:12 app.tar`,
		RunE: func(cmd *cobra.Command, args []string) error {
			sources, err := seedSources(cmd, args, list, name)
			if err != nil {
				return err
			}
			if platform != "" {
				p, err := platforms.Parse(platform)
				if err != nil {
					return usageErrorf("--platform: %w", err)
				}
				sd.platform = &p
			}
			if sd.parallel < 1 {
				return usageErrorf("--parallel: at least 1")
			}
			return store.withSeeds(cmd, seed, func(s *layerstore.Store, seeds *datastore.Store) error {
				sd.store, sd.seeds, sd.registry, sd.cmd = s, seeds, newRegistry(insecure), cmd
				return sd.run(sources)
			})
		},
	}
	store.add(cmd)
	seed.add(cmd.Flags())
	insecureFlag(cmd, &insecure)
	f := cmd.Flags()
	f.StringVarP(&list, "file", "f", "", "`FILE` with sources, one a line; - is standard input")
	f.StringVar(&name, "name", "", "`NAME` for the image, if there is one source")
	f.IntVar(&sd.parallel, "parallel", 4, "how many `images` at once")
	f.StringVar(&platform, "platform", "", "`os/arch[/variant]` to choose from images for several; default Linux on this machine's processor")
	f.BoolVar(&sd.asJSON, "json", false, "print a JSON object for each image, one a line")
	return cmd
}

// A seedSource is where an image comes from, or several.
type seedSource struct {
	text string          // as it was given
	name reference.Named // that the image shall have; nil leaves it to the source

	ref    reference.Named // of a registry, or
	folder string          // a layout, or
	file   string          // an archive; - is standard input
	image  string          // of the layout or archive; "" for all
}

// seedSources are those of the arguments and of the list.
func seedSources(cmd *cobra.Command, args []string, list, name string) ([]seedSource, error) {
	var sources []seedSource
	for _, arg := range args {
		s, err := parseSource(arg, "")
		if err != nil {
			return nil, err
		}
		sources = append(sources, s)
	}
	if list != "" {
		in := cmd.InOrStdin()
		if list != "-" {
			f, err := os.Open(list)
			if err != nil {
				return nil, err
			}
			defer f.Close()
			in = f
		}
		listed, err := readSources(in)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", list, err)
		}
		sources = append(sources, listed...)
	}
	stdin := 0
	for _, s := range sources {
		if s.file == "-" {
			stdin++
		}
	}
	switch {
	case len(sources) == 0:
		return nil, usageErrorf("no source is named: give some, or --file")
	case stdin > 1 || stdin == 1 && list == "-":
		return nil, usageErrorf("standard input can be read once")
	case name != "" && len(sources) > 1:
		return nil, usageErrorf("--name is for one source: in a --file, each line may have a name")
	case name != "":
		var err error
		if sources[0].name, err = parseSeedName(name); err != nil {
			return nil, err
		}
	}
	return sources, nil
}

// maxSourceLine bounds a line of a list of sources, in bytes.
const maxSourceLine = 64 << 10

// readSources reads a list of sources.
func readSources(r io.Reader) ([]seedSource, error) {
	var sources []seedSource
	sc := bufio.NewScanner(r)
	sc.Buffer(nil, maxSourceLine)
	for n := 1; sc.Scan(); n++ {
		line, _, _ := strings.Cut(sc.Text(), "#")
		fields := strings.Fields(line)
		if len(fields) == 0 {
			continue
		}
		if len(fields) > 2 {
			return nil, fmt.Errorf("line %d: more than a source and a name", n)
		}
		s, err := parseSource(fields[0], strings.Join(fields[1:], ""))
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		sources = append(sources, s)
	}
	return sources, sc.Err()
}

// archiveSuffixes end the names of files that are archives, in whatever folder.
var archiveSuffixes = []string{".tar", ".tar.gz", ".tgz", ".tar.zst"}

// parseSource reads a source and, if it is not empty, the name for it.
func parseSource(text, name string) (seedSource, error) {
	s := seedSource{text: text}
	var err error
	if name != "" {
		if s.name, err = parseSeedName(name); err != nil {
			return s, err
		}
	}
	kind, rest, _ := strings.Cut(text, ":")
	isPath := strings.HasPrefix(text, "/") || strings.HasPrefix(text, "./") || strings.HasPrefix(text, "../")
	switch {
	case text == "-":
		s.file = text
	case kind == "oci":
		s.folder, s.image, _ = strings.Cut(rest, ":")
	case kind == "oci-archive" || kind == "docker-archive":
		s.file, s.image, _ = strings.Cut(rest, ":")
	case isPath || slices.ContainsFunc(archiveSuffixes, func(suffix string) bool { return strings.HasSuffix(text, suffix) }):
		info, err := os.Stat(text)
		if err != nil {
			return s, err
		}
		if s.file = text; info.IsDir() {
			s.file, s.folder = "", text
		}
	default:
		if s.ref, err = reference.ParseDockerRef(strings.TrimPrefix(text, "docker://")); err != nil {
			return s, usageErrorf("source %q: %w", text, err)
		}
		return s, nil
	}
	if s.folder == "" && s.file == "" {
		return s, usageErrorf("source %q names no file", text)
	}
	return s, nil
}

func parseSeedName(name string) (reference.Named, error) {
	ref, err := reference.ParseDockerRef(name)
	if err == nil {
		if _, isDigest := ref.(reference.Digested); isDigest {
			err = errors.New("a digest is nothing to be chosen")
		}
	}
	if err != nil {
		return nil, usageErrorf("image name %q: %w", name, err)
	}
	return ref, nil
}

// A seeding is one run of vic seed.
type seeding struct {
	cmd      *cobra.Command
	store    *layerstore.Store
	seeds    *datastore.Store // behind it; nil without --image-store
	registry *fetch.Client
	platform *ocispec.Platform
	parallel int
	asJSON   bool
	bar      *progress

	mu     sync.Mutex
	done   int
	failed []string // what did not come
}

// seedResult is what became of an image, or of a source that failed as a whole.
type seedResult struct {
	Source string        `json:"source"`
	Names  []string      `json:"names,omitempty"`
	Image  digest.Digest `json:"image,omitempty"`
	State  string        `json:"state"` // pulled, up to date, failed
	Error  string        `json:"error,omitempty"`
}

// run brings all sources, and returns an error if one failed.
func (sd *seeding) run(sources []seedSource) error {
	sd.bar = newProgress(sd.cmd.ErrOrStderr(), "seed", "pulled")
	defer sd.bar.end()
	var group errgroup.Group
	group.SetLimit(sd.parallel)
	for _, src := range sources {
		group.Go(func() error {
			if sd.cmd.Context().Err() == nil {
				sd.source(sd.cmd.Context(), src)
			}
			return nil
		})
	}
	group.Wait()
	sd.bar.end()
	if err := context.Cause(sd.cmd.Context()); err != nil {
		return err
	}
	if len(sd.failed) > 0 {
		return fmt.Errorf("%d of %d failed: %s", len(sd.failed), sd.done, strings.Join(sd.failed, ", "))
	}
	return nil
}

// source brings what a source has, one image after the other: they often share layers.
func (sd *seeding) source(ctx context.Context, src seedSource) {
	if src.ref != nil {
		sd.tell(src, sd.fromRegistry(ctx, src))
		return
	}
	a, err := sd.open(ctx, src)
	if err != nil {
		sd.tell(src, seedResult{Error: err.Error()})
		return
	}
	defer a.Close()
	entries := a.Entries()
	if src.image != "" {
		entries = slices.DeleteFunc(slices.Clone(entries), func(e *archive.Entry) bool { return !e.Is(src.image) })
	}
	switch {
	case len(entries) == 0 && src.image != "":
		sd.tell(src, seedResult{Error: fmt.Sprintf("the archive has no image %q", src.image)})
	case len(entries) == 0:
		sd.tell(src, seedResult{Error: "the archive has no images"})
	case len(entries) > 1 && src.name != nil:
		sd.tell(src, seedResult{Error: fmt.Sprintf("the archive has %d images, which cannot all be %s: choose one", len(entries), reference.FamiliarString(src.name))})
	default:
		for _, e := range entries {
			sd.tell(src, sd.fromArchive(ctx, src, e))
		}
	}
}

func (sd *seeding) open(ctx context.Context, src seedSource) (*archive.Archive, error) {
	switch {
	case src.folder != "":
		return archive.OpenFolder(src.folder)
	case src.file == "-":
		return archive.Read(ctx, sd.cmd.InOrStdin(), sd.store.TempFile)
	}
	return archive.OpenFile(ctx, src.file, sd.store.TempFile)
}

func (sd *seeding) fromArchive(ctx context.Context, src seedSource, e *archive.Entry) seedResult {
	names := e.Names
	if src.name != nil {
		names = []reference.Named{src.name}
	}
	img, err := e.Resolve(ctx, sd.platform)
	if err != nil {
		return seedResult{Names: familiarNames(names), Error: err.Error()}
	}
	return sd.pull(ctx, img, nil, names)
}

func (sd *seeding) fromRegistry(ctx context.Context, src seedSource) seedResult {
	fail := func(err error) seedResult { return seedResult{Error: advise(err, reference.Domain(src.ref)).Error()} }
	creds, err := storedCredentials(ctx, src.ref)
	if err != nil {
		return fail(err)
	}
	img, err := sd.registry.Resolve(ctx, src.ref, fetch.ResolveOptions{Credentials: creds, Platform: sd.platform, Progress: func(e fetch.Event) {
		if e.Retry > 0 {
			sd.bar.note(fmt.Sprintf("%s: trying again in %s: %v", src.text, e.Retry.Round(time.Second), e.Err))
		}
	}})
	if err != nil {
		return fail(err)
	}
	if src.name != nil {
		return sd.pull(ctx, img, nil, []reference.Named{src.name})
	}
	return sd.pull(ctx, img, src.ref, nil)
}

// pull brings an image.
func (sd *seeding) pull(ctx context.Context, src layerstore.Source, name reference.Named, tags []reference.Named) seedResult {
	r := seedResult{State: "up to date", Names: familiarNames(tags)}
	if name != nil {
		r.Names = append(r.Names, reference.FamiliarString(name))
	}
	img, err := sd.store.Pull(ctx, src, name, layerstore.PullOptions{Tags: tags, Progress: func(e layerstore.ProgressEvent) {
		switch {
		case e.Layer != "":
			sd.bar.layer(e)
		case e.Updated:
			r.State = "pulled"
		}
	}})
	if err != nil {
		r.Error = err.Error()
		return r
	}
	r.Image = img.ID
	if sd.seeds != nil {
		var texts []string
		for _, ref := range append(tags, name) {
			if ref != nil {
				texts = append(texts, ref.String())
			}
		}
		if err := sd.seeds.AddNames(ctx, img.ID, texts...); err != nil {
			r.Error = err.Error()
		}
	}
	return r
}

func familiarNames(refs []reference.Named) []string {
	var names []string
	for _, ref := range refs {
		names = append(names, reference.FamiliarString(ref))
	}
	return names
}

// tell prints what became of an image.
func (sd *seeding) tell(src seedSource, r seedResult) {
	sd.mu.Lock()
	defer sd.mu.Unlock()
	r.Source = src.text
	sd.done++
	what := src.text
	if len(r.Names) > 0 && src.ref == nil {
		what += " " + strings.Join(r.Names, " ")
	}
	if r.Error != "" {
		r.State = "failed"
		sd.failed = append(sd.failed, what)
	}
	out := sd.cmd.OutOrStdout()
	switch {
	case sd.asJSON:
		json.NewEncoder(out).Encode(r)
	case r.Error != "":
		sd.bar.note(fmt.Sprintf("%s: %s", what, r.Error))
	default:
		text := fmt.Sprintf("%s %s: image %s", what, r.State, short(r.Image))
		if len(r.Names) == 0 {
			text += " without a name"
		}
		sd.bar.above(out, text)
	}
}
