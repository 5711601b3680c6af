package bench

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/bulkhead-net/bulkhead/internal/testhost"
)

// BenchmarkPublished asks a container's published port from another host on the LAN, beside plain routing to a
// namespace behind a host without any rule, and behind one that translates with nftables alone.
//
//	lan ── eth0 192.0.2.0/24 ────── bulkhead: daemon, one container with a published port
//	    ── eth2 192.0.3.0/24 ────── bulkhead, all by the stack: the same with --offload=false
//	    ── eth1 198.51.100.0/24 ─── router ── 203.0.113.0/24 ── namespace
//	    ── eth3 198.51.101.0/24 ─── nftables ── 10.99.0.0/24 ── namespace
func BenchmarkPublished(b *testing.B) {
	s := configure(b)
	lan := testhost.New(b, testhost.WithName("lan"))
	publisher := func(name, dev, net string, flags ...string) *testhost.Host {
		h := testhost.New(b, testhost.WithName(name))
		h.Connect(lan, testhost.Cable{PeerDev: dev, Addrs: []string{net + ".1/24"}, PeerAddrs: []string{net + ".2/24"}})
		h.Route("default", net+".2")
		f := newFleet(newDaemon(b, h, s.binary, flags...))
		f.attach(0)
		return f.compartment(0)
	}
	carried := publisher("bulkhead", "eth0", "192.0.2")
	slow := publisher("bulkhead2", "eth2", "192.0.3", "--offload=false")

	section := report.section("4. published port from a LAN host; client and server on one CPU",
		"plain routing: the same hops without translation, rules or a switch.",
		"nftables: the same hops, the port translated by a map, the answers by masquerade.",
		"bulkhead, by the stack: with --offload=false.")
	measurePaths(b, s, section, []path{
		{name: "plain routing", client: lan, server: routed(b, lan), at: netip.MustParseAddr("203.0.113.2"), served: containerPort, port: containerPort},
		{name: "nftables", client: lan, server: translated(b, lan), at: netip.MustParseAddr("198.51.101.1"), served: containerPort, port: firstPort},
		{name: "bulkhead, by the stack", client: lan, server: slow, at: netip.MustParseAddr("192.0.3.1"), served: containerPort, port: firstPort},
		{name: "bulkhead", client: lan, server: carried, at: netip.MustParseAddr("192.0.2.1"), served: containerPort, port: firstPort},
	}, metricRR, metricCRR, metricStream)
	for _, metric := range []string{metricRR, metricCRR, metricStream} {
		ours := section.median(metric, "bulkhead")
		report.atLeast("published port, "+metric+", by nftables", ratio(ours, section.median(metric, "nftables")), 1)
		if metric != metricCRR {
			report.atLeast("published port, "+metric+", by plain routing", ratio(ours, section.median(metric, "plain routing")), 1.05)
		}
	}
	b.ReportMetric(0, "ns/op")
}

func routed(b *testing.B, lan *testhost.Host) *testhost.Host {
	b.Helper()
	router := testhost.New(b, testhost.WithName("router"))
	router.Forwarding(true)
	router.Connect(lan, testhost.Cable{PeerDev: "eth1", Addrs: []string{"198.51.100.1/24"}, PeerAddrs: []string{"198.51.100.2/24"}})
	server := router.NewNamespace("server")
	router.Connect(server, testhost.Cable{Dev: "veth0", Addrs: []string{"203.0.113.1/24"}, PeerAddrs: []string{"203.0.113.2/24"}})
	server.Route("default", "203.0.113.1")
	lan.Route("203.0.113.0/24", "198.51.100.1")
	return server
}

func translated(b *testing.B, lan *testhost.Host) *testhost.Host {
	b.Helper()
	h := testhost.New(b, testhost.WithName("nftables"))
	h.Forwarding(true)
	h.Connect(lan, testhost.Cable{PeerDev: "eth3", Addrs: []string{"198.51.101.1/24"}, PeerAddrs: []string{"198.51.101.2/24"}})
	server := h.NewNamespace("server")
	h.Connect(server, testhost.Cable{Dev: "veth0", Addrs: []string{"10.99.0.1/24"}, PeerAddrs: []string{"10.99.0.2/24"}})
	server.Route("default", "10.99.0.1")
	h.WriteFile("/run/nat.nft", fmt.Sprintf(`table ip nat {
	map ports {
		type inet_proto . inet_service : ipv4_addr . inet_service
		elements = { tcp . %d : 10.99.0.2 . %d }
	}
	chain in {
		type nat hook prerouting priority -100;
		dnat ip to meta l4proto . th dport map @ports
	}
	chain out {
		type nat hook postrouting priority 100;
		iifname "veth0" masquerade
	}
}
`, firstPort, containerPort))
	h.Run(b, "nft", "-f", "/run/nat.nft")
	return server
}
