package agent

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/sandbox/vm/proto"
	"github.com/bulkhead-net/bulkhead/internal/testhost"
)

// handle reaches into a namespace.
func handle(t *testing.T, h *testhost.Host) (nl *netlink.Handle, fd int) {
	t.Helper()
	h.Do(func() {
		var err error
		if fd, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0); err == nil {
			nl, err = netlink.NewHandleAt(netns.NsHandle(fd), unix.NETLINK_ROUTE)
		}
		if err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(func() { nl.Close(); _ = unix.Close(fd) })
	return nl, fd
}

// TestReplacedNIC: the host may put a NIC in the place of another that is not gone yet, with the same MAC and name.
func TestReplacedNIC(t *testing.T) {
	pen, box := testhost.New(t), testhost.New(t)
	n := &nics{told: map[string][]proto.Neighbour{}, gone: map[int]bool{}}
	n.pen, _ = handle(t, pen)
	n.box, n.boxF = handle(t, box)
	const mac = "02:00:00:00:00:07"
	nic := proto.NIC{MAC: mac, Name: "eth0", MTU: 1400, Addresses: []proto.Address{{Prefix: netip.MustParsePrefix("192.0.2.1/24")}}}
	for _, dev := range []string{"first", "second"} {
		pen.Run(t, "ip", "link", "add", dev, "address", mac, "type", "veth", "peer", "name", "p-"+dev)
		if err := n.set(t.Context(), nic); err != nil {
			t.Fatalf("%s: %v", dev, err)
		}
		if got := pen.Run(t, "ip", "-o", "link", "show"); strings.Contains(got, " "+dev+"@") {
			t.Errorf("%s is still in the pen: %s", dev, got)
		}
		if got := box.Run(t, "ip", "-o", "addr", "show", "dev", "eth0"); !strings.Contains(got, "192.0.2.1/24") {
			t.Errorf("%s: eth0 has no address: %s", dev, got)
		}
		if dev == "first" {
			if err := n.remove(nic); err != nil {
				t.Fatal(err)
			}
		}
	}
	if got := box.Run(t, "ip", "-o", "link", "show"); strings.Count(got, mac) != 2 {
		t.Errorf("want the old one, and the new one as eth0: %s", got)
	}
	if err := n.remove(nic); err != nil { // and again, which is the new one now
		t.Fatal(err)
	}
	if got := box.Run(t, "ip", "-o", "link", "show", "up"); strings.Contains(got, mac) {
		t.Errorf("a NIC that is taken out is up: %s", got)
	}
}
