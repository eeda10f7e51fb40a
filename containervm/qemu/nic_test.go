package qemu

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"vic/containervm"
)

// awaitConsole waits until the guest's console ends with a line.
func awaitConsole(t *testing.T, v containervm.VM, line string) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) { // a file tells nobody that it grew
		console, err := os.ReadFile(v.Console)
		if err == nil && strings.HasSuffix(strings.TrimSpace(string(console)), line) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("console does not end with %q, %v:\n%s", line, err, console)
		}
	}
}

// awaitEnd waits until an end takes connections: QEMU begins to listen some time after it has answered.
func awaitEnd(t *testing.T, m containervm.Machine, end string) {
	t.Helper()
	for over := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) { // it tells nobody
		conn, err := m.Dial(t.Context(), end)
		if err == nil {
			conn.Close()
			return
		}
		if time.Now().After(over) {
			t.Fatal(err)
		}
	}
}

// TestPlug plugs interfaces into a VM that runs, one of them in place of one that was there at the boot, and pulls
// them out, also through the Machine of a VCH that came back.
func TestPlug(t *testing.T) {
	v := vm(t, `busybox mount -t sysfs s /sys; while :; do n=$(for f in /sys/bus/pci/devices/*/class; do read c <$f; echo $c; done | busybox grep -c 0x020000); [ "$n" = "$o" ] || echo "nics: $n"; o=$n; busybox usleep 50000; done`)
	m, err := driver(t).Start(t.Context(), v)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // whatever becomes of the test
		if m, err := driver(t).Find(context.Background(), v); err == nil {
			m.Kill()
			<-m.Done()
			m.Close()
		}
	})
	awaitConsole(t, v, "nics: 1")
	second := containervm.NIC{End: "net1", MAC: "02:42:ac:12:00:02"}
	for range 2 { // the second time replaces it
		if err := m.AddNIC(t.Context(), second); err != nil {
			t.Fatal(err)
		}
		awaitEnd(t, m, "net1")
		awaitConsole(t, v, "nics: 2")
	}
	if err := m.RemoveNIC(t.Context(), "net0"); err != nil {
		t.Fatal(err)
	}
	awaitConsole(t, v, "nics: 1")
	if _, err := m.Dial(t.Context(), "net0"); err == nil {
		t.Error("the end of an interface that is gone takes connections")
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	found, err := driver(t).Find(t.Context(), v)
	if err != nil {
		t.Fatal(err)
	}
	defer found.Close()
	for _, end := range []string{"net1", "net1", "net7"} {
		if err := found.RemoveNIC(t.Context(), end); err != nil {
			t.Errorf("remove %s: %v", end, err)
		}
	}
	awaitConsole(t, v, "nics: 0")
	if err := found.Kill(); err != nil {
		t.Error(err)
	}
	<-found.Done()
	if err := found.AddNIC(t.Context(), second); err == nil {
		t.Error("an interface was plugged into a VM that has ended")
	}
}
