package main

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"vic/bench"
	"vic/bench/corpus"
	"vic/bench/oracle"
)

// smallBench is a corpus that takes no time to speak of.
var smallBench = []string{"bench", "--layers", "3", "--files", "60", "--sizes", "uniform:0-8KiB", "--whiteouts", "0.1", "--seed", "5", "--runs", "2"}

func TestBench(t *testing.T) {
	t.Setenv(asVic, "1")
	work, svg := t.TempDir(), filepath.Join(t.TempDir(), "chart.svg")
	args := append(slices.Clone(smallBench), "--work", work, "--only", "none", "--growth-layers", "1,3", "--growth-files", "200,10,50", "--json", "--svg", svg)
	out, progress, err := vic(t, args...)
	if err != nil {
		t.Fatalf("%v\n%s", err, progress)
	}
	left(t, work)
	var r bench.Report
	d := json.NewDecoder(strings.NewReader(out))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil || d.More() {
		t.Fatalf("%v\n%s", err, out)
	}
	if r.Image == nil || r.Image.Layers != 3 || r.Image.Entries != 60+3*2+2*2 || r.Image.Tars < r.Image.Blobs {
		t.Errorf("image: %+v", r.Image)
	}
	if len(r.Stages) != 10 || r.Stages[0].Name != "fetch" || r.Stages[0].CPU != nil {
		t.Errorf("stages: %+v", r.Stages)
	}
	for _, s := range r.Stages {
		if len(s.Wall.Runs) != 2 || s.Wall.Median <= 0 || s.Rate <= 0 || s.Through <= 0 {
			t.Errorf("stage %s: %+v", s.Name, s)
		}
	}
	if r.Floor.Seconds <= 0 || r.Floor.Seconds < r.Floor.Disk || r.Floor.Cores != r.Machine.Cores {
		t.Errorf("floor: %+v", r.Floor)
	}
	if len(r.Engines) != 1 || len(r.Missing) != 0 || r.Engines[0].WallRatio != 1 || r.Engines[0].WallOverFloor <= 0 || r.Engines[0].Stored < 60*1000 || !strings.Contains(r.Engines[0].Version, "vic") {
		t.Errorf("engines: %+v, missing: %+v", r.Engines, r.Missing)
	}
	if len(r.Growth) != 2 || len(r.Growth[0].Points) != 2 || len(r.Growth[1].Points) != 3 || r.Growth[1].Points[0].N != 10 || r.Growth[1].Points[2].PerNLogN <= 0 {
		t.Errorf("growth: %+v", r.Growth)
	}
	m := r.Machine
	if m.Cores < 1 || m.CPU == "" || m.Memory < 1<<20 || !strings.HasPrefix(m.Kernel, "Linux ") || m.FileSystem == "" {
		t.Errorf("machine: %+v", m)
	}
	again := "vic bench --layers=3 --files=60 --sizes=uniform:0-8KiB --whiteouts=0.1 --seed=5 --growth-layers=1,3 --growth-files=200,10,50 --runs=2 --work=" + work + " --only=none --json=true --svg=" + svg
	if r.Command != again {
		t.Errorf("again: %s\nwant   %s", r.Command, again)
	}
	wellFormed(t, svg)
}

// wellFormed reads an XML file to its end.
func wellFormed(t *testing.T, path string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	texts := 0
	for d := xml.NewDecoder(bytes.NewReader(b)); ; {
		tok, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		if e, ok := tok.(xml.StartElement); ok && e.Name.Local == "text" {
			texts++
		}
	}
	if texts < 20 {
		t.Errorf("%s has %d texts", path, texts)
	}
}

// left fails the test if a folder is not empty.
func left(t *testing.T, dir string) {
	t.Helper()
	names, err := os.ReadDir(dir)
	if err != nil || len(names) > 0 {
		t.Errorf("left behind: %v, %v", names, err)
	}
}

// TestBenchTable measures an OCI layout, with every peer that there is: the others are named, too.
func TestBenchTable(t *testing.T) {
	t.Setenv(asVic, "1")
	// Some peers take no long paths for their sockets.
	dir, work := filepath.Join(t.TempDir(), "image"), filepath.Join(t.TempDir(), strings.Repeat("long", 25))
	if err := os.Mkdir(work, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := corpus.Write(t.Context(), dir, corpus.Shape{Layers: 2, Files: 20, Sizes: corpus.Fixed(5000), Compression: "zstd"}); err != nil {
		t.Fatal(err)
	}
	out, progress, err := vic(t, "bench", "--layout", dir, "--work", work, "--runs", "1")
	if err != nil {
		t.Fatalf("%v\n%s", err, progress)
	}
	left(t, work)
	for _, want := range append(bench.PeerNames(), "machine: ", "image: OCI layout "+dir, "2 layers, 24 entries", "\ninflate ", "\nfloor: ", "\nvic ", "again: vic bench --layout="+dir) {
		if !strings.Contains(out, want) {
			t.Errorf("the table has no %q:\n%s", want, out)
		}
	}
	if strings.Contains(out, "PULL OF N") {
		t.Errorf("growth was not asked for:\n%s", out)
	}
	for _, name := range []string{"containerd", "podman"} {
		if _, err := exec.LookPath(name); err == nil && os.Geteuid() == 0 && !strings.Contains(out, name+": pulls into folders") {
			t.Errorf("%s is installed and was not measured:\n%s", name, out)
		}
	}
	if os.Geteuid() == 0 {
		oracle.Need(t, "mkfs.ext4", "mke2fs", "tar", "zstd", "mount")
		if strings.Contains(out, "mke2fs -d  not measured") {
			t.Errorf("mke2fs -d was not measured:\n%s", out)
		}
	}
}

// TestBenchNoPeers has no peers installed.
func TestBenchNoPeers(t *testing.T) {
	t.Setenv(asVic, "1")
	t.Setenv("PATH", t.TempDir())
	out, _, err := vic(t, append(slices.Clone(smallBench), "--work", t.TempDir(), "--runs", "1")...)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"containerd", "podman", "tar2ext4", "mkfs.ext4", "mke2fs"} {
		if !strings.Contains(out, "not measured: "+want+" is not installed\n") {
			t.Errorf("%s is not said to be missing:\n%s", want, out)
		}
	}
}

// cancelOn ends a context when something is written that contains text.
type cancelOn struct {
	text   string
	cancel context.CancelFunc
}

func (c *cancelOn) Write(p []byte) (int, error) {
	if strings.Contains(string(p), c.text) {
		c.cancel()
	}
	return len(p), nil
}

func TestBenchInterrupted(t *testing.T) {
	t.Setenv(asVic, "1")
	for _, tt := range []struct{ at, only string }{
		{"generating", "none"}, {"each stage", "none"}, {": vic", "none"}, {"growth: 2 layers: generating", "none"}, {"growth: 2 layers: run", "none"},
		{": mount + tar", "mount + tar"}, {": tar + mke2fs -d", "tar + mke2fs -d"}, {": podman", "podman"}, {": containerd", "containerd"},
	} {
		t.Run(tt.at, func(t *testing.T) {
			work := t.TempDir()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			args := append(slices.Clone(smallBench), "--work", work, "--growth-layers", "2", "--runs", "1", "--only", tt.only)
			var out bytes.Buffer
			err := run(ctx, args, strings.NewReader(""), &out, &cancelOn{tt.at, cancel})
			if ctx.Err() == nil {
				t.Skipf("%s is not measured here", tt.only)
			}
			if !errors.Is(err, context.Canceled) || out.Len() > 0 {
				t.Errorf("%v, %s", err, out.Bytes())
			}
			left(t, work)
			mounts, err := os.ReadFile("/proc/self/mounts")
			if err != nil || strings.Contains(string(mounts), work) {
				t.Errorf("mounted: %v\n%s", err, mounts)
			}
		})
	}
}

func TestBenchRefused(t *testing.T) {
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"--layout", "x", "debian"}, "two images"},
		{[]string{"--layout", "x", "--files", "3"}, "--files is for generated images"},
		{[]string{"--seed", "3", "debian"}, "--seed is for generated images"},
		{[]string{"--platform", "linux/arm64"}, "--platform is for an image of a registry"},
		{[]string{"--insecure-registry", "x"}, "--insecure-registry is for an image of a registry"},
		{[]string{"--sizes", "large"}, `--sizes: sizes "large"`},
		{[]string{"--layers", "0"}, "0 layers"},
		{[]string{"--compression", "xz"}, `compression "xz"`},
		{[]string{"--runs", "0"}, "--runs 0"},
		{[]string{"--growth-files", "0"}, "0 is not a size"},
		{[]string{"--only", "docker", "--files", "1"}, `no peer is called "docker"`},
		{[]string{"--layout", "/nope"}, "open OCI layout"},
		{[]string{"--vic", "/nope", "--files", "1"}, "/nope"},
		{[]string{"--svg", "/nope/x.svg"}, "--svg"},
		{[]string{"--work", "/nope"}, "/nope"},
		{[]string{"a", "b"}, "accepts at most 1 arg"},
	} {
		t.Setenv(asVic, "1")
		_, _, err := vic(t, append([]string{"bench"}, tt.args...)...)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("vic bench %s: %v, want %q", strings.Join(tt.args, " "), err, tt.want)
		}
	}
}
