package bench

import (
	"net/netip"
	"os"
	"testing"

	"github.com/bulkhead-net/bulkhead/internal/testhost"
)

// BenchmarkPath sends from one container to another on the same host, beside a bare veth pair and a Linux bridge.
func BenchmarkPath(b *testing.B) {
	s := configure(b)
	section := report.section("3. same host, container to container; client and server on one CPU",
		"rr: one byte each way on one connection; crr: connect, one byte each way, close; stream: one TCP connection, iperf3.")
	measurePaths(b, s, section, []path{barePath(b), bridgePath(b), switchPath(b, s)})
	aims := []float64{0.95, 0.93, 0.95}
	for i, metric := range pathMetrics() {
		ours := section.median(metric, "bulkhead")
		report.atLeast("same host, "+metric+", by a bare veth pair", ratio(ours, section.median(metric, "bare veth")), aims[i])
		report.atLeast("same host, "+metric+", by a Linux bridge", ratio(ours, section.median(metric, "Linux bridge")), 1)
	}
	b.ReportMetric(0, "ns/op")
}

func barePath(b *testing.B) path {
	b.Helper()
	h := testhost.New(b, testhost.WithName("bare"))
	client, server := h.NewNamespace("client"), h.NewNamespace("server")
	client.Connect(server, testhost.Cable{Addrs: []string{"10.9.0.1/24"}, PeerAddrs: []string{"10.9.0.2/24"}})
	return path{name: "bare veth", client: client, server: server, at: netip.MustParseAddr("10.9.0.2"), served: 80, port: 80}
}

func bridgePath(b *testing.B) path {
	b.Helper()
	lan := testhost.Switch(b, testhost.WithName("bridge"))
	// Where br_netfilter is loaded, a bridge is to be one without it: that is its best case.
	if _, err := os.Stat("/proc/sys/net/bridge/bridge-nf-call-iptables"); err == nil {
		lan.Sysctl("net.bridge.bridge-nf-call-iptables", "0")
	}
	client, server := lan.NewNamespace("client"), lan.NewNamespace("server")
	lan.Plug(client, "eth0", "10.9.0.1/24")
	lan.Plug(server, "eth0", "10.9.0.2/24")
	return path{name: "Linux bridge", client: client, server: server, at: netip.MustParseAddr("10.9.0.2"), served: 80, port: 80}
}

func switchPath(b *testing.B, s settings) path {
	b.Helper()
	h := testhost.New(b, testhost.WithName("bulkhead"))
	uplink := testhost.New(b, testhost.WithName("lan"))
	h.Connect(uplink, testhost.Cable{Addrs: []string{"192.0.2.1/24"}, PeerAddrs: []string{"192.0.2.2/24"}})
	f := newFleet(newDaemon(b, h, s.binary))
	f.attach(0)
	f.attach(1)
	return path{name: "bulkhead", client: f.compartment(0), server: f.compartment(1), at: f.addr(1), served: 80, port: 80}
}
