package capture

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"golang.org/x/net/bpf"
)

// frame builds the headers that filters look at.
func frame(src, dst string, proto uint8, sport, dport uint16, fragment bool) []byte {
	s, d := netip.MustParseAddr(src), netip.MustParseAddr(dst)
	b := append([]byte(nil), make([]byte, 14)...)
	var l4 [8]byte
	binary.BigEndian.PutUint16(l4[:], sport)
	binary.BigEndian.PutUint16(l4[2:], dport)
	switch {
	case proto == 0: // ARP
		b[12], b[13] = 8, 6
		b = append(b, make([]byte, 14)...)
		b = append(b, s.AsSlice()...)
		b = append(b, make([]byte, 6)...)
		return append(b, d.AsSlice()...)
	case s.Is4():
		b[12], b[13] = 8, 0
		ip := make([]byte, 12, 24)
		ip[0], ip[9] = 0x46, proto // with a word of options
		if fragment {
			ip[7] = 1
		}
		b = append(append(append(b, ip...), s.AsSlice()...), d.AsSlice()...)
		b = append(b, 0, 0, 0, 0)
	default:
		b[12], b[13] = 0x86, 0xdd
		ip := make([]byte, 8)
		ip[0], ip[6] = 0x60, proto
		b = append(append(append(b, ip...), s.AsSlice()...), d.AsSlice()...)
	}
	return append(b, l4[:]...)
}

func TestFilter(t *testing.T) {
	frames := map[string][]byte{
		"tcp4":  frame("10.0.0.2", "10.0.1.3", 6, 1000, 80, false),
		"udp4":  frame("10.0.1.3", "10.0.0.2", 17, 53, 1000, false),
		"frag4": frame("10.0.0.2", "10.0.1.3", 6, 1000, 80, true),
		"icmp4": frame("10.0.0.2", "10.0.1.3", 1, 80, 80, false),
		"tcp6":  frame("fd00::2", "fd00:0:0:1::3", 6, 80, 1000, false),
		"icmp6": frame("fd00::2", "fd00:0:0:1::3", 58, 80, 80, false),
		"arp":   frame("10.0.0.2", "10.0.1.3", 0, 0, 0, false),
		"lldp":  {12: 0x88, 13: 0xcc, 59: 0},
	}
	group := func(texts ...string) []netip.Prefix {
		var out []netip.Prefix
		for _, s := range texts {
			out = append(out, netip.MustParsePrefix(s))
		}
		return out
	}
	for _, tc := range []struct {
		f    Filter
		text string
		want string // the names of what passes, with a blank after each
	}{
		{Filter{}, "", "tcp4 udp4 frag4 icmp4 tcp6 icmp6 arp lldp "},
		{Filter{Protocol: "tcp"}, "tcp", "tcp4 frag4 tcp6 "},
		{Filter{Protocol: "icmp"}, "(icmp or icmp6)", "icmp4 icmp6 "},
		{Filter{Protocol: "arp"}, "arp", "arp "},
		{Filter{Protocol: "ip"}, "ip", "tcp4 udp4 frag4 icmp4 "},
		{Filter{Protocol: "ip6"}, "ip6", "tcp6 icmp6 "},
		{Filter{Port: 80}, "port 80", "tcp4 tcp6 "},
		{Filter{Port: 1000}, "port 1000", "tcp4 udp4 tcp6 "},
		{Filter{Protocol: "udp", Port: 53}, "udp and port 53", "udp4 "},
		{Filter{Hosts: [][]netip.Prefix{group("10.0.0.2/32")}}, "(host 10.0.0.2)", "tcp4 udp4 frag4 icmp4 arp "},
		{Filter{Hosts: [][]netip.Prefix{group("10.0.0.0/23")}}, "(net 10.0.0.0/23)", "tcp4 udp4 frag4 icmp4 arp "},
		{Filter{Hosts: [][]netip.Prefix{group("10.0.2.0/23")}}, "(net 10.0.2.0/23)", ""},
		{Filter{Hosts: [][]netip.Prefix{group("fd00::/63")}}, "(net fd00::/63)", "tcp6 icmp6 "},
		{Filter{Hosts: [][]netip.Prefix{group("fd00::3/128")}}, "(host fd00::3)", ""},
		{Filter{Hosts: [][]netip.Prefix{group("fd00:0:0:1::3/128", "10.0.1.3/32")}, Protocol: "tcp", Port: 80}, "tcp and (host fd00:0:0:1::3 or host 10.0.1.3) and port 80", "tcp4 tcp6 "},
		{Filter{Hosts: [][]netip.Prefix{group("10.0.0.2/32"), group("10.0.9.9/32")}}, "(host 10.0.0.2) and (host 10.0.9.9)", ""},
	} {
		raw, err := tc.f.program(96)
		if err != nil {
			t.Fatal(err)
		}
		code, ok := bpf.Disassemble(raw)
		if !ok {
			t.Fatalf("%v: not all of it is understood", tc.f)
		}
		vm, err := bpf.NewVM(code)
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		for _, name := range []string{"tcp4", "udp4", "frag4", "icmp4", "tcp6", "icmp6", "arp", "lldp"} {
			n, err := vm.Run(frames[name])
			if err != nil {
				t.Fatal(err)
			}
			if n > 0 {
				got += name + " "
			}
		}
		if got != tc.want || tc.f.String() != tc.text {
			t.Errorf("%q (want %q) takes %q, want %q", tc.f.String(), tc.text, got, tc.want)
		}
	}
	if _, err := (Filter{Protocol: "ftp"}).program(1); err == nil {
		t.Error("a protocol that nobody knows is taken")
	}
}
