package bridge

import (
	"context"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/vmware/govmomi/vim25/types"

	"vic/bench/oracle"
	"vic/tether/wire"
)

// TestTether boots a container: the tether finds its configuration, its root disk and its ports in a VM of VMware's shape.
func TestTether(t *testing.T) {
	oracle.Need(t, "qemu-system-x86_64")
	l := newLab(t, Options{})
	ctx := t.Context()
	top := l.uploadImage()
	l.upload(bootISO(t, "vic/cmd/tether"), "vic/tether.iso")
	conf := wire.Config{ID: strings.Repeat("ab", 32), Token: "secret", Hostname: "box", OpenStdin: true, Network: wire.Network{NICs: []wire.NIC{{DHCP: true}}},
		Args: []string{"/busybox", "sh", "-c", `read x; echo $x; /busybox cat /lower /upper; /busybox hostname; exit 7`}, Env: []string{"PATH=/"}}
	info, err := conf.GuestInfo()
	if err != nil {
		t.Fatal(err)
	}
	p := listen(t)
	vm := l.createVM("two", top, "vic/tether.iso", info, l.fileBacking("two/console"), uriBacking(p.uri()), l.fileBacking("two/log"))
	l.must(vm.PowerOn(ctx))
	p.accept()
	within, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	conn, err := wire.Connect(within, p.conn, wire.ConnectOptions{Token: conf.Token, Window: wire.SerialWindow})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	l.await(vm, "guest.ipAddress", func(v any) bool { return v == "10.0.2.15" }) // what QEMU's DHCP server gives
	if _, err := io.WriteString(conn.Stdin(), "over the port\n"); err != nil {
		t.Fatal(err)
	}
	l.await(vm, "runtime.powerState", func(v any) bool { return v == types.VirtualMachinePowerStatePoweredOff })

	stdout, exit := output(t, l.s.Folder("datastore1")+"/two/log")
	if want := "over the port\nfrom the first layerfrom the secondbox\n"; stdout != want || exit.Code != 7 {
		console, _ := os.ReadFile(l.s.Folder("datastore1") + "/two/console")
		t.Errorf("stdout %q, want %q; exit %+v; console:\n%s", stdout, want, exit, console)
	}
	l.must(vm.Destroy(ctx))
}

// output is what a log says that a container wrote, and how it ended.
func output(t *testing.T, log string) (stdout string, exit wire.Exit) {
	t.Helper()
	f, err := os.Open(log)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for r := wire.NewLogReader(f, 0); ; {
		rec, err := r.Next()
		if err == io.EOF {
			return stdout, exit
		} else if err != nil {
			t.Fatal(err)
		}
		switch rec.Type {
		case wire.Stdout:
			stdout += string(rec.Data)
		case wire.Diagnostic:
			t.Logf("diagnostic: %s", rec.Data)
		case wire.RecExit:
			if exit, err = rec.Exit(); err != nil {
				t.Fatal(err)
			}
		}
	}
}
