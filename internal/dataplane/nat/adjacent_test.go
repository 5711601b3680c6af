package nat

import (
	"fmt"
	"maps"
	"net/netip"
	"testing"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
	"github.com/bulkhead-net/bulkhead/internal/testhost"
)

// TestAdjacentNetworks goes between every two sets of networks whose prefixes touch, one network's end being the next
// one's start: that is how networks without a subnet get theirs, and several of them may change at once.
func TestAdjacentNetworks(t *testing.T) {
	testhost.RequireRoot(t)
	tp := newTopology(t)
	tp.sync()
	base := tp.plan.Switches
	const networks = 4
	var all [networks]*plan.Switch
	for i := range all {
		all[i] = &plan.Switch{
			Number: uint32(100 + i), Network: hcn.GUID(fmt.Sprint("ADJ", i)), Mode: plan.ModeNAT, HostDevice: fmt.Sprint("bhhadj", i),
			Subnets: []plan.Subnet{
				{Prefix: netip.MustParsePrefix(fmt.Sprintf("10.78.%d.0/24", i))},
				{Prefix: netip.MustParsePrefix(fmt.Sprintf("fd78:0:0:%d::/64", i))},
			},
		}
	}
	was := uint(0)
	change := func(is uint) {
		t.Helper()
		d := &plan.Delta{Switches: map[hcn.GUID]plan.Change[plan.Switch]{}}
		tp.plan.Switches = map[hcn.GUID]*plan.Switch{}
		maps.Copy(tp.plan.Switches, base)
		for i, s := range all {
			var c plan.Change[plan.Switch]
			if was>>i&1 == 1 {
				c.Old = s
			}
			if is>>i&1 == 1 {
				c.New = s
				tp.plan.Switches[s.Network] = s
			}
			if c.Old != c.New {
				d.Switches[s.Network] = c
			}
		}
		if err := tp.a.Update(t.Context(), tp.plan, d); err != nil {
			t.Fatalf("from %04b to %04b: %v", was, is, err)
		}
		if drift := tp.sync(); len(drift) != 0 {
			t.Fatalf("from %04b to %04b: drift %v", was, is, drift)
		}
		was = is
	}
	for from := range uint(1 << networks) {
		for to := range uint(1 << networks) {
			change(from)
			change(to)
		}
	}
}
