package plan

import (
	"cmp"
	"slices"
)

// onNIC are the switches whose uplink a port is, in the order in which they are asked.
func (p *Plan) onNIC(nic *Port) []*Switch {
	var out []*Switch
	for _, sw := range p.Switches {
		if sw.UplinkPort == nic.ID {
			out = append(out, sw)
		}
	}
	slices.SortFunc(out, func(a, b *Switch) int {
		if own := nic.Switch; (a.Number == own) != (b.Number == own) {
			if a.Number == own {
				return -1
			}
			return 1
		}
		return cmp.Compare(a.Number, b.Number)
	})
	return out
}

// traceNIC follows what is at a NIC: it is the first switch's that it means something to.
func (p *Plan) traceNIC(t *tracer) Trace {
	var first *Trace
	for _, sw := range p.onNIC(t.from) {
		next := &tracer{plan: p, pkt: t.pkt, from: t.from, sw: sw}
		next.complete()
		next.fromNIC()
		switch {
		case next.Verdict != Passed && next.Verdict != Flooded:
			return next.Trace
		case first == nil || first.Verdict == Passed && next.Verdict == Flooded:
			first = &next.Trace
		}
	}
	if first == nil {
		return t.Trace
	}
	return *first
}

// turn gives a packet for the NIC's MAC that of the port which it is for, where on the wire all
// ports have the NIC's.
func (t *tracer) turn() {
	k := &t.pkt
	readable := k.EtherType == etherIPv4 && k.Src.Is4() && k.Dst.Is4() || k.EtherType == etherIPv6 && k.Src.Is6() && k.Dst.Is6()
	if !t.sw.Mode.OneMAC() || k.DstMAC != t.from.MAC || !readable {
		return
	}
	if o := t.portAt(k.Dst); o != nil {
		t.step("switching", t.from.ID, nil, "on the wire %s is all ports' MAC, and %s is the address of port %s", k.DstMAC, k.Dst, o.ID)
		k.DstMAC = o.MAC
	}
}

// reflected tells of a packet from the wire that the ports have had, or which pretends to be
// theirs.
func (t *tracer) reflected(mine func(MAC) bool) bool {
	k := &t.pkt
	switch {
	case k.Host:
		return false
	case k.SrcMAC != t.from.MAC:
		return mine(k.SrcMAC)
	case t.sw.Mode != ModeL2Tunnel:
		return true
	}
	return k.DstMAC[0]&1 != 0 && t.portAt(k.Src) == nil
}

// fromNIC follows what is at the uplink. It has no source guard, for it is not ours.
func (t *tracer) fromNIC() {
	k := &t.pkt
	group := k.DstMAC[0]&1 != 0
	t.turn()
	mine := func(m MAC) bool { return slices.ContainsFunc(t.ports(), func(p *Port) bool { return p.MAC == m }) }
	reflected := t.reflected(mine)
	switch {
	case !group && !mine(k.DstMAC), group && reflected && k.SrcMAC == t.from.MAC:
		t.pass("for nobody on switch %q", t.sw.Name)
	case reflected:
		t.drop("switching", t.from.ID, "reflected", "%s is this switch's own: the frame comes back from the wire, or pretends to", k.SrcMAC)
	case !t.isIP():
		if group {
			t.pass("no IP packet for all")
		}
	case martian(k.Dst) || !k.Src.IsUnspecified() && martian(k.Src):
		if group {
			t.pass("an address that may not be on a wire, in a frame for all")
			return
		}
		t.drop("switching", t.from.ID, "martian", "%s or %s may not be on a wire", k.Src, k.Dst)
	case group && t.guardGroup() != "":
		t.pass("a packet for one in a frame for all")
	case group:
		t.flood()
	default:
		t.unicast()
	}
}

func (t *tracer) pass(format string, args ...any) {
	t.Verdict, t.Reason = Passed, ""
	t.step("switching", t.from.ID, nil, format, args...)
}
