package plan

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/bulkhead-net/bulkhead/hcn"
)

// bridged is an L2Bridge network whose NIC has an address, and an endpoint in the host's own stack.
func bridged(kind hcn.NetworkType, nic string) (*Intent, *Facts) {
	net := &Network{Switch: 1, Uplink: "nic1", Doc: hcn.HostComputeNetwork{ID: "N", Name: "n", Type: kind, Ipams: []hcn.Ipam{{Subnets: []hcn.Subnet{
		{IpAddressPrefix: "10.1.0.0/24", Routes: []hcn.Route{{NextHop: "10.1.0.1", DestinationPrefix: "0.0.0.0/0"}}},
		{IpAddressPrefix: "fd00:1::/64", Routes: []hcn.Route{{NextHop: "fd00:1::1", DestinationPrefix: "::/0"}}},
	}}}}}
	in := &Intent{
		Networks: map[hcn.GUID]*Network{"N": net},
		Namespaces: map[hcn.GUID]*NamespaceRow{
			"H": {Doc: hcn.HostComputeNamespace{ID: "H", Type: hcn.NamespaceTypeHostDefault}},
			"C": {Doc: hcn.HostComputeNamespace{ID: "C", Type: hcn.NamespaceTypeHost}},
		},
		Endpoints: map[hcn.GUID]*Endpoint{},
	}
	for i, id := range []hcn.GUID{"G", "E", "F"} {
		e := &Endpoint{MAC: MAC{2, 0, 0, 0, 0, byte(i + 2)}, Addrs: []netip.Prefix{
			netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, 0, byte(i + 2)}), 24),
			netip.PrefixFrom(netip.MustParseAddr("fd00:1::"+string(rune('2'+i))), 64),
		}}
		e.Doc.ID, e.Doc.HostComputeNetwork, e.Doc.Name = id, "N", strings.ToLower(string(id))
		e.Attach = &Attachment{Namespace: "C", Interface: "eth" + string(rune('0'+i))}
		if id == "G" {
			e.Attach = &Attachment{Namespace: "H", Interface: "bhl1"}
		}
		in.Endpoints[id] = e
	}
	return in, &Facts{UplinkMTU: 1500, NICs: []NIC{{Name: "nic1", Index: 7, MTU: 1500, Up: true, MAC: MAC{2, 0, 0, 0, 0xee, 1}, Addrs: []netip.Prefix{netip.MustParsePrefix(nic)}}}}
}

// TestGatewayOfAPrefix: the host's vNIC has the prefix and forwards, where the NIC has none of it. Elsewhere it has an
// address.
func TestGatewayOfAPrefix(t *testing.T) {
	texts := func(list []netip.Prefix) (out []string) {
		for _, p := range list {
			out = append(out, p.String())
		}
		return out
	}
	for nic, want := range map[string][]string{
		"10.9.0.1/24":  {"10.1.0.2/24", "fd00:1::2/64"},
		"10.1.0.1/24":  {"10.1.0.2/32", "fd00:1::2/64"},
		"fd00:1::1/64": {"10.1.0.2/24", "fd00:1::2/128"},
	} {
		p := Compile(bridged(hcn.L2Bridge, nic))
		if got := texts(p.Ports["G"].VNIC.Addrs); !cmp.Equal(got, want) {
			t.Errorf("the NIC has %s: the host's vNIC has %v, want %v", nic, got, want)
		}
		if !p.Host.Forward4 || !p.Host.Forward6 {
			t.Errorf("the NIC has %s: the host is a gateway and does not forward: %+v", nic, p.Host)
		}
	}
	in, f := bridged(hcn.L2Bridge, "10.9.0.1/24")
	p := Compile(in, f)
	in.Endpoints["G"].Attach = nil
	if d := p.Recompile(in, f, Dirty{Endpoints: map[hcn.GUID]struct{}{"G": {}}}); !d.Host || p.Host.Forward4 || p.Host.Forward6 {
		t.Errorf("the gateway is gone: %+v", p.Host)
	}
}

// TestTraceOneMAC follows packets by the wire, the NIC's MAC, and the host's own vNIC.
func TestTraceOneMAC(t *testing.T) {
	a := netip.MustParseAddr
	e, g, f := a("10.1.0.3"), a("10.1.0.2"), a("10.1.0.4")
	outside := a("192.0.2.1")
	nic := MAC{2, 0, 0, 0, 0xee, 1}
	uplink := UplinkPortID("N")
	for _, c := range []struct {
		name string
		kind hcn.NetworkType
		pkt  Packet
		want Verdict
		to   PortID
		why  string
	}{
		{"from the wire", hcn.L2Bridge, Packet{From: uplink, Src: outside, Dst: e}, Delivered, "E", ""},
		{"from the wire, for the host's vNIC", hcn.L2Bridge, Packet{From: uplink, Src: outside, Dst: g, DstMAC: nic}, Passed, "", ""},
		{"back from the wire", hcn.L2Bridge, Packet{From: uplink, Src: f, Dst: e, SrcMAC: nic}, Dropped, "", "reflected"},
		{"back from the wire, in a tunnel", hcn.L2Tunnel, Packet{From: uplink, Src: f, Dst: e}, Delivered, "E", ""},
		{"with a port's MAC, in a tunnel", hcn.L2Tunnel, Packet{From: uplink, Src: f, Dst: e, SrcMAC: MAC{2, 0, 0, 0, 0, 4}}, Dropped, "", "reflected"},
		{"to another port", hcn.L2Bridge, Packet{From: "E", Src: e, Dst: f}, Delivered, "F", ""},
		{"to another port, by the NIC's MAC", hcn.L2Bridge, Packet{From: "E", Src: e, Dst: f, DstMAC: nic}, Delivered, "F", ""},
		{"to another port, in a tunnel", hcn.L2Tunnel, Packet{From: "E", Src: e, Dst: f}, ToWire, uplink, ""},
		{"to another port, by the NIC's MAC, in a tunnel", hcn.L2Tunnel, Packet{From: "E", Src: e, Dst: f, DstMAC: nic}, ToWire, uplink, ""},
		{"to the gateway", hcn.L2Bridge, Packet{From: "E", Src: e, Dst: outside, DstMAC: MAC{2, 0, 0, 0, 0, 2}}, ToHost, uplink, ""},
		{"to the gateway, in a tunnel", hcn.L2Tunnel, Packet{From: "E", Src: e, Dst: outside, DstMAC: MAC{2, 0, 0, 0, 0, 2}}, ToHost, uplink, ""},
		{"from the gateway", hcn.L2Bridge, Packet{From: "G", Src: outside, Dst: e}, Delivered, "E", ""},
		{"from the gateway, in a tunnel", hcn.L2Tunnel, Packet{From: "G", Src: outside, Dst: e}, Delivered, "E", ""},
		{"from the gateway, for the wire", hcn.L2Bridge, Packet{From: "G", Src: g, Dst: outside}, Dropped, "", "unknown-mac"},
	} {
		p := Compile(bridged(c.kind, "10.9.0.1/24"))
		c.pkt.Protocol = 17
		got := p.Trace(p.Complete(c.pkt))
		if got.Verdict != c.want || got.To != c.to || got.Reason != c.why {
			t.Errorf("%s: %s to %q %s, want %s to %q %s\n%v", c.name, got.Verdict, got.To, got.Reason, c.want, c.to, c.why, got.Steps)
		}
	}
}

// TestExplainTunnel: whether containers of one host reach each other in a tunnel is up to the switch outside, and that is said.
func TestExplainTunnel(t *testing.T) {
	for _, kind := range []hcn.NetworkType{hcn.L2Bridge, hcn.L2Tunnel} {
		in, f := bridged(kind, "10.1.0.1/24")
		in.Namespaces["D"] = &NamespaceRow{Doc: hcn.HostComputeNamespace{ID: "D", Type: hcn.NamespaceTypeHost}}
		in.Endpoints["F"].Attach.Namespace = "D"
		p := Compile(in, f)
		from, to := p.Ports[EndpointPortID("E")], p.Ports[EndpointPortID("F")]
		x := p.Explain(Inquiry{From: Party{Kind: PartyPorts, Ports: []*Port{from}}, To: Party{Kind: PartyPorts, Ports: []*Port{to}}, Protocol: 6, Port: 80}, &HostView{})
		told := strings.HasSuffix(x.Summary, "if the switch outside sends the frame back") && len(x.Doubts) == 1 && strings.Contains(x.Doubts[0], "hairpin on") && x.Outside
		if !x.Reachable || told != (kind == hcn.L2Tunnel) {
			t.Errorf("%s: %+v", kind, x)
		}
	}
}
