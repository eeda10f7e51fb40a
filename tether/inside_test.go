//go:build linux

package tether

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	osexec "os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"vic/bench/oracle"
	"vic/tether/wire"
)

func TestParseProcess(t *testing.T) {
	const rest = " S 1 7 7 34816 9 4194560 120 0 3 0 150 50 0 0 20 0 3 0 4200 2314240 12 18446744073709551615 1 1 0 0 0 0 0 0 0 0 0 0 17 1 0 0 0 0 0 0 0"
	p, err := parseProcess("7 (a) b ((c))" + rest)
	want := &wire.ProcessInfo{PID: 7, PPID: 1, PGID: 7, SID: 7, TPGID: 9, Threads: 3, State: "S", Command: "a) b ((c)", TTY: "pts/0",
		Priority: 20, Started: int64(42 * time.Second), CPU: int64(2 * time.Second), Virtual: 2314240, Resident: 12 * int64(os.Getpagesize()), Processor: 1, Flags: 4194560}
	if err != nil || !reflect.DeepEqual(p, want) {
		t.Errorf("%+v, %v", p, err)
	}
	for _, text := range []string{"", "7 (a)", "7 (a) S 1", "x (a)" + rest, "7 (a)" + strings.Replace(rest, "4200", "-", 1)} {
		if p, err := parseProcess(text); err == nil {
			t.Errorf("%q: %+v", text, p)
		}
	}
	oracle.Need(t, "ps") // which reads this process as well
	own, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		t.Fatal(err)
	}
	if p, err = parseProcess(string(own)); err != nil {
		t.Fatal(err)
	}
	out, err := osexec.Command("ps", "-o", "ppid=,pgid=,sid=,ni=,tty=", "-p", fmt.Sprint(p.PID)).Output()
	if err != nil {
		t.Fatal(err)
	}
	tty := p.TTY
	if tty == "" {
		tty = "?"
	}
	if got, want := fmt.Sprint(p.PPID, p.PGID, p.SID, p.Nice, " ", tty), strings.Join(strings.Fields(string(out)), " "); strings.Join(strings.Fields(got), " ") != want {
		t.Errorf("%q, ps says %q", got, want)
	}
}

func FuzzParseProcess(f *testing.F) {
	f.Add("7 (a) b) S 1 7 7 34816 9 4194560 120 0 3 0 150 50 0 0 20 0 3 0 4200 2314240 12 18446744073709551615 1 1 0 0 0 0 0 0 0 0 0 0 17 1 0 0")
	f.Fuzz(func(t *testing.T, text string) {
		if p, err := parseProcess(text); err == nil && p.State == "" {
			t.Errorf("%q: %+v", text, p)
		}
	})
}

func TestUsage(t *testing.T) {
	t.Chdir("/proc")  // where the tether is
	u, err := usage() // of this machine
	if err != nil {
		t.Fatal(err)
	}
	if u.CPUs == 0 || u.Total <= u.User+u.Kernel || u.Memory["MemTotal"] < 1<<20 || u.Faults == 0 || u.Tasks == 0 {
		t.Errorf("%+v", u)
	}
}

// TestTree has GNU tar judge what is written of a tree, and an extraction give back what was read.
func TestTree(t *testing.T) {
	oracle.Need(t, "tar")
	if os.Getuid() != 0 {
		t.Skip("only root makes devices")
	}
	dir := t.TempDir()
	script := `mkdir -p a/b; echo one >a/one; ln a/one a/b/again; ln -s ../one a/b/link; ln -s /nowhere a/lost; mkfifo a/fifo; mknod a/null c 1 3
		chmod 4711 a/one; chown -h 5:6 a/b/link; chown 7:8 a/b; chmod 1777 a/b; touch -d @1000000000 a/b; truncate -s 100000 a/sparse; : >a/empty`
	cmd := osexec.Command("sh", "-ec", script)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var b bytes.Buffer
	if err := writeTree(&b, filepath.Join(dir, "a"), "top", "top/"); err != nil {
		t.Fatal(err)
	}
	for _, to := range []string{"gnu", "own"} {
		to = filepath.Join(dir, to)
		if err := os.Mkdir(to, 0o755); err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(to, "own") {
			x := &extraction{dir: to, task: &wire.Task{}, buf: make([]byte, taskBuffer)}
			if err := x.run(tar.NewReader(bytes.NewReader(b.Bytes()))); err != nil {
				t.Fatal(err)
			}
		} else {
			cmd := osexec.Command("tar", "-xpf", "-", "--same-owner", "-C", to)
			cmd.Stdin = bytes.NewReader(b.Bytes())
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
		}
		const list = `cd "$1"; find . | sort | xargs stat -c '%n %F %a %u:%g %s %h %t:%T' ; find . -type f | sort | xargs md5sum; readlink b/link lost; stat -c %Y b one`
		want, err := osexec.Command("sh", "-ec", list, "sh", filepath.Join(dir, "a")).CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, want)
		}
		got, err := osexec.Command("sh", "-ec", list, "sh", filepath.Join(to, "top")).CombinedOutput()
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s, %v:\n%s\nwant\n%s", filepath.Base(to), err, got, want)
		}
	}
}

// FuzzExtraction: whatever a tar says, nothing appears beside the folder.
func FuzzExtraction(f *testing.F) {
	for _, h := range []tar.Header{{Name: "../x", Typeflag: tar.TypeReg}, {Name: "a/../../x", Typeflag: tar.TypeDir}, {Name: "l", Typeflag: tar.TypeLink, Linkname: "../x"}, {Name: "/abs/x", Typeflag: tar.TypeFifo}} {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		if err := w.WriteHeader(&h); err != nil {
			f.Fatal(err)
		}
		w.Close()
		f.Add(b.Bytes())
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := t.TempDir()
		to := filepath.Join(dir, "to")
		if err := os.Mkdir(to, 0o755); err != nil {
			t.Fatal(err)
		}
		// Symlinks lead anywhere in the container, which here is this machine: not extracted.
		r := tar.NewReader(bytes.NewReader(data))
		x := &extraction{dir: to, task: &wire.Task{}, buf: make([]byte, taskBuffer), owner: &owner{os.Getuid(), os.Getgid()}}
		for {
			h, err := r.Next()
			if err != nil {
				break
			}
			if h.Typeflag != tar.TypeSymlink && h.Typeflag != tar.TypeChar && h.Typeflag != tar.TypeBlock {
				_ = x.entry(h, io.LimitReader(r, 1<<10)) // it may well be refused
			}
		}
		if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
			t.Errorf("%v, %v", entries, err)
		}
	})
}
