package plan

import (
	"fmt"
	"net/netip"
	"strings"

	"go4.org/netipx"

	"github.com/bulkhead-net/bulkhead/hcn"
)

// Outbound says by which address the outside sees packets from one of an endpoint's
// addresses. An address without one is hidden behind the host's, wherever it goes.
type Outbound struct {
	Source netip.Addr
	// Chosen are destinations with a rule of their own. They are asked first, and no two of
	// them overlap.
	Chosen []Hidden
	// Kept are destinations that see Source itself, unless they are among the chosen.
	Kept []netip.Prefix
	// Others tells what all other destinations see: Source itself with OthersKept, or As.
	OthersKept bool
	As         netip.Addr
	// OnLAN says that the source is on a LAN: the host sees of its packets only what the switch
	// turns to it (see Turn), and nobody else there is hidden.
	OnLAN bool
}

// Hidden are destinations that see As instead of the source.
type Hidden struct {
	Destinations []netip.Prefix
	// As is an address of the host. Invalid: that of the interface a packet leaves by.
	As netip.Addr
}

// Outbounds are the translations that an endpoint's policies ask for, one for each of its
// addresses that they say anything about.
//
// A packet is translated when one of the policies asks for it; one with Destinations goes
// before the one without.
func Outbounds(e *Endpoint) []Outbound {
	return outbounds(e, func(s hcn.OutboundNatPolicySetting) bool { return !s.Plain() },
		func(a netip.Addr, of, all []hcn.OutboundNatPolicySetting) Outbound {
			return outbound(a, of, len(of) < len(all) && anyPlain(all))
		})
}

// outbounds makes a translation for each address of an endpoint that a policy which counts serves.
func outbounds(
	e *Endpoint, counts func(hcn.OutboundNatPolicySetting) bool, translate func(a netip.Addr, of, all []hcn.OutboundNatPolicySetting) Outbound,
) (out []Outbound) {
	all, err := hcn.SettingsOf[hcn.OutboundNatPolicySetting](e.Doc.Policies)
	if err != nil {
		return nil // refused when the endpoint was made
	}
	for _, a := range e.Addrs {
		var of []hcn.OutboundNatPolicySetting
		for _, s := range all {
			if s.Serves(a.Addr().Is4()) && counts(s) {
				of = append(of, s)
			}
		}
		if len(of) > 0 {
			out = append(out, translate(a.Addr(), of, all))
		}
	}
	return out
}

func anyPlain(all []hcn.OutboundNatPolicySetting) bool {
	for _, s := range all {
		if s.Plain() {
			return true
		}
	}
	return false
}

// outbound compiles the policies of one family. plain says that another one hides the
// source from everybody.
func outbound(source netip.Addr, policies []hcn.OutboundNatPolicySetting, plain bool) Outbound {
	v4 := source.Is4()
	o := Outbound{Source: source, OthersKept: !plain}
	var chosen netipx.IPSetBuilder // by all lists so far
	for _, s := range policies {
		if s.General() {
			continue
		}
		var b netipx.IPSetBuilder
		addAll(&b, s.DestinationsOf(v4))
		removeAll(&b, s.ExceptionsOf(v4))
		b.RemoveSet(set(&chosen))
		if mine := set(&b); len(mine.Prefixes()) > 0 {
			as, _ := s.Addr()
			o.Chosen = append(o.Chosen, Hidden{Destinations: mine.Prefixes(), As: as})
			chosen.AddSet(mine)
		}
	}
	for _, s := range policies {
		if !s.General() {
			continue
		}
		var kept netipx.IPSetBuilder
		addAll(&kept, s.ExceptionsOf(v4))
		o.Kept = set(&kept).Prefixes()
		o.OthersKept = false
		o.As, _ = s.Addr()
	}
	return o
}

func addAll(b *netipx.IPSetBuilder, list []netip.Prefix) {
	for _, p := range list {
		b.AddPrefix(p)
	}
}

func removeAll(b *netipx.IPSetBuilder, list []netip.Prefix) {
	for _, p := range list {
		b.RemovePrefix(p)
	}
}

// set reads a builder that holds nothing but valid prefixes, and leaves it as it is.
func set(b *netipx.IPSetBuilder) *netipx.IPSet {
	s, err := b.IPSet()
	if err != nil {
		return &netipx.IPSet{}
	}
	return s
}

// Translate tells what a destination outside sees of the source: the source itself (kept), the
// host's address as, or, when as is invalid, that of the interface that the packet leaves by.
func (o *Outbound) Translate(dst netip.Addr) (as netip.Addr, kept bool) {
	for _, h := range o.Chosen {
		if contains(h.Destinations, dst) {
			return h.As, false
		}
	}
	if contains(o.Kept, dst) {
		return netip.Addr{}, true
	}
	return o.As, o.OthersKept
}

func contains(list []netip.Prefix, a netip.Addr) bool {
	for _, p := range list {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// OutboundOf is what the port's policies say of a source address, nil when they say nothing.
func (p *Port) OutboundOf(source netip.Addr) *Outbound {
	for i := range p.Outbound {
		if p.Outbound[i].Source == source {
			return &p.Outbound[i]
		}
	}
	return nil
}

func (o *Outbound) text(b *strings.Builder) {
	for _, h := range o.Chosen {
		fmt.Fprintf(b, "    outbound %s to %s as %s\n", o.Source, shortList(h.Destinations, addressText), hiddenText(h.As))
	}
	if len(o.Kept) > 0 {
		fmt.Fprintf(b, "    outbound %s to %s keeps its address\n", o.Source, shortList(o.Kept, addressText))
	}
	others := "as " + hiddenText(o.As)
	if o.OthersKept {
		others = "keeps its address"
	}
	fmt.Fprintf(b, "    outbound %s to others %s\n", o.Source, others)
}

func hiddenText(as netip.Addr) string {
	if as.IsValid() {
		return as.String()
	}
	return "the host"
}
