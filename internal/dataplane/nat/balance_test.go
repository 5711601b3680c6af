package nat

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
	"github.com/bulkhead-net/bulkhead/internal/testhost"
)

// hostServices is a load balancer at all of the host's addresses, and at a virtual one that is routed to it. Web stands for the switch: it
// has the addresses inside.
func (tp *topology) hostServices() *plan.Balancer {
	b := &plan.Balancer{ID: "LB", Name: "web", Network: "NET1", Switch: 1}
	for family, f := range families {
		in := plan.Inside(1, family == 1)
		whole := netip.PrefixFrom(in, in.BitLen()).String()
		tp.web.Addr("lo", whole)
		tp.host.Route(whole, f.web.String())
		tp.serve(tp.web, in)
		tp.lan.Route(netip.PrefixFrom(hostVIPs[family], in.BitLen()).String(), f.host.String())
		for _, proto := range []uint8{6, 17} {
			b.Forwards = append(b.Forwards, forward(proto, "all", 30080, in, 80), forward(proto, hostVIPs[family].String(), 80, in, 80))
		}
	}
	return b
}

var hostVIPs = [2]netip.Addr{addr("10.96.0.10"), addr("fd00:96::10")}

func (tp *topology) balance(next *plan.Balancer) error {
	old := tp.plan.Balancers["LB"]
	tp.plan.Balancers = map[hcn.GUID]*plan.Balancer{}
	if next != nil {
		tp.plan.Balancers["LB"] = next
	}
	return tp.a.Update(tp.t.Context(), tp.plan, &plan.Delta{Balancers: map[hcn.GUID]plan.Change[plan.Balancer]{"LB": {Old: old, New: next}}})
}

// TestBalancersOfTheHost: from the LAN, the host and networks to the switch, with the client's address where that can answer it.
func TestBalancersOfTheHost(t *testing.T) {
	tp := newTopology(t)
	tp.sync()
	b := tp.hostServices()
	if err := tp.balance(b); err != nil {
		t.Fatal(err)
	}
	if drift := tp.sync(); len(drift) > 0 {
		t.Errorf("applied twice: %v", drift)
	}
	for family, f := range families {
		t.Run(f.name, func(t *testing.T) {
			for _, to := range []netip.AddrPort{netip.AddrPortFrom(f.host, 30080), netip.AddrPortFrom(hostVIPs[family], 80)} {
				answered(t, tp.lan, to.Addr(), to.Port(), "web sees "+hostPort(f.lan))
				askUDP(t, tp.lan, to.Addr(), to.Port(), hostPort(f.lan))
				answered(t, tp.host, to.Addr(), to.Port(), "web sees "+hostPort(f.host))
				askUDP(t, tp.host, to.Addr(), to.Port(), hostPort(f.host))
				answered(t, tp.far, to.Addr(), to.Port(), "web sees "+hostPort(f.far))
			}
			answered(t, tp.host, f.lo, 30080, "web sees "+hostPort(f.gateway))
			answered(t, tp.web2, f.host, 30080, "web sees "+hostPort(f.gateway))
			in := plan.Inside(1, family == 1)
			tp.counts(t, DropDirect, func() { silent(t, tp.web2, in, 80) })
			tp.lan.Route(netip.PrefixFrom(in, in.BitLen()).String(), f.host.String())
			tp.counts(t, DropDirect, func() { silent(t, tp.lan, in, 80) })
		})
	}
	t.Run("the port is held", func(t *testing.T) {
		if _, err := tp.host.Listen("tcp", "0.0.0.0:30080"); err == nil {
			t.Error("a process got the port")
		}
		_, err := tp.host.Listen("tcp", "0.0.0.0:80") // at a virtual address it is nobody's
		if err != nil {
			t.Error(err)
		}
		err = tp.a.Reservations().Reserve(forward(6, "all", 30080, addr("10.77.1.3"), 80), "somebody")
		if err == nil || !strings.Contains(err.Error(), "load balancer web (LB)") {
			t.Errorf("the holder is not named: %v", err)
		}
	})
	t.Run("repaired", func(t *testing.T) {
		tp.nft("flush", "ruleset")
		if drift := tp.sync(); len(drift) != 1 {
			t.Errorf("drift %v", drift)
		}
		tp.nft("delete", "element", "inet", TableName, mapAll4, "{ tcp . 30080 }")
		if drift := tp.sync(); len(drift) != 1 || drift[0].ID != "LB" {
			t.Errorf("drift %v", drift)
		}
		answered(t, tp.lan, families[0].host, 30080, "web sees ")
	})
	t.Run("gone", func(t *testing.T) { tp.balancerGone(t) })
}

// balancerGone: with it go its elements, ports and the entries of its flows, and no others.
func (tp *topology) balancerGone(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	b := *tp.plan.Balancers["LB"]
	less := b
	less.Forwards = nil
	for _, f := range b.Forwards {
		if f.Protocol == 6 {
			less.Forwards = append(less.Forwards, f)
		}
	}
	held, err := tp.lan.DialContext(ctx, "tcp", netip.AddrPortFrom(families[0].host, 30080).String())
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	if err := tp.balance(&less); err != nil {
		t.Fatal(err)
	}
	if _, err := held.Write([]byte("GET / HTTP/1.0\r\n\r\n")); err != nil {
		t.Error(err)
	}
	if err := held.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if n, err := held.Read(make([]byte, 512)); n == 0 {
		t.Errorf("another port that went has ended the connection: %v", err)
	}
	for _, f := range families {
		testhost.Eventually(t, 5*time.Second, func() error { // a host process can have the UDP port
			c, err := tp.host.ListenPacket("udp", netip.AddrPortFrom(f.host, 30080).String())
			if err == nil {
				c.Close()
			}
			return err
		})
	}
	if err := tp.balance(nil); err != nil {
		t.Fatal(err)
	}
	if got := tp.nft("list", "table", "inet", TableName); strings.Contains(got, "30080") {
		t.Errorf("left in the table:\n%s", got)
	}
	for _, f := range families {
		silent(t, tp.lan, f.host, 30080)
	}
}
