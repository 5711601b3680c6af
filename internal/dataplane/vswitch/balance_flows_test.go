package vswitch

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/plan"
	th "github.com/bulkhead-net/bulkhead/internal/testhost"
)

// What the switch remembers of connections to services, and what it does with the packets that are of none by themselves: fragments
// and ICMP errors.

// keeps has the back ends have the service's addresses, and their packets delivered as they are.
func (b *balanced) keeps(s *plan.Service) {
	s.Keep = true
	for i := range s.Backends {
		s.Backends[i] = netip.AddrPortFrom(s.Backends[i].Addr(), s.Port)
	}
}

// haveVIPs gives the back ends the addresses.
func (b *balanced) haveVIPs() {
	b.t.Helper()
	for _, e := range b.ends {
		h := b.ns[e.ID]
		h.Sysctl("net.ipv4.conf.all.arp_announce", "2") // who has an address on loopback does not ask under it
		h.Up("lo")
		for _, vip := range vips {
			h.Addr("lo", netip.PrefixFrom(vip, vip.BitLen()).String())
			th.Eventually(b.t, 5*time.Second, func() (err error) { // the kernel makes an IPv6 address local a moment later
				var routes []netlink.Route
				h.Do(func() {
					var nl *netlink.Handle
					if nl, err = netlink.NewHandle(); err == nil {
						defer nl.Close()
						routes, err = nl.RouteGet(vip.AsSlice())
					}
				})
				if err == nil && (len(routes) == 0 || routes[0].Type != unix.RTN_LOCAL) {
					err = fmt.Errorf("%s is not local: %v", vip, routes)
				}
				return err
			})
		}
	}
}

// choices are what is noted of connections.
func (b *balanced) choices() map[bpfChoiceKey]bpfChoice {
	b.t.Helper()
	out := map[bpfChoiceKey]bpfChoice{}
	it := b.a.objs.BhChoicesV1.Iterate()
	var k bpfChoiceKey
	var v bpfChoice
	for it.Next(&k, &v) {
		out[k] = v
	}
	return out
}

// ask sends a datagram from a socket that is at no one, and says who answers, and from where.
func (b *balanced) ask(c net.PacketConn, to netip.AddrPort) (end, from string, err error) {
	if err := c.SetDeadline(time.Now().Add(2 * time.Second)); err != nil {
		return "", "", err
	}
	if _, err := c.WriteTo([]byte("who"), net.UDPAddrFromAddrPort(to)); err != nil {
		return "", "", err
	}
	buf := make([]byte, 256)
	n, at, err := c.ReadFrom(buf)
	if err != nil {
		return "", "", err
	}
	return string(buf[:min(n, 1)]), at.String(), nil
}

func (b *balanced) socket(h *th.Host, addr netip.Addr) net.PacketConn {
	b.t.Helper()
	c, err := h.ListenPacket("udp", netip.AddrPortFrom(addr, 0).String())
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { c.Close() })
	return c
}

// large asks with a datagram that needs several packets, as the answer does.
func (b *balanced) large(h *th.Host, to netip.AddrPort) {
	b.t.Helper()
	c, err := b.dial(h, "udp", to)
	if err != nil {
		b.t.Fatal(err)
	}
	defer c.Close()
	question, answer := make([]byte, 5000), make([]byte, 8000)
	if _, err := c.Write(question); err != nil {
		b.t.Fatal(err)
	}
	if n, err := c.Read(answer); err != nil || n != len(question) {
		drops, _ := b.a.Drops()
		b.t.Errorf("%s: an answer of %d bytes, %v; drops: %v", to, n, err, drops)
	}
}

// lateAnswers has an answer of the service find no socket: of that a back end hears under the address that it sent from.
func (b *balanced) lateAnswers(service, sender netip.AddrPort, end *plan.Port) {
	b.t.Helper()
	errs := b.ns[end.ID].Capture("eth0", "")
	th.Eventually(b.t, 10*time.Second, func() error {
		c, err := b.dial(b.ns[b.client.ID], "udp", service)
		if err != nil {
			return err
		}
		_, err = c.Write([]byte("who"))
		if err := errors.Join(err, c.Close()); err != nil {
			return err
		}
		for _, f := range errs.Frames() {
			if to, about := readError(f.Data); !f.Outgoing && to == sender.Addr() && about == sender {
				return nil
			}
		}
		return fmt.Errorf("%s: of what %s sends nothing is unreachable", service, sender)
	})
}

// readError reads an error: to whom it is, and who sent what it is about, from which port.
func readError(f []byte) (to netip.Addr, about netip.AddrPort) {
	v4 := len(f) >= 64 && f[12] == 8 && f[13] == 0 && f[23] == unix.IPPROTO_ICMP && f[34] == 3
	v6 := len(f) >= 104 && f[12] == 0x86 && f[20] == unix.IPPROTO_ICMPV6 && f[54] == 1
	switch {
	case v4:
		return netip.AddrFrom4([4]byte(f[30:34])), netip.AddrPortFrom(netip.AddrFrom4([4]byte(f[54:58])), uint16(f[62])<<8|uint16(f[63]))
	case v6:
		return netip.AddrFrom16([16]byte(f[38:54])), netip.AddrPortFrom(netip.AddrFrom16([16]byte(f[70:86])), uint16(f[102])<<8|uint16(f[103]))
	}
	return netip.Addr{}, netip.AddrPort{}
}

// TestBalanceFlows: what is remembered of a connection is its own.
func TestBalanceFlows(t *testing.T) {
	b := newBalanced(t, AttachAuto)
	b.serve(0, nil, b.ends[0])
	b.serve(1, nil, b.ends[0])
	// From one port two services with the same back end are asked, and the back end itself: who is asked answers.
	for family, vip := range vips {
		c := b.socket(b.ns[b.client.ID], b.client.Addrs[family])
		for range 2 {
			for _, to := range []netip.AddrPort{netip.AddrPortFrom(vip, 80), netip.AddrPortFrom(vip, 81), netip.AddrPortFrom(b.ends[0].Addrs[family], 8080)} {
				if _, from, err := b.ask(c, to); err != nil || from != to.String() {
					t.Errorf("asked %s, and %s answers: %v", to, from, err)
				}
			}
		}
	}
	b.choiceStays()
	b.withoutRoom()
}

// choiceStays: the end of a client's flow with a back end that it left takes nothing of the one with the back end that it has.
func (b *balanced) choiceStays() {
	b.t.Helper()
	var sockets []net.PacketConn
	ask := func(want string) {
		b.t.Helper()
		for family, vip := range vips {
			if len(sockets) <= family {
				sockets = append(sockets, b.socket(b.ns[b.client.ID], b.client.Addrs[family]))
			}
			if end, _, err := b.ask(sockets[family], netip.AddrPortFrom(vip, 80)); err != nil || end != want {
				b.t.Fatalf("%s: %q answers, %v; want %s", vip, end, err, want)
			}
		}
	}
	ask("0")
	b.serve(0, nil, b.ends[1])
	b.serve(1, nil)
	ask("1")
	gone := b.ends[0]
	delete(b.plan.Ports, gone.ID)
	b.update(&plan.Delta{Ports: map[plan.PortID]plan.Change[plan.Port]{gone.ID: {Old: gone}}})
	b.in(b.a.sweep) // looks at the ports of flows
	got := b.choices()
	if len(got) != 2 {
		b.t.Errorf("of two connections %d choices are noted: %v", len(got), got)
	}
	for _, c := range got {
		if end := netip.AddrFrom16(c.Ip).Unmap(); end != b.ends[1].Addrs[0] && end != b.ends[1].Addrs[1] {
			b.t.Errorf("%s is chosen", end)
		}
	}
}

// withoutRoom: a connection that finds no place in the table of flows leaves nothing behind, and does not begin.
func (b *balanced) withoutRoom() {
	b.t.Helper()
	before := len(b.choices())
	b.in(func() error { return b.a.configure(1) })
	for family, vip := range vips {
		c := b.socket(b.ns[b.client.ID], b.client.Addrs[family])
		if end, _, err := b.ask(c, netip.AddrPortFrom(vip, 80)); err == nil {
			b.t.Errorf("%s: there is room for no connection, and %s answers", vip, end)
		}
	}
	if n := len(b.choices()); n != before {
		b.t.Errorf("%d choices are noted, and were %d", n, before)
	}
	if b.drops(b.client.ID, ReasonFlowTable) == 0 {
		b.t.Error("nothing counts what was dropped")
	}
}

// lostEnd: a packet whose back end is just going leaves nothing that another connection has chosen on its CPU.
func (b *balanced) lostEnd() {
	b.t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var was, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &was); err != nil {
		b.t.Fatal(err)
	}
	for i := range 1024 {
		if was.IsSet(i) {
			one.Set(i)
			break
		}
	}
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		b.t.Fatal(err)
	}
	defer unix.SchedSetaffinity(0, &was) //nolint:errcheck // the thread's only
	to := netip.AddrPortFrom(vips[0], 80)
	var ports [2]uint16
	var sockets [2]net.PacketConn
	for i := range sockets {
		sockets[i] = b.socket(b.ns[b.client.ID], b.client.Addrs[0])
		ports[i] = netip.MustParseAddrPort(sockets[i].LocalAddr().String()).Port()
		if _, _, err := b.ask(sockets[i], to); err != nil {
			b.t.Fatal(err)
		}
	}
	of := func(port uint16) (out []bpfChoiceKey) {
		for k := range b.choices() {
			if k.Sport == port {
				out = append(out, k)
			}
		}
		return out
	}
	for _, k := range of(ports[1]) { // it has ended
		if err := b.a.objs.BhChoicesV1.Delete(&k); err != nil {
			b.t.Fatal(err)
		}
	}
	at := addrKey(1, b.ends[0].Addrs[0])
	if err := b.a.objs.BhAddrsV1.Delete(&at); err != nil {
		b.t.Fatal(err)
	}
	if _, err := sockets[0].WriteTo([]byte("who"), net.UDPAddrFromAddrPort(to)); err != nil {
		b.t.Fatal(err)
	}
	if left := of(ports[1]); len(left) > 0 {
		b.t.Errorf("another connection's choice is noted: %v", left)
	}
}
