package layerstore

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite testdata")

// TestGolden holds the rule that goes with generation: the disks of known layers
// do not change, or the number does.
func TestGolden(t *testing.T) {
	s := openStore(t, Options{})
	img := pullImage(t, s, bigImage(t), "big")
	var b strings.Builder
	fmt.Fprintf(&b, "generation %d\nbase crc32c %08x high %d\n", generation, s.info.BaseSum, s.info.BaseHigh)
	for _, il := range img.Layers {
		l, err := s.Layer(il.Chain)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "%s crc32c %08x size %d high %d\n", l.DiffID, l.Sum, l.ExtentSize, l.High)
	}
	const path = "testdata/disks.txt"
	if *update {
		if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := b.String(); got != string(want) {
		t.Errorf("disks have changed: if diff IDs have not, increment generation; then go test -run Golden -update\n got\n%s\nwant\n%s", got, want)
	}
}
