package bench

import (
	"bufio"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/dataplane/wireguard"
	"github.com/bulkhead-net/bulkhead/internal/testhost"
)

// BenchmarkOverlay sends from a container on one host to a container on another, by a network that spans both, beside plain routing by the
// same wire, and a kernel's VXLAN device in a bridge on either host. What is encrypted stands beside WireGuard of the same kind alone.
//
//	left: client ── … ── eth0 192.0.2.1 ──── eth0 192.0.2.2 ── … ── server :right
func BenchmarkOverlay(b *testing.B) {
	s := configure(b)
	section := report.section("12. overlay, container to container on another host; client and server on one CPU",
		"plain routing: the same hosts and wire, without encapsulation. kernel VXLAN: a device with a fixed peer, in a bridge.",
		"bulkhead: a network of a cluster of two hosts. encrypted: with WireGuard, by a process or by the kernel where it can; beside that WireGuard alone, without VXLAN and switch.")
	paths := []path{routedHostsPath(b), kernelVXLANPath(b)}
	plain, encrypted, leave := overlayPaths(b, s, wireguard.UserSpace)
	defer leave()
	paths = append(paths, plain, bareWireGuardPath(b, s), encrypted)
	if err := wireguard.ProbeKernel(); err == nil {
		_, byKernel, leave := overlayPaths(b, s, wireguard.Kernel)
		defer leave()
		paths = append(paths, byKernel)
	} else {
		section.Notes = append(section.Notes, "encrypted by the kernel is not measured: "+err.Error())
	}
	metrics := []string{metricRR, metricCRR, metricUDP, metricStream}
	measurePaths(b, s, section, paths, metrics...)
	beside := map[string]float64{metricRR: 1, metricCRR: 1, metricUDP: 1, metricStream: 0.9}
	for _, metric := range metrics {
		ours := section.median(metric, plain.name)
		report.atLeast("overlay, "+metric+", by plain routing", ratio(ours, section.median(metric, paths[0].name)), beside[metric])
		report.atLeast("overlay, "+metric+", by kernel VXLAN in a bridge", ratio(ours, section.median(metric, paths[1].name)), 1.05)
	}
	b.ReportMetric(0, "ns/op")
}

// twoHosts are joined by a wire.
func twoHosts(b *testing.B, name string) (left, right *testhost.Host) {
	b.Helper()
	left, right = testhost.New(b, testhost.WithName(name+" left")), testhost.New(b, testhost.WithName(name+" right"))
	left.Connect(right, testhost.Cable{Addrs: []string{"192.0.2.1/24"}, PeerAddrs: []string{"192.0.2.2/24"}})
	return left, right
}

func routedHostsPath(b *testing.B) path {
	b.Helper()
	left, right := twoHosts(b, "routing")
	inside := func(h *testhost.Host, name, net, other, by string) *testhost.Host {
		h.Forwarding(true)
		c := h.NewNamespace(name)
		h.Connect(c, testhost.Cable{Dev: "veth0", Addrs: []string{net + ".1/24"}, PeerAddrs: []string{net + ".2/24"}})
		c.Route("default", net+".1")
		h.Route(other+".0/24", by)
		return c
	}
	client, server := inside(left, "client", "10.1.0", "10.2.0", "192.0.2.2"), inside(right, "server", "10.2.0", "10.1.0", "192.0.2.1")
	return path{name: "plain routing", client: client, server: server, at: netip.MustParseAddr("10.2.0.2"), served: 80, port: 80}
}

func kernelVXLANPath(b *testing.B) path {
	b.Helper()
	left, right := twoHosts(b, "vxlan")
	inside := func(h *testhost.Host, name, own, other, addr string) *testhost.Host {
		h.Run(b, "ip", "link", "add", "br0", "mtu", "1450", "type", "bridge")
		h.Run(b, "ip", "link", "add", "vx0", "mtu", "1450", "type", "vxlan", "id", "42", "local", own, "remote", other, "dstport", "4789", "dev", "eth0")
		h.Run(b, "ip", "link", "set", "vx0", "master", "br0", "up")
		h.Run(b, "ip", "link", "set", "br0", "up")
		c := h.NewNamespace(name)
		h.Connect(c, testhost.Cable{Dev: "veth0", PeerAddrs: []string{addr + "/24"}})
		h.Run(b, "ip", "link", "set", "veth0", "master", "br0")
		c.Run(b, "ip", "link", "set", "eth0", "mtu", "1450")
		return c
	}
	client, server := inside(left, "client", "192.0.2.1", "192.0.2.2", "10.3.0.1"), inside(right, "server", "192.0.2.2", "192.0.2.1", "10.3.0.2")
	return path{name: "kernel VXLAN", client: client, server: server, at: netip.MustParseAddr("10.3.0.2"), served: 80, port: 80}
}

// overlayPaths are ours, on a network in clear text and on an encrypted one. Leave ends etcd and WireGuard's processes, which outlive the
// daemons.
func overlayPaths(b *testing.B, s settings, by wireguard.Mode) (plain, encrypted path, leave func()) {
	b.Helper()
	left, right := twoHosts(b, "bulkhead "+string(by))
	l, r := newDaemon(b, left, s.binary, "--wireguard", string(by)), newDaemon(b, right, s.binary, "--wireguard", string(by))
	var joined api.ClusterJoined
	l.call(http.MethodPost, "/v1/cluster/init", api.ClusterInit{ClusterHostSpec: api.ClusterHostSpec{Name: "left", Addresses: []string{"192.0.2.1"}}}, &joined)
	r.call(http.MethodPost, "/v1/cluster/join", api.ClusterJoin{ClusterHostSpec: api.ClusterHostSpec{Name: "right", Addresses: []string{"192.0.2.2"}}, Token: joined.Token}, nil)
	leave = func() {
		for _, d := range []*daemon{r, l} {
			if err := d.try(http.MethodPost, "/v1/cluster/leave", api.ClusterLeave{Force: true}, nil); err != nil {
				b.Errorf("leave the cluster: %v", err)
			}
		}
	}
	over := func(name, title string, policies ...hcn.NetworkPolicy) path {
		var network hcn.HostComputeNetwork
		l.call(http.MethodPost, "/v1/cluster/networks", hcn.HostComputeNetwork{Name: name, Type: hcn.Overlay, SchemaVersion: hcn.V2(), Policies: policies}, &network)
		client, _ := clusterMember(b, l, network.ID)
		server, at := clusterMember(b, r, network.ID)
		testhost.Eventually(b, 20*time.Second, func() error { return client.Ping(at) })
		return path{name: "bulkhead" + title, client: client, server: server, at: at, served: 80, port: 80}
	}
	what := map[wireguard.Mode]string{wireguard.UserSpace: "a process", wireguard.Kernel: "the kernel"}[by]
	return over("plain", ""), over("secret", ", encrypted by "+what,
		hcn.NewNetworkPolicy(hcn.NetworkEncryption, hcn.NetworkEncryptionSetting{EncryptionMethodType: hcn.EncryptionMethodWireGuard})), leave
}

// clusterMember is a compartment on a network of the cluster, once that is on the host.
func clusterMember(b *testing.B, d *daemon, network hcn.GUID) (*testhost.Host, netip.Addr) {
	b.Helper()
	testhost.Eventually(b, 20*time.Second, func() error { return d.try(http.MethodGet, "/hcn/v2/networks/"+string(network), nil, nil) })
	var made api.Compartment
	d.call(http.MethodPost, "/v1/compartments", api.Compartment{Endpoints: []hcn.HostComputeEndpoint{{HostComputeNetwork: network}}}, &made)
	f := &fleet{d: d, network: network, made: map[int]member{0: {endpoint: made.Endpoints[0], namespace: made.Namespace.ID}}}
	for _, c := range made.Endpoints[0].IpConfigurations {
		if a := netip.MustParseAddr(c.IpAddress); a.Is4() {
			return f.compartment(0), a
		}
	}
	b.Fatalf("the endpoint has no IPv4 address: %+v", made.Endpoints[0].IpConfigurations)
	return nil, netip.Addr{}
}

// bareWireGuardPath is WireGuard outside the kernel and nothing else: the same program, its device in the client's namespace.
func bareWireGuardPath(b *testing.B, s settings) path {
	b.Helper()
	left, right := twoHosts(b, "wireguard")
	keys := make([]*ecdh.PrivateKey, 2)
	for i := range keys {
		var err error
		if keys[i], err = ecdh.X25519().GenerateKey(rand.Reader); err != nil {
			b.Fatal(err)
		}
	}
	inside := func(h *testhost.Host, name string, own, other *ecdh.PrivateKey, at, addr string) *testhost.Host {
		c := h.NewNamespace(name)
		socket := filepath.Join(b.TempDir(), "s")
		cmd := h.Command(b.Context(), s.binary, "wireguard", "--device", "wg0", "--namespace", c.Path(), "--socket", socket, "--mtu", "1420")
		if err := cmd.Start(); err != nil {
			b.Fatal(err)
		}
		b.Cleanup(cmd.Kill)
		testhost.Eventually(b, 10*time.Second, func() error {
			return tellWireGuard(socket, fmt.Sprintf("set=1\nprivate_key=%s\nlisten_port=51820\npublic_key=%s\nendpoint=%s:51820\nallowed_ip=0.0.0.0/0\n\n",
				hex.EncodeToString(own.Bytes()), hex.EncodeToString(other.PublicKey().Bytes()), at))
		})
		c.Addr("wg0", addr+"/24")
		c.Up("wg0")
		return c
	}
	client, server := inside(left, "client", keys[0], keys[1], "192.0.2.2", "10.4.0.1"), inside(right, "server", keys[1], keys[0], "192.0.2.1", "10.4.0.2")
	at := netip.MustParseAddr("10.4.0.2")
	testhost.Eventually(b, 10*time.Second, func() error { return client.Ping(at) })
	return path{name: "WireGuard alone, by a process", client: client, server: server, at: at, served: 80, port: 80}
}

func tellWireGuard(socket, text string) error {
	c, err := net.Dial("unix", socket) //nolint:noctx // it does not block
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	if _, err := c.Write([]byte(text)); err != nil {
		return err
	}
	answer, err := bufio.NewReader(c).ReadString('\n')
	if err == nil && answer != "errno=0\n" {
		err = fmt.Errorf("WireGuard says %q", answer)
	}
	return err
}
