package diskfs

import (
	"strings"
	"testing"

	"vic/bench/oracle"
)

func TestFormat(t *testing.T) {
	for name, o := range map[string]FormatOptions{
		"default":         {},
		"smallest":        {Capacity: 16 << 20},
		"one group":       {Capacity: 100 << 20},
		"odd":             {Capacity: 1<<30 + 5*BlockSize},
		"tiny tail":       {Capacity: 1<<30 + 300*BlockSize},
		"8 GiB":           {Capacity: 8 << 30},
		"no journal":      {Capacity: 8 << 30, NoJournal: true},
		"largest journal": {Capacity: 1 << 30, Journal: 64 << 20},
		"1 TiB":           {Capacity: 1 << 40},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newChain(t, o)
			c.check()
			c.reopen()
			if _, err := c.fs.ReadDir("."); err != nil {
				t.Error(err)
			}
			oracle.Root(t)
			before := overhead(t, c.path)
			_, unmount := mountDisk(t, c.path, "rw")
			unmount()
			if after := overhead(t, c.path); before != after {
				t.Errorf("overhead of %s blocks, the kernel counts %s", before, after)
			}
		})
	}
}

// overhead is the number of blocks that the superblock says metadata takes.
func overhead(t *testing.T, path string) string {
	t.Helper()
	oracle.Need(t, "dumpe2fs")
	for line := range strings.Lines(command(t, "dumpe2fs", "-h", path)) {
		if n, ok := strings.CutPrefix(line, "Overhead clusters:"); ok {
			return strings.TrimSpace(n)
		}
	}
	t.Fatal("dumpe2fs shows no overhead")
	return ""
}
