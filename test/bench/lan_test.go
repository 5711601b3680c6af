package bench

import (
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/testhost"
)

// BenchmarkLAN asks a container that is a member of the LAN from another host there, beside a host on that very wire, a
// container on a Linux bridge that holds the NIC, and one on a macvlan of the NIC.
func BenchmarkLAN(b *testing.B) {
	s := configure(b)
	section := report.section("8. a container on the LAN of a NIC, asked by another host there; client and server on one CPU",
		"no switch: the wire ends in the server's namespace. Linux bridge: the NIC is a port of it. macvlan: mode bridge, on the NIC.",
		"bulkhead: a network of that type; the NIC keeps its addresses.")
	paths := []path{
		wirePath(b), bridgedNICPath(b), macvlanPath(b), lanPath(b, s, hcn.Transparent), lanPath(b, s, hcn.L2Bridge),
	}
	metrics := []string{metricRR, metricCRR, metricUDP, metricStream}
	measurePaths(b, s, section, paths, metrics...)
	for _, metric := range metrics {
		for _, p := range paths[3:] {
			ours := section.median(metric, p.name)
			what := "on the LAN, " + metric + ", " + p.name + " by "
			report.atLeast(what+"a Linux bridge", ratio(ours, section.median(metric, paths[1].name)), 1)
			report.atLeast(what+"macvlan", ratio(ours, section.median(metric, paths[2].name)), 0.95)
		}
	}
	b.ReportMetric(0, "ns/op")
}

func wirePath(b *testing.B) path {
	b.Helper()
	lan, server := testhost.New(b, testhost.WithName("lan")), testhost.New(b, testhost.WithName("server"))
	lan.Connect(server, testhost.Cable{Addrs: []string{"10.55.0.2/24"}, PeerAddrs: []string{"10.55.0.100/24"}})
	return lanServer("no switch", lan, server)
}

func bridgedNICPath(b *testing.B) path {
	b.Helper()
	lan, h := testhost.New(b, testhost.WithName("lan")), testhost.Switch(b, testhost.WithName("bridge"))
	h.Plug(lan, "eth0", "10.55.0.2/24")
	h.Addr("br0", "10.55.0.1/24") // what a host does that puts its NIC into a bridge
	server := h.NewNamespace("server")
	h.Plug(server, "eth0", "10.55.0.100/24")
	return lanServer("Linux bridge", lan, server)
}

func macvlanPath(b *testing.B) path {
	b.Helper()
	lan, h := testhost.New(b, testhost.WithName("lan")), testhost.New(b, testhost.WithName("macvlan"))
	h.Connect(lan, testhost.Cable{Addrs: []string{"10.55.0.1/24"}, PeerAddrs: []string{"10.55.0.2/24"}})
	server := h.NewNamespace("server")
	ns, err := os.Open(server.NetnsPath())
	if err != nil {
		b.Fatal(err)
	}
	defer ns.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.ParentIndex, attrs.Namespace = "eth0", h.Link("eth0").Attrs().Index, netlink.NsFd(ns.Fd())
	if err := h.Netlink().LinkAdd(&netlink.Macvlan{LinkAttrs: attrs, Mode: netlink.MACVLAN_MODE_BRIDGE}); err != nil {
		b.Fatalf("make a macvlan: %v", err)
	}
	server.Addr("eth0", "10.55.0.100/24")
	server.Up("eth0")
	return lanServer("macvlan", lan, server)
}

// lanPath is ours, on a network of a type that is on the NIC.
func lanPath(b *testing.B, s settings, kind hcn.NetworkType) path {
	b.Helper()
	lan, h := testhost.New(b, testhost.WithName("lan")), testhost.New(b, testhost.WithName("bulkhead"))
	h.Connect(lan, testhost.Cable{Addrs: []string{"10.55.0.1/24"}, PeerAddrs: []string{"10.55.0.2/24"}})
	h.Route("default", "10.55.0.2")
	d := newDaemon(b, h, s.binary)
	var network hcn.HostComputeNetwork
	d.call(http.MethodPost, "/hcn/v2/networks", hcn.HostComputeNetwork{
		Name: "lan", Type: kind, SchemaVersion: hcn.V2(),
		Policies: []hcn.NetworkPolicy{hcn.NewNetworkPolicy(hcn.NetAdapterName, hcn.NetAdapterNamePolicySetting{NetworkAdapterName: "eth0"})},
		Ipams: []hcn.Ipam{{Subnets: []hcn.Subnet{{
			IpAddressPrefix: "10.55.0.0/24", Routes: []hcn.Route{{NextHop: "10.55.0.2", DestinationPrefix: "0.0.0.0/0"}},
		}}}},
	}, &network)
	var made api.Compartment
	d.call(http.MethodPost, "/v1/compartments", api.Compartment{Endpoints: []hcn.HostComputeEndpoint{{
		HostComputeNetwork: network.ID, IpConfigurations: []hcn.IpConfig{{IpAddress: "10.55.0.100"}},
	}}}, &made)
	f := &fleet{d: d, network: network.ID, made: map[int]member{0: {endpoint: made.Endpoints[0], namespace: made.Namespace.ID}}}
	return lanServer(fmt.Sprintf("bulkhead, %v", kind), lan, f.compartment(0))
}

// lanServer is the way from the LAN to a server at the one address that all cases have.
func lanServer(name string, lan, server *testhost.Host) path {
	return path{name: name, client: lan, server: server, at: netip.MustParseAddr("10.55.0.100"), served: 80, port: 80}
}
