package diskfs

import "testing"

func TestFormat(t *testing.T) {
	for name, o := range map[string]FormatOptions{
		"default":    {},
		"smallest":   {Capacity: 16 << 20},
		"one group":  {Capacity: 100 << 20},
		"odd":        {Capacity: 1<<30 + 5*BlockSize},
		"tiny tail":  {Capacity: 1<<30 + 300*BlockSize},
		"8 GiB":      {Capacity: 8 << 30},
		"no journal": {Capacity: 8 << 30, NoJournal: true},
		"4 TiB":      {Capacity: 4 << 40},
		"16 TiB":     {Capacity: 8 << 40},
	} {
		t.Run(name, func(t *testing.T) {
			c := newChain(t, o)
			c.fsck()
			c.reopen()
			if _, err := c.fs.ReadDir("."); err != nil {
				t.Error(err)
			}
			t.Log(shell(t, "du -k %s; dumpe2fs -h %s 2>&1 | egrep 'features|UUID|Free|Journal|Overhead'", c.path, c.path))
		})
	}
}
