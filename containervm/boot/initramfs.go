package boot

import (
	"bufio"
	"fmt"
	"io"
	"strings"
)

// An entry is a file or folder of the initramfs.
type entry struct {
	path string // without a slash before it
	mode int    // as in the archive
	data []byte
}

const (
	modeFile    = 0100644
	modeProgram = 0100755
	modeFolder  = 0040755
)

// writeInitramfs writes the archive of PID 1, modules and further files.
func (c *contents) writeInitramfs(w io.Writer) error {
	b := bufio.NewWriterSize(w, 1<<20)
	a := cpioWriter{w: b}
	for _, d := range []string{"dev", "modules", "proc", "sys"} {
		a.add(d, modeFolder, 0, nil)
	}
	a.add("dev/console", 0020600, 5<<8|1, nil)
	a.add("dev/null", 0020666, 1<<8|3, nil)
	a.add("init", modeProgram, 0, c.init)
	var index strings.Builder
	for _, m := range c.mods {
		fmt.Fprintln(&index, m.indexLine())
		a.add("modules/"+m.name+".ko", modeFile, 0, m.code)
	}
	a.add("modules/index", modeFile, 0, []byte(index.String()))
	for _, f := range c.files {
		a.add(f.path, f.mode, 0, f.data)
	}
	a.add("TRAILER!!!", 0, 0, nil)
	if a.err != nil {
		return a.err
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
