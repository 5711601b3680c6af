package plan

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/bulkhead-net/bulkhead/hcn"
)

// BenchmarkService is a load balancer that comes and goes beside many.
func BenchmarkService(b *testing.B) {
	for _, n := range []int{1, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			const net = hcn.GUID("AAAAAAAA-0000-4000-8000-000000000001")
			in := &Intent{
				Networks: map[hcn.GUID]*Network{net: {Switch: 1, Doc: hcn.HostComputeNetwork{ID: net, Type: hcn.NAT, Ipams: []hcn.Ipam{{Subnets: []hcn.Subnet{
					{IpAddressPrefix: "10.1.0.0/16", Routes: []hcn.Route{{NextHop: "10.1.0.1", DestinationPrefix: "0.0.0.0/0"}}},
				}}}}}},
				Endpoints: map[hcn.GUID]*Endpoint{}, Namespaces: map[hcn.GUID]*NamespaceRow{}, Remotes: map[hcn.GUID]*Remote{},
				Balancers: map[hcn.GUID]*LoadBalancer{}, ByBackend: map[hcn.GUID]map[hcn.GUID]*LoadBalancer{}, BySource: map[netip.Addr]map[hcn.GUID]*LoadBalancer{},
			}
			lb := func(i int) *LoadBalancer {
				return &LoadBalancer{Network: net, Inside: []uint16{uint16(i + 1)}, Doc: hcn.HostComputeLoadBalancer{
					ID: hcn.GUID(fmt.Sprint(i)), FrontendVIPs: []string{netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)}).String()},
					PortMappings: []hcn.LoadBalancerPortMapping{{Protocol: 6, InternalPort: 80, ExternalPort: 80}},
				}}
			}
			for i := range n {
				in.Balancers[hcn.GUID(fmt.Sprint(i))] = lb(i)
			}
			facts := &Facts{UplinkMTU: 1500}
			p := New()
			p.Recompile(in, facts, DirtyAll(in))
			one := lb(n)
			dirty := NoDirt()
			dirty.Balancers[one.Doc.ID] = struct{}{}
			for b.Loop() {
				in.Balancers[one.Doc.ID] = one
				p.Recompile(in, facts, dirty)
				delete(in.Balancers, one.Doc.ID)
				p.Recompile(in, facts, dirty)
			}
		})
	}
}
