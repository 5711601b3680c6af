package vswitch

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	th "github.com/bulkhead-net/bulkhead/internal/testhost"
)

// TestUnconfirmedNetwork: up to its time a network that waits to be confirmed works as any
// does. Past it, with nobody there to take it away, host and LAN are as without it: nothing of the
// containers is on the wire, and what is for the host arrives, also what the switch would drop.
func TestUnconfirmedNetwork(t *testing.T) {
	bothWays(t, func(t *testing.T, mode AttachMode) {
		n := newLAN(t, mode)
		wait := func(by time.Time) {
			t.Helper()
			sw := *n.plan.Switches[network(lanNumber)]
			sw.ConfirmBy = by
			n.plan.Switches[network(lanNumber)] = &sw
			n.sync()
			n.whole()
		}
		wait(time.Now().Add(time.Hour))
		n.ping(n.peer, n.a.Addrs[0])
		n.ping(n.peer, n.a.Addrs[1])
		// The daemon dies: only the clock goes on.
		wait(time.Now().Add(3*time.Second - overdue))
		n.peer.Run(t, "ip", "neigh", "flush", "dev", "eth0")
		th.Eventually(t, 20*time.Second, func() error {
			if n.peer.Ping(n.a.Addrs[0]) == nil {
				return errors.New("a container of an overdue network still answers")
			}
			return nil
		})
		for _, a := range []netip.Addr{addr("10.9.0.1"), addr("fd00:9::1")} {
			n.ping(n.peer, a)
		}
		n.ping(n.host, addr("10.9.0.2"))
		n.ping(n.host, addr("fd00:9::2"))
		if n.hostA.Ping(n.b.Addrs[0]) == nil {
			t.Error("containers reach each other on a network that is as if it were not there")
		}
		capture := n.wire.Capture("p0", hw(n.a.MAC).String()+" >")
		_ = n.hostA.Ping(addr("10.9.0.2")) // cannot arrive
		for _, line := range capture.Lines() {
			t.Errorf("a frame of a container is on the wire: %s", line)
		}
		capture.Stop()
		r := n.run(n.a.ID, th.Frame(eth(hw(n.a.MAC), n.peer.MAC("eth0")), v4(n.a.Addrs[0], addr("10.9.0.2")), udp(1, 2)))
		if r.Outcome != Dropped || r.Reason != ReasonUnconfirmed {
			t.Errorf("a container's frame: %s %s, want dropped for unconfirmed", r.Outcome, r.Reason)
		}
		// Confirmed after all, by a daemon that is back.
		wait(time.Time{})
		n.ping(n.peer, n.a.Addrs[0])
		n.ping(n.hostA, n.b.Addrs[0])
	})
}

// TestPendingIsForgotten: what a daemon that died left is taken back by the next.
func TestPendingIsForgotten(t *testing.T) {
	bothWays(t, func(t *testing.T, mode AttachMode) {
		n := newLAN(t, mode)
		sw := *n.plan.Switches[network(lanNumber)]
		sw.ConfirmBy = time.Now().Add(time.Hour)
		n.plan.Switches[network(lanNumber)] = &sw
		n.sync()
		read := func() (v bpfPending) {
			t.Helper()
			n.in(func() error { return n.lab.a.objs.BhPendingV1.Lookup(new(uint32), &v) })
			return v
		}
		if v := read(); v.Sw != lanNumber || v.Until == 0 {
			t.Errorf("the programs know %+v", v)
		}
		n.in(n.lab.a.Close)
		n.open()
		delete(n.plan.Switches, network(lanNumber))
		clear(n.plan.Ports)
		n.sync()
		if v := read(); v != (bpfPending{}) {
			t.Errorf("after the restart the programs know %+v", v)
		}
	})
}

// TestUnconfirmedPort: past the time of an attachment that waits, nothing leaves its port, and the others go on.
func TestUnconfirmedPort(t *testing.T) {
	bothWays(t, func(t *testing.T, mode AttachMode) {
		n := newLAN(t, mode)
		wait := func(by time.Time) {
			t.Helper()
			port := *n.plan.Ports[n.a.ID]
			port.ConfirmBy = by
			n.plan.Ports[n.a.ID] = &port
			n.sync()
			n.whole()
		}
		wait(time.Now().Add(time.Hour))
		n.ping(n.peer, n.a.Addrs[0])
		wait(time.Now().Add(2*time.Second - overdue))
		th.Eventually(t, 20*time.Second, func() error {
			if n.peer.Ping(n.a.Addrs[0]) == nil {
				return errors.New("a container whose attachment is overdue still answers")
			}
			return nil
		})
		n.ping(n.peer, n.b.Addrs[0])
		n.ping(n.host, n.b.Addrs[1])
		r := n.run(n.a.ID, th.Frame(eth(hw(n.a.MAC), n.peer.MAC("eth0")), v4(n.a.Addrs[0], addr("10.9.0.2")), udp(1, 2)))
		if r.Outcome != Dropped || r.Reason != ReasonUnconfirmed {
			t.Errorf("its frame: %s %s, want dropped for unconfirmed", r.Outcome, r.Reason)
		}
		wait(time.Time{})
		n.ping(n.peer, n.a.Addrs[0])
	})
}
