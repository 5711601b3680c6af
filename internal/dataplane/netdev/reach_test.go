package netdev

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bulkhead-net/bulkhead/internal/testhost"
)

// TestReach: routers are known by the routes and others by the neighbour table; who is there
// answers, in both families, and asking changes no table.
//
//	host eth0 192.0.2.1 ──── router 192.0.2.2 (and .3); 192.0.2.9 is nobody's
func TestReach(t *testing.T) {
	t.Parallel()
	h, n := open(t)
	router := testhost.New(t)
	h.Connect(router, testhost.Cable{
		Dev: "eth0", Addrs: []string{"192.0.2.1/24", "2001:db8::1/64"}, PeerAddrs: []string{"192.0.2.2/24", "192.0.2.3/24", "2001:db8::2/64"},
	})
	h.Route("default", "192.0.2.2")
	h.Route("default", "2001:db8::2")
	if err := h.Ping(netip.MustParseAddr("192.0.2.3")); err != nil {
		t.Fatal(err)
	}
	addrs := func(all ...string) (out []netip.Addr) {
		for _, a := range all {
			out = append(out, netip.MustParseAddr(a))
		}
		return out
	}
	routers, others, err := n.Neighbours(t.Context(), "eth0")
	if err != nil {
		t.Fatal(err)
	}
	if slices.SortFunc(routers, netip.Addr.Compare); !slices.Equal(routers, addrs("192.0.2.2", "2001:db8::2")) || !slices.Contains(others, addrs("192.0.2.3")[0]) {
		t.Errorf("routers %v, others %v", routers, others)
	}
	h.Run(t, "ip", "neigh", "flush", "dev", "eth0")
	table := func() string {
		return strings.Join(strings.Fields(h.Run(t, "ip", "neigh", "show", "dev", "eth0")), " ")
	}
	before := table()
	there, nobody := addrs("192.0.2.2", "192.0.2.3", "2001:db8::2"), addrs("192.0.2.9", "2001:db8::9")
	begin := time.Now()
	got, err := n.Ask(t.Context(), "eth0", there, 20*time.Second)
	if err != nil || !slices.Equal(got, there) {
		t.Errorf("answered: %v, %v, want %v", got, err, there)
	}
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("it took %s although all have answered", took)
	}
	if got, err := n.Ask(t.Context(), "eth0", append(slices.Clone(there), nobody...), time.Second); err != nil || !slices.Equal(got, there) {
		t.Errorf("with two who are not there: %v, %v", got, err)
	}
	if after := table(); after != before {
		t.Errorf("the neighbour table was %q and is %q", before, after)
	}
	router.Run(t, "ip", "link", "set", "eth0", "down")
	if got, err := n.Ask(t.Context(), "eth0", there, 300*time.Millisecond); err != nil || len(got) > 0 {
		t.Errorf("over a link without carrier: %v, %v", got, err)
	}
	if got, err := n.Ask(t.Context(), "eth9", there, time.Second); err != nil || len(got) > 0 {
		t.Errorf("by a NIC that is gone: %v, %v", got, err)
	}
}
