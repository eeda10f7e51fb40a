package bridge

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"vic/bench/oracle"
	"vic/containervm/vspc"
	"vic/tether/wire"
)

// TestConcentrator boots a guest whose control port leads through a concentrator, moves its VM during a session, suspends it, and puts another
// concentrator in the first one's place. The guest's process runs on. What the whole way takes is printed.
func TestConcentrator(t *testing.T) {
	oracle.Need(t, "qemu-system-x86_64")
	l := newLab(t, Options{})
	ctx := t.Context()
	top := l.uploadImage()
	l.upload(bootISO(t, "vic/cmd/tether"), "vic/tether.iso")
	conf := wire.Config{ID: strings.Repeat("cd", 32), Token: "secret", Hostname: "box", OpenStdin: true,
		Args: []string{"/busybox", "sh", "-c", `while read x; do echo "$x"; [ "$x" = end ] && exit 7; done`}, Env: []string{"PATH=/"}}
	info, err := conf.GuestInfo()
	if err != nil {
		t.Fatal(err)
	}
	s, address := concentrator(t, "127.0.0.1:0")
	control := uriBacking("vic.control")
	control.ProxyURI = "telnet://" + address
	vm := l.createVM("three", top, "vic/tether.iso", info, l.fileBacking("three/console"), control, l.fileBacking("three/log"))
	var props mo.VirtualMachine
	if err := vm.Properties(ctx, vm.Reference(), []string{"config.uuid"}, &props); err != nil {
		t.Fatal(err)
	}
	uuid := props.Config.Uuid
	l.must(vm.PowerOn(ctx))
	conn := openControl(t, s, uuid, conf.Token)
	before := process(t, conn)
	say := func(text string) {
		t.Helper()
		if _, err := io.WriteString(conn.Stdin(), text); err != nil {
			t.Fatal(err)
		}
		if err := conn.Ping(ctx); err != nil { // the guest has got it
			t.Fatal(err)
		}
	}
	say("one\n")
	throughput(t, conn)

	t.Run("vMotion", func(t *testing.T) {
		hosts, err := find.NewFinder(l.Client).HostSystemList(ctx, "*/*")
		if err != nil || len(hosts) < 2 {
			t.Fatalf("%d hosts, %v", len(hosts), err)
		}
		moved, stop := context.WithCancel(ctx)
		pinged := make(chan int)
		go func() { // and none is lost
			n := 0
			for ; moved.Err() == nil; n++ {
				if err := conn.Ping(ctx); err != nil {
					t.Errorf("ping %d: %v", n, err)
					break
				}
			}
			pinged <- n
		}()
		for _, h := range append(hosts, hosts...) {
			ref := h.Reference()
			l.must(vm.Relocate(ctx, types.VirtualMachineRelocateSpec{Host: &ref}, types.VirtualMachineMovePriorityDefaultPriority))
			if err := vm.Properties(ctx, vm.Reference(), []string{"runtime.host"}, &props); err != nil || *props.Runtime.Host != ref {
				t.Errorf("the VM is on %v, %v", props.Runtime.Host, err)
			}
		}
		stop()
		t.Logf("%d pings during %d vMotions", <-pinged, 2*len(hosts))
		none := &types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationEdit, Device: serialPort(-1, control)}
		task, err := vm.Relocate(ctx, types.VirtualMachineRelocateSpec{DeviceChange: []types.BaseVirtualDeviceConfigSpec{none}}, types.VirtualMachineMovePriorityDefaultPriority)
		if err == nil {
			err = task.WaitEx(ctx)
		}
		if err == nil {
			t.Error("a VM moved with a device that it does not have")
		}
		if err := conn.Ping(ctx); err != nil {
			t.Errorf("after a move that came to nothing: %v", err)
		}
	})
	say("two\n")

	l.must(vm.Suspend(ctx)) // no host has it
	<-conn.Done()
	l.must(vm.PowerOn(ctx))
	conn = openControl(t, s, uuid, conf.Token)
	say("three\n")

	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	<-conn.Done()
	again, _ := concentrator(t, address)
	conn = openControl(t, again, uuid, conf.Token)
	if now := process(t, conn); now != before {
		t.Errorf("the process is %d, was %d", now, before)
	}
	if _, err := io.WriteString(conn.Stdin(), "end\n"); err != nil {
		t.Fatal(err)
	}
	l.await(vm, "runtime.powerState", func(v any) bool { return v == types.VirtualMachinePowerStatePoweredOff })
	if stdout, exit := output(t, l.s.Folder("datastore1")+"/three/log"); stdout != "one\ntwo\nthree\nend\n" || exit.Code != 7 {
		t.Errorf("stdout %q, exit %+v", stdout, exit)
	}
}

// process is the container's, asked for until it has been started.
func process(t *testing.T, conn *wire.Conn) int {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		st, err := conn.State(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if st.PID != 0 {
			return st.PID
		}
	}
}

// throughput sends a file into the guest and reads it back.
func throughput(t *testing.T, conn *wire.Conn) {
	t.Helper()
	sent := make([]byte, 32<<10)
	rand.Read(sent)
	began := time.Now()
	if err := conn.Write(t.Context(), wire.Task{ID: "write", Kind: wire.TaskWrite, Path: "/"}, bytes.NewReader(pack(t, map[string][]byte{"file": sent}))); err != nil {
		t.Fatal(err)
	}
	into := time.Since(began)
	began = time.Now()
	_, r, err := conn.Read(t.Context(), wire.Task{ID: "read", Kind: wire.TaskRead, Path: "/file"})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	files := tar.NewReader(r)
	if _, err := files.Next(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(files); err != nil || !bytes.Equal(got, sent) {
		t.Errorf("%d bytes came back, %v; equal: %v", len(got), err, bytes.Equal(got, sent))
	}
	speed := func(d time.Duration) float64 { return float64(len(sent)) / 1e6 / d.Seconds() }
	t.Logf("into the guest: %.2f MB/s; out of it: %.2f MB/s", speed(into), speed(time.Since(began)))
}

// openControl opens a control session through a concentrator.
func openControl(t *testing.T, s *vspc.Server, uuid, token string) *wire.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	port, err := s.Dial(ctx, uuid, "vic.control")
	if err != nil {
		t.Fatal(err)
	}
	conn, err := wire.Connect(ctx, port, wire.ConnectOptions{Token: token, Window: wire.SerialWindow})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}
