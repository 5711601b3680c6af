package plan_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
	"github.com/bulkhead-net/bulkhead/internal/plan/plantest"
)

// judge decides from the documents, layer by layer, without the flat list that the
// compiler makes of them.
type judge struct {
	in    *plan.Intent
	ep    *plan.Endpoint
	dir   hcn.DirectionType
	local netip.Addr
	other netip.Addr
	proto uint8
	ports [2]uint16 // local, remote
}

func (j *judge) setHolds(id string, a netip.Addr) bool {
	sets, _ := hcn.NetworkSettingsOf[hcn.SetPolicySetting](j.in.Networks[j.ep.Doc.HostComputeNetwork].Doc.Policies)
	for _, s := range sets {
		if s.Id != id {
			continue
		}
		prefixes, _ := s.Prefixes()
		return slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(a) }) ||
			slices.ContainsFunc(s.Members(), func(m string) bool { return j.setHolds(m, a) })
	}
	return false
}

func (j *judge) listHolds(l hcn.AddressList, a netip.Addr) bool {
	return len(l.Prefixes)+len(l.Sets) == 0 || slices.ContainsFunc(l.Prefixes, func(p netip.Prefix) bool { return p.Contains(a) }) ||
		slices.ContainsFunc(l.Sets, func(id string) bool { return j.setHolds(id, a) })
}

// mine tells whether a field can be the endpoint's side; the sets in it speak for it.
func (j *judge) mine(l hcn.AddressList) bool {
	if len(l.Sets) > 0 {
		l.Prefixes = nil
	}
	return slices.ContainsFunc(j.ep.Addrs, func(a netip.Prefix) bool { return j.listHolds(l, a.Addr()) })
}

func (j *judge) matches(m hcn.RuleMatch) bool {
	local, remote := m.Local, m.Remote
	if len(local.Sets)+len(remote.Sets) > 0 {
		source, destination := m.Local, m.Remote
		local, remote = source, destination
		if j.dir == hcn.DirectionTypeIn {
			local, remote = destination, source
		}
		if !j.mine(local) && j.mine(remote) {
			local, remote = remote, local
		}
	}
	ports := func(l []hcn.PortRange, port uint16) bool {
		return len(l) == 0 || slices.ContainsFunc(l, func(r hcn.PortRange) bool { return r.First <= port && port <= r.Last })
	}
	return (len(m.Protocols) == 0 || slices.Contains(m.Protocols, j.proto)) && ports(m.LocalPorts, j.ports[0]) && ports(m.RemotePorts, j.ports[1]) &&
		j.listHolds(local, j.local) && j.listHolds(remote, j.other)
}

// entry is a rule of either kind.
type entry struct {
	dir      hcn.DirectionType
	host     bool
	action   hcn.ActionType
	priority int
	match    hcn.RuleMatch
}

// first is the rule of a layer that decides: of those that match, the one with the
// lowest priority, and among these the strictest.
func (j *judge) first(layer []entry) hcn.ActionType {
	strict := map[hcn.ActionType]int{hcn.ActionTypeBlock: 0, hcn.ActionTypeAllow: 1, hcn.ActionTypePass: 2}
	best, found := entry{}, false
	for _, e := range layer {
		if e.priority == 0 {
			e.priority = 1 << 16
		}
		if e.dir == j.dir && j.matches(e.match) && (!found || e.priority < best.priority || e.priority == best.priority && strict[e.action] < strict[best.action]) {
			best, found = e, true
		}
	}
	return best.action
}

func aclEntries(acls []hcn.AclPolicySetting) (host, own []entry) {
	for _, s := range acls {
		m, _ := s.Match()
		e := entry{s.Direction, s.RuleType == hcn.RuleTypeHost, s.Action, int(s.Priority), m}
		if e.host {
			host = append(host, e)
		} else {
			own = append(own, e)
		}
	}
	return host, own
}

// allows is the whole verdict of an endpoint's and its network's documents.
func (j *judge) allows() bool {
	networkACLs, _ := hcn.NetworkSettingsOf[hcn.AclPolicySetting](j.in.Networks[j.ep.Doc.HostComputeNetwork].Doc.Policies)
	endpointACLs, _ := hcn.SettingsOf[hcn.AclPolicySetting](j.ep.Doc.Policies)
	networkHost, network := aclEntries(networkACLs)
	endpointHost, own := aclEntries(endpointACLs)
	if host := append(networkHost, endpointHost...); len(host) > 0 {
		common := slices.Contains([]uint8{1, 2, 6, 17, 58}, j.proto)
		switch action := j.first(host); {
		case action == hcn.ActionTypeBlock, action == "" && !common && j.dir == hcn.DirectionTypeIn:
			return false
		}
	}
	tiers, _ := hcn.SettingsOf[hcn.TierAclPolicySetting](j.ep.Doc.Policies)
	slices.SortStableFunc(tiers, func(a, b hcn.TierAclPolicySetting) int {
		if a.Order != b.Order {
			return int(a.Order) - int(b.Order)
		}
		return int(a.Name[1]) - int(b.Name[1])
	})
	var layers [][]entry
	for _, t := range tiers {
		var layer []entry
		for _, r := range t.TierAclRules {
			m, _ := r.Match()
			layer = append(layer, entry{t.Direction, false, r.TierAclRuleAction, int(r.Priority), m})
		}
		layers = append(layers, layer)
	}
	some := false
	for _, layer := range append(layers, network, own) {
		some = some || slices.ContainsFunc(layer, func(e entry) bool { return e.dir == j.dir })
		switch j.first(layer) {
		case hcn.ActionTypeAllow:
			return true
		case hcn.ActionTypeBlock:
			return false
		default:
		}
	}
	return !some
}

// dhcpExempt: the questions of clients to all, and on a LAN the answers that come from outside, and a question to one who is
// outside, whom a frame to a group is not for.
func dhcpExempt(p *plan.Plan, k plan.Packet) bool {
	from := p.Ports[k.From]
	lan, outside, here := p.Switches[from.Network].Mode.OnLAN(), from.Kind == plan.PortUplink, false
	for _, port := range p.Ports {
		here = here || port.Network == from.Network && port.Kind == plan.PortContainer && port.MAC == k.DstMAC && port.VLAN == from.VLAN
	}
	switch [2]uint16{k.SrcPort, k.DstPort} {
	case [2]uint16{68, 67}:
		return k.Src.Is4() && (k.Dst == netip.MustParseAddr("255.255.255.255") || lan && !outside && !here && k.DstMAC[0]&1 == 0)
	case [2]uint16{546, 547}:
		return k.Src.Is6() && lan && k.Dst == netip.MustParseAddr("ff02::1:2")
	case [2]uint16{67, 68}:
		return k.Src.Is4() && lan && outside
	case [2]uint16{547, 546}:
		return k.Src.Is6() && lan && outside
	}
	return false
}

// TestListsMeanTheDocuments holds the compiled lists, and the model that walks them, to
// what the documents say.
func TestListsMeanTheDocuments(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := plantest.Intent(t)
		p := plan.Compile(in, &plan.Facts{UplinkMTU: 1500})
		for range 20 {
			k := plantest.Packet(t, p)
			tr := p.Trace(k)
			if _, s := p.ServiceAt(p.Ports[k.From].Network, k.Protocol, netip.AddrPortFrom(k.Dst, k.DstPort), p.Ports[k.From].Kind == plan.PortHost); s != nil {
				continue // its back end's rules
			}
			if p.Ports[k.From].HopOf(k.Dst) != nil {
				continue // those of who is named there
			}
			var ports [2]uint16
			if k.Protocol == 6 || k.Protocol == 17 {
				ports = [2]uint16{k.SrcPort, k.DstPort}
			}
			exempt := k.Protocol == 58 && k.Src.Is6() && k.ICMPType >= 133 && k.ICMPType <= 137 || k.Protocol == 17 && dhcpExempt(p, k)
			reached := tr.Verdict == plan.Delivered || tr.Verdict == plan.ToHost || tr.Reason == "policy-out" || tr.Reason == "policy-in"
			if !reached {
				continue
			}
			want := ""
			if from := in.Endpoints[hcn.GUID(k.From)]; from != nil && !exempt {
				j := judge{in, from, hcn.DirectionTypeOut, k.Src, k.Dst, k.Protocol, ports}
				if !j.allows() {
					want = "policy-out"
				}
			}
			receiver := receiverOf(p, k)
			if from := in.Endpoints[hcn.GUID(k.From)]; from != nil && proxied(in, from, k) {
				receiver = "" // the host
			}
			if to := in.Endpoints[hcn.GUID(receiver)]; to != nil && !exempt && want == "" {
				j := judge{in, to, hcn.DirectionTypeIn, k.Dst, k.Src, k.Protocol, [2]uint16{ports[1], ports[0]}}
				if !j.allows() {
					want = "policy-in"
				}
			}
			if tr.Reason != want {
				t.Fatalf("%+v: %s %q, the documents say %q\n%s", k, tr.Verdict, tr.Reason, want, p.Text())
			}
			if tr.Verdict != plan.Dropped && tr.To != receiver && receiver != "" && p.Ports[tr.To].Kind != plan.PortResolver {
				t.Fatalf("%+v: to %s, want %s", k, tr.To, receiver)
			}
		}
	})
}

// proxied reads the L4Proxy documents one by one.
func proxied(in *plan.Intent, from *plan.Endpoint, k plan.Packet) bool {
	n := in.Networks[from.Doc.HostComputeNetwork]
	own, _ := hcn.SettingsOf[hcn.L4ProxyPolicySetting](from.Doc.Policies)
	all, _ := hcn.NetworkSettingsOf[hcn.L4ProxyPolicySetting](n.Doc.Policies)
	if n.Doc.Type == hcn.Private || plan.HasUplink(n.Doc.Type) { // which have no host port to go by
		return false
	}
	is := func(a netip.Addr) bool {
		return slices.ContainsFunc(from.Addrs, func(p netip.Prefix) bool { return p.Addr() == a })
	}
	family := slices.ContainsFunc(from.Addrs, func(p netip.Prefix) bool { return p.Addr().Is4() == k.Dst.Is4() })
	for _, s := range append(own, all...) {
		ip := netip.MustParseAddr(s.IP)
		holds := func(list []netip.Prefix) bool {
			return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(k.Dst) })
		}
		protocol := uint8(6)
		if s.Protocol != 0 {
			protocol = uint8(s.Protocol)
		}
		if ip.Is4() == k.Dst.Is4() && family && !is(ip) && protocol == k.Protocol && k.Dst != ip && !is(k.Dst) &&
			!k.Dst.IsMulticast() && k.Dst != netip.MustParseAddr("255.255.255.255") && k.Dst != netip.MustParseAddr("10.1.0.255") &&
			(s.Destination == "" || holds(s.Destinations())) && !holds(s.Exceptions()) {
			return true
		}
	}
	return false
}

// receiverOf finds the container that a packet is for, or "": who has the MAC, and where
// nobody has it, who has the address.
func receiverOf(p *plan.Plan, k plan.Packet) plan.PortID {
	var byAddress plan.PortID
	for id, port := range p.Ports {
		switch {
		case port.Network != p.Ports[k.From].Network:
		case port.MAC == k.DstMAC:
			if port.Kind == plan.PortContainer {
				return id
			}
			if p.Switches[port.Network].Overlay != nil {
				continue // whoever has the address
			}
			return ""
		case port.Kind == plan.PortContainer && (slices.Contains(port.Addrs, k.Dst) || port.LinkLocal == k.Dst):
			byAddress = id
		}
	}
	return byAddress
}

// isHere tells that a port of a network has an address.
func isHere(p *plan.Plan, network hcn.GUID, a netip.Addr) bool {
	for _, port := range p.Ports {
		if port.Network == network && slices.Contains(port.Addrs, a) {
			return true
		}
	}
	return false
}

// TestDrawnPacketsReachEverything keeps the generator honest: what it never draws, no
// property test has tested.
func TestDrawnPacketsReachEverything(t *testing.T) {
	seen := map[string]int{}
	draw := rapid.Custom(func(t *rapid.T) map[string]int {
		found := map[string]int{}
		p := plantest.Plan(t)
		for range 30 {
			k := plantest.Packet(t, p)
			tr := p.Trace(k)
			found[tr.Verdict.String()]++
			found[tr.Reason]++
			if slices.ContainsFunc(tr.Steps, func(s plan.Step) bool { return strings.HasPrefix(s.Text, "L4Proxy") }) {
				found["detour"]++
			}
			if slices.ContainsFunc(tr.Steps, func(s plan.Step) bool { return strings.HasPrefix(s.Text, "OutBoundNAT or SDNRoute") }) {
				found["turned"]++
			}
			if slices.ContainsFunc(tr.Steps, func(s plan.Step) bool { return strings.HasPrefix(s.Text, "SDNRoute") }) {
				found["hop, "+tr.Verdict.String()]++
			}
			for _, s := range tr.Steps {
				for _, what := range []string{"which is the sender itself", "as it is", "to the back end"} {
					if s.Layer == "load balancer" && s.Pass && strings.Contains(s.Text, what) {
						found["balanced "+what]++
					}
				}
			}
			for name, r := range map[string]*plan.Rule{"out": tr.Out, "in": tr.In} {
				if r == nil {
					continue
				}
				found[name+" "+r.Action.String()]++
				if len(r.Local.Sets)+len(r.Remote.Sets) > 0 {
					found["set"]++
				}
				if r.Source.Layer != plan.LayerEndpoint {
					found["layer "+string('0'+rune(r.Source.Layer))]++
				}
				if len(r.LocalPorts)+len(r.RemotePorts) > 0 {
					found["ports"]++
				}
			}
			if from := p.Ports[k.From]; tr.Reason == "isolated" && from.Kind == plan.PortTunnel {
				found["isolated from elsewhere"]++
			} else if tr.Reason == "isolated" && p.Switches[from.Network].Overlay != nil && !isHere(p, from.Network, k.Dst) {
				found["isolated to elsewhere"]++
			}
			if len(k.Frame()) < 54 {
				t.Fatalf("a frame of %d bytes", len(k.Frame()))
			}
		}
		return found
	})
	for seed := range 300 {
		for k, n := range draw.Example(seed) {
			seen[k] += n
		}
	}
	for _, want := range []string{
		"delivered", "to host", "flooded", "dropped", "policy-out", "policy-in", "isolated", "source-address", "source-mac", "martian", "unknown-mac",
		"to-self", "resolver", "membership", "router-solicit", "router-advert", "redirect", "dhcp-server", "group-unicast",
		"out allow", "out block", "in allow", "in block", "set", "ports", "layer 1", "layer 2", "layer 3", "detour", "to wire", "passed", "reflected", "turned", "balanced which is the sender itself", "balanced as it is", "balanced to the back end", "no-backend", "to another host", "no-route", "inner-source", "unknown-vtep", "flooded",
		"isolated from elsewhere", "isolated to elsewhere", "hop, delivered", "hop, to host", "hop, to another host", "hop, dropped",
	} {
		if seen[want] == 0 {
			t.Errorf("%q never came up", want)
		}
	}
	t.Log(seen)
}
