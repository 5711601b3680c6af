package kube

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	core "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/bulkhead-net/bulkhead/hcn"
)

// state is what the API server tells.
type state struct {
	services []*core.Service
	slices   map[types.NamespacedName][]*discovery.EndpointSlice // by service
	node     string
	zone     string
}

// balancer is a load balancer that is wanted: a port of a Service in one family, in one of the ways it is reached.
type balancer struct {
	name     string // also says which one it is
	v6       bool
	vips     []netip.Addr // none: at the node's own addresses
	protocol hcn.Protocol
	port     uint16
	target   uint16
	flags    hcn.PortMappingFlags
	affinity bool
	backends []netip.Addr
}

// frontend is what only one load balancer can have.
type frontend struct {
	protocol hcn.Protocol
	addr     netip.Addr
	port     uint16
}

func (b *balancer) frontends() []frontend {
	at := b.vips
	if len(at) == 0 {
		at = []netip.Addr{netip.IPv4Unspecified()}
		if b.v6 {
			at[0] = netip.IPv6Unspecified()
		}
	}
	var out []frontend
	for _, a := range at {
		out = append(out, frontend{b.protocol, a, b.port})
	}
	return out
}

// healthCheck is a port of the node that tells load balancers outside whether the node has endpoints of a Service.
type healthCheck struct {
	service types.NamespacedName
	local   int // a pod with addresses of both families is one
}

// wanted is what is to be, and what cannot be.
type wanted struct {
	balancers []balancer
	checks    map[uint16]healthCheck
	problems  []string
}

func (w *wanted) problem(format string, args ...any) {
	w.problems = append(w.problems, fmt.Sprintf(format, args...))
}

// compile works out the load balancers of all Services. Of two that want the same address and port, the older Service has it.
func compile(s state) *wanted {
	w := &wanted{checks: map[uint16]healthCheck{}}
	services := slices.Clone(s.services)
	slices.SortFunc(services, func(a, b *core.Service) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	taken := map[frontend]string{}
	for _, svc := range services {
		if !proxied(svc) {
			continue
		}
		for _, b := range w.service(s, svc) {
			if w.take(taken, &b) {
				w.balancers = append(w.balancers, b)
			}
		}
	}
	return w
}

func (w *wanted) take(taken map[frontend]string, b *balancer) bool {
	for _, f := range b.frontends() {
		if other, ok := taken[f]; ok {
			w.problem("%s: %s %s is that of %s: choose another", b.name, f.protocol, netip.AddrPortFrom(f.addr, f.port), other)
			return false
		}
	}
	for _, f := range b.frontends() {
		taken[f] = b.name
	}
	return true
}

// proxied tells that a Service is one to balance, and that it is this program's to do.
func proxied(svc *core.Service) bool {
	_, others := svc.Labels["service.kubernetes.io/service-proxy-name"]
	return !others && svc.Spec.Type != core.ServiceTypeExternalName && svc.Spec.ClusterIP != "" && svc.Spec.ClusterIP != core.ClusterIPNone
}

// service makes the load balancers of one Service.
func (w *wanted) service(s state, svc *core.Service) (out []balancer) {
	key := types.NamespacedName{Namespace: svc.Namespace, Name: svc.Name}
	local := [2]map[netip.Addr]bool{{}, {}}
	for i := range svc.Spec.Ports {
		p := &svc.Spec.Ports[i]
		protocol, ok := map[core.Protocol]hcn.Protocol{core.ProtocolTCP: hcn.ProtocolTCP, core.ProtocolUDP: hcn.ProtocolUDP, "": hcn.ProtocolTCP}[p.Protocol]
		if !ok {
			w.problem("%s/%s: port %d is %s, which is not balanced: use TCP or UDP", svc.Namespace, svc.Name, p.Port, p.Protocol)
			continue
		}
		for _, v6 := range families(svc) {
			ends := w.endpoints(s, svc, p, v6)
			for a := range ends.localReady {
				family := 0
				if v6 {
					family = 1
				}
				local[family][a] = true
			}
			base := balancer{
				name: svc.Namespace + "." + svc.Name + ":" + cmp.Or(p.Name, strconv.Itoa(int(p.Port))), v6: v6, protocol: protocol,
				port: uint16(p.Port), target: ends.port, affinity: svc.Spec.SessionAffinity == core.ServiceAffinityClientIP,
			}
			if base.target == 0 { // nobody answers: connections are refused
				base.target = base.port
			}
			if v6 {
				base.name += " IPv6"
			}
			out = append(out, w.ways(svc, p, base, ends)...)
		}
	}
	if port := svc.Spec.HealthCheckNodePort; port != 0 && svc.Spec.ExternalTrafficPolicy == core.ServiceExternalTrafficPolicyLocal {
		w.checks[uint16(port)] = healthCheck{key, max(len(local[0]), len(local[1]))}
	}
	return out
}

// families are those of a Service: IPv6 or not.
func families(svc *core.Service) (out []bool) {
	list := svc.Spec.IPFamilies
	if len(list) == 0 { // of an API server that is older
		for _, ip := range clusterIPs(svc) {
			out = append(out, ip.Is6())
		}
		return out
	}
	for _, f := range list {
		out = append(out, f == core.IPv6Protocol)
	}
	return out
}

func clusterIPs(svc *core.Service) []netip.Addr {
	list := svc.Spec.ClusterIPs
	if len(list) == 0 {
		list = []string{svc.Spec.ClusterIP}
	}
	return addrs(list)
}

func addrs(list []string) (out []netip.Addr) {
	for _, s := range list {
		if a, err := netip.ParseAddr(s); err == nil && !slices.Contains(out, a.Unmap()) {
			out = append(out, a.Unmap())
		}
	}
	return out
}

// ways are the load balancers by which a port is reached: at its cluster address, at the node's own, and at those that lead to nodes.
func (w *wanted) ways(svc *core.Service, p *core.ServicePort, base balancer, ends *ends) (out []balancer) {
	family := func(a netip.Addr) bool { return a.Is6() != base.v6 }
	cluster := base
	cluster.vips = slices.DeleteFunc(clusterIPs(svc), family)
	cluster.backends = ends.all
	if t := svc.Spec.InternalTrafficPolicy; t != nil && *t == core.ServiceInternalTrafficPolicyLocal {
		cluster.backends = ends.local
	}
	if len(cluster.vips) > 0 {
		out = append(out, cluster)
	}
	// The host, and who comes from outside, get endpoints of this node in any case; pods may be sent to any.
	outside := ends.all
	if svc.Spec.ExternalTrafficPolicy == core.ServiceExternalTrafficPolicyLocal {
		outside = merged(ends.all, ends.local)
	}
	if p.NodePort != 0 {
		b := base
		b.name, b.port, b.flags, b.backends = b.name+" NodePort", uint16(p.NodePort), hcn.LocalRoutedVip|hcn.VipExternalIp, outside
		out = append(out, b)
	}
	external := slices.DeleteFunc(w.external(svc), family)
	if external = slices.DeleteFunc(external, func(a netip.Addr) bool { return slices.Contains(cluster.vips, a) }); len(external) > 0 {
		b := base
		b.name, b.vips, b.flags, b.backends = b.name+" external", external, hcn.VipExternalIp, outside
		out = append(out, b)
	}
	return out
}

// external are the addresses that lead to nodes from outside.
func (w *wanted) external(svc *core.Service) []netip.Addr {
	list := slices.Clone(svc.Spec.ExternalIPs)
	if svc.Spec.Type != core.ServiceTypeLoadBalancer {
		return addrs(list)
	}
	var ingress []string
	for _, in := range svc.Status.LoadBalancer.Ingress {
		if in.IP != "" && (in.IPMode == nil || *in.IPMode == core.LoadBalancerIPModeVIP) {
			ingress = append(ingress, in.IP)
		}
	}
	if len(svc.Spec.LoadBalancerSourceRanges) > 0 && len(ingress) > 0 {
		w.problem("%s/%s: loadBalancerSourceRanges are not enforced here, so %s is not served: leave them out, or have the load balancer outside enforce them",
			svc.Namespace, svc.Name, strings.Join(ingress, ", "))
		ingress = nil
	}
	return addrs(append(list, ingress...))
}

// ends are the endpoints of a port of a Service in one family.
type ends struct {
	port       uint16
	all        []netip.Addr // for the policy Cluster, with the topology's hints
	local      []netip.Addr // for the policy Local
	localReady map[netip.Addr]bool
}

type end struct {
	addr                        netip.Addr
	port                        uint16
	ready, terminating, isLocal bool // terminating ones are those that still serve
	zones, nodes                []string
}

// endpoints chooses among the endpoints of a port: those that are ready; if there are none, those that still serve while they end.
func (w *wanted) endpoints(s state, svc *core.Service, p *core.ServicePort, v6 bool) *ends {
	list := w.onePort(svc, p, s.candidates(svc, p, v6))
	out := &ends{localReady: map[netip.Addr]bool{}}
	if len(list) > 0 {
		out.port = list[0].port
	}
	ready := filter(list, func(e end) bool { return e.ready })
	localReady := filter(ready, func(e end) bool { return e.isLocal })
	for _, e := range localReady {
		out.localReady[e.addr] = true
	}
	all := s.near(ready)
	if len(all) == 0 {
		all = filter(list, func(e end) bool { return e.terminating })
	}
	local := localReady
	if len(local) == 0 {
		local = filter(list, func(e end) bool { return e.isLocal && e.terminating })
	}
	out.all, out.local = addresses(all), addresses(local)
	return out
}

// near are those that the hints name for this node, or else for its zone, if all have hints and some are for it.
func (s state) near(ready []end) []end {
	for _, at := range []struct {
		hints func(end) []string
		here  string
	}{{func(e end) []string { return e.nodes }, s.node}, {func(e end) []string { return e.zones }, s.zone}} {
		if at.here == "" || slices.ContainsFunc(ready, func(e end) bool { return len(at.hints(e)) == 0 }) {
			continue
		}
		if list := filter(ready, func(e end) bool { return slices.Contains(at.hints(e), at.here) }); len(list) > 0 {
			return list
		}
	}
	return ready
}

// candidates are the endpoints of a port, each once.
func (s state) candidates(svc *core.Service, p *core.ServicePort, v6 bool) []end {
	found := map[netip.AddrPort]end{}
	for _, slice := range s.slices[types.NamespacedName{Namespace: svc.Namespace, Name: svc.Name}] {
		if (slice.AddressType == discovery.AddressTypeIPv6) != v6 || slice.AddressType == discovery.AddressTypeFQDN {
			continue
		}
		for _, sp := range slice.Ports {
			if sp.Port == nil || value(sp.Name, "") != p.Name || cmp.Or(value(sp.Protocol, core.ProtocolTCP), core.ProtocolTCP) != cmp.Or(p.Protocol, core.ProtocolTCP) {
				continue
			}
			for i := range slice.Endpoints {
				e, ok := endOf(&slice.Endpoints[i], uint16(*sp.Port), s.node)
				if had, again := found[netip.AddrPortFrom(e.addr, e.port)]; ok && (!again || !had.ready) {
					found[netip.AddrPortFrom(e.addr, e.port)] = e
				}
			}
		}
	}
	return slices.SortedFunc(maps.Values(found), func(a, b end) int { return cmp.Or(a.addr.Compare(b.addr), cmp.Compare(a.port, b.port)) })
}

func endOf(in *discovery.Endpoint, port uint16, node string) (end, bool) {
	if len(in.Addresses) == 0 {
		return end{}, false
	}
	a, err := netip.ParseAddr(in.Addresses[0])
	if err != nil {
		return end{}, false
	}
	c := in.Conditions
	ready := value(c.Ready, true)
	e := end{addr: a.Unmap(), port: port, ready: ready, terminating: value(c.Terminating, false) && value(c.Serving, ready), isLocal: value(in.NodeName, "") == node}
	if h := in.Hints; h != nil {
		for _, z := range h.ForZones {
			e.zones = append(e.zones, z.Name)
		}
		for _, n := range h.ForNodes {
			e.nodes = append(e.nodes, n.Name)
		}
	}
	return e, e.ready || e.terminating
}

// onePort keeps the endpoints with the port that most have: a load balancer has one port for all its back ends, and a name may stand for
// different ones.
func (w *wanted) onePort(svc *core.Service, p *core.ServicePort, list []end) []end {
	count := map[uint16]int{}
	for _, e := range list {
		count[e.port]++
	}
	if len(count) < 2 {
		return list
	}
	most := slices.MaxFunc(slices.Sorted(maps.Keys(count)), func(a, b uint16) int { return cmp.Compare(count[a], count[b]) })
	w.problem("%s/%s: the endpoints of port %d listen on different ports: those at %d are served alone", svc.Namespace, svc.Name, p.Port, most)
	return filter(list, func(e end) bool { return e.port == most })
}

func filter(list []end, keep func(end) bool) (out []end) {
	for _, e := range list {
		if keep(e) {
			out = append(out, e)
		}
	}
	return out
}

func addresses(list []end) (out []netip.Addr) {
	for _, e := range list {
		out = append(out, e.addr)
	}
	return out
}

func merged(a, b []netip.Addr) []netip.Addr {
	all := slices.Concat(a, b)
	slices.SortFunc(all, netip.Addr.Compare)
	return slices.Compact(all)
}

func value[T any](p *T, without T) T {
	if p == nil {
		return without
	}
	return *p
}
