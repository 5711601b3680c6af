package netdev

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/bulkhead-net/bulkhead/internal/plan"
	"github.com/bulkhead-net/bulkhead/internal/testhost"
)

// loopbackRoutes lists what leads to ::1 beside lo.
func loopbackRoutes(t *testing.T, h *testhost.Host) string {
	t.Helper()
	var ours []string
	for line := range strings.Lines(h.Run(t, "ip", "-6", "route", "show", "table", "local")) {
		if strings.HasPrefix(line, "local ::1 ") && !strings.Contains(line, " dev lo ") {
			ours = append(ours, strings.TrimSpace(line))
		}
	}
	return strings.Join(ours, "\n")
}

// TestPublishedOnLoopback follows a port published on 127.0.0.1 and ::1 into a container and back. A bridge stands in
// for the switch, a few nftables rules for the translation, and for the guard that
// keeps containers from using the route (tested where it is made).
//
//	host  bhh… ── bhp… ┐
//	                   ├ br0
//	web   eth0 ── bhp… ┘
func TestPublishedOnLoopback(t *testing.T) {
	t.Parallel()
	h, n := open(t)
	p := sample()
	apply(t, n, &plan.Plan{}, p)
	one, host := p.Ports[plan.EndpointPortID(guid('E', 1))], p.Ports[plan.HostPortID(network)]
	h.Run(t, "bash", "-c", fmt.Sprintf(`set -e
		ip link add br0 address 02:00:00:00:00:99 type bridge; sysctl -qw net.ipv6.conf.br0.disable_ipv6=1; ip link set br0 up
		ip link set %s master br0; ip link set %s master br0
		nft -f - <<-'END'
		table inet test {
			chain guard {
				type filter hook prerouting priority -300
				iifname "bhh*" ip6 daddr ::1 counter drop
				iifname "bhh*" ip6 saddr ::1 counter drop
				iifname "bhh*" ip daddr 127.0.0.0/8 counter drop
			}
			chain out {
				type nat hook output priority -100
				ip daddr 127.0.0.1 tcp dport 8080 dnat ip to 10.77.1.1:80
				ip6 daddr ::1 tcp dport 8080 dnat ip6 to [fd77::1:1]:80
			}
			chain post {
				type nat hook postrouting priority 100
				oifname "bhh*" ip saddr 127.0.0.0/8 masquerade
				oifname "bhh*" ip6 saddr ::1 masquerade
			}
		}
		END`, one.Device, host.Device))
	web := h.Namespace(one.VNIC.Namespace)
	for _, a := range []string{"10.77.1.1", "fd77::1:1"} {
		web.ListenHTTP(netip.AddrPortFrom(netip.MustParseAddr(a), 80), nil)
	}
	h.ListenHTTP(netip.MustParseAddrPort("[::1]:81"), nil)
	answers := func(hosts ...string) {
		t.Helper()
		for _, at := range hosts {
			if got, err := h.HTTPGet("http://" + at); err != nil {
				t.Errorf("%s: %q, %v", at, got, err)
			}
		}
	}
	answers("127.0.0.1:8080", "[::1]:8080", "[::1]:81")

	h.Run(t, "ip", "-6", "route", "del", "local", "::1", "table", "local", "dev", host.VNIC.Device)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if c, err := h.DialContext(ctx, "tcp", "[::1]:8080"); err == nil {
		c.Close()
		t.Error("[::1]:8080 answers without the route: the test proves nothing")
	}
	if _, err := resync(t, n, p); err != nil {
		t.Fatal(err)
	}
	answers("127.0.0.1:8080", "[::1]:8080", "[::1]:81")
}

func TestLoopbackRoutesFollowTheAddresses(t *testing.T) {
	t.Parallel()
	h, n := open(t)
	p := onlyNetwork()
	host := p.Ports[plan.HostPortID(network)]
	second := port("host:second", plan.PortHost, plan.MAC{2, 0, 0, 0, 0, 2}, prefixes("10.78.0.1/16", "fd78::1/64"))
	second.VNIC.Device = plan.DeviceName(plan.HostVNICPrefix, second.ID)
	p.Ports[second.ID] = second
	want := func(ports ...*plan.Port) {
		t.Helper()
		got := loopbackRoutes(t, h)
		if lines := strings.Count(got, "local"); lines != len(ports) {
			t.Errorf("%d routes, want %d:\n%s", lines, len(ports), got)
		}
		for _, p := range ports {
			line := fmt.Sprintf("local ::1 dev %s proto 98 metric %d", p.VNIC.Device, 2048+h.Link(p.VNIC.Device).Attrs().Index)
			if !strings.Contains(got, line) {
				t.Errorf("no route %q in\n%s", line, got)
			}
		}
	}
	apply(t, n, &plan.Plan{}, p)
	want(host, second)
	quiet(t, n, p)

	// The second network loses IPv6, and gets it back.
	only4, q := *second, *p
	only4.VNIC.Addrs = second.VNIC.Addrs[:1]
	q.Ports = map[plan.PortID]*plan.Port{}
	maps.Copy(q.Ports, p.Ports)
	q.Ports[second.ID] = &only4
	apply(t, n, p, &q)
	want(host)
	quiet(t, n, &q)
	apply(t, n, &q, p)
	want(host, second)
	quiet(t, n, p)

	// A route that somebody made the same way serves as well, and is not ours to remove.
	h.Run(t, "bash", "-c", fmt.Sprintf(`ip -6 route del local ::1 table local dev %[1]s
		ip -6 route add local ::1 table local dev %[1]s metric %d`, second.VNIC.Device, 2048+h.Link(second.VNIC.Device).Attrs().Index))
	quiet(t, n, p)
	apply(t, n, p, &q)
	if got := loopbackRoutes(t, h); strings.Count(got, "local") != 2 {
		t.Errorf("somebody's route is gone:\n%s", got)
	}

	if err := n.Reset(t.Context()); err != nil {
		t.Fatal(err)
	}
	want()
}
