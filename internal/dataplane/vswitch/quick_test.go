package vswitch

import (
	"bytes"
	"net/netip"
	"slices"
	"testing"

	th "github.com/bulkhead-net/bulkhead/internal/testhost"
)

// otherWay tells whether a packet of that length, which no other has, has gone the way of those that are out of the ordinary:
// that one leaves it in the scratch space.
func (w *wire) otherWay(length int) bool {
	w.t.Helper()
	var perCPU []bpfScratch
	if err := w.lab.a.objs.BhScratchV7.Lookup(new(uint32), &perCPU); err != nil {
		w.t.Fatal(err)
	}
	return slices.ContainsFunc(perCPU, func(s bpfScratch) bool { return int(s.Pkt.Len) == length })
}

// inIPv6 has the flow's addresses as IPv6 writes those of IPv4, which are the same bytes in the flow table's key.
func inIPv6(w *wire, l4 th.Layer) []byte {
	as6 := func(a netip.Addr) netip.Addr { return netip.AddrFrom16(a.As16()) }
	return th.Frame(eth(w.ma, w.mb), v6(as6(w.ga[0]), as6(w.gb[0])), l4, th.Raw(make([]byte, 400)))
}

// TestQuickWay: plain packets of a flow go the short way (bpf/lib/quick.h) and all others do not, with the same result.
func TestQuickWay(t *testing.T) {
	w := newWire(t, AttachAuto)
	families(t, func(t *testing.T, family int) {
		w.play(t, family, handshake(1000, 80))
		w.play(t, family, []step{
			{"question", false, []th.Layer{udp(1000, 53), th.Text("a question of more than a few bytes")}, delivery},
			{"answer", true, []th.Layer{udp(53, 1000), th.Text("an answer of more than a few bytes")}, delivery},
		})
		length := 300 + family
		plain := func(l4 ...th.Layer) []byte {
			length += 10
			frame := th.Frame(append([]th.Layer{eth(w.ma, w.mb), ip(w.ga[family], w.gb[family])}, l4...)...)
			payload := th.Raw(bytes.Repeat([]byte{byte(length)}, length-len(frame)))
			return th.Frame(append([]th.Layer{eth(w.ma, w.mb), ip(w.ga[family], w.gb[family])}, append(l4, payload)...)...)
		}
		data := th.TCP{SrcPort: 1000, DstPort: 80, Flags: "PA"}
		fin := th.TCP{SrcPort: 1000, DstPort: 80, Flags: "FA"}
		type packet struct {
			name  string
			frame []byte
			quick bool
			want  string
		}
		packets := []packet{
			{"data", plain(data), true, delivery},
			{"a datagram", plain(udp(1000, 53)), true, delivery},
			{"data with the MAC of another port", set(plain(data), 6, w.mg...), false, "source-mac"},
			{"the opener of another connection", plain(th.TCP{SrcPort: 1001, DstPort: 80, Flags: "S"}), false, delivery},
			{"a FIN", plain(fin), true, delivery},
		}
		if family == 0 {
			packets = append(packets, []packet{
				{"the first part of a fragmented packet", set(plain(data), 20, 0x20, 0), false, delivery},
				{"a length beyond the frame", set(plain(data), 16, 0x7f, 0xff), false, "malformed"},
				{"the same flow in an IPv6 header", inIPv6(w, data), false, "martian"},
			}...)
		}
		for _, c := range packets {
			if got := w.send(w.a, w.b, c.frame); got != c.want {
				t.Errorf("%s: %s, want %s", c.name, got, c.want)
			}
			seen := w.otherWay(len(c.frame))
			for try := 0; !c.quick && !seen && try < 20; try++ { // another packet may have gone that way since
				w.send(w.a, w.b, c.frame)
				seen = w.otherWay(len(c.frame))
			}
			if seen == c.quick {
				t.Errorf("%s: goes the short way: %v, want %v", c.name, !seen, c.quick)
			}
		}
	})
}
