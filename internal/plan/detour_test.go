package plan

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/bulkhead-net/bulkhead/hcn"
)

// detourPort has 10.1.0.5 and fd00:1::5 on a network of 10.1.0.0/24 with these L4Proxy settings: of the network when they begin
// with "network ", else its own.
func detourPort(typ hcn.NetworkType, settings ...string) *Port {
	e := &Endpoint{Addrs: []netip.Prefix{netip.MustParsePrefix("10.1.0.5/24"), netip.MustParsePrefix("fd00:1::5/64")}}
	n := &Network{Doc: hcn.HostComputeNetwork{Type: typ, Ipams: []hcn.Ipam{{Subnets: []hcn.Subnet{{IpAddressPrefix: "10.1.0.0/24"}}}}}}
	for _, s := range settings {
		if s, ok := strings.CutPrefix(s, "network "); ok {
			n.Doc.Policies = append(n.Doc.Policies, hcn.NetworkPolicy{Type: hcn.NetworkL4Proxy, Settings: json.RawMessage(s)})
		} else {
			e.Doc.Policies = append(e.Doc.Policies, hcn.EndpointPolicy{Type: hcn.L4Proxy, Settings: json.RawMessage(s)})
		}
	}
	return &Port{Detours: Detours(e, n)}
}

func TestDetours(t *testing.T) {
	for _, tc := range []struct {
		name     string
		typ      hcn.NetworkType
		settings []string
		want     string
	}{
		{"everything", hcn.NAT, []string{`{"IP":"192.0.2.9","Port":3128,"OutboundNAT":true}`}, `
TCP to 0.0.0.0/0 but for 192.0.2.9,10.1.0.5,10.1.0.255,224.0.0.0/4,255.255.255.255 by the proxy 192.0.2.9:3128`},
		{"IPv6, its port kept", hcn.Internal, []string{`{"IP":"fd00:1::9","Protocol":17,"Destination":"fd00:2::/64, 2001:db8::1","ExceptionList":["fd00:2::7"]}`}, `
UDP to fd00:2::/64,2001:db8::1 but for fd00:2::7,fd00:1::9,fd00:1::5,ff00::/8 by the proxy fd00:1::9, which sees the endpoint's address`},
		{"its own before the network's", hcn.NAT, []string{`network {"IP":"fd00:1::9","Port":"1","OutboundNat":true}`, `{"IP":"fd00:1::8","Port":"2","OutboundNat":true}`}, `
TCP to ::/0 but for fd00:1::8,fd00:1::5,ff00::/8 by the proxy [fd00:1::8]:2
TCP to ::/0 but for fd00:1::9,fd00:1::5,ff00::/8 by the proxy [fd00:1::9]:1`},
		{"the network's proxy itself", hcn.NAT, []string{`network {"IP":"10.1.0.5","Port":"1"}`}, ""},
		{"no host port", hcn.Private, []string{`{"IP":"10.1.0.9","Port":"1"}`}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var b strings.Builder
			for _, d := range detourPort(tc.typ, tc.settings...).Detours {
				b.WriteString("\n" + d.String())
			}
			if b.String() != tc.want {
				t.Errorf("got%s\nwant%s", b.String(), tc.want)
			}
		})
	}
}

// TestDetourForms holds the two forms in which the kernel has detours, ranges in the host's table and prefixes in the switch's,
// to the one that is walked.
func TestDetourForms(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		prefix := rapid.Custom(func(rt *rapid.T) netip.Prefix { // of 10.0.0.0/28
			a := netip.AddrFrom4([4]byte{10, 0, 0, byte(rapid.IntRange(0, 15).Draw(rt, "host"))})
			return netip.PrefixFrom(a, rapid.IntRange(28, 32).Draw(rt, "bits")).Masked()
		})
		p := &Port{}
		for i := range rapid.IntRange(1, 4).Draw(rt, "detours") {
			p.Detours = append(p.Detours, Detour{
				Protocol: rapid.SampledFrom([]uint8{6, 17}).Draw(rt, "protocol"), To: netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), uint16(i+1)),
				Destinations: rapid.SliceOfN(prefix, 1, 4).Draw(rt, "destinations"), Except: rapid.SliceOfN(prefix, 0, 4).Draw(rt, "but"),
			})
		}
		ranges, steers := p.DetourRanges(), p.Steers()
		for host := range 16 {
			dst := netip.AddrFrom4([4]byte{10, 0, 0, byte(host)})
			for _, proto := range []uint8{6, 17} {
				want := p.DetourOf(proto, dst)
				var got []*Detour
				for i, list := range ranges {
					for _, r := range list {
						if p.Detours[i].Protocol == proto && r.Contains(dst) {
							got = append(got, &p.Detours[i])
						}
					}
				}
				if len(got) > 1 || want == nil && len(got) > 0 || want != nil && (len(got) != 1 || got[0] != want) {
					rt.Fatalf("%d to %s: the table has %v, want %v", proto, dst, got, want)
				}
				best, by := -1, false
				for _, s := range steers {
					if s.Protocol == proto && s.Prefix.Contains(dst) && s.Prefix.Bits() > best {
						best, by = s.Prefix.Bits(), s.ByHost
					}
				}
				if by != (want != nil) {
					rt.Fatalf("%d to %s: by the host is %t, want %v by %v", proto, dst, by, want, steers)
				}
			}
		}
	})
}

// TestDetourForwarding: an Internal network needs forwarding for a proxy on it, and not for one on the host.
func TestDetourForwarding(t *testing.T) {
	for _, tc := range []struct {
		proxy  string
		f4, f6 bool
	}{{"10.1.0.9", true, false}, {"10.1.0.1", false, false}, {"fd00:1::9", false, true}, {"fd00:1::1", false, false}} {
		p := New()
		p.Switches["n"] = &Switch{Network: "n", Mode: ModeInternal, Subnets: []Subnet{
			{Prefix: netip.MustParsePrefix("10.1.0.0/24"), Gateway: netip.MustParseAddr("10.1.0.1")},
			{Prefix: netip.MustParsePrefix("fd00:1::/64"), Gateway: netip.MustParseAddr("fd00:1::1")},
		}}
		d := &Delta{Ports: map[PortID]Change[Port]{"a": {New: &Port{Network: "n", Detours: []Detour{{To: netip.AddrPortFrom(netip.MustParseAddr(tc.proxy), 1)}}}}}}
		p.Ports["a"] = d.Ports["a"].New
		if !needsHostAgain(d) {
			t.Error("the change goes unnoticed")
		}
		if p.recompileHost(d); p.Host.Forward4 != tc.f4 || p.Host.Forward6 != tc.f6 {
			t.Errorf("a proxy at %s: %+v", tc.proxy, p.Host)
		}
	}
}
