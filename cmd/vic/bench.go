package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/distribution/reference"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"vic/bench"
	"vic/bench/corpus"
	"vic/bench/layout"
)

// benchFlags are what vic bench is told.
type benchFlags struct {
	layout, platform string
	insecure         []string

	shape       corpus.Shape
	sizes       string
	compression string

	work         string
	runs         int
	vics         []string
	peers        string
	only         []string
	growth       bool
	growthLayers []int
	growthFiles  []int

	asJSON bool
	svg    string

	generated bool // no image was named
}

// seeded tells whether anything is generated.
func (f *benchFlags) seeded() bool {
	return f.generated || f.growthLayers != nil || f.growthFiles != nil
}

func benchCommand() *cobra.Command {
	var f benchFlags
	cmd := &cobra.Command{
		Use:   "bench [REF | --layout DIR[:NAME]]",
		Short: "Measure how fast layers become disks",
		Long: `Measure how fast an image's layers become disks: each stage alone, a whole pull, other engines beside it,
and the floor, which is what the machine could do at best.

The image is one of a registry, which is asked for it once; or one of an OCI layout; or one generated
to the shape that flags give it. Everything is measured from a registry on loopback that vic bench
is meanwhile, into a new store each time, until all is durable. Peers that are installed are measured in the same runs:
containerd, podman, tar2ext4, mount + tar, tar + mke2fs -d. Some of them need root.

What is printed says how to measure the same again. It leaves nothing behind.`,
		Example: `  vic bench debian:12
  vic bench --layout ./image --runs 3 --only podman
  vic bench --layers 40 --files 100000 --sizes lognormal:4KiB,2 --compression zstd --svg bench.svg
  vic bench --growth --only none --json >growth.json`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return f.run(cmd, args) },
	}
	f.add(cmd)
	return cmd
}

func (f *benchFlags) add(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.SortFlags = false
	fl.StringVar(&f.layout, "layout", "", "`DIR[:NAME]` of an OCI layout and the image in it; the name may be left out if there is one image")
	fl.StringVar(&f.platform, "platform", "", "`os/arch[/variant]` of REF; default Linux on this machine's processor")
	insecureFlag(cmd, &f.insecure)

	fl.IntVar(&f.shape.Layers, "layers", 6, "layers of a generated image")
	fl.IntVar(&f.shape.Files, "files", 20000, "files of a generated image, over all layers")
	fl.StringVar(&f.sizes, "sizes", "lognormal:4KiB,2", "sizes of its files: fixed:`SIZE`, uniform:MIN-MAX or lognormal:MEDIAN,SIGMA")
	fl.Float64Var(&f.shape.Compressible, "compressible", 0.6, "share of its bytes that compressing takes away, 0 to 1")
	fl.Float64Var(&f.shape.Whiteouts, "whiteouts", 0.02, "whiteouts of a layer as a share of its files, 0 to 0.5")
	fl.StringVar(&f.compression, "compression", "gzip", "of its blobs: gzip, zstd or none")
	fl.Uint64Var(&f.shape.Seed, "seed", 1, "what generated images are derived from")

	fl.BoolVar(&f.growth, "growth", false, "also measure how a pull's time grows with layers and with files")
	fl.IntSliceVar(&f.growthLayers, "growth-layers", nil, fmt.Sprintf("numbers of layers for that; default %s", join(defaultGrowthLayers)))
	fl.IntSliceVar(&f.growthFiles, "growth-files", nil, fmt.Sprintf("numbers of files for that; default %s", join(defaultGrowthFiles)))

	fl.IntVar(&f.runs, "runs", 5, "how often everything is measured")
	fl.StringVar(&f.work, "work", "", "`folder` on the file system to measure; default that of temporary files")
	fl.StringArrayVar(&f.vics, "vic", nil, "a vic `program` to measure; default this one (several are compared with the first)")
	fl.StringVar(&f.peers, "peers", "", "`folder` to look for other engines in, before $PATH")
	fl.StringSliceVar(&f.only, "only", nil, "`names` of the peers to measure, separated by commas; none measures vic alone")
	fl.BoolVar(&f.asJSON, "json", false, "print JSON, times in seconds, sizes in bytes")
	fl.StringVar(&f.svg, "svg", "", "`FILE` to draw a chart to")
}

var (
	defaultGrowthLayers = []int{1, 10, 50, 127}
	defaultGrowthFiles  = []int{1000, 10_000, 100_000, 1_000_000}
)

func join(list []int) string {
	return strings.Trim(strings.ReplaceAll(fmt.Sprint(list), " ", ","), "[]")
}

// shapeFlags are of use for a generated image only.
var shapeFlags = []string{"layers", "files", "sizes", "compressible", "whiteouts", "compression"}

// check refuses flags that would have no effect, and completes the others.
func (f *benchFlags) check(fl *pflag.FlagSet, ref bool) (err error) {
	if ref && f.layout != "" {
		return usageErrorf("--layout and a reference name two images: give one")
	}
	if f.growth {
		if f.growthLayers == nil {
			f.growthLayers = defaultGrowthLayers
		}
		if f.growthFiles == nil {
			f.growthFiles = defaultGrowthFiles
		}
	}
	f.generated = !ref && f.layout == ""
	for _, name := range shapeFlags {
		if fl.Changed(name) && !f.generated {
			return usageErrorf("--%s is for generated images, but one is given", name)
		}
	}
	if fl.Changed("seed") && !f.seeded() {
		return usageErrorf("--seed is for generated images, but one is given")
	}
	for _, name := range []string{"platform", "insecure-registry"} {
		if fl.Changed(name) && !ref {
			return usageErrorf("--%s is for an image of a registry: give a reference", name)
		}
	}
	if f.runs < 1 {
		return usageErrorf("--runs %d: at least one is needed", f.runs)
	}
	for _, n := range slices.Concat(f.growthLayers, f.growthFiles) {
		if n < 1 {
			return usageErrorf("--growth-layers, --growth-files: %d is not a size", n)
		}
	}
	if f.shape.Sizes, err = corpus.ParseSizes(f.sizes); err != nil {
		return usageErrorf("--sizes: %w", err)
	}
	f.shape.Compression = corpus.Compression(f.compression)
	return f.shape.Check()
}

func (f *benchFlags) run(cmd *cobra.Command, args []string) (err error) {
	if err := f.check(cmd.Flags(), len(args) == 1); err != nil {
		return err
	}
	if len(f.vics) == 0 {
		self, err := os.Executable()
		if err != nil {
			return err
		}
		f.vics = []string{self}
	}
	if f.svg != "" { // before hours of work
		if _, err := os.Stat(filepath.Dir(f.svg)); err != nil {
			return fmt.Errorf("--svg: %w", err)
		}
	}
	work, err := os.MkdirTemp(f.work, "vic-bench-image-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	say := newSteps(cmd.ErrOrStderr())
	defer say.end()
	o := bench.Options{
		Work: f.work, Runs: f.runs, Vic: f.vics, Peers: f.peers, Only: f.only, Progress: say.step,
		Growth: bench.Growth{Layers: f.growthLayers, Files: f.growthFiles, Seed: f.shape.Seed},
	}
	if slices.Equal(f.only, []string{"none"}) {
		o.Only = []string{}
	}
	source, err := f.image(cmd.Context(), args, filepath.Join(work, "image"), &o)
	if err != nil {
		return err
	}
	report, err := bench.Run(cmd.Context(), o)
	if err != nil {
		return err
	}
	say.end()
	report.Command, report.Version, report.Source = f.command(cmd.Flags(), args), version, source
	return f.show(cmd.OutOrStdout(), report)
}

// image finds, fetches into dir or generates there the image to measure. It returns what to call it.
func (f *benchFlags) image(ctx context.Context, args []string, dir string, o *bench.Options) (source string, err error) {
	switch {
	case f.layout != "":
		path, name, _ := strings.Cut(f.layout, ":")
		o.Layout, o.Name = layout.Dir(path), name
		return "OCI layout " + f.layout, nil
	case len(args) == 1:
		ref, err := reference.ParseDockerRef(args[0])
		if err != nil {
			return "", usageErrorf("image name %q: %w", args[0], err)
		}
		o.Progress("fetching " + reference.FamiliarString(ref))
		src, err := resolve(ctx, newRegistry(f.insecure), ref, f.platform, o.Progress)
		if err != nil {
			return "", err
		}
		o.Layout = layout.Dir(dir)
		return reference.FamiliarString(ref) + ", " + src.Digest().String(), bench.Fetch(ctx, src, dir)
	}
	o.Progress("generating the image")
	o.Layout, err = corpus.Write(ctx, dir, f.shape)
	return "generated, " + f.shape.String(), err
}

func (f *benchFlags) show(out io.Writer, r *bench.Report) error {
	if f.svg != "" {
		file, err := os.Create(f.svg)
		if err != nil {
			return err
		}
		if err := errors.Join(r.WriteSVG(file), file.Close()); err != nil {
			return fmt.Errorf("write %s: %w", f.svg, err)
		}
	}
	if !f.asJSON {
		return r.Print(out)
	}
	e := json.NewEncoder(out)
	e.SetIndent("", "  ")
	return e.Encode(r)
}

// command is how to give the same flags again, and the seed, if it counts.
func (f *benchFlags) command(flags *pflag.FlagSet, args []string) string {
	words := []string{"vic", "bench"}
	flags.VisitAll(func(fl *pflag.Flag) {
		if !fl.Changed && (fl.Name != "seed" || !f.seeded()) {
			return
		}
		values := []string{fl.Value.String()}
		if list, ok := fl.Value.(pflag.SliceValue); ok {
			values = list.GetSlice()
			if fl.Value.Type() != "stringArray" { // which is one flag for each
				values = []string{strings.Join(values, ",")}
			}
		}
		for _, v := range values {
			words = append(words, "--"+fl.Name+"="+quote(v))
		}
	})
	for _, a := range args {
		words = append(words, quote(a))
	}
	return strings.Join(words, " ")
}

// quote writes a word so that a shell reads it as it is.
func quote(word string) string {
	if word != "" && strings.Trim(word, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./:,@=+%") == "" {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}

// Steps shows what is being done: on a terminal in one line that changes, elsewhere in a line each.
type steps struct {
	w        io.Writer
	terminal bool
}

func newSteps(w io.Writer) *steps { return &steps{w, isTerminal(w)} }

func (s *steps) step(text string) {
	if s.terminal {
		fmt.Fprint(s.w, eraseLine+text)
		return
	}
	fmt.Fprintln(s.w, text)
}

// end leaves the terminal's line empty. It may be called more than once.
func (s *steps) end() {
	if s.terminal {
		fmt.Fprint(s.w, eraseLine)
	}
}
