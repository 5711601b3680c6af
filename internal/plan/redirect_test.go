package plan

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/bulkhead-net/bulkhead/hcn"
)

func sideCarPort(settings ...string) *Port {
	e := &Endpoint{}
	for _, s := range settings {
		e.Doc.Policies = append(e.Doc.Policies, hcn.EndpointPolicy{Type: hcn.L4WFPPROXY, Settings: json.RawMessage(s)})
	}
	return &Port{Redirects: Redirects(e)}
}

func TestRedirects(t *testing.T) {
	for _, tc := range []struct {
		name     string
		settings []string
		want     string
	}{
		{"both ways", []string{`{"InboundProxyPort":"15006","OutboundProxyPort":15001,"UserSID":"S-1-5-18","FilterTuple":{"Protocols":"6"}}`}, `
out TCP to port 15001 unless of uid:0
in TCP to port 15006 unless of uid:0`},
		{"by priority, then in order", []string{
			`{"OutboundProxyPort":"1"}`, `{"OutboundProxyPort":"2","FilterTuple":{"Priority":7}}`,
			`{"OutboundProxyPort":"3","FilterTuple":{"Priority":2}}`, `{"OutboundProxyPort":"4"}`,
		}, `
out TCP to port 3
out TCP to port 2
out TCP to port 1
out TCP to port 4`},
		{"exceptions of each direction", []string{`{"InboundProxyPort":"1","OutboundProxyPort":"2","UserSID":"gid:7",
			"InboundExceptions":{"IpAddressExceptions":["10.0.0.1"],"PortExceptions":["22"]},
			"OutboundExceptions":{"IpAddressExceptions":["10.0.0.0/8","10.2.0.0/16"],"PortExceptions":["80-90","91","443"]}}`}, `
out TCP but for 10.0.0.0/8 but for port 80-91,443 to port 2 unless of gid:7
in TCP but for 10.0.0.1 but for port 22 to port 1 unless of gid:7`},
		{"a tuple", []string{`{"OutboundProxyPort":"2","FilterTuple":{"Protocols":"17,6","LocalAddresses":"10.0.0.5","RemoteAddresses":"fd00::/8,10.0.0.0/8",
			"LocalPorts":"1024-65535","RemotePorts":"53"}}`}, `
out TCP,UDP local 10.0.0.5 remote 10.0.0.0/8,fd00::/8 local port 1024-65535 remote port 53 to port 2`},
		{"older clients' Port", []string{`{"Port":"8000","UserSID":"S-1-22-1-1000"}`}, `
out TCP to port 8000 unless of uid:1000`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var b strings.Builder
			for _, r := range sideCarPort(tc.settings...).Redirects {
				b.WriteString("\n" + r.String())
			}
			if b.String() != tc.want {
				t.Errorf("got%s\nwant%s", b.String(), tc.want)
			}
		})
	}
}

// TestRedirectedModel holds the choice of a redirect against the documents, read one by one.
func TestRedirectedModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		addr := rapid.SampledFrom([]string{"10.0.0.1", "10.0.0.2", "10.0.0.0/24", "fd00::1", "fd00::/16"})
		portText := rapid.SampledFrom([]string{"80", "80-90", "443"})
		var settings []string
		var docs []hcn.L4WfpProxyPolicySetting
		for i := range rapid.IntRange(1, 3).Draw(rt, "policies") {
			s := hcn.L4WfpProxyPolicySetting{OutboundProxyPort: []string{"1001", "1002", "1003"}[i]}
			s.FilterTuple.RemoteAddresses = strings.Join(rapid.SliceOfN(addr, 0, 2).Draw(rt, "remote"), ",")
			s.FilterTuple.RemotePorts = strings.Join(rapid.SliceOfN(portText, 0, 2).Draw(rt, "ports"), ",")
			s.OutboundExceptions.IpAddressExceptions = rapid.SliceOfN(addr, 0, 2).Draw(rt, "but")
			s.OutboundExceptions.PortExceptions = rapid.SliceOfN(portText, 0, 1).Draw(rt, "but ports")
			b, err := json.Marshal(s)
			if err != nil {
				rt.Fatal(err)
			}
			docs, settings = append(docs, s), append(settings, string(b))
		}
		p := sideCarPort(settings...)
		to := netip.AddrPortFrom(netip.MustParseAddr(rapid.SampledFrom([]string{"10.0.0.1", "10.0.0.2", "10.0.1.1", "fd00::1", "2001:db8::1"}).Draw(rt, "to")),
			rapid.SampledFrom([]uint16{80, 85, 443, 22}).Draw(rt, "port"))
		var want uint16
		for _, s := range docs {
			holds := func(list string) bool {
				for e := range strings.SplitSeq(list, ",") {
					if pre, err := netip.ParsePrefix(e); err == nil && pre.Contains(to.Addr()) || e == to.Addr().String() {
						return true
					}
				}
				return false
			}
			port := func(list string) bool {
				hit := map[uint16]string{80: "80 80-90", 85: "80-90", 443: "443", 22: ""}[to.Port()]
				for e := range strings.SplitSeq(list, ",") {
					if e != "" && strings.Contains(" "+hit+" ", " "+e+" ") {
						return true
					}
				}
				return false
			}
			if (s.FilterTuple.RemoteAddresses == "" || holds(s.FilterTuple.RemoteAddresses)) && (s.FilterTuple.RemotePorts == "" || port(s.FilterTuple.RemotePorts)) &&
				!holds(strings.Join(s.OutboundExceptions.IpAddressExceptions, ",")) && !port(strings.Join(s.OutboundExceptions.PortExceptions, ",")) {
				want = s.OutboundPort()
				break
			}
		}
		var got uint16
		if r := p.Redirected(true, protoTCP, netip.MustParseAddrPort("10.0.0.9:40000"), to); r != nil {
			got = r.To
		}
		if got != want {
			rt.Fatalf("%s goes to port %d, want %d by %s", to, got, want, settings)
		}
		if p.Redirected(true, protoUDP, netip.MustParseAddrPort("10.0.0.9:40000"), to) != nil || p.Redirected(false, protoTCP, to, to) != nil {
			rt.Fatal("a datagram, or what comes in, is taken")
		}
	})
}
