package plan

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/bulkhead-net/bulkhead/hcn"
)

// pair is a NAT network with the endpoints a (10.1.0.10, fd00:1::a) and b (10.1.0.11,
// fd00:1::b), with policies.
func pair(t *testing.T, network, a, b string, flags ...hcn.EndpointFlags) *Plan {
	t.Helper()
	net := guid("AA", 1)
	in := &Intent{Networks: map[hcn.GUID]*Network{}, Endpoints: map[hcn.GUID]*Endpoint{}, Namespaces: map[hcn.GUID]*NamespaceRow{}}
	for i, policies := range []string{a, b} {
		s := policyScene{network: network, endpoint: policies}.intent(t)
		n := s.Networks[net]
		n.GatewayMAC = MAC{2, 0, 0, 0, 0, 1}
		n.Doc.Ipams = []hcn.Ipam{{Subnets: []hcn.Subnet{
			{IpAddressPrefix: "10.1.0.0/24", Routes: []hcn.Route{{NextHop: "10.1.0.1", DestinationPrefix: "0.0.0.0/0"}}},
			{IpAddressPrefix: "fd00:1::/64", Routes: []hcn.Route{{NextHop: "fd00:1::1", DestinationPrefix: "::/0"}}},
		}}}
		in.Networks = s.Networks
		in.Namespaces = s.Namespaces
		e := s.Endpoints[guid("BB", 1)]
		e.Doc.ID, e.MAC = guid("BB", i+1), MAC{2, 0, 0, 0, 1, byte(i)}
		e.Addrs = []netip.Prefix{
			netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, 0, byte(10 + i)}), 24), netip.MustParsePrefix("fd00:1::" + string(rune('a'+i)) + "/64"),
		}
		if i < len(flags) {
			e.Doc.Flags = flags[i]
		}
		in.Endpoints[e.Doc.ID] = e
	}
	return Compile(in, &Facts{UplinkMTU: 1500})
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// packet reads "a > 10.1.0.11 tcp 1000 80": the sender, an optional source in front of
// ">", the destination, the protocol, and ports or a type.
func packet(t *testing.T, s string) Packet {
	t.Helper()
	f := strings.Fields(s)
	senders := map[string]PortID{
		"a": EndpointPortID(guid("BB", 1)), "b": EndpointPortID(guid("BB", 2)), "host": HostPortID(guid("AA", 1)), "resolver": ResolverPortID(guid("AA", 1)),
	}
	own := map[string][2]string{"a": {"10.1.0.10", "fd00:1::a"}, "b": {"10.1.0.11", "fd00:1::b"}, "host": {"10.1.0.1", "fd00:1::1"}, "resolver": {"10.1.0.1", "fd00:1::1"}}
	k := Packet{From: senders[f[0]]}
	rest := f[1:]
	var src string
	if rest[0] != ">" {
		src, rest = rest[0], rest[1:]
	}
	k.Dst = addr(rest[1])
	if src == "" {
		src = own[f[0]][0]
		if k.Dst.Is6() {
			src = own[f[0]][1]
		}
	}
	k.Src = addr(src)
	k.Protocol = map[string]uint8{"tcp": 6, "udp": 17, "icmp": 1, "icmp6": 58, "igmp": 2, "sctp": 132}[rest[2]]
	var numbers []uint16
	for _, n := range rest[3:] {
		v := uint16(0)
		for _, c := range n {
			v = v*10 + uint16(c-'0')
		}
		numbers = append(numbers, v)
	}
	switch {
	case len(numbers) == 2:
		k.SrcPort, k.DstPort = numbers[0], numbers[1]
	case len(numbers) == 1:
		k.ICMPType = uint8(numbers[0])
	}
	return k
}

// said is a trace in a line: verdict, to whom or why, and the rule's name.
func said(tr *Trace) string {
	out := []string{tr.Verdict.String()}
	switch tr.Verdict {
	case Delivered, ToHost:
		names := map[PortID]string{
			EndpointPortID(guid("BB", 1)): "a", EndpointPortID(guid("BB", 2)): "b", HostPortID(guid("AA", 1)): "host", ResolverPortID(guid("AA", 1)): "resolver",
		}
		out = append(out, names[tr.To])
	case Dropped:
		out = append(out, tr.Reason)
	default:
	}
	if tr.Rule != nil {
		out = append(out, tr.Rule.Source.ID)
	}
	return strings.Join(out, " ")
}

func TestTrace(t *testing.T) {
	const (
		isolated = hcn.DisableInterComputeCommunication
		any4     = `"RemoteAddresses":"0.0.0.0/0"`
	)
	in := func(id, rest string) string { return acl(`"Id":"` + id + `","Direction":"In",` + rest) }
	out := func(id, rest string) string { return acl(`"Id":"` + id + `","Direction":"Out",` + rest) }
	for _, tc := range []struct {
		name, network, a, b string
		flags               []hcn.EndpointFlags
		want                map[string]string
	}{
		{name: "no rules", want: map[string]string{
			"a > 10.1.0.11 tcp 1000 80":           "delivered b",
			"a > fd00:1::b udp 1000 80":           "delivered b",
			"a > 192.0.2.1 tcp 1000 80":           "to host host",
			"a > 10.1.0.1 icmp 8":                 "to host host",
			"a > 10.1.0.1 udp 1000 53":            "delivered resolver",
			"a > fd00:1::1 tcp 1000 53":           "delivered resolver",
			"a > 192.0.2.1 udp 1000 53":           "to host host",
			"a > fe80::ff:fe00:1 udp 1000 53":     "to host host",
			"host > 10.1.0.10 tcp 1000 80":        "delivered a",
			"host 192.0.2.1 > 10.1.0.10 icmp 0":   "delivered a",
			"resolver > 10.1.0.10 udp 53 1000":    "delivered a",
			"resolver > 10.1.0.10 udp 54 1000":    "dropped resolver",
			"a 10.1.0.11 > 10.1.0.11 tcp 1000 80": "dropped source-address",
			"a > 10.1.0.10 tcp 1000 80":           "dropped to-self",
			"a > 127.0.0.1 tcp 1000 80":           "dropped martian",
			"a ::1 > fd00:1::b tcp 1000 80":       "dropped martian",
			"a > 10.1.0.11 udp 67 68":             "dropped dhcp-server",
			"a > 10.1.0.11 icmp 5":                "dropped redirect",
			"a > fd00:1::b icmp6 134":             "dropped router-advert",
			"a > fd00:1::b icmp6 133":             "dropped router-solicit",
			"a > fd00:1::b icmp6 136":             "not traced",
			"a > 10.1.0.11 igmp":                  "dropped membership",
			"a > fd00:1::b icmp6 128":             "delivered b",
		}},
		{
			name: "the receiver's rules", b: in("web", `"Action":"Allow","Protocols":"6","LocalPorts":"80,8000-8010"`),
			want: map[string]string{
				"a > 10.1.0.11 tcp 1000 80":             "delivered b web",
				"a > fd00:1::b tcp 1000 8010":           "delivered b web",
				"a > 10.1.0.11 tcp 1000 8011":           "dropped policy-in",
				"a > 10.1.0.11 udp 1000 80":             "dropped policy-in",
				"a > 10.1.0.11 icmp 8":                  "dropped policy-in",
				"host > 10.1.0.11 tcp 9 81":             "dropped policy-in",
				"resolver > 10.1.0.11 udp 53 9":         "dropped policy-in",
				"b > 10.1.0.10 tcp 1000 22":             "delivered a",
				"a 0.0.0.0 > 255.255.255.255 udp 68 67": "to host host",
				"host > fd00:1::b icmp6 137":            "delivered b",
			},
		},
		{
			name: "both sides", a: out("no", `"Action":"Block","RemoteAddresses":"10.1.0.11"`) + "," + out("all", `"Action":"Allow"`),
			b: in("late", `"Action":"Block","Protocols":"17"`) + "," + in("some", `"Action":"Allow","Priority":100`),
			want: map[string]string{
				"a > 10.1.0.11 tcp 1000 80": "dropped policy-out no",
				"a > fd00:1::b tcp 1000 80": "delivered b some",
				"a > fd00:1::b udp 1000 80": "delivered b some",
				"a > 192.0.2.1 tcp 1000 80": "to host host all",
			},
		},
		{
			name: "a prefix keeps to its family", a: out("four", `"Action":"Allow",`+any4),
			want: map[string]string{
				"a > 10.1.0.11 tcp 1000 80": "delivered b four",
				"a > fd00:1::b tcp 1000 80": "dropped policy-out",
			},
		},
		{
			name: "an empty set is not any", network: ipset("none", ""), a: out("x", `"Action":"Allow","RemoteAddresses":"none"`),
			want: map[string]string{"a > 10.1.0.11 tcp 1000 80": "dropped policy-out"},
		},
		{
			name: "isolation", flags: []hcn.EndpointFlags{isolated},
			want: map[string]string{
				"a > 10.1.0.11 tcp 1000 80": "dropped isolated",
				"b > fd00:1::a tcp 1000 80": "dropped isolated",
				"a > 192.0.2.1 tcp 1000 80": "to host host",
				"a > 10.1.0.1 udp 1000 53":  "delivered resolver",
				"host > 10.1.0.10 tcp 1 80": "delivered a",
				"b > 192.0.2.1 tcp 1000 80": "to host host",
			},
		},
		{
			name: "a host rule", b: acl(`"Id":"fw","Action":"Block","Direction":"In","RuleType":"Host","Protocols":"6","LocalPorts":"22"`),
			want: map[string]string{
				"a > 10.1.0.11 tcp 1000 22": "dropped policy-in fw",
				"a > 10.1.0.11 tcp 1000 23": "delivered b",
				"a > 10.1.0.11 sctp":        "dropped policy-in ",
			},
		},
		{
			name: "tiers", b: tier(`"Name":"first","Direction":"In","Order":1`, `{"Id":"deny","TierAclRuleAction":"Block","RemoteAddresses":"10.1.0.1"},{"Id":"next","TierAclRuleAction":"Pass","Priority":7}`) + "," +
				tier(`"Name":"second","Direction":"In","Order":2`, `{"Id":"tcp","TierAclRuleAction":"Allow","Protocols":"6"}`) + "," + in("own", `"Action":"Allow","Protocols":"17"`),
			want: map[string]string{
				"a > 10.1.0.11 tcp 1000 22":   "delivered b tcp",
				"a > 10.1.0.11 udp 1000 22":   "delivered b own",
				"a > 10.1.0.11 icmp 8":        "dropped policy-in",
				"host > 10.1.0.11 tcp 1000 1": "delivered b tcp",
			},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := pair(t, tc.network, tc.a, tc.b, tc.flags...)
			got := map[string]string{}
			for k := range tc.want {
				tr := p.Trace(packet(t, k))
				got[k] = said(&tr)
			}
			if d := cmp.Diff(tc.want, got); d != "" {
				t.Errorf("traces (-want +got):\n%s", d)
			}
		})
	}
}

// TestTraceSteps: the steps tell the way, and end where the packet does.
func TestTraceSteps(t *testing.T) {
	p := pair(t, "", acl(`"Id":"out","Action":"Allow","Direction":"Out"`), acl(`"Id":"in","Action":"Block","Direction":"In","Protocols":"6","LocalPorts":"22"`))
	tr := p.Trace(packet(t, "a > 10.1.0.11 tcp 1000 22"))
	var got []string
	for _, s := range tr.Steps {
		line := s.Layer + ": " + s.Text
		if !s.Pass {
			line += " ✗"
		}
		got = append(got, line)
	}
	want := []string{
		"source guard: 02:00:00:00:01:00 from 10.1.0.10 is the sender's own",
		"switching: 02:00:00:00:01:01 is behind port " + string(guid("BB", 2)),
		`rules out: Allow Out any (ACL "out")`,
		`rules in: Block In TCP to port 22 (ACL "in") ✗`,
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if tr.Out == nil || tr.In == nil || tr.Number() != tr.In.Number || tr.Number() == tr.Out.Number {
		t.Errorf("out %v, in %v, number %d", tr.Out, tr.In, tr.Number())
	}
}
