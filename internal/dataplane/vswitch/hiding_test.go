package vswitch

import (
	"encoding/binary"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/plan"
	th "github.com/bulkhead-net/bulkhead/internal/testhost"
)

// frag is a part of a UDP packet from a to b: the bytes of its payload that begin at
// offset, the first of which holds the UDP header.
type frag struct {
	id     uint32
	offset int
	more   bool
	proto  uint8
}

func (w *wire) fragment(family int, f frag, l4 ...th.Layer) []byte {
	src, dst := w.ga[family], w.gb[family]
	if family == 0 {
		head := th.IPv4{Src: src, Dst: dst, ID: uint16(f.id), MoreFragments: f.more, FragmentOffset: f.offset, Protocol: f.proto}
		// The checksum belongs to the whole packet, which nobody puts together here.
		return th.Frame(eth(w.ma, w.mb), head, th.Raw(payload(src.Is4(), l4...)))
	}
	field := uint16(f.offset)
	if f.more {
		field |= 1
	}
	ext := binary.BigEndian.AppendUint16([]byte{f.proto, 0}, field)
	ext = binary.BigEndian.AppendUint32(ext, f.id)
	return th.Frame(eth(w.ma, w.mb), th.IPv6{Src: src, Dst: dst, NextHeader: unix.IPPROTO_FRAGMENT}, th.Raw(append(ext, payload(false, l4...)...)))
}

// payload is what lies within an IP header.
func payload(four bool, l4 ...th.Layer) []byte {
	if four {
		return th.Frame(append([]th.Layer{v4(addr("192.0.2.1"), addr("192.0.2.2"))}, l4...)...)[20:]
	}
	return th.Frame(append([]th.Layer{v6(addr("2001:db8::1"), addr("2001:db8::2"))}, l4...)...)[40:]
}

// TestFragmentsMeetRules: a may send to all ports but 2000. The rest of a packet passes
// only when its first part has, under the rules that hold.
func TestFragmentsMeetRules(t *testing.T) {
	bothWays(t, func(t *testing.T, mode AttachMode) {
		w := newWire(t, mode)
		block := list(plan.Allow, to(plan.Block, unix.IPPROTO_UDP, 2000), to(plan.Block, unix.IPPROTO_TCP, 2000))
		rest, body := th.Text("the rest of it.."), th.Text("the body")
		const udpProto, tcpProto = unix.IPPROTO_UDP, unix.IPPROTO_TCP
		families(t, func(t *testing.T, family int) {
			w.rulesA(block, nil)
			for i, c := range []struct {
				name string
				frag frag
				l4   []th.Layer
				want string
			}{
				{"rest before the first", frag{1, 16, false, udpProto}, []th.Layer{rest}, "fragment"},
				{"first", frag{1, 0, true, udpProto}, []th.Layer{udp(9, 1000), body}, delivery},
				{"rest", frag{1, 16, true, udpProto}, []th.Layer{rest}, delivery},
				{"last", frag{1, 32, false, udpProto}, []th.Layer{rest}, delivery},
				{"rest that overlaps the first behind its ports", frag{1, 8, false, udpProto}, []th.Layer{rest}, delivery},
				{"rest of another packet", frag{2, 16, false, udpProto}, []th.Layer{rest}, "fragment"},
				{"first to the blocked port", frag{3, 0, true, udpProto}, []th.Layer{udp(9, 2000), body}, policyOut},
				{"its rest", frag{3, 16, false, udpProto}, []th.Layer{rest}, "fragment"},
				{"another first of a packet that passes", frag{1, 0, true, udpProto}, []th.Layer{udp(9, 2000), body}, policyOut},
				{"first without all its ports", frag{4, 0, true, udpProto}, []th.Layer{th.Raw{0, 9, 7, 208}}, "fragment"},
				{"first TCP", frag{5, 0, true, tcpProto}, []th.Layer{th.TCP{SrcPort: 9, DstPort: 1000, Flags: "S"}, body}, delivery},
				{"TCP flags overwritten", frag{5, 8, true, tcpProto}, []th.Layer{rest}, "fragment"},
				{"rest TCP", frag{5, 24, false, tcpProto}, []th.Layer{rest}, delivery},
				{"first TCP to the blocked port", frag{6, 0, true, tcpProto}, []th.Layer{th.TCP{SrcPort: 9, DstPort: 2000, Flags: "S"}, body}, policyOut},
				{"half a TCP header", frag{7, 0, true, tcpProto}, []th.Layer{th.Raw(make([]byte, 16))}, "fragment"},
				{"whole packet as a fragment", frag{8, 0, false, udpProto}, []th.Layer{udp(9, 2000), body}, policyOut},
			} {
				frame := w.fragment(family, c.frag, c.l4...)
				if got := w.send(w.a, w.b, frame); got != c.want {
					t.Errorf("%d, %s: %s, want %s: %s", i, c.name, got, c.want, th.Describe(frame))
				}
			}
			// What is under way when the rules change has to begin anew.
			w.rulesA(list(plan.Allow, to(plan.Block, unix.IPPROTO_UDP, 1000)), nil)
			frame := w.fragment(family, frag{1, 48, false, udpProto}, rest)
			if got := w.send(w.a, w.b, frame); got != "fragment" {
				t.Errorf("rest after a change of rules: %s", got)
			}
		})
	})
}

// TestHiddenPorts tries to bring a datagram to port 2000, which the sender's rules and
// then the receiver's block, by what stands before its ports.
func TestHiddenPorts(t *testing.T) {
	bothWays(t, func(t *testing.T, mode AttachMode) {
		w := newWire(t, mode)
		a4, b4, a6, b6 := w.ga[0], w.gb[0], w.ga[1], w.gb[1]
		six := func(headers ...[]byte) []byte {
			return extend(th.Frame(eth(w.ma, w.mb), v6(a6, b6), udp(9, 2000)), headers...)
		}
		four := th.Frame(eth(w.ma, w.mb), v4(a4, b4), udp(9, 2000))
		long := th.Frame(eth(w.ma, w.mb), v6(a6, b6), udp(9, 2000))
		many := func(n int) [][]byte {
			var out [][]byte
			for range n {
				out = append(out, destOptions())
			}
			return out
		}
		routing := []byte{43, 0, 0, 4, 0, 0, 0, 0, 0}
		auth := append([]byte{51, 0, 4}, make([]byte, 22)...)
		// policy stands for the reason of whose rules block.
		const policy = "policy"
		cases := []struct {
			name  string
			frame []byte
			want  string
		}{
			{"plain", four, policy},
			{"plain IPv6", long, policy},
			{"IPv4 options", th.Frame(eth(w.ma, w.mb), th.IPv4{Src: a4, Dst: b4, Options: []byte{1, 1, 1, 1, 1, 1, 1, 1}}, udp(9, 2000)), policy},
			{"most IPv4 options", th.Frame(eth(w.ma, w.mb), th.IPv4{Src: a4, Dst: b4, Options: make([]byte, 40)}, udp(9, 2000)), policy},
			{"source route", th.Frame(eth(w.ma, w.mb), th.IPv4{Src: a4, Dst: b4, Options: []byte{131, 7, 4, 10, 1, 0, 1, 0}}, udp(9, 2000)), policy},
			{"hop by hop", six(hopByHop()), policy},
			{"destination options", six(destOptions()), policy},
			{"routing", six(routing), policy},
			{"authentication", six(auth), policy},
			{"atomic fragment", six(fragment(0, false)), policy},
			{"all of them", six(hopByHop(), destOptions(), routing, fragment(0, false), auth, destOptions()), policy},
			{"as many as are read", six(many(7)...), policy},
			{"more than are read", six(many(8)...), "extension-headers"},
			{"first fragment behind options", six(destOptions(), fragment(0, true)), policy},
			{"first fragment, then options", six(fragment(0, true), destOptions()), policy},
			{"header that ends in the next fragment", set(six(fragment(0, true), destOptions()), 63, 4), "fragment"},
			{"header longer than the packet", set(six(destOptions()), 55, 9), "malformed"},
			{"length that leaves the ports out", set(append([]byte(nil), four...), 16, 0, 24), "malformed"},
			{"IPv6 length that leaves the ports out", set(append([]byte(nil), long...), 18, 0, 4), "malformed"},
			{"length beyond the frame", set(append([]byte(nil), four...), 16, 0, 99), "malformed"},
			{"jumbogram", set(append([]byte(nil), long...), 18, 0, 0), "malformed"},
			{"short header length", set(append([]byte(nil), four...), 14, 0x44), "malformed"},
			{"wrong version", set(append([]byte(nil), four...), 14, 0x65), "malformed"},
			{"tagged", th.Frame(eth(w.ma, w.mb), th.VLAN{ID: 5}, v4(a4, b4), udp(9, 2000)), "vlan-tag"},
			{"tagged with priority alone", th.Frame(eth(w.ma, w.mb), th.VLAN{Priority: 7}, v4(a4, b4), udp(9, 2000)), "vlan-tag"},
			{"tagged IPv6", th.Frame(eth(w.ma, w.mb), th.VLAN{ID: 5}, v6(a6, b6), udp(9, 2000)), "vlan-tag"},
			{"LLC", th.Frame(th.Ethernet{Src: w.ma, Dst: w.mb, Type: 40}, th.Raw(four[14:])), "ethertype"},
			{"PPPoE", th.Frame(th.Ethernet{Src: w.ma, Dst: w.mb, Type: 0x8864}, th.Raw(four[14:])), "ethertype"},
			{"mapped addresses", th.Frame(eth(w.ma, w.mb), v6(addr("::ffff:10.1.7.10"), addr("::ffff:10.1.7.11")), udp(9, 2000)), "martian"},
			{"padded", append(append([]byte(nil), four...), make([]byte, 20)...), policy},
		}
		rules := []func() string{
			func() string {
				w.rulesA(list(plan.Allow, to(plan.Block, unix.IPPROTO_UDP, 2000)), nil)
				return policyOut
			},
			func() string {
				w.rulesA(nil, nil)
				w.rulesB(nil, list(plan.Allow, own(plan.Block, unix.IPPROTO_UDP, 2000)))
				return policyIn
			},
		}
		for _, apply := range rules {
			by := apply()
			for _, c := range cases {
				want := c.want
				if want == policy {
					want = by
				}
				if got := w.send(w.a, w.b, c.frame); got != want {
					t.Errorf("%s: %s, want %s: %s", c.name, got, want, th.Describe(c.frame))
				}
			}
		}
	})
}
