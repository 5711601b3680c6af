package plan

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/bulkhead-net/bulkhead/hcn"
)

// TestForwardsHidden: what is published of a container with one MAC on the wire is not at the loopback, hides its client, and has the
// host forward, for the families that it has.
func TestForwardsHidden(t *testing.T) {
	e := &Endpoint{Addrs: []netip.Prefix{netip.MustParsePrefix("10.9.0.7/24")}}
	e.Doc.Policies = []hcn.EndpointPolicy{hcn.PortMappingPolicySetting{Protocol: 6, InternalPort: 80, ExternalPort: 8080}.Policy()}
	if f := Forwards(e); len(f) != 1 || f[0].Scope != ScopeAll || f[0].Hidden {
		t.Errorf("on a NAT network: %+v", f)
	}
	e.OneMAC = true
	f := Forwards(e)
	if len(f) != 1 || f[0].Scope != ScopeLAN || !f[0].Hidden {
		t.Errorf("with one MAC: %+v", f)
	}
	p := New()
	p.Switches["n"] = &Switch{Network: "n", Mode: ModeL2Bridge}
	p.Ports["p"] = &Port{ID: "p", Kind: PortContainer, Network: "n", Forwards: f, VNIC: VNIC{Namespace: "/run/netns/x"}}
	d := &Delta{Ports: map[PortID]Change[Port]{"p": {New: p.Ports["p"]}}, Namespaces: map[hcn.GUID]Change[Namespace]{}}
	if !needsHostAgain(d) {
		t.Error("the host is not asked")
	}
	p.recompileHost(d)
	if !p.Host.Forward4 || p.Host.Forward6 {
		t.Errorf("the host forwards %+v, want IPv4 alone", p.Host)
	}
}

// TestForwardsByFamily: of two mappings at all addresses the one for IPv6 alone has these, and the other the IPv4 ones.
func TestForwardsByFamily(t *testing.T) {
	e := &Endpoint{Addrs: []netip.Prefix{netip.MustParsePrefix("10.7.0.2/24"), netip.MustParsePrefix("fd07::2/64")}}
	both := hcn.PortMappingPolicySetting{Protocol: hcn.ProtocolTCP, InternalPort: 80, ExternalPort: 8080, Flags: hcn.NatLocalRoutedVip}
	six := hcn.PortMappingPolicySetting{Protocol: hcn.ProtocolTCP, InternalPort: 81, ExternalPort: 8080, Flags: hcn.NatIPv6}
	for name, tc := range map[string]struct {
		policies []hcn.EndpointPolicy
		want     string
	}{
		"alone":         {[]hcn.EndpointPolicy{both.Policy()}, "[10.7.0.2:80 [fd07::2]:80]"},
		"both":          {[]hcn.EndpointPolicy{both.Policy(), six.Policy()}, "[10.7.0.2:80 [fd07::2]:81]"},
		"the other way": {[]hcn.EndpointPolicy{six.Policy(), both.Policy()}, "[[fd07::2]:81 10.7.0.2:80]"},
	} {
		e.Doc.Policies = tc.policies
		var got []netip.AddrPort
		for _, f := range Forwards(e) {
			got = append(got, f.To)
		}
		if fmt.Sprint(got) != tc.want {
			t.Errorf("%s: to %v, want %s", name, got, tc.want)
		}
	}
}
