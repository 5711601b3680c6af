package plan

import (
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
