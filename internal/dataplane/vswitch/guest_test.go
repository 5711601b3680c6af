package vswitch

import (
	"net/netip"
	"testing"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// TestGuestCountsBothWays: what an endpoint in the host's stack sends leaves by the host's own vNIC, and is counted as
// the endpoint's. What the host sends itself is not.
func TestGuestCountsBothWays(t *testing.T) {
	bothWays(t, func(t *testing.T, mode AttachMode) {
		l := newLab(t, mode)
		l.nat(1)
		b := l.container(1, 11)
		l.live()
		host := l.plan.Ports[plan.HostPortID(network(1))]
		hostB := l.ns[b.ID]
		read := func(id plan.PortID) Counters {
			t.Helper()
			c, err := l.a.Counters(id)
			if err != nil {
				t.Fatal(err)
			}
			return c
		}
		flags := func() uint8 { return l.a.applied[host.ID].entry.Flags & portGuests }
		if flags() != 0 {
			t.Error("the host port has guests before one is there")
		}

		guest := l.container(1, 20)
		guest.VNIC.Namespace, guest.VNIC.Device = "", "guest20"
		l.devices(guest)
		l.update(change(nil, guest))
		l.up(guest)
		for _, a := range guest.Addrs {
			if err := hostB.Ping(a); err != nil {
				t.Fatal(err)
			}
		}
		got := read(guest.ID)
		if got.RxPackets < 2 || got.TxPackets < 2 || got.TxBytes == 0 { // it receives broadcast, too
			t.Errorf("after echo requests and replies the guest has %+v", got)
		}
		// A flow is carried the short way.
		hostPort, before := read(host.ID), got
		l.host.UDPEcho(netip.AddrPortFrom(guest.Addrs[0], 7))
		for range 5 {
			if _, err := hostB.UDPAsk(netip.AddrPortFrom(guest.Addrs[0], 7), "x"); err != nil {
				t.Fatal(err)
			}
		}
		got = read(guest.ID)
		if rx, tx := got.RxPackets-before.RxPackets, got.TxPackets-before.TxPackets; rx < 5 || tx < 5 {
			t.Errorf("5 questions and answers: received %d, sent %d", rx, tx)
		}
		if sent := read(host.ID).TxPackets - hostPort.TxPackets; sent > 0 {
			t.Errorf("the host's own port counts %d of what the guest sent", sent)
		}
		before = got
		if err := l.host.Ping(b.Addrs[0]); err != nil {
			t.Fatal(err)
		}
		if got = read(guest.ID); got != before || read(host.ID).TxPackets == hostPort.TxPackets {
			t.Errorf("what the host sent went to the guest's account: %+v, before %+v", got, before)
		}

		if drift := l.sync(); len(drift) > 0 {
			t.Errorf("a sync finds %v", drift)
		}
		if flags() == 0 {
			t.Error("after a sync the host port has no guests")
		}
		delete(l.plan.Ports, guest.ID)
		l.update(change(guest, nil))
		if flags() != 0 {
			t.Error("the host port has guests after the last went")
		}
	})
}
