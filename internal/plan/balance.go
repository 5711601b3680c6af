package plan

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/bulkhead-net/bulkhead/hcn"
)

// Load balancers. The port of a client chooses the back end of a connection to one of the services, and rewrites the
// destination (bpf/lib/balance.h); rules, counters and flows are about the connection with the back end.

// LoadBalancer is the stored form of a load balancer: the document as it is shown, and what was chosen once and kept.
type LoadBalancer struct {
	Doc hcn.HostComputeLoadBalancer
	Seq uint64
	// Network is the one whose switch balances: the document's, or that of its back ends.
	Network hcn.GUID
	// Inside are ports, one for each of the mappings, by which the host sends to it on the network (see Inside). Those of a network are
	// all different. 0 or none: the mapping is for endpoints of the network only.
	Inside []uint16 `json:",omitempty"`
	// Apart says that those ports are on a switch of the host's: see BalancesApart. There all of them are different, too.
	Apart bool `json:",omitempty"`
	// Host is the host of the cluster that has it, "" for one of this host's own. Such a one is stored nowhere, and is for endpoints of its
	// network alone.
	Host string `json:"-"`
	// Only4 says that at the host's IPv6 addresses its ports are those of another one, which is for IPv6 alone.
	Only4 bool `json:",omitempty"`
}

// DoorID is the network on whose switch the ports are that Inside names.
func (b *LoadBalancer) DoorID() hcn.GUID { return door(b.Apart, b.Network) }

func door(apart bool, network hcn.GUID) hcn.GUID {
	if apart {
		return ServicesNetwork
	}
	return network
}

// Balancer is a load balancer on a switch.
type Balancer struct {
	ID      hcn.GUID
	Name    string
	Network hcn.GUID
	Switch  uint32
	// Host is that of the cluster that has it, "" for this one.
	Host     string
	Services []Service
	// Apart says that the host reaches it by a switch of its own.
	Apart bool
	// Forwards are what the host translates, for itself and for the outside.
	Forwards []Forward
	// Source is as whom back ends elsewhere see those, nil for none. Unreached says that there are such back ends, and none.
	Source    *Source
	Unreached bool
}

// Service is what clients ask for, and who answers.
type Service struct {
	Protocol uint8
	VIP      netip.Addr
	Port     uint16
	Spread   Spread
	// Host says that it is for what the host sends, and not for containers: see Inside.
	Host bool
	// Keep says that packets are delivered as they are: the back ends have the address.
	Keep bool
	// Self is as whom a back end meets itself.
	Self netip.Addr
	// Source is as whom back ends that are on no port of the switch see clients; nil: as who they are.
	Source *Source
	// Backends in a fixed order, without duplicates.
	Backends []netip.AddrPort
}

// DoorID is the network on whose switch the host reaches it.
func (b *Balancer) DoorID() hcn.GUID { return door(b.Apart, b.Network) }

// SwitchOf is the number of the switch that a service of the load balancer is on.
func (b *Balancer) SwitchOf(s *Service) uint32 {
	if s.Host && b.onServices() {
		return servicesSwitch
	}
	return b.Switch
}

func (b *Balancer) forwards() []Forward {
	if b == nil {
		return nil
	}
	return b.Forwards
}

// Spread says what a back end is chosen by. The numbers are those of SPREAD_* in bpf/lib.
type Spread uint8

// What connections of one client have in common.
const (
	SpreadFlow           Spread = iota // nothing
	SpreadSourceProtocol               // the back end, for each protocol
	SpreadSource                       // the back end
)

// Frontend is what clients ask for. On the whole host it is one load balancer's.
type Frontend struct {
	Protocol uint8
	Addr     netip.Addr
	Port     uint16
}

// balancersOf are the load balancers that an endpoint is a back end of.
func (in *Intent) balancersOf(endpoint hcn.GUID, visit func(hcn.GUID)) {
	if in.ByBackend != nil {
		for id := range in.ByBackend[endpoint] {
			visit(id)
		}
		for id := range in.SharedBy[endpoint] {
			visit(id)
		}
		return
	}
	for _, all := range []map[hcn.GUID]*LoadBalancer{in.Balancers, in.Shared} {
		for id, b := range all {
			if slices.Contains(b.Doc.HostComputeEndpoints, endpoint) {
				visit(id)
			}
		}
	}
}

// balancer is the one with an ID: this host's own comes first.
func (in *Intent) balancer(id hcn.GUID) *LoadBalancer {
	if b := in.Balancers[id]; b != nil {
		return b
	}
	return in.Shared[id]
}

// own is the load balancer of this host that has a service on a network; nil for none.
func (in *Intent) own(network hcn.GUID, f Frontend) *LoadBalancer {
	if in.Frontends != nil {
		if b := in.Balancers[in.Frontends[f]]; b != nil && b.Network == network {
			return b
		}
		return nil
	}
	for _, b := range in.Balancers {
		if b.Network == network && slices.Contains(b.Doc.VIPs(), f.Addr) && slices.ContainsFunc(b.Doc.PortMappings, func(m hcn.LoadBalancerPortMapping) bool {
			return uint8(m.Protocol) == f.Protocol && m.External() == f.Port
		}) {
			return b
		}
	}
	return nil
}

// withBalancers adds to the load balancers that changed those of networks and back ends that did.
func (p *Plan) withBalancers(in *Intent, dirty Dirty, endpoints, remotes map[hcn.GUID]struct{}) map[hcn.GUID]struct{} {
	out := maps.Clone(dirty.Balancers)
	if out == nil {
		out = map[hcn.GUID]struct{}{}
	}
	for _, changed := range []map[hcn.GUID]struct{}{endpoints, remotes} {
		for id := range changed {
			in.balancersOf(id, func(b hcn.GUID) { out[b] = struct{}{} })
			p.sourcedBy(in, id, func(b hcn.GUID) { out[b] = struct{}{} })
		}
	}
	if len(dirty.Networks) == 0 {
		return out
	}
	for _, all := range []map[hcn.GUID]*LoadBalancer{in.Balancers, in.Shared} {
		for id, b := range all {
			if _, ok := dirty.Networks[b.Network]; ok {
				out[id] = struct{}{}
			}
		}
	}
	return out
}

// compileBalancer makes the services of a load balancer. Back ends that are in no compartment have nobody who answers: they do not
// count until they are. Of one that another host has, services that this host has itself are this host's.
func compileBalancer(in *Intent, b *LoadBalancer) *Balancer {
	if b == nil {
		return nil
	}
	n := in.Networks[b.Network]
	if n == nil || !Balances(&n.Doc) {
		return nil
	}
	out := &Balancer{ID: b.Doc.ID, Name: b.Doc.Name, Network: b.Network, Switch: n.Switch, Host: b.Host, Apart: b.Apart}
	local, remote, tagged := backends(in, b)
	ends := backendLists(slices.Concat(local, tagged), remote)
	for _, m := range b.Doc.PortMappings {
		for _, text := range b.Doc.FrontendVIPs {
			vip, err := netip.ParseAddr(text)
			if err != nil {
				continue // refused when it was made
			}
			vip = vip.Unmap()
			if b.Host != "" && in.own(b.Network, Frontend{uint8(m.Protocol), vip, m.External()}) != nil {
				continue
			}
			s := Service{
				Protocol: uint8(m.Protocol), VIP: vip, Port: m.External(), Spread: Spread(m.DistributionType),
				Keep: m.Flags&hcn.EnablePreserveDip != 0, Self: vip,
			}
			// In a subnet the back end would look for it on the link, where an endpoint in no compartment does not answer.
			if self := b.SourceVIP(); self.IsValid() && self.Is4() == vip.Is4() && n.Doc.SubnetOf(self) == nil {
				s.Self = self
			}
			s.Backends = ends(vip.Is4(), s.Keep, m.Behind())
			out.Services = append(out.Services, s)
		}
	}
	if b.Host != "" {
		return out
	}
	out.Forwards = BalancerForwards(b, n)
	source := servicesSourceOf
	if len(out.Forwards) > 0 && !out.onServices() {
		out.Source = in.sourceOf(b)
		out.Unreached = out.Source == nil && len(remote) > 0
		source = out.Source.of
	}
	out.Services = append(out.Services, insideServices(b, out.Forwards, source, local, remote)...)
	return out
}

// backendLists gives the back ends of services by what tells them apart: many services of a load balancer have the same.
func backendLists(local, remote []netip.Addr) func(is4, keep bool, port uint16) []netip.AddrPort {
	type kind struct {
		is4, keep bool
		port      uint16
	}
	lists := map[kind][]netip.AddrPort{}
	return func(is4, keep bool, port uint16) []netip.AddrPort {
		k := kind{is4, keep, port}
		list, ok := lists[k]
		if ok {
			return list
		}
		from := local
		if !keep { // else another host knows of its own services only
			from = slices.Concat(local, remote)
		}
		for _, a := range from {
			if a.Is4() == is4 {
				list = append(list, netip.AddrPortFrom(a, port))
			}
		}
		slices.SortFunc(list, netip.AddrPort.Compare)
		lists[k] = slices.Compact(list)
		return lists[k]
	}
}

// backends are the addresses of a load balancer's back ends: of those on this host, and of others. Those in a VLAN, where the host
// is not, are tagged.
func backends(in *Intent, b *LoadBalancer) (local, remote, tagged []netip.Addr) {
	for _, id := range b.Doc.HostComputeEndpoints {
		e := in.Endpoints[id]
		switch {
		case e == nil:
			if r := in.Remotes[id]; r != nil && r.Network == b.Network {
				remote = append(remote, r.Addrs...)
			}
		case e.Doc.HostComputeNetwork != b.Network:
		case e.Doc.Flags&hcn.RemoteEndpoint != 0:
			for _, a := range e.Addrs {
				remote = append(remote, a.Addr())
			}
		case e.Attach != nil && in.Namespaces[e.Attach.Namespace] != nil && !in.Namespaces[e.Attach.Namespace].Vanished:
			to := &local
			if VLANOf(e, in.Networks[b.Network]) != 0 {
				to = &tagged
			}
			for _, a := range e.Addrs {
				*to = append(*to, a.Addr())
			}
		}
	}
	return local, remote, tagged
}

// Balances tells that the switch of a network balances. On an L2Tunnel every frame goes by the wire as it is, for somebody outside to
// judge, and macvlan devices have no switch.
func Balances(doc *hcn.HostComputeNetwork) bool {
	m := modeOf(doc)
	return m != 0 && m != ModeL2Tunnel && m != ModeMacvlan
}

// Places are the back ends by place in the table that a connection's hash points into; empty without any. All have as many, but for
// one, and when some come or go the others keep nearly all of theirs (Maglev: Eisenbud et al., NSDI 2016). There are a
// power of two, and steps are odd, so each back end's way leads by every place.
func Places(backends []netip.AddrPort) []uint16 {
	if len(backends) == 0 {
		return nil
	}
	size := 256
	for size < 16*len(backends) && size < 1<<16 {
		size *= 4
	}
	at, step := make([]uint32, len(backends)), make([]uint32, len(backends))
	for i, b := range backends {
		h := fnv.New64a()
		ip := b.Addr().As16()
		h.Write(ip[:])
		h.Write(binary.BigEndian.AppendUint16(nil, b.Port()))
		sum := spreadBits(h.Sum64())
		at[i], step[i] = uint32(sum), uint32(sum>>32)|1
	}
	out, taken := make([]uint16, size), make([]bool, size)
	for left := size; left > 0; {
		for i := range backends {
			for taken[at[i]%uint32(size)] {
				at[i] += step[i]
			}
			out[at[i]%uint32(size)], taken[at[i]%uint32(size)] = uint16(i), true
			if left--; left == 0 {
				break
			}
		}
	}
	return out
}

// spreadBits lets each bit depend on all (the finalizer of MurmurHash3).
func spreadBits(x uint64) uint64 {
	x = (x ^ x>>33) * 0xff51afd7ed558ccd
	x = (x ^ x>>33) * 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}

// Place is the hash of a connection's first packet, as place() in bpf/lib/balance.h makes it.
func Place(s Spread, protocol uint8, src, dst netip.AddrPort) uint32 {
	mix := func(h, word uint32) uint32 {
		h = (h ^ word) * 0x9e3779b1
		return h ^ h>>15
	}
	word := func(a netip.Addr, i int) uint32 {
		ip := a.As16()
		return binary.LittleEndian.Uint32(ip[4*i:])
	}
	var h uint32
	for i := range 4 {
		h = mix(h, word(src.Addr(), i))
	}
	if s != SpreadSource {
		h = mix(h, uint32(protocol))
	}
	if s == SpreadFlow {
		h = mix(mix(h, uint32(src.Port())<<16|uint32(dst.Port())), word(dst.Addr(), 3))
	}
	h = (h ^ h>>16) * 0x85ebca6b
	h = (h ^ h>>13) * 0xc2b2ae35
	return h ^ h>>16
}

// Choose is the back end of a new connection from a client.
func (s *Service) Choose(src netip.AddrPort) (netip.AddrPort, bool) {
	places := Places(s.Backends)
	if len(places) == 0 {
		return netip.AddrPort{}, false
	}
	h := Place(s.Spread, s.Protocol, src, netip.AddrPortFrom(s.VIP, s.Port))
	return s.Backends[places[h%uint32(len(places))]], true
}

// ServiceAt is the service of a switch that packets to an address are for, with its load balancer; nil for none. host asks for those of
// the host.
func (p *Plan) ServiceAt(network hcn.GUID, protocol uint8, dst netip.AddrPort, host bool) (*Balancer, *Service) {
	for _, b := range p.Balancers {
		if host && b.DoorID() != network || !host && b.Network != network {
			continue
		}
		for i := range b.Services {
			if s := &b.Services[i]; s.Host == host && s.Protocol == protocol && s.VIP == dst.Addr() && s.Port == dst.Port() {
				return b, s
			}
		}
	}
	return nil, nil
}

// String says what the service is.
func (s *Service) String() string {
	return fmt.Sprintf("%s %s", ProtocolName(s.Protocol), netip.AddrPortFrom(s.VIP, s.Port))
}

func (s Spread) String() string {
	switch s {
	case SpreadSource:
		return "by source"
	case SpreadSourceProtocol:
		return "by source and protocol"
	default:
		return "by connection"
	}
}

func (b *Balancer) text(w *strings.Builder) {
	fmt.Fprintf(w, "balancer %s switch %d%s%s\n", b.ID, b.Switch, optional(" name ", b.Name), optional(" of host ", b.Host))
	services := slices.SortedFunc(slices.Values(b.Services), func(x, y Service) int {
		return cmp.Or(cmp.Compare(x.Protocol, y.Protocol), x.VIP.Compare(y.VIP), cmp.Compare(x.Port, y.Port))
	})
	for i := range services {
		s := &services[i]
		fmt.Fprintf(w, "    %s %s self %s", s, s.Spread, s.Self)
		if s.Keep {
			w.WriteString(" kept")
		}
		if s.Source != nil {
			fmt.Fprintf(w, " source %s %s", s.Source.Addr, s.Source.MAC)
		}
		if s.Host {
			w.WriteString(" for the host")
		}
		w.WriteString(optional(" to ", list(s.Backends)) + "\n")
	}
	for _, f := range b.Forwards {
		fmt.Fprintf(w, "    %s\n", f)
	}
}

// BalancerOwner is how a load balancer is named as holder of host ports.
func BalancerOwner(name string, id hcn.GUID) string {
	if name == "" {
		return "load balancer " + string(id)
	}
	return "load balancer " + name + " (" + string(id) + ")"
}

func (b *Balancer) title() string {
	of := optional(" of host ", b.Host)
	if b.Name != "" {
		return fmt.Sprintf("%q", b.Name) + of
	}
	return string(b.ID) + of
}
