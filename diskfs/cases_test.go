package diskfs

import (
	"bytes"
	"slices"
	"strings"
	"testing"
)

// A layerCase is a stack of layers and what must come of it.
type layerCase struct {
	name   string
	layers []layer
	want   string // the tree of all layers, as tree.describe writes it
	// refused is part of the error that the last layer must end in. The layers before it
	// are then what want describes.
	refused string
	// format is the disk's, if it matters.
	format FormatOptions
	// warns is part of a warning that the last layer must give.
	warns string
}

// runCases builds each case's disk twice, with the file system kept in memory and
// reopened before every layer, and holds it against e2fsck, the kernel, the expectation,
// containerd and umoci.
func runCases(t *testing.T, cases []layerCase) {
	for _, tc := range cases {
		t.Run(strings.ReplaceAll(tc.name, " ", "_"), func(t *testing.T) {
			t.Parallel()
			tc.run(t)
		})
	}
}

func (tc layerCase) run(t *testing.T) {
	o := tc.format
	if o == (FormatOptions{}) {
		o = smallDisk
	}
	carried, reopened := newChain(t, o), newChain(t, o)
	reopened.forgetful = true
	var tars [][]byte
	got := carried.checkReader()
	for i, l := range tc.layers {
		tar := l.tar(t)
		if i == len(tc.layers)-1 && tc.refused != "" {
			tc.refuse(t, carried, tar)
			tc.refuse(t, reopened, tar)
			tars = append(tars, tar)
			break
		}
		tars = append(tars, tar)
		carried.apply(bytes.NewReader(tar))
		reopened.apply(bytes.NewReader(tar))
		if digest(t, carried.disk) != digest(t, reopened.disk) {
			t.Errorf("layer %d: the disk depends on whether the file system was kept in memory", i)
		}
		carried.check()
		got = carried.checkReader()
	}
	if want := tidy(tc.want); got.describe() != want {
		t.Errorf("got:\n%swant:\n%s", got.describe(), want)
	}
	if tc.warns != "" && !strings.Contains(strings.Join(carried.warnings, "\n"), tc.warns) {
		t.Errorf("warnings %q, want one with %q", carried.warnings, tc.warns)
	}
	tc.judge(t, got, tars)
}

// refuse applies a layer that must be refused, and wants the disk as it was.
func (tc layerCase) refuse(t *testing.T, c *chain, tar []byte) {
	t.Helper()
	before := digest(t, c.disk)
	if _, err := c.try(bytes.NewReader(tar)); err == nil || !strings.Contains(err.Error(), tc.refused) {
		t.Fatalf("error %v, want one with %q", err, tc.refused)
	}
	if digest(t, c.disk) != before {
		t.Error("the refused layer changed the disk")
	}
	c.reopen()
	if _, err := walkTree(c.fs); err != nil {
		t.Error(err)
	}
	c.apply(bytes.NewReader(layer{file("after", "the refusal")}.tar(t)))
	c.check()
}

// tidy makes an expectation, lines separated by newlines or bars, a sorted list.
func tidy(s string) string {
	var lines []string
	for line := range strings.SplitSeq(strings.NewReplacer(" | ", "\n", " |\n", "\n").Replace(s), "\n") {
		if line = strings.TrimSpace(line); line != "" {
			lines = append(lines, line+"\n")
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "")
}
