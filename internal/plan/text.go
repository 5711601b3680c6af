package plan

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// Text writes the plan the way `ip` and a switch's own tools would list it, always
// in the same order: for people, and for tests that compare it with a file.
func (p *Plan) Text() string {
	var b strings.Builder
	if p.Host.Forward4 {
		b.WriteString("sysctl net.ipv4.ip_forward = 1\n")
	}
	if p.Host.Forward6 {
		b.WriteString("sysctl net.ipv6.conf.all.forwarding = 1\n")
	}
	for _, id := range slices.Sorted(maps.Keys(p.Namespaces)) {
		p.Namespaces[id].text(&b)
	}
	switches := slices.SortedFunc(maps.Values(p.Switches), func(x, y *Switch) int { return cmp.Compare(x.Number, y.Number) })
	for _, s := range switches {
		s.text(&b)
	}
	ports := slices.SortedFunc(maps.Values(p.Ports), func(x, y *Port) int {
		return cmp.Or(cmp.Compare(x.Switch, y.Switch), cmp.Compare(y.Kind, x.Kind), cmp.Compare(x.ID, y.ID))
	})
	for _, port := range ports {
		port.text(&b)
	}
	for _, id := range slices.Sorted(maps.Keys(p.Remotes)) {
		p.Remotes[id].text(&b)
	}
	for _, id := range slices.Sorted(maps.Keys(p.Balancers)) {
		p.Balancers[id].text(&b)
	}
	if p.Secure != nil {
		p.Secure.text(&b)
	}
	return b.String()
}

func (n *Namespace) text(b *strings.Builder) {
	fmt.Fprintf(b, "netns %s\n", n.Path)
	for _, k := range slices.Sorted(maps.Keys(n.Sysctls)) {
		fmt.Fprintf(b, "    sysctl %s = %s\n", k, n.Sysctls[k])
	}
}

func (m Mode) String() string {
	switch m {
	case ModeNAT:
		return "nat"
	case ModeInternal:
		return "internal"
	case ModePrivate:
		return "private"
	case ModeTransparent:
		return "transparent"
	case ModeL2Bridge:
		return "l2bridge"
	case ModeL2Tunnel:
		return "l2tunnel"
	case ModeOverlay:
		return "overlay"
	case ModeMacvlan:
		return "macvlan"
	case ModeServices:
		return "services"
	}
	return fmt.Sprintf("mode %d", m)
}

func (k PortKind) String() string {
	switch k {
	case PortContainer:
		return "container"
	case PortHost:
		return "host"
	case PortResolver:
		return "resolver"
	case PortUplink:
		return "uplink"
	case PortTunnel:
		return "tunnel"
	case PortMacvlan:
		return "macvlan"
	}
	return fmt.Sprintf("kind %d", k)
}

func (s *Switch) text(b *strings.Builder) {
	fmt.Fprintf(b, "switch %d %q %s mtu %d\n", s.Number, s.Name, s.Mode, s.MTU)
	for _, n := range s.Subnets {
		fmt.Fprintf(b, "    subnet %s", n.Prefix)
		if n.Gateway.IsValid() {
			fmt.Fprintf(b, " gateway %s", n.Gateway)
		}
		if n.VNI != 0 {
			fmt.Fprintf(b, " vni %d", n.VNI)
		}
		b.WriteByte('\n')
	}
	if len(s.DNS.Listen) > 0 {
		fmt.Fprintf(b, "    dns %s dev %s netns %s%s%s%s\n", list(s.DNS.Listen), s.DNS.Device, s.DNS.Namespace,
			optional(" domain ", s.DNS.Domain), optional(" search ", strings.Join(s.DNS.Search, ",")), optional(" upstream ", list(s.DNS.Upstreams)))
	}
	s.overlayText(b)
	s.setsText(b)
}

func list[T fmt.Stringer](in []T) string {
	out := make([]string, len(in))
	for i, v := range in {
		out[i] = v.String()
	}
	return strings.Join(out, ",")
}

func optional(label, value string) string {
	if value == "" {
		return ""
	}
	return label + value
}

func (p *Port) text(b *strings.Builder) {
	if p.Kind == PortUplink {
		fmt.Fprintf(b, "port %s %s switch %d mac %s mtu %d\n", p.Device, p.Kind, p.Switch, p.MAC, p.VNIC.MTU)
		return
	}
	if p.Kind == PortTunnel {
		fmt.Fprintf(b, "port %s %s udp %d underlay %s\n", p.Device, p.Kind, p.UDPPort, strings.Join(p.Underlays, ","))
		return
	}
	fmt.Fprintf(b, "port %s %s switch %d mac %s addr %s,%s%s%s%s\n", p.Device, p.Kind, p.Switch, p.MAC, list(p.Addrs), p.LinkLocal,
		optional(" names ", strings.Join(p.Names, ",")), optional(" upstream ", list(p.Upstreams)), optional(" altname ", p.AltName)+p.vlanText())
	fmt.Fprintf(b, "    alias %q\n", p.Alias)
	v := p.VNIC
	fmt.Fprintf(b, "    link %s%s mtu %d%s address %s alias %q\n", v.Device, optional(" netns ", v.Home()), v.MTU, v.Segments, v.MAC, v.Alias)
	for _, a := range v.Addrs {
		fmt.Fprintf(b, "    addr %s dev %s\n", a, v.Device)
	}
	if v.LinkLocal.IsValid() {
		fmt.Fprintf(b, "    addr %s dev %s\n", netip.PrefixFrom(v.LinkLocal, 64), v.Device)
	}
	for _, r := range v.Routes {
		fmt.Fprintf(b, "    %s\n", r)
	}
	for _, n := range v.Neighbours {
		fmt.Fprintf(b, "    neigh %s lladdr %s dev %s\n", n.Addr, n.MAC, v.Device)
	}
	for _, i := range p.KnownOn {
		for _, n := range p.Acquaintance() {
			fmt.Fprintf(b, "    neigh %s lladdr %s dev %s%s\n", n.Addr, n.MAC, i.Device, optional(" netns ", i.Namespace))
		}
	}
	for _, f := range p.Forwards {
		fmt.Fprintf(b, "    %s\n", f)
	}
	for i := range p.Outbound {
		p.Outbound[i].text(b)
	}
	for i := range p.Detours {
		fmt.Fprintf(b, "    detour %s\n", &p.Detours[i])
	}
	for _, h := range p.Hops {
		fmt.Fprintf(b, "    %s\n", h)
	}
	for i := range p.Redirects {
		fmt.Fprintf(b, "    redirect %s\n", &p.Redirects[i])
	}
	p.Policy.text(b)
}

func (p *Port) vlanText() string {
	if p.VLAN == 0 {
		return ""
	}
	return fmt.Sprintf(" vlan %d", p.VLAN)
}

// String is the sizes as `ip -d link` has them, with a blank before; nothing for the kernel's own.
func (s Segments) String() string {
	out := ""
	if s.IP6 > 0 {
		out += fmt.Sprintf(" gso_max_size %d", s.IP6)
	}
	if s.IP4 > 0 {
		out += fmt.Sprintf(" gso_ipv4_max_size %d", s.IP4)
	}
	return out
}

// String is the route as `ip route` has it.
func (r Route) String() string {
	s := "route " + r.Dst.String()
	if r.Dst.Bits() == 0 {
		s = "route default"
	}
	if r.Via.IsValid() {
		s += " via " + r.Via.String()
	}
	if r.OnLink {
		s += " onlink"
	}
	if r.Metric != 0 {
		s += fmt.Sprintf(" metric %d", r.Metric)
	}
	return s
}

// String names both ends of the forward.
func (f Forward) String() string {
	where := ""
	switch f.Scope {
	case ScopeAddress:
		where = netip.AddrPortFrom(f.Bind, f.Port).String()
	case ScopeAll:
		where = fmt.Sprintf("all:%d", f.Port)
	case ScopeLAN:
		where = fmt.Sprintf("lan:%d", f.Port)
	}
	proto := fmt.Sprintf("protocol %d", f.Protocol)
	switch f.Protocol {
	case 6:
		proto = "tcp"
	case 17:
		proto = "udp"
	}
	return "forward " + proto + " " + where + " -> " + f.To.String()
}
