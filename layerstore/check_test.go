package layerstore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
)

// How damage can be undone without Repair.
const removeRecord, pullAgain, sweep, nothing = "remove record, pull", "pull", "gc", ""

// A damage is something that may happen to a store with webImage in it, named web, and a
// container of it, web-1.
type damage struct {
	name   string
	damage func(d Dir, img *Image) error
	want   string // in a finding
	remedy string
	deep   bool   // found by a deep check only
	left   string // in a finding that Repair leaves
}

func damages() []damage {
	write := func(path, content string) error { return os.WriteFile(path, []byte(content), 0o600) }
	edit := func(path, old, new string) error {
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if !strings.Contains(string(b), old) {
			return errors.New("nothing to edit in " + path)
		}
		return write(path, strings.Replace(string(b), old, new, 1))
	}
	return []damage{
		{name: "extent file gone", want: "no such file", remedy: pullAgain,
			damage: func(d Dir, img *Image) error { return os.Remove(d.extent(img.Layers[2].Chain)) }},
		{name: "descriptor gone", want: "no such file", remedy: pullAgain,
			damage: func(d Dir, img *Image) error { return os.Remove(d.disk(img.Layers[0].Chain)) }},
		{name: "extent file cut", want: "in the record", remedy: pullAgain,
			damage: func(d Dir, img *Image) error { return os.Truncate(d.extent(img.Layers[2].Chain), 100_000) }},
		{name: "header damaged", want: "magic", remedy: removeRecord,
			damage: func(d Dir, img *Image) error { return damageAt(d.extent(img.Layers[2].Chain), 1) }},
		{name: "data damaged", want: "checksum", remedy: removeRecord, deep: true,
			damage: func(d Dir, img *Image) error { return damageAt(d.extent(img.Layers[0].Chain), 70_000) }},
		{name: "descriptor damaged", want: "CID", remedy: pullAgain,
			damage: func(d Dir, img *Image) error { return edit(d.disk(img.Layers[0].Chain), "\nCID=", "\nCID=1") }},
		{name: "CID changed", want: "CID", remedy: pullAgain,
			damage: func(d Dir, img *Image) error {
				return edit(d.disk(img.Layers[0].Chain), fmt.Sprintf("\nCID=%08x", diskCID(img.Layers[0].Chain.String())), "\nCID=abc")
			}},
		{name: "parent CID changed", want: "CID", remedy: pullAgain,
			damage: func(d Dir, img *Image) error { return edit(d.disk(img.Layers[3].Chain), "parentCID=", "parentCID=1") }},
		{name: "hint out of the store", want: "parentFileNameHint", remedy: pullAgain,
			damage: func(d Dir, img *Image) error {
				return edit(d.disk(img.Layers[3].Chain), `parentFileNameHint="`, `parentFileNameHint="../../`)
			}},
		{name: "record is no JSON", want: "layer record", remedy: pullAgain,
			damage: func(d Dir, img *Image) error { return write(d.layer(img.Layers[2].Chain), "{") }},
		{name: "record of another layer", want: "chain", remedy: pullAgain,
			damage: func(d Dir, img *Image) error {
				b, err := os.ReadFile(d.layer(img.Layers[0].Chain))
				if err != nil {
					return err
				}
				return write(d.layer(img.Layers[2].Chain), string(b))
			}},
		{name: "record gone", want: "missing", remedy: pullAgain,
			damage: func(d Dir, img *Image) error { return os.Remove(d.layer(img.Layers[2].Chain)) }},
		{name: "record of the empty layer", want: "empty", remedy: removeRecord,
			damage: func(d Dir, img *Image) error {
				return edit(d.layer(img.Layers[1].Chain), `"index": 1`, `"index": 7`)
			}},
		{name: "config damaged", want: "digest", remedy: pullAgain,
			damage: func(d Dir, img *Image) error { return damageAt(d.image(img.ID)+"/"+configFile, 5) }},
		{name: "image.json gone", want: "image", remedy: pullAgain,
			damage: func(d Dir, img *Image) error { return os.Remove(d.image(img.ID) + "/" + imageFile) }},
		{name: "image gone", want: "is not there", remedy: pullAgain,
			damage: func(d Dir, img *Image) error { return os.RemoveAll(d.image(img.ID)) }},
		{name: "name damaged", want: "name", remedy: pullAgain,
			damage: func(d Dir, img *Image) error { return write(d.name(img.Names[0].String()), "{}") }},
		{name: "disk without record", want: "no record", remedy: sweep,
			damage: func(d Dir, img *Image) error { return write(d.extent(digest.FromString("x")), "x") }},
		{name: "foreign file", left: "no disk of a layer", want: "no disk of a layer", remedy: nothing,
			damage: func(d Dir, img *Image) error { return write(d.in("disks", "notes.txt"), "x") }},
		{name: "dead file in tmp", want: "died", remedy: nothing,
			damage: func(d Dir, img *Image) error { return write(d.in("tmp", "file-1"), "x") }},
		{name: "base disk damaged", want: "magic", remedy: nothing,
			damage: func(d Dir, img *Image) error { return damageAt(d.extent(""), 1) }},
		{name: "pin damaged", left: "pin", want: "pin", remedy: nothing,
			damage: func(d Dir, img *Image) error { return write(d.pin("web-1"), "{") }},
		{name: "container's disk damaged", left: "descriptor", want: "descriptor", remedy: nothing,
			damage: func(d Dir, img *Image) error { return write(d.in("containers", "web-1", containerDisk), "x") }},
		{name: "container's disk not made", left: "interrupted", want: "interrupted", remedy: nothing,
			damage: func(d Dir, img *Image) error { return os.Remove(d.in("containers", "web-1", containerDisk)) }},
	}
}

// Everything that may be damaged is found, the advice says what helps, and it does.
func TestCheckFinds(t *testing.T) {
	if testing.Short() {
		t.Skip("short: one thing after the other, which says nothing to the race detector")
	}
	for _, test := range damages() {
		t.Run(test.name, func(t *testing.T) {
			s := openStore(t, Options{})
			src := webImage(t)
			img := pullImage(t, s, src, "web")
			if _, err := s.CreateContainerDisk("web-1", img.ID); err != nil {
				t.Fatal(err)
			}
			checkClean(t, s)
			if err := test.damage(s.dir, img); err != nil {
				t.Fatal(err)
			}
			check := func(deep bool) (findings []Finding) {
				err := s.Check(t.Context(), CheckOptions{Deep: deep}, func(f Finding) {
					if f.Path == "" || f.Problem == "" || f.Advice == "" {
						t.Errorf("finding %+v lacks something", f)
					}
					findings = append(findings, f)
				})
				if err != nil {
					t.Error(err)
				}
				return findings
			}
			if plain := check(false); test.deep && len(plain) != 0 {
				t.Errorf("findings without deep: %+v", plain)
			} else if !test.deep && len(plain) == 0 {
				t.Error("no finding without deep")
			}
			findings := check(true)
			found := false
			var advice string
			for _, f := range findings {
				found = found || strings.Contains(f.Problem, test.want)
				advice += f.Advice + "\n"
			}
			if !found {
				t.Errorf("findings %+v, want one with %q", findings, test.want)
			}
			switch test.remedy {
			case removeRecord:
				for _, l := range img.Layers {
					if path := s.dir.layer(l.Chain); strings.Contains(advice, "remove "+path+" and pull") {
						if err := os.Remove(path); err != nil {
							t.Fatal(err)
						}
					}
				}
				fallthrough
			case pullAgain:
				if !strings.Contains(advice, "pull ") {
					t.Errorf("advice %q does not say to pull", advice)
				}
				pullImage(t, s, src, "web")
			case sweep:
				if _, err := s.Sweep(t.Context()); err != nil {
					t.Fatal(err)
				}
			case nothing:
				return
			}
			checkClean(t, s)
			rawDisk(t, s, img)
			before := pullImage(t, s, src, "web")
			if before.ID != img.ID {
				t.Errorf("the image has become %s", before.ID)
			}
		})
	}
}

func TestCheckCancelled(t *testing.T) {
	s := openStore(t, Options{})
	pullImage(t, s, webImage(t), "web")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Check(ctx, CheckOptions{Deep: true}, func(f Finding) { t.Errorf("finding %+v", f) }); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	emptyTmp(t, s)
}
