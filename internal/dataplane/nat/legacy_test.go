package nat

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// legacyOf reads the tables of iptables-legacy in the namespace under test.
func (tp *topology) legacyOf(f legacyFamily) []legacyTable {
	tp.t.Helper()
	var out []legacyTable
	if err := tp.a.inNetns(func() (err error) {
		out, err = legacyTables(&f)
		return err
	}); err != nil {
		tp.t.Fatal(err)
	}
	return out
}

// TestLegacyTables holds what is read of both families to what iptables-legacy was told, and asks for no table that is not there.
func TestLegacyTables(t *testing.T) {
	tp := newTopology(t)
	tp.sync()
	for _, f := range legacyFamilies() {
		if got := tp.legacyOf(f); len(got) != 0 {
			t.Errorf("%s: %+v in a new namespace", f.tool, got)
		}
		// Looking makes the kernel set the table up: it is there, and decides nothing.
		tp.host.Run(t, f.tool, "-S")
		if got := tp.legacyOf(f); len(got) != 1 || got[0].written("") != 0 || len(got[0].chains(&f)) != 0 || legacyText(&f, got) != "" {
			t.Errorf("%s: %+v for a table without rules", f.tool, got)
		}
		tp.host.Run(t, f.tool, "-N", "mine")
		tp.host.Run(t, f.tool, "-A", "mine", "-p", "tcp", "--dport", "81", "-j", "REJECT")
		tp.host.Run(t, f.tool, "-A", "mine", "-j", "RETURN")
		tp.host.Run(t, f.tool, "-A", "FORWARD", "-p", "tcp", "-m", "comment", "--comment", "x", "-j", "mine")
		tp.host.Run(t, f.tool, "-A", "FORWARD", "-p", "udp", "-j", "DROP")
		tp.host.Run(t, f.tool, "-P", "INPUT", "DROP")
		tp.host.Run(t, f.tool, "-t", "raw", "-A", "OUTPUT", "-p", "sctp", "-j", "ACCEPT")
		got := tp.legacyOf(f)
		if len(got) != 2 || got[0].name != "filter" || got[1].name != "raw" {
			t.Fatalf("%s: %+v", f.tool, got)
		}
		var rules []string
		for _, r := range slices.Concat(got[0].rules, got[1].rules) {
			rules = append(rules, r.chain+" "+string(rune('0'+r.number))+" "+r.target)
		}
		want := "INPUT 0 DROP, FORWARD 1 jump, FORWARD 2 DROP, FORWARD 0 ACCEPT, OUTPUT 0 ACCEPT, mine 1 REJECT, mine 2 RETURN, mine 3 RETURN, " +
			"PREROUTING 0 ACCEPT, OUTPUT 1 ACCEPT, OUTPUT 0 ACCEPT"
		if text := strings.Join(rules, ", "); text != want {
			t.Errorf("%s: %s, want %s", f.tool, text, want)
		}
		if got[0].written("") != 4 || got[0].written("FORWARD") != 2 {
			t.Errorf("%s: %d rules, %d of them in FORWARD", f.tool, got[0].written(""), got[0].written("FORWARD"))
		}
		if text := legacyText(&f, got); !strings.Contains(text, "filter (4 rules, some drop, policy DROP in 1 chains), raw (1 rules)") {
			t.Error(text)
		}
		chains := slices.Concat(got[0].chains(&f), got[1].chains(&f))
		wantChains := []plan.ForeignChain{
			{Table: "filter", Chain: "INPUT", Hook: "input", V4: !f.v6, V6: f.v6, Tool: f.tool, DropPolicy: true},
			{Table: "filter", Chain: "FORWARD", Hook: "forward", V4: !f.v6, V6: f.v6, Tool: f.tool, Rules: 2, Drops: true},
			{Table: "raw", Chain: "OUTPUT", Hook: "output", V4: !f.v6, V6: f.v6, Tool: f.tool, Rules: 1},
		}
		if !slices.Equal(chains, wantChains) {
			t.Errorf("%s: %+v", f.tool, chains)
		}
	}
	foreign, err := tp.a.ForeignFilters(t.Context())
	if err != nil || foreign.Unread != [2]string{} {
		t.Errorf("%+v, %v", foreign, err)
	}
	if n := len(slices.DeleteFunc(foreign.Chains, func(c plan.ForeignChain) bool { return c.Tool == "" })); n != 6 {
		t.Errorf("%d chains of iptables-legacy among %+v", n, foreign.Chains)
	}
	lines, err := tp.a.Foreign(t.Context())
	if err != nil || !slices.ContainsFunc(lines, func(s string) bool { return strings.HasPrefix(s, "iptables-legacy: filter (4 rules") }) ||
		!slices.ContainsFunc(lines, func(s string) bool { return strings.HasPrefix(s, "ip6tables-legacy: filter (4 rules") }) {
		t.Errorf("doctor says %v, %v", lines, err)
	}
}

// TestTraceCountsLegacy: a rule of iptables-legacy that drops is told of by its counter, one that lets the probe pass is not.
func TestTraceCountsLegacy(t *testing.T) {
	tp := newTopology(t)
	tp.sync()
	tp.serve(tp.inet, families[0].inet, families[1].inet)
	for i, f := range families {
		tool := legacyFamilies()[i].tool
		tp.host.Run(t, tool, "-A", "FORWARD", "-p", "udp", "-j", "DROP")
		tp.host.Run(t, tool, "-A", "FORWARD", "-p", "tcp", "--dport", "81", "-j", "DROP")
		for _, port := range []uint16{80, 81} {
			flow := plan.HostFlow{Src: f.web, Dst: f.inet, Protocol: 6, SrcPort: 61000 + 1000*uint16(i) + port, DstPort: port}
			stop, err := tp.a.Trace(t.Context(), flow)
			if err != nil {
				t.Fatal(err)
			}
			tp.connect(t.Context(), f.inet, flow.SrcPort, port)
			list, err := stop()
			if err != nil {
				t.Fatal(err)
			}
			list = slices.DeleteFunc(list, func(v plan.HostVerdict) bool { return v.Tool == "" })
			if port == 80 {
				if len(list) != 0 {
					t.Errorf("%s: %+v for a packet that passes", f.name, list)
				}
				continue
			}
			if len(list) != 1 || list[0].Tool != tool || list[0].Chain != "FORWARD" || list[0].Handle != 2 || list[0].Counted == 0 ||
				!strings.Contains(list[0].Rule, "--dport 81") || list[0].Src != f.web || list[0].Dst != netip.AddrPortFrom(f.inet, port) {
				t.Errorf("%s: %+v", f.name, list)
			}
		}
	}
}

// legacyBlob is a table with one rule and a policy, as it lies in memory.
func legacyBlob(f *legacyFamily) (*legacyInfo, []byte) {
	entry := func(target string, verdict int32) []byte {
		b := make([]byte, f.head+legacyTarget+8)
		binary.NativeEndian.PutUint16(b[f.offsets:], uint16(f.head))
		binary.NativeEndian.PutUint16(b[f.offsets+2:], uint16(len(b)))
		binary.NativeEndian.PutUint64(b[f.counters:], 7)
		copy(b[f.head+2:], target)
		binary.NativeEndian.PutUint32(b[f.head+legacyTarget:], uint32(verdict))
		return b
	}
	rule := entry("", legacyDrop)
	b := slices.Concat(rule, entry("", -2), entry("ERROR", 0))
	info := &legacyInfo{ValidHooks: 4, Size: uint32(len(b))}
	info.Underflow[2] = uint32(len(rule))
	return info, b
}

// TestParseLegacyHostile has tables that are cut or lie about their sizes: an error or rules, never more.
func TestParseLegacyHostile(t *testing.T) {
	for _, f := range legacyFamilies() {
		info, b := legacyBlob(&f)
		got, err := parseLegacy(&f, "filter", info, b)
		if err != nil || len(got.rules) != 2 || got.rules[0] != (legacyRule{"FORWARD", 1, "DROP", 7}) || got.rules[1].number != 0 {
			t.Fatalf("%+v, %v", got, err)
		}
		for n := range b {
			if _, err := parseLegacy(&f, "filter", info, b[:n:n]); err == nil && n%(len(b)/3) != 0 {
				t.Errorf("%d bytes of %d are taken", n, len(b))
			}
		}
		for at := range b {
			for _, v := range []byte{0, 1, 0x7f, 0xff} {
				c := slices.Clone(b)
				c[at] = v
				_, _ = parseLegacy(&f, "filter", info, c) // must end, within its bounds
			}
		}
	}
	if s := unsafe.Sizeof(legacyInfo{}); s != 84 {
		t.Errorf("struct ipt_getinfo has 84 bytes, not %d", s)
	}
}
