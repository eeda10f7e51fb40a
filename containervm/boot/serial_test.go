package boot

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"vic/tether/wire"
)

// TestSerial boots a machine of the shape of VMware's: three UARTs and no virtio. Its speed is printed, and so is what
// the host's CPU spends on it. The machine also has QEMU's vmport, whose ports are VMware's.
func TestSerial(t *testing.T) {
	ports := portsProgram(t)
	disk := newRoot(t, ports)
	m := guestMedium(t)
	const output = 512 << 10
	v := newVM(t, wire.Config{Hostname: "box", OpenStdin: true, Network: wire.Network{NICs: []wire.NIC{{DHCP: true}}},
		Args: []string{"/bin/sh", "-c", fmt.Sprintf(`read x; head -c %d /dev/zero | tr '\0' x; echo done; cat; exit 7`, output)}})
	v.window = wire.SerialWindow
	v.boot(m, "", []string{"-machine", "vmport=on",
		"-device", "pvscsi,id=scsi", "-drive", "if=none,id=root,format=raw,snapshot=on,file=" + disk, "-device", "scsi-hd,bus=scsi.0,drive=root",
		"-netdev", "user,id=net", "-device", "vmxnet3,netdev=net,romfile=",
		"-chardev", "socket,id=control,server=on,wait=off,path=" + v.path("control"), "-device", "isa-serial,chardev=control",
		"-chardev", "file,id=log,append=on,path=" + v.path("log"), "-device", "isa-serial,chardev=log"})
	conn := v.connect()
	v.await(`"pid"`)
	t.Run("ping", func(t *testing.T) { t.Logf("a ping takes %v", pings(t, conn, 50, nil)) })
	t.Run("exec", func(t *testing.T) { serialExec(t, conn) })
	t.Run("terminal", func(t *testing.T) { serialTerminal(t, conn) })
	t.Run("transfer", func(t *testing.T) { v.serialTransfer(t, conn) })
	t.Run("VMware's ports", func(t *testing.T) {
		p, err := conn.Exec(t.Context(), wire.Exec{ID: "ports", Args: []string{filepath.Base(ports)}, Env: []string{"GUESTRPC_GUEST=ports"}, Stdout: true})
		if err != nil {
			t.Fatal(err)
		}
		out, err := io.ReadAll(p.Stdout())
		if want := "VMware: false\nanswers: true\nopen channel: refused with status 0x0\ntook bytes: true\n"; err != nil || string(out) != want {
			t.Errorf("got %q, %v", out, err)
		}
	})
	t.Run("another session", func(t *testing.T) { // whose beginning is the end of the one before
		conn.Close()
		conn = v.connect()
		if st, err := conn.State(t.Context()); err != nil || st.PID == 0 || len(st.Execs) == 0 {
			t.Errorf("state %+v, %v", st, err)
		}
	})
	t.Run("log", func(t *testing.T) {
		cost := v.measure(output)
		if _, err := conn.Stdin().Write([]byte("go\n")); err != nil {
			t.Fatal(err)
		}
		v.await("done\n")
		t.Logf("output of the container: %s", cost())
	})
	if _, err := conn.Stdin().Write([]byte("end")); err != nil {
		t.Fatal(err)
	}
	if err := conn.Stdin().CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if stdout, _, exit := v.end(); string(stdout) != strings.Repeat("x", output)+"done\nend" || exit.Code != 7 {
		t.Errorf("exit %+v, %d bytes of output, the last %q", exit, len(stdout), stdout[max(0, len(stdout)-20):])
	}
}

// portsProgram builds the tests of guestrpc, which are also a program for a guest.
func portsProgram(t *testing.T) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "ports")
	cmd := exec.Command("go", "test", "-c", "-trimpath", "-ldflags", "-s -w", "-o", bin, "vic/tether/guestrpc")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go test -c: %v\n%s", err, out)
	}
	return bin
}

// pings is the median time of n pings, or of those before stop is closed.
func pings(t *testing.T, conn *wire.Conn, n int, stop <-chan struct{}) time.Duration {
	t.Helper()
	var took []time.Duration
	for len(took) < n {
		select {
		case <-stop:
			n = 0
			continue
		default:
		}
		began := time.Now()
		if err := conn.Ping(t.Context()); err != nil {
			t.Fatal(err)
		}
		took = append(took, time.Since(began).Round(100*time.Microsecond))
	}
	slices.Sort(took)
	if len(took) == 0 {
		return 0
	}
	return took[len(took)/2]
}

func serialExec(t *testing.T, conn *wire.Conn) {
	p, err := conn.Exec(t.Context(), wire.Exec{ID: "exec", Args: []string{"sh", "-c", "cat; ip -o -4 addr show eth0 | grep -c 10.0.2.15 >&2; exit 3"}, Stdin: true, Stdout: true, Stderr: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Stdin().Write([]byte("\x00\r\n\x03\x11\x13\xff typed")); err != nil { // what a terminal would change or act on
		t.Fatal(err)
	}
	if err := p.Stdin().CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if out, err := io.ReadAll(p.Stdout()); err != nil || string(out) != "\x00\r\n\x03\x11\x13\xff typed" {
		t.Errorf("stdout %q, %v", out, err)
	}
	if out, err := io.ReadAll(p.Stderr()); err != nil || string(out) != "1\n" {
		t.Errorf("stderr %q, %v", out, err)
	}
	if exit, err := p.Wait(t.Context()); err != nil || exit.Code != 3 {
		t.Errorf("exit %+v, %v", exit, err)
	}
}

func serialTerminal(t *testing.T, conn *wire.Conn) {
	p, err := conn.Exec(t.Context(), wire.Exec{ID: "tty", Args: []string{"sh", "-c", "stty size; read x; stty size"}, TTY: true, Stdin: true, Stdout: true, Size: wire.Size{Rows: 10, Cols: 20}})
	if err != nil {
		t.Fatal(err)
	}
	first := make([]byte, len("10 20\r\n"))
	if _, err := io.ReadFull(p.Stdout(), first); err != nil || string(first) != "10 20\r\n" {
		t.Fatalf("got %q, %v", first, err)
	}
	if err := conn.Resize(t.Context(), "tty", wire.Size{Rows: 30, Cols: 40}); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Stdin().Write([]byte("x\r")); err != nil {
		t.Fatal(err)
	}
	if out, err := io.ReadAll(p.Stdout()); err != nil || !strings.HasSuffix(string(out), "30 40\r\n") {
		t.Errorf("got %q, %v", out, err)
	}
}

// serialTransfer sends a file, with pings beside it, and gets it back.
func (v *vm) serialTransfer(t *testing.T, conn *wire.Conn) {
	sent := make([]byte, 128<<10)
	rand.NewChaCha8([32]byte{5}).Read(sent)
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	if err := w.WriteHeader(&tar.Header{Name: "file", Mode: 0o644, Size: int64(len(sent))}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(sent); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	cost := v.measure(len(sent))
	ctx, written := context.WithCancelCause(t.Context())
	go func() {
		written(conn.Write(t.Context(), wire.Task{ID: "write", Kind: wire.TaskWrite, Path: "/tmp"}, &archive))
	}()
	meanwhile := pings(t, conn, 1<<20, ctx.Done())
	if err := context.Cause(ctx); err != context.Canceled {
		t.Fatal(err)
	}
	t.Logf("into the guest: %s; a ping takes %v meanwhile", cost(), meanwhile)

	cost = v.measure(len(sent))
	_, r, err := conn.Read(t.Context(), wire.Task{ID: "read", Kind: wire.TaskRead, Path: "/tmp/file"})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	tr := tar.NewReader(r)
	if _, err := tr.Next(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(tr)
	if err != nil || !bytes.Equal(got, sent) {
		t.Errorf("%d bytes came back, %v; equal: %v", len(got), err, bytes.Equal(got, sent))
	}
	t.Logf("out of the guest: %s", cost())
}

// measure begins to measure a transfer; the function that it returns ends that and tells the speed and what part of a
// CPU QEMU took, which under emulation is the guest's.
func (v *vm) measure(size int) func() string {
	cpu := func() time.Duration {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", v.cmd.Process.Pid))
		if err != nil {
			v.t.Fatal(err)
		}
		_, rest, _ := bytes.Cut(stat, []byte(") ")) // behind the name: state, …, utime, stime in hundredths of a second
		f := strings.Fields(string(rest))
		var user, system int64
		fmt.Sscan(f[11], &user)
		fmt.Sscan(f[12], &system)
		return time.Duration(user+system) * 10 * time.Millisecond
	}
	began, used := time.Now(), cpu()
	return func() string {
		took := time.Since(began)
		return fmt.Sprintf("%.2f MB/s, %.0f %% of a CPU", float64(size)/1e6/took.Seconds(), 100*(cpu()-used).Seconds()/took.Seconds())
	}
}
