package nat

import (
	"bytes"
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

func be32(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }

func traceMessage(t testing.TB, attrs ...netlink.Attribute) []byte {
	t.Helper()
	b, err := netlink.MarshalAttributes(attrs)
	if err != nil {
		t.Fatal(err)
	}
	return append([]byte{unix.NFPROTO_IPV4, unix.NFNETLINK_V0, 0, 0}, b...)
}

func verdictAttribute(t testing.TB, code int32) netlink.Attribute {
	t.Helper()
	b, err := netlink.MarshalAttributes([]netlink.Attribute{{Type: unix.NFTA_VERDICT_CODE, Data: be32(uint32(code))}})
	if err != nil {
		t.Fatal(err)
	}
	return netlink.Attribute{Type: unix.NLA_F_NESTED | unix.NFTA_TRACE_VERDICT, Data: b}
}

func goodTrace(t testing.TB) []netlink.Attribute {
	t.Helper()
	ip := make([]byte, 20)
	ip[0], ip[9] = 0x45, unix.IPPROTO_TCP
	copy(ip[12:], []byte{10, 0, 0, 2, 198, 51, 100, 80})
	return []netlink.Attribute{
		{Type: unix.NFTA_TRACE_ID, Data: be32(7)},
		{Type: unix.NFTA_TRACE_TABLE, Data: []byte("filter\x00")},
		{Type: unix.NFTA_TRACE_CHAIN, Data: []byte("FORWARD\x00")},
		{Type: unix.NFTA_TRACE_RULE_HANDLE, Data: binary.BigEndian.AppendUint64(nil, 12)},
		{Type: unix.NFTA_TRACE_TYPE, Data: be32(unix.NFT_TRACETYPE_RULE)},
		verdictAttribute(t, nfDrop),
		{Type: unix.NFTA_TRACE_NETWORK_HEADER, Data: ip},
		{Type: unix.NFTA_TRACE_TRANSPORT_HEADER, Data: []byte{0xee, 0x48, 0x01, 0xbb, 0, 0}},
	}
}

func TestParseTrace(t *testing.T) {
	ev, err := parseTrace(traceMessage(t, goodTrace(t)...))
	if err != nil {
		t.Fatal(err)
	}
	want := traceEvent{
		family: nftables.TableFamilyIPv4, id: 7, table: "filter", chain: "FORWARD", handle: 12, kind: unix.NFT_TRACETYPE_RULE, verdict: nfDrop,
		header: packetHeader{addr("10.0.0.2"), addr("198.51.100.80"), unix.IPPROTO_TCP, 443},
	}
	if d := cmp.Diff(want, ev, cmp.AllowUnexported(traceEvent{}, packetHeader{}), cmpopts.EquateComparable(netip.Addr{})); d != "" {
		t.Error(d)
	}
	if ev.word() != "drop" {
		t.Errorf("the verdict is %q", ev.word())
	}
}

func TestTraceWords(t *testing.T) {
	for _, c := range []struct {
		kind    uint32
		verdict int32
		want    string
	}{
		{unix.NFT_TRACETYPE_RULE, nfAccept, "accept"},
		{unix.NFT_TRACETYPE_POLICY, nfDrop, "drop"},
		{unix.NFT_TRACETYPE_RULE, nfQueue | 5<<16, "queue"},
		{unix.NFT_TRACETYPE_RULE, nfDrop | 1<<16, "drop"}, // with an errno
		{unix.NFT_TRACETYPE_RULE, nfStolen, "stolen"},
		{unix.NFT_TRACETYPE_RULE, -1, ""}, // continue
		{unix.NFT_TRACETYPE_RULE, -3, ""}, // jump
		{unix.NFT_TRACETYPE_RETURN, nfDrop, ""},
		{unix.NFT_TRACETYPE_UNSPEC, nfDrop, ""},
		{99, nfDrop, ""},
		{unix.NFT_TRACETYPE_RULE, 77, ""},
	} {
		ev := traceEvent{kind: c.kind, verdict: c.verdict}
		if got := ev.word(); got != c.want {
			t.Errorf("kind %d, verdict %#x: %q, want %q", c.kind, c.verdict, got, c.want)
		}
	}
}

// TestParseTraceHostile has messages that are cut, lack what they need, or lie about their lengths: an error or an event, never more.
func TestParseTraceHostile(t *testing.T) {
	good := traceMessage(t, goodTrace(t)...)
	for n := range good {
		if ev, err := parseTrace(good[:n:n]); err == nil && (ev.table != "filter" || ev.chain != "FORWARD") {
			t.Errorf("%d bytes of %d: %+v", n, len(good), ev)
		}
	}
	for _, missing := range []uint16{unix.NFTA_TRACE_ID, unix.NFTA_TRACE_TABLE, unix.NFTA_TRACE_CHAIN} {
		var attrs []netlink.Attribute
		for _, a := range goodTrace(t) {
			if a.Type != missing {
				attrs = append(attrs, a)
			}
		}
		if ev, err := parseTrace(traceMessage(t, attrs...)); err == nil {
			t.Errorf("without attribute %d: %+v", missing, ev)
		}
	}
	for _, bad := range []netlink.Attribute{
		{Type: unix.NFTA_TRACE_ID, Data: []byte{1}},
		{Type: unix.NFTA_TRACE_RULE_HANDLE, Data: be32(1)},
		{Type: unix.NFTA_TRACE_TYPE, Data: nil},
		{Type: unix.NFTA_TRACE_POLICY, Data: []byte{1, 2, 3}},
		{Type: unix.NLA_F_NESTED | unix.NFTA_TRACE_VERDICT, Data: []byte{200, 0, 1, 0, 1}},
		{Type: unix.NLA_F_NESTED | unix.NFTA_TRACE_VERDICT, Data: []byte{6, 0, 1, 0, 1, 1}},
	} {
		if ev, err := parseTrace(traceMessage(t, append(goodTrace(t), bad)...)); err == nil {
			t.Errorf("attribute %d of %v: %+v", bad.Type, bad.Data, ev)
		}
	}
	for _, h := range [][2][]byte{{nil, nil}, {{0x45}, {1}}, {bytes.Repeat([]byte{0x60}, 39), nil}, {bytes.Repeat([]byte{0xff}, 60), bytes.Repeat([]byte{1}, 60)}} {
		if got := parseHeader(h[0], h[1]); got != (packetHeader{}) {
			t.Errorf("header %v: %+v", h, got)
		}
	}
}

func FuzzParseTrace(f *testing.F) {
	f.Add(traceMessage(f, goodTrace(f)...))
	f.Add([]byte{2, 0, 0, 0, 4, 0, 1, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		ev, err := parseTrace(b)
		if err == nil && (ev.table == "" || ev.chain == "") {
			t.Errorf("%v: %+v", b, ev)
		}
		_ = ev.word()
	})
}

func TestRuleText(t *testing.T) {
	list := "table inet x { # handle 4\n\tchain c { # handle 1\n\t\ttype filter hook forward priority 0; policy drop;\n\t\ttcp dport 80 drop # handle 4\n\t\tcounter comment \"a # handle 5\" accept # handle 14\n\t}\n}\n"
	for handle, want := range map[uint64]string{0: "", 1: "", 4: "tcp dport 80 drop", 14: `counter comment "a # handle 5" accept`, 5: ""} {
		if got := ruleText(list, handle); got != want {
			t.Errorf("handle %d: %q, want %q", handle, got, want)
		}
	}
}

// TestTrace sends probes through tables of others: the rule that drops is named, packets of others are not told of, and nothing
// stays behind.
func TestTrace(t *testing.T) {
	tp := newTopology(t)
	tp.sync()
	tp.serve(tp.inet, families[0].inet, families[1].inet)
	tp.nft("add table inet other")
	tp.nft("add chain inet other fw { type filter hook forward priority 10; }")
	tp.nft("add chain inet other sub")
	tp.nft("add rule inet other fw tcp dport { 80, 81 } jump sub")
	tp.nft("add rule inet other sub tcp dport 81 counter drop")
	tp.nft("add chain inet other early { type filter hook prerouting priority -350; policy accept; }")
	before := tp.nft("-s", "-n", "list", "ruleset")
	for i, f := range families {
		for _, c := range []struct {
			port uint16
			drop bool
		}{{80, false}, {81, true}} {
			flow := plan.HostFlow{Src: f.web, Dst: f.inet, Protocol: 6, SrcPort: 61000 + 1000*uint16(i) + c.port, DstPort: c.port}
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			stop, err := tp.a.Trace(ctx, flow)
			if err != nil {
				t.Fatal(err)
			}
			tp.connect(ctx, f.inet, 0, 80) // not the probe
			tp.connect(ctx, f.inet, flow.SrcPort, c.port)
			list, err := stop()
			cancel()
			if err != nil {
				t.Fatal(err)
			}
			checkTrace(t, f.name, list, c.drop, f.web, netip.AddrPortFrom(f.inet, c.port))
		}
	}
	if after := tp.nft("-s", "-n", "list", "ruleset"); !strings.Contains(after, "dport 81") || strings.Contains(after, TraceTable) || len(after) != len(before) {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	// What a crash has left goes with the next Sync, and is no drift and nobody's firewall.
	tp.nft("add table inet " + TraceTable)
	tp.nft("add chain inet " + TraceTable + " in { type filter hook forward priority -450; policy drop; }")
	if left, err := tp.a.Leftovers(t.Context()); err != nil || len(left) != 2 {
		t.Errorf("leftovers %v, %v", left, err)
	}
	if f, err := tp.a.Foreign(t.Context()); err != nil || slices.ContainsFunc(f, func(s string) bool { return strings.Contains(s, TraceTable) }) {
		t.Errorf("foreign %v, %v", f, err)
	}
	if drift := tp.sync(); len(drift) != 0 {
		t.Errorf("drift %v", drift)
	}
	if strings.Contains(tp.nft("list", "tables"), TraceTable) {
		t.Error("the table of traces is still there")
	}
}

// connect tries for a second, from a port unless that is 0.
func (tp *topology) connect(ctx context.Context, to netip.Addr, from, port uint16) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	tp.web.Do(func() {
		d := net.Dialer{LocalAddr: &net.TCPAddr{Port: int(from)}}
		if c, err := d.DialContext(ctx, "tcp", netip.AddrPortFrom(to, port).String()); err == nil {
			c.Close()
		}
	})
}

func checkTrace(t *testing.T, name string, list []plan.HostVerdict, drop bool, src netip.Addr, dst netip.AddrPort) {
	t.Helper()
	answers, drops := 0, 0
	for _, v := range list {
		if v.Table != "inet other" {
			t.Errorf("%s: %+v is of no table of others", name, v)
		}
		if v.Answer {
			answers++
		}
		if v.Drops() {
			drops++
			if v.Chain != "sub" || v.Handle == 0 || !strings.HasPrefix(v.Rule, "tcp dport 81 counter packets") || !strings.HasSuffix(v.Rule, "drop") || v.Src != src || v.Dst != dst {
				t.Errorf("%s: dropped by %+v", name, v)
			}
		}
	}
	if len(list) == 0 || len(list) > 8 || (drops > 0) != drop || (answers > 0) == drop {
		t.Errorf("%s: %d drops (want one: %t) and %d answers in %+v", name, drops, drop, answers, list)
	}
}
