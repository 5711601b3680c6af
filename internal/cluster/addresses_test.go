package cluster

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// TestMovedTo: an address that is gone gives way to another of its family on the same NIC, and to nothing else.
func TestMovedTo(t *testing.T) {
	addrs := func(texts ...string) (out []netip.Addr) {
		for _, text := range texts {
			out = append(out, netip.MustParseAddr(text))
		}
		return out
	}
	nic := func(name string, up bool, on ...string) plan.NIC {
		n := plan.NIC{Name: name, Up: up}
		for _, text := range on {
			n.Addrs = append(n.Addrs, netip.MustParsePrefix(text))
		}
		return n
	}
	had := addrs("192.0.2.1", "2001:db8::1")
	for name, tc := range map[string]struct {
		nics []plan.NIC
		want []netip.Addr
	}{
		"nothing has changed":   {[]plan.NIC{nic("eth0", true, "192.0.2.1/24", "2001:db8::1/64")}, had},
		"another one beside":    {[]plan.NIC{nic("eth0", true, "192.0.2.9/24", "192.0.2.1/24", "2001:db8::1/64")}, had},
		"another lease":         {[]plan.NIC{nic("eth0", true, "192.0.2.9/24", "192.0.2.8/24", "2001:db8::1/64")}, addrs("192.0.2.9", "2001:db8::1")},
		"both renumbered":       {[]plan.NIC{nic("eth0", true, "198.51.100.7/24", "2001:db8:7::1/64")}, addrs("198.51.100.7", "2001:db8:7::1")},
		"down, and one is left": {[]plan.NIC{nic("eth0", false, "192.0.2.9/24")}, had},
		"none of the family":    {[]plan.NIC{nic("eth0", true, "192.0.2.1/24")}, had},
		"on another NIC":        {[]plan.NIC{nic("eth0", true), nic("eth1", true, "198.51.100.7/24")}, had},
		"carried to another":    {[]plan.NIC{nic("eth0", true, "198.51.100.7/24"), nic("br0", true, "192.0.2.1/24", "2001:db8::1/64")}, had},
		"the NIC is gone":       {[]plan.NIC{nic("eth1", true, "198.51.100.7/24")}, had},
	} {
		if got := movedTo(&plan.Facts{NICs: tc.nics}, had, "eth0"); !slices.Equal(got, tc.want) {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
	}
	if got := movedTo(&plan.Facts{NICs: []plan.NIC{nic("eth0", true, "192.0.2.9/24")}}, had, ""); !slices.Equal(got, had) {
		t.Errorf("it is not known which NIC had it: %v", got)
	}
}
