package bench

import (
	"net/netip"
	"testing"

	"github.com/bulkhead-net/bulkhead/internal/testhost"
)

// BenchmarkPublished asks a container's published port from another host on the LAN, beside plain routing to a
// namespace behind a host without any rule.
//
//	lan ── eth0 192.0.2.0/24 ────── bulkhead: daemon, one container with a published port
//	    ── eth1 198.51.100.0/24 ─── router ── 203.0.113.0/24 ── namespace
func BenchmarkPublished(b *testing.B) {
	s := configure(b)
	lan := testhost.New(b, testhost.WithName("lan"))
	h := testhost.New(b, testhost.WithName("bulkhead"))
	h.Connect(lan, testhost.Cable{Addrs: []string{"192.0.2.1/24"}, PeerAddrs: []string{"192.0.2.2/24"}})
	f := newFleet(newDaemon(b, h, s.binary))
	f.attach(0)
	f.verify(0)

	router := testhost.New(b, testhost.WithName("router"))
	router.Forwarding(true)
	router.Connect(lan, testhost.Cable{PeerDev: "eth1", Addrs: []string{"198.51.100.1/24"}, PeerAddrs: []string{"198.51.100.2/24"}})
	server := router.NewNamespace("server")
	router.Connect(server, testhost.Cable{Dev: "veth0", Addrs: []string{"203.0.113.1/24"}, PeerAddrs: []string{"203.0.113.2/24"}})
	server.Route("default", "203.0.113.1")
	lan.Route("203.0.113.0/24", "198.51.100.1")

	section := report.section("4. published port from a LAN host; client and server on one CPU",
		"plain routing: the same hops without translation, rules or a switch.")
	measurePaths(b, s, section, []path{
		{name: "plain routing", client: lan, server: server, at: netip.MustParseAddr("203.0.113.2"), served: containerPort, port: containerPort},
		{name: "bulkhead", client: lan, server: f.compartment(0), at: netip.MustParseAddr("192.0.2.1"), served: containerPort, port: firstPort},
	})
	// What nftables alone reaches (docs/benchmarks.md); a flow table for established flows may go beyond.
	aims := []float64{0.89, 0.84, 0.88}
	for i, metric := range pathMetrics() {
		ours := section.median(metric, "bulkhead")
		report.atLeast("published port, "+metric+", by plain routing", ratio(ours, section.median(metric, "plain routing")), aims[i])
	}
	b.ReportMetric(0, "ns/op")
}
