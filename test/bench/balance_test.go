package bench

import (
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

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
		plain, balancedPath(b, s, 1, nil), balancedPath(b, s, manyServices, newGrowth(b, s)),
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

// balancedPath is ours, with so many load balancers. What it costs to have more is measured on the way, if anything is to.
func balancedPath(b *testing.B, s settings, n int, g *growth) path {
	b.Helper()
	h := testhost.New(b, testhost.WithName(fmt.Sprintf("bulkhead-%d", n)))
	f := newFleet(newDaemon(b, h, s.binary))
	f.attach(0)
	f.attach(1)
	made := 0
	for _, point := range []int{1, 10, 100, 1000, n} {
		for ; made < min(point, n); made++ {
			f.serve(made)
		}
		if g != nil {
			g.measure(f, made)
		}
	}
	if g != nil {
		g.finish(made)
	}
	return path{name: fmt.Sprintf("bulkhead, %d services", n), client: f.compartment(0), server: f.compartment(1), at: serviceAddr(0), served: 80, port: 80}
}

// serve makes a load balancer of the second endpoint, and gives its ID.
func (f *fleet) serve(i int) hcn.GUID {
	var doc hcn.HostComputeLoadBalancer
	f.d.call(http.MethodPost, "/hcn/v2/loadbalancers", f.service(i), &doc)
	return doc.ID
}

func (f *fleet) service(i int, ends ...hcn.GUID) hcn.HostComputeLoadBalancer {
	return hcn.HostComputeLoadBalancer{
		HostComputeEndpoints: append([]hcn.GUID{f.made[1].endpoint.ID}, ends...), FrontendVIPs: []string{serviceAddr(i).String()},
		PortMappings:  []hcn.LoadBalancerPortMapping{{Protocol: hcn.ProtocolTCP, InternalPort: 80, ExternalPort: 80}},
		SchemaVersion: hcn.V2(),
	}
}

// growth is what one service more costs, by how many there are.
type growth struct {
	s       settings
	section *Section
	nft     *router
}

func newGrowth(b *testing.B, s settings) *growth {
	b.Helper()
	return &growth{s: s, nft: ruled(b, "nftables, growing"), section: report.section(
		fmt.Sprintf("13. one service more, its back ends, and one less, with 1 to %d of them there", manyServices),
		"bulkhead: one API call, answered when it is in force and on disk. memory: the daemon's.",
		"nftables: one element of the map, by the command with its start.")}
}

// measure makes, changes and deletes a service beside those that are there.
func (g *growth) measure(f *fleet, there int) {
	g.nft.loadServices(there)
	times := map[[2]string]series{}
	note := func(metric, name string, do func()) {
		begin := time.Now()
		do()
		times[[2]string{metric, name}] = append(times[[2]string{metric, name}], milliseconds(time.Since(begin)))
	}
	for range g.s.samples {
		var id hcn.GUID
		note("add", "bulkhead", func() { id = f.serve(60_000) })
		note("change", "bulkhead", func() {
			f.d.call(http.MethodPost, "/hcn/v2/loadbalancers/"+string(id)+"/modify", f.service(60_000, f.made[0].endpoint.ID), nil)
		})
		note("delete", "bulkhead", func() { f.d.call(http.MethodDelete, "/hcn/v2/loadbalancers/"+string(id), nil, nil) })
		element := fmt.Sprintf("{ %s . tcp . 80 : 10.9.1.2 . 80 }", serviceAddr(60_000))
		note("add", "nftables", func() { g.nft.Run(g.nft.b, "nft", "add", "element", "ip", "services", "services", element) })
		note("delete", "nftables", func() { g.nft.Run(g.nft.b, "nft", "delete", "element", "ip", "services", "services", element) })
	}
	for _, metric := range []string{"add", "change", "delete"} {
		for _, name := range []string{"nftables", "bulkhead"} {
			if list := times[[2]string{metric, name}]; len(list) > 0 {
				g.section.add(metric, growthCase(name, there), "ms", list, growthCase(name, 1))
			}
		}
	}
	memory := figure(firstLine(fmt.Sprintf("/proc/%d/status", f.d.cmd.Process.Pid), "VmRSS:"))
	g.section.add("memory", growthCase("bulkhead", there), "MB", series{float64(memory) / 1024}, growthCase("bulkhead", 1))
}

func growthCase(name string, there int) string { return fmt.Sprintf("%s, %d there", name, there) }

func (g *growth) finish(most int) {
	for _, metric := range []string{"add", "change", "delete"} {
		report.atMost("one service more, "+metric+": many by one", ratio(g.section.median(metric, growthCase("bulkhead", most)), g.section.median(metric, growthCase("bulkhead", 1))), 1.5, "x")
	}
}
