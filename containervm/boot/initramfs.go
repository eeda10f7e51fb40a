package boot

import (
	"bufio"
	"fmt"
	"io"
	"strings"
)

// writeInitramfs writes the archive of tether and modules.
func writeInitramfs(w io.Writer, tether []byte, mods []module) error {
	b := bufio.NewWriterSize(w, 1<<20)
	c := cpioWriter{w: b}
	for _, d := range []string{"dev", "modules", "proc", "sys"} {
		c.add(d, 0040755, 0, nil)
	}
	c.add("dev/console", 0020600, 5<<8|1, nil)
	c.add("dev/null", 0020666, 1<<8|3, nil)
	c.add("init", 0100755, 0, tether)
	var index strings.Builder
	for _, m := range mods {
		fmt.Fprintln(&index, m.indexLine())
		c.add("modules/"+m.name+".ko", 0100644, 0, m.code)
	}
	c.add("modules/index", 0100644, 0, []byte(index.String()))
	c.add("TRAILER!!!", 0, 0, nil)
	if c.err != nil {
		return c.err
	}
	return b.Flush()
}

// A cpioWriter writes the newc format: 13 fields of 8 hex digits after the magic, the
// name, the data, each padded to 4 bytes. The library of the field knows no device nodes.
type cpioWriter struct {
	w     io.Writer
	inode int
	n     int
	err   error
}

func (c *cpioWriter) add(name string, mode, rdev int, data []byte) {
	if c.err != nil {
		return
	}
	c.inode++
	links := 1
	if mode&0170000 == 0040000 {
		links = 2
	}
	c.print("070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\x00",
		c.inode, mode, 0, 0, links, 0, len(data), 0, 0, rdev>>8, rdev&0xff, len(name)+1, 0, name)
	c.pad()
	if c.err == nil {
		var n int
		n, c.err = c.w.Write(data)
		c.n += n
	}
	c.pad()
}

func (c *cpioWriter) print(format string, args ...any) {
	if c.err == nil {
		var n int
		n, c.err = fmt.Fprintf(c.w, format, args...)
		c.n += n
	}
}

func (c *cpioWriter) pad() { c.print("%s", "\x00\x00\x00\x00"[:-c.n&3]) }
