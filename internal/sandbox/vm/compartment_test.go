package vm

import (
	"context"
	"errors"
	"net"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/sandbox/vm/proto"
	"github.com/bulkhead-net/bulkhead/internal/testhost"
)

// moodyGuest fails when it is told to, having done who knows what.
type moodyGuest struct {
	fails bool
	told  []proto.NIC
}

func (g *moodyGuest) Call(_ context.Context, _ string, in, _ any) error {
	nic, _ := in.(proto.NIC)
	g.told = append(g.told, nic)
	if g.fails {
		return errors.New("add route: network is unreachable")
	}
	return nil
}

func (g *moodyGuest) Stream(context.Context, string, any, any) (net.Conn, error) {
	return nil, errors.New("no streams")
}

// TestToldAnew: a guest is told of changes alone. One that could not do what it was told has lost what it had, so that a compartment which
// is as it was before is told anew.
func TestToldAnew(t *testing.T) {
	h := testhost.New(t)
	peer := h.NewNamespace("peer")
	h.Connect(peer, testhost.Cable{Dev: "eth0", Addrs: []string{"192.0.2.1/24"}, PeerAddrs: []string{"192.0.2.2/24"}})
	h.Do(func() {
		nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			t.Fatal(err)
		}
		defer nl.Close()
		l, err := nl.LinkByName("eth0")
		if err != nil {
			t.Fatal(err)
		}
		g := &moodyGuest{}
		c := &compartment{nl: nl, guest: g, plugged: map[int]*plugged{l.Attrs().Index: {told: proto.NIC{MAC: l.Attrs().HardwareAddr.String()}}}}
		sync := func(want int, fails bool) {
			t.Helper()
			g.told = nil
			if err := c.sync(t.Context()); (err != nil) != fails {
				t.Errorf("%v, want an error: %t", err, fails)
			}
			if len(g.told) != want {
				t.Errorf("the guest was told %+v, want %d times", g.told, want)
			}
		}
		sync(1, false)
		sync(0, false)
		a, err := netlink.ParseAddr("192.0.2.1/24")
		if err != nil {
			t.Fatal(err)
		}
		if err := nl.AddrDel(l, a); err != nil {
			t.Fatal(err)
		}
		g.fails = true
		sync(1, true)
		if err := nl.AddrAdd(l, a); err != nil { // and all is as it was
			t.Fatal(err)
		}
		sync(1, true)
		g.fails = false
		sync(1, false)
		sync(0, false)
		if len(c.plugged) != 1 {
			t.Errorf("%d NICs, want 1", len(c.plugged))
		}
	})
}
