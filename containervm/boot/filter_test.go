package boot

import (
	"fmt"
	"strings"
	"testing"

	"vic/tether/wire"
)

// TestFilterLater has a guest set up an interface with a filter that it was not told of when it booted. One that has
// given back its modules cannot filter, and leaves the interface down.
func TestFilterLater(t *testing.T) {
	disk := busyboxRoot(t)
	m := guestMedium(t)
	var user []string // QEMU's own networks, whose DHCP servers give 10.0.2.15 and 10.0.3.15
	for i := range 2 {
		user = append(user, "-netdev", fmt.Sprintf("user,id=n%d,net=10.0.%d.0/24", i, i+2),
			"-device", fmt.Sprintf("virtio-net-pci,netdev=n%d,romfile=,mac=52:54:00:00:00:%02x", i, i))
	}
	first := wire.NIC{Name: "eth0", MAC: "52:54:00:00:00:00", DHCP: true, Filter: &wire.Filter{Trust: wire.Open}}
	second := wire.NIC{Name: "eth1", MAC: "52:54:00:00:00:01", DHCP: true, Unrouted: true, Filter: &wire.Filter{Trust: wire.Outbound}}
	for name, filters := range map[string]bool{"told that there may be filters": true, "not told": false} {
		t.Run(name, func(t *testing.T) {
			v := bootGuest(t, m, "", disk, wire.Config{Network: wire.Network{Later: true, Filters: filters, NICs: []wire.NIC{first}}, OpenStdin: true,
				Args: []string{"/bin/sh", "-c", `read x; ip route | grep -c default; ping -I eth1 -c 1 -W 5 10.0.3.2 >/dev/null && echo out; ip -o link show | grep -c ,UP`}}, user...)
			conn := v.connect()
			v.await(`"pid"`)
			addresses, err := conn.Network(t.Context(), wire.Network{Later: true, Filters: filters, NICs: []wire.NIC{first, second}})
			want := "1\nout\n3\n" // interfaces that are up, with the loopback
			if filters {
				if got := fmt.Sprint(addresses); err != nil || got != "[[10.0.2.15/24] [10.0.3.15/24]]" {
					t.Errorf("addresses %s, %v", got, err)
				}
			} else if want = "1\n2\n"; err == nil || !strings.Contains(err.Error(), "filter what interfaces let through") {
				t.Errorf("an interface came up without its filter: %v, %v", addresses, err)
			}
			if _, err := conn.Stdin().Write([]byte("go\n")); err != nil {
				t.Fatal(err)
			}
			stdout, stderr, exit := v.end()
			if string(stdout) != want || exit.Code != 0 {
				t.Errorf("stdout %q, want %q; exit %+v; stderr %q", stdout, want, exit, stderr)
			}
		})
	}
}
