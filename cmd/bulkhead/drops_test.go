package main

import (
	"net/netip"
	"testing"

	"github.com/bulkhead-net/bulkhead/internal/dataplane/vswitch"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

func TestDropSample(t *testing.T) {
	four, six := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")
	mac := plan.MAC{2, 0, 0, 0, 0, 1}
	for want, d := range map[string]vswitch.Drop{
		"10.0.0.1:1 → [fd00::1]:2 tcp":                 {EtherType: etherIPv4, Protocol: 6, Src: four, Dst: six, SPort: 1, DPort: 2},
		"10.0.0.1 → 10.0.0.1 icmp type 8":              {EtherType: etherIPv4, Protocol: 1, Src: four, Dst: four, SPort: 9, DPort: 9, ICMPType: 8},
		"fd00::1 → fd00::1 icmpv6 type 128":            {EtherType: etherIPv6, Protocol: 58, Src: six, Dst: six, SPort: 9, DPort: 9, ICMPType: 128},
		"unspecified → 10.0.0.1 arp":                   {EtherType: etherARP, Protocol: 1, Dst: four},
		"02:00:00:00:00:01 → 02:00:00:00:00:01 0x88cc": {EtherType: 0x88cc, SrcMAC: mac, DstMAC: mac},
		"fd00::1 → fd00::1 99":                         {EtherType: etherIPv6, Protocol: 99, Src: six, Dst: six},
	} {
		s := dropSample(d)
		got := s.Drop.Source + " → " + s.Drop.Destination + " " + s.Drop.Protocol
		if s.Drop.ICMPType != nil {
			got += map[uint8]string{8: " type 8", 128: " type 128"}[*s.Drop.ICMPType]
		}
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
