package nat

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
	"github.com/bulkhead-net/bulkhead/internal/testhost"
)

// detour changes the detours of web by Update, as the engine does.
func (tp *topology) detour(ds ...plan.Detour) {
	tp.t.Helper()
	old := tp.plan.Ports["web"]
	is := *old
	is.Detours = ds
	tp.plan.Ports["web"] = &is
	if err := tp.a.Update(tp.t.Context(), tp.plan, &plan.Delta{Ports: map[plan.PortID]plan.Change[plan.Port]{"web": {Old: old, New: &is}}}); err != nil {
		tp.t.Fatalf("detour: %v", err)
	}
}

func everything(v4 bool) netip.Prefix {
	if v4 {
		return netip.MustParsePrefix("0.0.0.0/0")
	}
	return netip.MustParsePrefix("::/0")
}

func host32(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

func (tp *topology) ask(from *testhost.Host, to netip.AddrPort) string {
	ctx, cancel := context.WithTimeout(tp.t.Context(), 2*time.Second)
	defer cancel()
	return first(from.DialContext(ctx, "tcp", to.String()))
}

func TestDetours(t *testing.T) {
	tp := newTopology(t)
	tp.sync()
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			for h, a := range map[*testhost.Host]netip.Addr{tp.lan: f.lan, tp.inet: f.inet, tp.web2: f.web2, tp.far: f.far, tp.host: f.gateway} {
				greet(t, h, at(a, 3128))
				greet(t, h, at(a, 80))
			}
			tp.lan.UDPEcho(at(f.lan, 5353))
			// What the switch does with a flow for another container: it goes to the host.
			tp.web.Route(host32(f.web2).String(), f.gateway.String())
			v4 := f.inet.Is4()
			to := func(a netip.Addr, port uint16, open bool, except ...netip.Addr) plan.Detour {
				d := plan.Detour{Protocol: 6, To: at(a, port), Destinations: []netip.Prefix{everything(v4)}, Except: []netip.Prefix{host32(a)}, Open: open}
				for _, a := range except {
					d.Except = append(d.Except, host32(a))
				}
				return d
			}
			web := addrOfFamily(tp.plan.Ports["web"], v4)
			for _, tc := range []struct {
				name   string
				detour []plan.Detour
				dial   netip.AddrPort
				want   string
			}{
				{"none", nil, at(f.inet, 80), "inet:80 speaks to " + f.host.String()},
				{"outside, hidden", []plan.Detour{to(f.lan, 3128, false)}, at(f.inet, 80), "lan:3128 speaks to " + f.host.String()},
				{"outside, open", []plan.Detour{to(f.lan, 3128, true)}, at(f.inet, 80), "lan:3128 speaks to " + web.String()},
				{"the proxy itself", []plan.Detour{to(f.lan, 3128, false)}, at(f.lan, 80), "lan:80 speaks to " + f.host.String()},
				{"the same port", []plan.Detour{to(f.lan, 0, false)}, at(f.inet, 80), "lan:80 speaks to " + f.host.String()},
				{"excepted", []plan.Detour{to(f.lan, 3128, false, f.inet)}, at(f.inet, 80), "inet:80 speaks to " + f.host.String()},
				{"excepted, and taken by another", []plan.Detour{to(f.lan, 3128, false, f.inet), to(f.far, 3128, false)}, at(f.inet, 80), "far:3128 speaks to " + web.String()},
				{"from another container of the network", []plan.Detour{to(f.lan, 3128, false)}, at(f.web2, 80), "lan:3128 speaks to " + f.host.String()},
				{"on the same network", []plan.Detour{to(f.web2, 3128, false)}, at(f.inet, 80), "web2:3128 speaks to " + f.gateway.String()},
				{"on another network", []plan.Detour{to(f.far, 3128, false)}, at(f.inet, 80), "far:3128 speaks to " + web.String()},
				{"on the host", []plan.Detour{to(f.gateway, 3128, false)}, at(f.inet, 80), "host:3128 speaks to " + web.String()},
				{"none again", nil, at(f.inet, 80), "inet:80 speaks to " + f.host.String()},
			} {
				tp.detour(tc.detour...)
				if got := tp.ask(tp.web, tc.dial); got != tc.want {
					t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
				}
			}
			d := to(f.lan, 5353, false)
			d.Protocol = 17
			tp.detour(d)
			if got, err := tp.web.UDPAsk(at(f.inet, 53), "x"); err != nil || !strings.HasSuffix(got, " x") {
				t.Errorf("a datagram: %q, %v", got, err)
			}
			if got := tp.ask(tp.web, at(f.inet, 80)); got != "inet:80 speaks to "+f.host.String() {
				t.Errorf("a connection beside detours of datagrams: %q", got)
			}
			if got := tp.ask(tp.web2, at(f.inet, 80)); got != "inet:80 speaks to "+f.host.String() {
				t.Errorf("another container: %q", got)
			}
			tp.detour()
		})
	}
	if drift := tp.sync(); len(drift) != 0 {
		t.Errorf("drift after all: %v", drift)
	}
}

func addrOfFamily(p *plan.Port, v4 bool) netip.Addr {
	for _, a := range p.Addrs {
		if a.Is4() == v4 {
			return a
		}
	}
	return netip.Addr{}
}

// TestDetourOpen: who sees a container's address can answer it, and begin nothing.
func TestDetourOpen(t *testing.T) {
	tp := newTopology(t)
	tp.sync()
	f := families[0]
	greet(t, tp.web, at(addr("10.77.1.2"), 80))
	tp.detour(plan.Detour{Protocol: 6, To: at(f.lan, 3128), Destinations: []netip.Prefix{everything(true)}, Open: true})
	before := tp.dropped(DropDirect)
	if got := tp.ask(tp.lan, at(addr("10.77.1.2"), 80)); strings.HasPrefix(got, "web") || tp.dropped(DropDirect) == before {
		t.Errorf("a connection from the proxy: %q", got)
	}
}

// TestDetourInternal: on an Internal network the host sends flows back to it for a proxy, and nowhere else.
func TestDetourInternal(t *testing.T) {
	tp := newTopology(t)
	second := tp.container("second")
	tp.host.Connect(second, testhost.Cable{Dev: "bhhd", Addrs: []string{"10.77.4.1/24"}, PeerAddrs: []string{"10.77.4.2/24"}})
	second.Route("default", "10.77.4.1")
	// One link with two addresses stands for two endpoints of a network.
	second.Addr("eth0", "10.77.4.3/24")
	tp.plan.Switches["NET4"] = &plan.Switch{Number: 4, Network: "NET4", Mode: plan.ModeInternal, HostDevice: "bhhd", Subnets: []plan.Subnet{
		{Prefix: netip.MustParsePrefix("10.77.4.0/24"), Gateway: addr("10.77.4.1")},
	}}
	port := &plan.Port{ID: "second", Kind: plan.PortContainer, Network: hcn.GUID("NET4"), Endpoint: "second", Addrs: []netip.Addr{addr("10.77.4.2")}}
	tp.plan.Ports["second"] = port
	greet(t, second, at(addr("10.77.4.3"), 3128))
	greet(t, tp.lan, at(families[0].lan, 3128))
	for proxy, want := range map[netip.Addr]string{addr("10.77.4.3"): "second:3128 speaks to 10.77.4.1", families[0].lan: ""} {
		is := *port
		is.Detours = []plan.Detour{{Protocol: 6, To: at(proxy, 3128), Destinations: []netip.Prefix{everything(true)}, Except: []netip.Prefix{host32(proxy)}}}
		tp.plan.Ports["second"] = &is
		tp.sync()
		got := tp.ask(second, at(addr("203.0.113.9"), 80))
		if want != "" && got != want || want == "" && strings.Contains(got, "speaks") {
			t.Errorf("by the proxy %s: %q, want %q", proxy, got, fmt.Sprint(want))
		}
	}
}
