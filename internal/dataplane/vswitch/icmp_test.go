package vswitch

import (
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/plan"
	th "github.com/bulkhead-net/bulkhead/internal/testhost"
)

// Messages that complain about a packet, as types and codes of the two families.
var (
	unreachable = [2][2]uint8{{3, 3}, {1, 4}}
	tooBig      = [2][2]uint8{{3, 4}, {2, 0}}
	exceeded    = [2][2]uint8{{11, 0}, {3, 0}}
)

// complaint is an error message about a packet, which follows without its Ethernet header.
func complaint(family int, kind [2][2]uint8, about []byte) []th.Layer {
	return []th.Layer{th.ICMP{Type: kind[family][0], Code: kind[family][1], Body: []byte{0, 0, 5, 20}}, th.Raw(about)}
}

// about is an IP packet as a message quotes it.
func about(src, dst netip.Addr, l4 ...th.Layer) []byte {
	return th.Frame(append([]th.Layer{ip(src, dst)}, l4...)...)
}

// TestErrorsOfAConnection: a receives nothing but answers, and messages about its own
// connections are such, from the peer of each or from routers, which only the host is.
func TestErrorsOfAConnection(t *testing.T) {
	w := newWire(t, AttachAuto)
	w.rulesA(nil, list(plan.Block))
	far := [2]netip.Addr{addr("192.0.2.7"), addr("2001:db8::7")}
	gateways := [2]netip.Addr{gateway4(1), gateway6(1)}
	families(t, func(t *testing.T, family int) {
		a, b, gw := w.ga[family], w.gb[family], gateways[family]
		w.play(t, family, handshake(1000, 80))
		w.play(t, family, []step{
			{"question", false, datagram(2000, 53), delivery},
			{"echo", false, ping(7, false), delivery},
		})
		if got := w.send(w.a, w.gateway, th.Frame(eth(w.ma, w.mg), ip(a, far[family]), udp(3000, 443))); got != delivery {
			t.Fatalf("a to the outside: %s", got)
		}
		ports := th.Raw([]byte{7, 208, 0, 53}) // 2000 > 53, and no more
		for _, c := range []struct {
			name  string
			from  *plan.Port
			src   netip.Addr
			kind  [2][2]uint8
			about []byte
			want  string
		}{
			{"b about the question", w.b, b, unreachable, about(a, b, udp(2000, 53)), delivery},
			{"b about the echo", w.b, b, unreachable, about(a, b, th.Echo{ID: 7}), delivery},
			{"b about a's segment", w.b, b, unreachable, about(a, b, th.TCP{SrcPort: 1000, DstPort: 80, Flags: "PA"}), delivery},
			{"the gateway about the question", w.gateway, gw, exceeded, about(a, b, udp(2000, 53)), delivery},
			{"the gateway about the way out", w.gateway, gw, tooBig, about(a, far[family], udp(3000, 443)), delivery},
			{"the far end about the way out", w.gateway, far[family], unreachable, about(a, far[family], udp(3000, 443)), delivery},

			{"b about a question nobody asked", w.b, b, unreachable, about(a, b, udp(2001, 53)), policyIn},
			{"b about an echo nobody sent", w.b, b, unreachable, about(a, b, th.Echo{ID: 8}), policyIn},
			{"b about the question as a segment", w.b, b, unreachable, about(a, b, th.TCP{SrcPort: 2000, DstPort: 53}), policyIn},
			{"b about its own answer", w.b, b, unreachable, about(b, a, udp(53, 2000)), policyIn},
			{"b about another's question", w.b, b, unreachable, about(w.b.Addrs[family], b, udp(2000, 53)), policyIn},
			{"b about a's way out", w.b, b, tooBig, about(a, far[family], udp(3000, 443)), policyIn},
			{"b about less than the ports", w.b, b, unreachable, about(a, b, th.Raw{7, 208, 0}), policyIn},
			{"b about the ports alone", w.b, b, unreachable, about(a, b, ports), policyIn},
			{"b about nothing", w.b, b, unreachable, nil, policyIn},
			{"b about half a header", w.b, b, unreachable, about(a, b, udp(2000, 53))[:12], policyIn},
			{"the gateway about what nobody sent", w.gateway, gw, tooBig, about(a, far[family], udp(3001, 443)), policyIn},
		} {
			frame := th.Frame(append([]th.Layer{eth(hw(c.from.MAC), w.ma), ip(c.src, a)}, complaint(family, c.kind, c.about)...)...)
			if got := w.send(c.from, w.a, frame); got != c.want {
				t.Errorf("%s: %s, want %s: %s", c.name, got, c.want, th.Describe(frame))
			}
		}
		// No way for anything else under the name of an error: neither a question under
		// its type nor one that comes in pieces.
		if family == 0 {
			later := th.Frame(th.IPv4{Src: a, Dst: b, FragmentOffset: 1480, Protocol: unix.IPPROTO_UDP}, udp(2000, 53))
			w.play(t, family, []step{
				{"about a later fragment", true, complaint(family, unreachable, later), policyIn},
				{"redirect", true, []th.Layer{th.ICMP{Type: 5, Code: 1, Body: gw.AsSlice()}, th.Raw(about(a, b, udp(2000, 53)))}, "redirect"},
				{"source quench", true, []th.Layer{th.ICMP{Type: 4, Body: make([]byte, 4)}, th.Raw(about(a, b, udp(2000, 53)))}, policyIn},
			})
		}
		// IPv6 has what IPv4's header says of fragments in headers between, which the sender of a large datagram has put there.
		if family == 1 {
			behind := func(headers ...[]byte) []byte {
				return extend(th.Frame(eth(w.ma, w.mb), ip(a, b), udp(2000, 53)), headers...)[14:]
			}
			first, options := fragment(0, true), destOptions()
			w.play(t, family, []step{
				{"about a first fragment", true, complaint(family, tooBig, behind(first)), delivery},
				{"about one with options", true, complaint(family, tooBig, behind(options, first)), delivery},
				{"about a later fragment", true, complaint(family, tooBig, behind(fragment(1480, true))), policyIn},
				{"about half a fragment header", true, complaint(family, tooBig, behind(first)[:42]), policyIn},
				{"about more headers than anybody sends", true, complaint(family, tooBig, behind(options, options, options, options, first)), policyIn},
			})
		}
		// What the rules have cut has no errors either.
		w.rulesA(list(plan.Allow, to(plan.Block, unix.IPPROTO_UDP, 53)), list(plan.Block))
		w.play(t, family, []step{
			{"question", false, datagram(2000, 53), policyOut},
			{"b about it", true, complaint(family, unreachable, about(a, b, udp(2000, 53))), policyIn},
		})
		w.rulesA(nil, list(plan.Block))
	})
}

// TestPathMTU: behind the host the way is narrower than the switch, and a receives
// nothing but answers. Without the host's messages the transfer would hang.
func TestPathMTU(t *testing.T) {
	w := newWire(t, AttachAuto)
	w.rulesA(nil, list(plan.Block))
	world := th.New(t, th.WithName("world"))
	w.host.Connect(world, th.Cable{Dev: "up0", Addrs: []string{"192.0.2.1/24", "2001:db8::1/64"}, PeerAddrs: []string{"192.0.2.7/24", "2001:db8::7/64"}})
	w.host.Forwarding(true)
	world.Route("10.1.0.0/16", "192.0.2.1")
	world.Route("fd00:1::/64", "2001:db8::1")
	w.host.Run(t, "ip", "link", "set", "up0", "mtu", "1300")
	for _, far := range []string{"192.0.2.7", "2001:db8::7"} {
		to := world.TCPEcho(netip.AddrPortFrom(addr(far), 7))
		if err := echo(w.hostA, to, 1<<20); err != nil {
			t.Errorf("through a link of 1300 bytes to %s: %v", far, err)
		}
		if route := w.hostA.Run(t, "ip", "route", "get", far); !strings.Contains(route, "mtu 1300") {
			t.Errorf("a did not learn the path's MTU: %s", route)
		}
	}
}
