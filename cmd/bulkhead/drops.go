package main

import (
	"context"
	"fmt"
	"net/netip"
	"strconv"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/internal/dataplane/vswitch"
	"github.com/bulkhead-net/bulkhead/internal/engine"
)

// drops shows what the switch drops in the engine's form.
func drops(sw *vswitch.Applier) engine.Drops {
	d := engine.Drops{
		Samples: func(ctx context.Context) (<-chan engine.DropSample, error) { return dropSamples(ctx, sw) },
		Counts:  func() ([]engine.DropCount, error) { return dropCounts(sw) },
	}
	for _, r := range vswitch.Reasons() {
		d.Reasons = append(d.Reasons, engine.DropReason{Name: r.String(), Quiet: r.Quiet()})
	}
	return d
}

func dropSamples(ctx context.Context, sw *vswitch.Applier) (<-chan engine.DropSample, error) {
	in, err := sw.Events(ctx)
	if err != nil {
		return nil, err
	}
	out := make(chan engine.DropSample)
	go func() { // ends with in, which ends with ctx
		defer close(out)
		for d := range in {
			select {
			case out <- dropSample(d):
			case <-ctx.Done():
			}
		}
	}()
	return out, nil
}

func dropSample(d vswitch.Drop) engine.DropSample {
	s := engine.DropSample{
		Port: d.Port, Switch: d.Switch, Rule: d.Rule, SrcMAC: d.SrcMAC, DstMAC: d.DstMAC, Dst: d.Dst,
		Drop: api.Drop{
			Time: d.Time.UTC(), Protocol: protocolName(d), Length: d.Len, Reason: d.Reason.String(), Explanation: d.Reason.Explain(),
			Source: d.SrcMAC.String(), Destination: d.DstMAC.String(), SourceMAC: d.SrcMAC.String(), DestinationMAC: d.DstMAC.String(),
		},
	}
	icmp := d.EtherType != etherARP && isICMP(d.Protocol)
	if icmp { // the switch keeps the identifier of an echo where others have ports
		d.SPort, d.DPort = 0, 0
	}
	if d.Src.IsValid() || d.Dst.IsValid() {
		s.Drop.Source, s.Drop.Destination = addrText(d.Src, d.SPort), addrText(d.Dst, d.DPort)
	}
	if icmp {
		s.Drop.ICMPType = &d.ICMPType
	}
	return s
}

// addrText writes an address that the switch read; all zeros read as none.
func addrText(a netip.Addr, port uint16) string {
	switch {
	case !a.IsValid():
		return "unspecified"
	case port != 0:
		return netip.AddrPortFrom(a, port).String()
	}
	return a.String()
}

const (
	etherIPv4, etherARP, etherIPv6 = 0x0800, 0x0806, 0x86dd
	protoICMP, protoICMPv6         = 1, 58
)

func isICMP(proto uint8) bool { return proto == protoICMP || proto == protoICMPv6 }

// protocolName is the highest protocol that the switch read.
func protocolName(d vswitch.Drop) string {
	switch d.EtherType {
	case etherARP:
		return "arp"
	case etherIPv4, etherIPv6:
	default:
		return fmt.Sprintf("0x%04x", d.EtherType)
	}
	switch d.Protocol {
	case protoICMP:
		return "icmp"
	case 2:
		return "igmp"
	case 6:
		return "tcp"
	case 17:
		return "udp"
	case protoICMPv6:
		return "icmpv6"
	case 132:
		return "sctp"
	}
	return strconv.Itoa(int(d.Protocol))
}

func dropCounts(sw *vswitch.Applier) ([]engine.DropCount, error) {
	all, err := sw.Drops()
	if err != nil {
		return nil, err
	}
	out := make([]engine.DropCount, len(all))
	for i, c := range all {
		out[i] = engine.DropCount{Port: c.Port, Reason: c.Reason.String(), Quiet: c.Reason.Quiet(), Packets: c.Packets, Bytes: c.Bytes}
	}
	return out, nil
}
