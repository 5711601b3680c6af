package plan

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"go4.org/netipx"

	"github.com/bulkhead-net/bulkhead/hcn"
)

// Redirect leads flows of one direction to a side-car in the compartment, before they
// leave it or after they have come in (policy L4WFPPROXY). The switch sees nothing of it.
type Redirect struct {
	// Outgoing flows are those that the compartment opens by this vNIC.
	Outgoing bool
	// To is the port that the side-car listens on.
	To uint16
	// User is the side-car's own; no redirect of the compartment takes its flows.
	User *User
	// Protocols, 6 or 17, are never empty. Other fields match everything when they are.
	Protocols               []uint8
	Local, Remote           []netip.Prefix
	LocalPorts, RemotePorts []PortRange
	// Flows left alone, by the peer's address and by the port that they are for.
	ExceptRemote []netip.Prefix
	ExceptPorts  []PortRange
}

// User is a user, or a group, by number.
type User struct {
	ID    uint32
	Group bool
}

// Redirects are what an endpoint's L4WFPPROXY policies ask for, in the order in which they
// are asked: the first one that selects a flow takes it.
func Redirects(e *Endpoint) []Redirect {
	all, err := hcn.SettingsOf[hcn.L4WfpProxyPolicySetting](e.Doc.Policies)
	if err != nil {
		return nil // refused when the endpoint was made
	}
	slices.SortStableFunc(all, func(a, b hcn.L4WfpProxyPolicySetting) int {
		return cmp.Compare(a.FilterTuple.Priority-1, b.FilterTuple.Priority-1) // 0 is after all numbers
	})
	var out []Redirect
	for _, s := range all {
		for _, outgoing := range []bool{true, false} {
			if r, ok := redirect(&s, outgoing); ok {
				out = append(out, r)
			}
		}
	}
	return out
}

func redirect(s *hcn.L4WfpProxyPolicySetting, outgoing bool) (Redirect, bool) {
	r := Redirect{Outgoing: outgoing, To: s.InboundPort()}
	except := s.InboundExceptions
	if outgoing {
		r.To, except = s.OutboundPort(), s.OutboundExceptions
	}
	sel, err := s.FilterTuple.Selection()
	if r.To == 0 || err != nil {
		return r, false
	}
	addrs, ports, err := except.Parse()
	if err != nil {
		return r, false
	}
	r.Protocols = sel.Protocols
	r.Local, r.Remote, r.ExceptRemote = disjoint(sel.Local), disjoint(sel.Remote), disjoint(addrs)
	r.LocalPorts, r.RemotePorts, r.ExceptPorts = mergePorts(sel.LocalPorts), mergePorts(sel.RemotePorts), mergePorts(ports)
	if u, ok := s.User(); ok {
		r.User = &User{ID: u.ID, Group: u.Group}
	}
	return r, true
}

// disjoint is a list without overlaps, sorted.
func disjoint(list []netip.Prefix) []netip.Prefix {
	if len(list) == 0 {
		return nil
	}
	var b netipx.IPSetBuilder
	addAll(&b, list)
	return set(&b).Prefixes()
}

// mergePorts is a list without overlaps and neighbours, sorted.
func mergePorts(list []hcn.PortRange) []PortRange {
	var out []PortRange
	slices.SortFunc(list, func(a, b hcn.PortRange) int { return cmp.Compare(a.First, b.First) })
	for _, p := range list {
		if n := len(out); n > 0 && int(p.First) <= int(out[n-1].Last)+1 {
			out[n-1].Last = max(out[n-1].Last, p.Last)
		} else {
			out = append(out, PortRange{p.First, p.Last})
		}
	}
	return out
}

// Serves tells whether the redirect can take a flow of a family at all.
func (r *Redirect) Serves(v4 bool) bool {
	return ofFamily(r.Local, v4) && ofFamily(r.Remote, v4)
}

func ofFamily(list []netip.Prefix, v4 bool) bool {
	return len(list) == 0 || slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Addr().Is4() == v4 })
}

// Redirected is the redirect that takes a flow which is not the side-car's own, or nil.
func (p *Port) Redirected(outgoing bool, protocol uint8, local, remote netip.AddrPort) *Redirect {
	for i := range p.Redirects {
		r := &p.Redirects[i]
		if r.Outgoing == outgoing && r.takes(protocol, local, remote) {
			return r
		}
	}
	return nil
}

func (r *Redirect) takes(protocol uint8, local, remote netip.AddrPort) bool {
	service := local.Port()
	if r.Outgoing {
		service = remote.Port()
	}
	in := func(list []PortRange, port uint16) bool {
		return slices.ContainsFunc(list, func(p PortRange) bool { return p.First <= port && port <= p.Last })
	}
	return slices.Contains(r.Protocols, protocol) &&
		(len(r.Local) == 0 || contains(r.Local, local.Addr())) && (len(r.Remote) == 0 || contains(r.Remote, remote.Addr())) &&
		(len(r.LocalPorts) == 0 || in(r.LocalPorts, local.Port())) && (len(r.RemotePorts) == 0 || in(r.RemotePorts, remote.Port())) &&
		!contains(r.ExceptRemote, remote.Addr()) && !in(r.ExceptPorts, service)
}

// String names the user as a policy does.
func (u User) String() string {
	if u.Group {
		return fmt.Sprintf("gid:%d", u.ID)
	}
	return fmt.Sprintf("uid:%d", u.ID)
}

// String is the redirect in one line.
func (r *Redirect) String() string {
	var b strings.Builder
	direction := "in "
	if r.Outgoing {
		direction = "out "
	}
	b.WriteString(direction)
	var protocols []string
	for _, p := range r.Protocols {
		protocols = append(protocols, ProtocolName(p))
	}
	b.WriteString(strings.Join(protocols, ","))
	part := func(label, text string) {
		if text != "" {
			b.WriteString(" " + label + " " + text)
		}
	}
	part("local", shortList(r.Local, addressText))
	part("remote", shortList(r.Remote, addressText))
	part("local port", shortList(r.LocalPorts, PortRange.String))
	part("remote port", shortList(r.RemotePorts, PortRange.String))
	part("but for", shortList(r.ExceptRemote, addressText))
	part("but for port", shortList(r.ExceptPorts, PortRange.String))
	fmt.Fprintf(&b, " to port %d", r.To)
	if r.User != nil {
		fmt.Fprintf(&b, " unless of %s", r.User)
	}
	return b.String()
}
