package cluster

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/bulkhead-net/bulkhead/internal/overlay"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// TestProbeTask: a host sends by the NIC that has its first address, of that family only, to each port of each host that has one too.
func TestProbeTask(t *testing.T) {
	f := &plan.Facts{NICs: []plan.NIC{
		{Name: "eth0", MTU: 1500, Addrs: []netip.Prefix{netip.MustParsePrefix("198.51.100.1/24")}},
		{Name: "eth1", MTU: 9000, Addrs: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/24"), netip.MustParsePrefix("2001:db8::1/64")}},
	}}
	both, only := host(2, "192.0.2.2", "2001:db8::2"), host(3, "192.0.2.3")
	for _, tc := range []struct {
		self overlay.Host
		want string
	}{
		{host(1, "2001:db8::1", "192.0.2.1"), "2001:db8::1>2001:db8::2:4789 2001:db8::1>2001:db8::2:4790"},
		{host(1, "192.0.2.1"), "192.0.2.1>192.0.2.2:4789 192.0.2.1>192.0.2.3:4789 192.0.2.1>192.0.2.2:4790 192.0.2.1>192.0.2.3:4790"},
	} {
		task, err := probeTask(f, overlay.CheckTask{Self: tc.self, Peers: []overlay.Host{both, only}, Ports: []uint16{4789, 4790}})
		var got []string
		for _, p := range task.Paths {
			if p.MTU != 9000 {
				t.Errorf("MTU %d", p.MTU)
			}
			got = append(got, fmt.Sprintf("%s>%s:%d", p.From, p.To, p.Port))
		}
		if err != nil || strings.Join(got, " ") != tc.want || len(task.NICs) != 1 || task.NICs[0] != "eth1" {
			t.Errorf("%v by %v, %v; want %s", got, task.NICs, err, tc.want)
		}
	}
	if _, err := probeTask(f, overlay.CheckTask{Self: host(1, "192.0.2.9")}); err == nil || !strings.Contains(err.Error(), "192.0.2.9, by which the others know this host, is on none of its NICs") {
		t.Error(err)
	}
}
