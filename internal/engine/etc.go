package engine

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// etcFiles are what a container's private files hold.
func (s *state) etcFiles(c *containerRow, resolvers []netip.Addr) (hostname, hosts, resolvConf string) {
	source := s.networksOf(c)
	hostname = hostnameOf(source.Doc.ID, &source.Doc.Spec)
	return hostname, s.hostsFile(source, &c.Doc.Spec, hostname), s.resolvConf(source, &c.Doc.Spec, resolvers)
}

// networksOf is the container whose compartment one is in: its own, or that of the one that it shares.
func (s *state) networksOf(c *containerRow) *containerRow {
	if other := s.containers[c.Shares]; c.Shares != "" && other != nil {
		return other
	}
	return c
}

// refreshEtc brings the private files of containers up to what the leases of their endpoints say, beside the caller.
func (e *Engine) refreshEtc(leased []hcn.GUID) {
	if len(leased) == 0 {
		return
	}
	e.ctrs.spawn(func() {
		e.etc.Lock()
		defer e.etc.Unlock()
		type files struct{ id, hosts, resolvConf string }
		var all []files
		e.mu.RLock()
		for id, c := range e.st.containers {
			alive := c.Doc.State.Status == api.StatusRunning || c.Doc.State.Status == api.StatusStarting
			if alive && slices.ContainsFunc(e.st.inCompartment(e.st.networksOf(c)), func(ep hcn.GUID) bool { return slices.Contains(leased, ep) }) {
				_, hosts, resolvConf := e.st.etcFiles(c, e.facts.Resolvers)
				all = append(all, files{id, hosts, resolvConf})
			}
		}
		e.mu.RUnlock()
		for _, f := range all {
			if err := e.opt.Sandbox.RefreshEtc(f.id, f.hosts, f.resolvConf); err != nil {
				e.log.Warn("bring a container's files up to its lease", "container", f.id, "error", err)
			}
		}
	})
}

// refreshLeased does so for all.
func (e *Engine) refreshLeased() {
	e.mu.RLock()
	ids := slices.Collect(maps.Keys(e.st.leased))
	e.mu.RUnlock()
	e.refreshEtc(ids)
}

// hostsFile is a container's private /etc/hosts.
func (s *state) hostsFile(c *containerRow, spec *api.ContainerSpec, hostname string) string {
	var b strings.Builder
	line := func(addr string, names ...string) {
		b.WriteString(addr + "\t" + strings.Join(names, " ") + "\n")
	}
	line("127.0.0.1", "localhost")
	line("::1", "localhost", "ip6-localhost", "ip6-loopback")
	line("ff02::1", "ip6-allnodes")
	line("ff02::2", "ip6-allrouters")
	in := s.inCompartment(c)
	gateways := s.gateways(in)
	for _, h := range spec.ExtraHosts {
		addrs := []string{h.Address}
		if h.Address == "host-gateway" {
			addrs = nil
			for _, g := range gateways {
				addrs = append(addrs, g.String())
			}
		}
		for _, a := range addrs {
			line(a, h.Names...)
		}
	}
	own := hostname
	if c.Doc.Name != hostname {
		own += " " + c.Doc.Name
	}
	for _, id := range in {
		if ep := s.endpoints[id]; ep != nil && ep.Attach != nil {
			for _, a := range ep.Addrs {
				line(a.Addr().String(), own)
			}
			break // the first network's address is the one a host name means
		}
	}
	return b.String()
}

// gateways lists the host's addresses on those of the endpoints' networks that have a
// host port, the first endpoint's first.
func (s *state) gateways(endpoints []hcn.GUID) (out []netip.Addr) {
	for _, id := range endpoints {
		ep := s.endpoints[id]
		if ep == nil {
			continue
		}
		n := s.networks[ep.Doc.HostComputeNetwork]
		if n == nil || !plan.HasHostPort(n.Doc.Type) {
			continue
		}
		for _, sub := range n.Doc.AllSubnets() {
			if gw, ok := sub.Gateway(); ok {
				out = append(out, gw)
			}
		}
	}
	return out
}

// maxNameServers is how many name servers resolvers read (resolv.conf(5),
// MAXNS).
const maxNameServers = 3

// asking lists the endpoints of a container's compartment in the order in which their
// name servers are asked: those with the flag OverrideDNSServerOrder first.
func (s *state) asking(c *containerRow) []hcn.GUID {
	var first, then []hcn.GUID
	for _, id := range s.inCompartment(c) {
		if s.overridesOrder(id) {
			first = append(first, id)
		} else {
			then = append(then, id)
		}
	}
	return append(first, then...)
}

func (s *state) overridesOrder(id hcn.GUID) bool {
	ep := s.endpoints[id]
	return ep != nil && ep.Doc.Flags&hcn.OverrideDNSServerOrder != 0
}

// overriding are the servers on a LAN that go before the resolvers of the container's
// networks, because their endpoint has the flag OverrideDNSServerOrder.
func (s *state) overriding(endpoints []hcn.GUID) (out []netip.Addr) {
	for _, id := range endpoints {
		if s.overridesOrder(id) && s.onLAN(id) {
			out = append(out, namedServers(s.endpoints[id])...)
		}
	}
	return out
}

// resolvers lists whom a container asks: the resolvers of its networks, on their
// gateway addresses. Servers that the user named are those resolvers' upstreams
// for this container, so that its networks' names stay known; it asks them itself
// where it has no resolver, and those on its own loopback, which nobody else can.
func (s *state) resolvers(c *containerRow, named []string, host []netip.Addr) (out []string) {
	endpoints := s.asking(c)
	gateways := s.gateways(endpoints)
	if len(gateways) > 0 {
		before := s.overriding(endpoints)
		for _, a := range before[:min(len(before), maxNameServers-1)] { // a resolver of ours stays among those that are read
			out = append(out, a.String())
		}
	}
	for i, a := range nameServers(named) {
		if len(gateways) == 0 || a.IsLoopback() {
			out = append(out, named[i])
		}
	}
	if len(named) == 0 && len(gateways) == 0 {
		gateways = s.outerResolvers(endpoints, host)
	}
	for _, g := range gateways {
		out = append(out, g.String())
	}
	return unique(out)
}

// outerResolvers are those of a container without a resolver of ours: on a LAN those that
// its network names, or else the host's that can be reached from there; without a network
// the host's.
func (s *state) outerResolvers(endpoints []hcn.GUID, host []netip.Addr) (out []netip.Addr) {
	if len(endpoints) == 0 {
		return host
	}
	onLAN := false
	for _, id := range endpoints {
		if s.onLAN(id) {
			onLAN = true
			out = append(out, namedServers(s.endpoints[id])...)
		}
	}
	if onLAN && len(out) == 0 {
		out = slices.DeleteFunc(slices.Clone(host), netip.Addr.IsLoopback)
	}
	return out
}

// namedServers are the servers of an endpoint on a LAN: its document's, or else its lease's.
func namedServers(ep *plan.Endpoint) []netip.Addr {
	servers := nameServers(ep.Doc.Dns.ServerList)
	if len(servers) == 0 {
		servers, _ = ep.LeasedDNS()
	}
	return servers
}

func (s *state) onLAN(id hcn.GUID) bool {
	ep := s.endpoints[id]
	if ep == nil {
		return false
	}
	n := s.networks[ep.Doc.HostComputeNetwork]
	return n != nil && plan.OnLAN(n.Doc.Type)
}

// resolvConf is a container's private /etc/resolv.conf.
func (s *state) resolvConf(c *containerRow, spec *api.ContainerSpec, host []netip.Addr) string {
	var search, options []string
	for _, id := range s.inCompartment(c) {
		ep := s.endpoints[id]
		if ep == nil {
			continue
		}
		own := ep.Doc.Dns.Search
		if _, leased := ep.LeasedDNS(); len(own) == 0 {
			own = leased
		}
		search = append(search, own...)
		if d := ep.Doc.Dns.Domain; d != "" {
			search = append(search, d)
		}
		options = append(options, ep.Doc.Dns.Options...)
	}
	servers := s.resolvers(c, spec.DNS.ServerList, host)
	if len(spec.DNS.Search) > 0 || spec.DNS.Domain != "" {
		search = spec.DNS.Search
		if spec.DNS.Domain != "" {
			search = append(slices.Clone(search), spec.DNS.Domain)
		}
	}
	if len(spec.DNS.Options) > 0 {
		options = spec.DNS.Options
	}
	var b strings.Builder
	for i, a := range servers {
		if i == maxNameServers {
			break
		}
		b.WriteString("nameserver " + a + "\n")
	}
	if len(search) > 0 {
		b.WriteString("search " + strings.Join(unique(search), " ") + "\n")
	}
	if len(options) > 0 {
		b.WriteString("options " + strings.Join(unique(options), " ") + "\n")
	}
	return b.String()
}

func unique(in []string) (out []string) {
	seen := map[string]bool{}
	for _, s := range in {
		if !seen[s] {
			seen[s] = true
			out = append(out, s)
		}
	}
	return out
}
