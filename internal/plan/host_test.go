package plan

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/bulkhead-net/bulkhead/hcn"
)

// TestHostEndpoint: an endpoint in the host's own compartment gives the host an
// address, and neither a second way to the network's prefix nor another default
// route.
func TestHostEndpoint(t *testing.T) {
	net, ns, ep := guid("A", 1), guid("B", 1), guid("C", 1)
	in := &Intent{
		Networks:   map[hcn.GUID]*Network{net: {Doc: hcn.HostComputeNetwork{ID: net, Type: hcn.NAT}, Switch: 1}},
		Namespaces: map[hcn.GUID]*NamespaceRow{ns: {Doc: hcn.HostComputeNamespace{ID: ns, Type: hcn.NamespaceTypeHostDefault}}},
		Endpoints: map[hcn.GUID]*Endpoint{ep: {
			Doc: hcn.HostComputeEndpoint{ID: ep, HostComputeNetwork: net, Routes: []hcn.Route{
				{DestinationPrefix: "0.0.0.0/0", NextHop: "10.0.0.1"}, {DestinationPrefix: "10.9.0.0/16", NextHop: "10.0.0.5"},
			}},
			Addrs:  []netip.Prefix{netip.MustParsePrefix("10.0.0.2/24"), netip.MustParsePrefix("fd00::2/64")},
			Attach: &Attachment{Namespace: ns, Interface: "bhh1"},
		}},
	}
	p := Compile(in, &Facts{UplinkMTU: 1500})
	if len(p.Namespaces) != 1 || p.Namespaces[ResolverNamespace] == nil {
		t.Errorf("compartments %v: the host's is not one to make", p.Namespaces)
	}
	port := p.Ports[EndpointPortID(ep)]
	if port == nil {
		t.Fatal("there is no port")
	}
	want := VNIC{
		Device: "bhh1", MTU: 1500,
		Addrs: []netip.Prefix{netip.MustParsePrefix("10.0.0.2/32"), netip.MustParsePrefix("fd00::2/128")},
		Routes: []Route{{
			Dst: netip.MustParsePrefix("10.9.0.0/16"), Via: netip.MustParseAddr("10.0.0.5"), OnLink: true,
		}},
	}
	same := cmp.Options{
		cmpopts.IgnoreFields(VNIC{}, "Alias", "LinkLocal"),
		cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }), cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	}
	if d := cmp.Diff(want, port.VNIC, same); d != "" {
		t.Error(d)
	}
}
