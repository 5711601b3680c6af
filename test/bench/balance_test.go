package bench

import (
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/testhost"
)

// manyServices is what a large cluster has.
const manyServices = 10_000

// BenchmarkBalance has a container ask a service.
//
//	client ── router: nothing, or nftables' DNAT ── server
//	container ── bulkhead: nothing, or load balancers ── container
func BenchmarkBalance(b *testing.B) {
	s := configure(b)
	section := report.section(fmt.Sprintf("9. a service's virtual address, among 1 and %d of them; client and server on one CPU", manyServices),
		"rr, crr, stream: as in part 3.",
		"nftables: one map from address, protocol and port to the server, as a service proxy writes it, and conntrack.",
		"bulkhead: one load balancer for each service.")
	few, many := ruled(b, "nftables, 1"), ruled(b, "nftables, many")
	few.loadServices(1)
	many.loadServices(manyServices)
	plain := switchPath(b, s, 0)
	plain.name = "bulkhead, no service"
	cases := []path{
		ruled(b, "routing").path("routing, no service"), few.servicePath("nftables, 1 service"), many.servicePath(fmt.Sprintf("nftables, %d services", manyServices)),
		plain, balancedPath(b, s, 1), balancedPath(b, s, manyServices),
	}
	metrics := []string{metricRR, metricCRR, metricStream}
	measurePaths(b, s, section, cases, metrics...)
	for _, m := range metrics {
		one, all := section.median(m, cases[4].name), section.median(m, cases[5].name)
		report.atLeast("services, "+m+": many by one", ratio(all, one), 0.95)
		report.atLeast("services, "+m+": bulkhead by nftables", ratio(all, section.median(m, cases[2].name)), 1)
	}
	b.ReportMetric(0, "ns/op")
}

func serviceAddr(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)}) }

// loadServices leads so many services to the server.
func (r *router) loadServices(n int) {
	r.b.Helper()
	elements := make([]string, n)
	for i := range elements {
		elements[i] = fmt.Sprintf("%s . tcp . 80 : 10.9.1.2 . 80", serviceAddr(i))
	}
	r.load("table ip services {\n\tmap services {\n\t\ttype ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service\n\t\telements = { "+
		strings.Join(elements, ", ")+" }\n\t}\n\tchain pre {\n\t\ttype nat hook prerouting priority -100\n"+
		"\t\tdnat ip to ip daddr . ip protocol . th dport map @services\n\t}\n}\n", "nft", "-f")
}

func (r *router) servicePath(name string) path {
	p := r.path(name)
	p.at = serviceAddr(0)
	return p
}

// balancedPath is ours, with so many load balancers.
func balancedPath(b *testing.B, s settings, n int) path {
	b.Helper()
	h := testhost.New(b, testhost.WithName(fmt.Sprintf("bulkhead-%d", n)))
	f := newFleet(newDaemon(b, h, s.binary))
	f.attach(0)
	f.attach(1)
	for i := range n {
		f.d.call(http.MethodPost, "/hcn/v2/loadbalancers", hcn.HostComputeLoadBalancer{
			HostComputeEndpoints: []hcn.GUID{f.made[1].endpoint.ID}, FrontendVIPs: []string{serviceAddr(i).String()},
			PortMappings:  []hcn.LoadBalancerPortMapping{{Protocol: hcn.ProtocolTCP, InternalPort: 80, ExternalPort: 80}},
			SchemaVersion: hcn.V2(),
		}, nil)
	}
	return path{name: fmt.Sprintf("bulkhead, %d services", n), client: f.compartment(0), server: f.compartment(1), at: serviceAddr(0), served: 80, port: 80}
}
