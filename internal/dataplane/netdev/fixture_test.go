package netdev

import (
	"context"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
	"github.com/bulkhead-net/bulkhead/internal/testhost"
)

var renew = flag.Bool("update", false, "rewrite the golden files")

// open makes a throwaway host and a Netdev in it.
func open(t testing.TB) (*testhost.Host, *Netdev) {
	t.Helper()
	h := testhost.New(t)
	return h, openIn(t, h)
}

// openIn is a daemon start: it may be done again in the same host.
func openIn(t testing.TB, h *testhost.Host) *Netdev {
	t.Helper()
	return openWith(t, h, Options{StateDir: "/var/lib/bulkhead"})
}

func openWith(t testing.TB, h *testhost.Host, o Options) *Netdev {
	t.Helper()
	var n *Netdev
	var err error
	h.DoMount(func() { n, err = New(o) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return n
}

const network hcn.GUID = "A0000000-0000-0000-0000-000000000000"

func guid(kind byte, i int) hcn.GUID {
	return hcn.GUID(fmt.Sprintf("%c0000000-0000-0000-0000-%012X", kind, i))
}

// onlyNetwork is a plan with one NAT network and no endpoint.
func onlyNetwork() *plan.Plan {
	resolverNS := plan.NetnsDir + "/hns-resolver"
	p := &plan.Plan{
		Host:       plan.Host{Forward4: true, Forward6: true},
		Namespaces: map[hcn.GUID]*plan.Namespace{plan.ResolverNamespace: {ID: plan.ResolverNamespace, Path: resolverNS}},
		Ports:      map[plan.PortID]*plan.Port{},
	}
	gateway := []netip.Prefix{netip.MustParsePrefix("10.77.0.1/16"), netip.MustParsePrefix("fd77::1/64")}
	mac := plan.MAC{2, 0, 0, 0, 0, 1}
	host := port(plan.HostPortID(network), plan.PortHost, mac, gateway)
	host.VNIC.Device = plan.DeviceName(plan.HostVNICPrefix, host.ID)
	resolver := port(plan.ResolverPortID(network), plan.PortResolver, mac, gateway)
	resolver.VNIC.Device, resolver.VNIC.Namespace = plan.DeviceName(plan.ResolverPrefix, resolver.ID), resolverNS
	p.Ports[host.ID], p.Ports[resolver.ID] = host, resolver
	return p
}

func port(id plan.PortID, kind plan.PortKind, mac plan.MAC, addrs []netip.Prefix) *plan.Port {
	return &plan.Port{
		ID: id, Kind: kind, Network: network, MAC: mac,
		Device: plan.DeviceName(plan.PortPrefix, id), Alias: plan.Alias("port", string(id), "n"),
		VNIC: plan.VNIC{
			Alias: plan.Alias("vnic", string(id), "n"), MAC: mac, MTU: 1400, Addrs: addrs, LinkLocal: mac.LinkLocal(),
		},
	}
}

// addEndpoint puts the i-th endpoint, in a compartment of its own, into the plan.
func addEndpoint(p *plan.Plan, i int) (*plan.Namespace, *plan.Port) {
	ns := &plan.Namespace{ID: guid('C', i), Path: plan.NamespacePath(guid('C', i))}
	ep := port(plan.EndpointPortID(guid('E', i)), plan.PortContainer, plan.MAC{2, 1, 0, 0, byte(i >> 8), byte(i)}, []netip.Prefix{
		netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 77, byte(1 + i>>8), byte(i)}), 16),
		netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x77, 13: 1, 14: byte(i >> 8), 15: byte(i)}), 64),
	})
	ep.VNIC.Namespace, ep.VNIC.Device = ns.Path, "eth0"
	ep.VNIC.Routes = []plan.Route{
		{Dst: netip.MustParsePrefix("0.0.0.0/0"), Via: netip.MustParseAddr("10.77.0.1")},
		{Dst: netip.MustParsePrefix("::/0"), Via: netip.MustParseAddr("fd77::1")},
	}
	host, resolver := p.Ports[plan.HostPortID(network)], p.Ports[plan.ResolverPortID(network)]
	for _, gw := range host.VNIC.Addrs {
		ep.VNIC.Neighbours = append(ep.VNIC.Neighbours, plan.Neighbour{Addr: gw.Addr(), MAC: host.MAC})
	}
	for _, own := range []*plan.Port{host, resolver} {
		ep.KnownOn = append(ep.KnownOn, plan.Interface{Namespace: own.VNIC.Namespace, Device: own.VNIC.Device})
	}
	for _, a := range ep.VNIC.Addrs {
		ep.Addrs = append(ep.Addrs, a.Addr())
	}
	p.Namespaces[ns.ID], p.Ports[ep.ID] = ns, ep
	return ns, ep
}

// sample is a network with two endpoints, the second with all that a port can have.
func sample() *plan.Plan {
	p := onlyNetwork()
	addEndpoint(p, 1)
	ns, ep := addEndpoint(p, 2)
	ns.Sysctls = map[string]string{"net/ipv4/ip_unprivileged_port_start": "0"}
	ep.AltName = "web-port"
	ep.VNIC.Routes[0].Metric, ep.VNIC.Routes[1].Metric = 50, 60
	ep.VNIC.Routes = append(ep.VNIC.Routes,
		plan.Route{Dst: netip.MustParsePrefix("198.51.100.0/24"), Via: netip.MustParseAddr("192.0.2.1"), OnLink: true},
		plan.Route{Dst: netip.MustParsePrefix("10.77.0.0/16"), Metric: 7},
		plan.Route{Dst: netip.MustParsePrefix("fd77::/64"), Metric: 8},
		plan.Route{Dst: netip.MustParsePrefix("2001:db8::/48"), Via: netip.MustParseAddr("fe80::1")},
	)
	return p
}

// everything is the delta from nothing to p, or with old set between the two.
func delta(old, p *plan.Plan) *plan.Delta {
	d := &plan.Delta{
		Host:       old.Host != p.Host,
		Namespaces: map[hcn.GUID]plan.Change[plan.Namespace]{}, Ports: map[plan.PortID]plan.Change[plan.Port]{},
		Switches: map[hcn.GUID]plan.Change[plan.Switch]{},
	}
	diff(d.Switches, old.Switches, p.Switches)
	diff(d.Namespaces, old.Namespaces, p.Namespaces)
	diff(d.Ports, old.Ports, p.Ports)
	return d
}

func diff[K comparable, V any](into map[K]plan.Change[V], old, now map[K]*V) {
	for k, v := range old {
		if now[k] != v {
			into[k] = plan.Change[V]{Old: v, New: now[k]}
		}
	}
	for k, v := range now {
		if old[k] == nil {
			into[k] = plan.Change[V]{New: v}
		}
	}
}

// apply runs both appliers over a change, and waits for the reaper.
func apply(t testing.TB, n *Netdev, old, p *plan.Plan) {
	t.Helper()
	if err := tryApply(t, n, old, p); err != nil {
		t.Fatal(err)
	}
}

func tryApply(t testing.TB, n *Netdev, old, p *plan.Plan) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	d := delta(old, p)
	if err := n.Devices().Update(ctx, p, d); err != nil {
		return err
	}
	if err := n.Finish().Update(ctx, p, d); err != nil {
		return err
	}
	return n.reap.wait(ctx)
}

// resync runs both appliers over a whole plan.
func resync(t testing.TB, n *Netdev, p *plan.Plan) ([]plan.Drift, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	drift, err := n.Devices().Sync(ctx, p)
	more, err2 := n.Finish().Sync(ctx, p)
	if err := n.reap.wait(ctx); err != nil {
		t.Fatal(err)
	}
	if err == nil {
		err = err2
	}
	return append(drift, more...), err
}

// quiet checks that a further Sync finds nothing and writes nothing.
func quiet(t testing.TB, n *Netdev, p *plan.Plan) {
	t.Helper()
	before := n.writes.Load()
	drift, err := resync(t, n, p)
	if err != nil {
		t.Fatal(err)
	}
	if len(drift) > 0 {
		t.Errorf("a further Sync finds %v", drift)
	}
	if wrote := n.writes.Load() - before; wrote != 0 {
		t.Errorf("a further Sync writes %d times", wrote)
	}
}

var (
	volatileText = regexp.MustCompile(`@if\d+|@bh[hp][0-9a-f]{12}| linkdown| qlen \d+| qdisc \w+| mode \w+|\\|valid_lft \w+ preferred_lft \w+|link-netns \S+|link-netnsid \d+|^\d+: `)
	randomMAC    = regexp.MustCompile(`(bhp[0-9a-f]{12}:.*link/ether )\S+`)
	ownMetric    = regexp.MustCompile(`(local ::1 .* metric )\d+`) // goes with the index
	carrier      = regexp.MustCompile(`<.*>|state \w+`)
)

// dump shows our side of the host and its compartments as the ip tool does.
func dump(t testing.TB, h *testhost.Host) string {
	t.Helper()
	var b strings.Builder
	show := func(title string, args ...string) {
		out := h.Run(t, "ip", args...)
		if slices.Contains(args, "neigh") {
			out = sortLines(out) // the kernel's order is that of a seeded hash
		}
		b.WriteString("# " + title + "\n")
		for line := range strings.Lines(out) {
			line = volatileText.ReplaceAllString(strings.TrimSpace(line), "")
			line = randomMAC.ReplaceAllString(line, "${1}random")
			line = ownMetric.ReplaceAllString(line, "${1}own")
			line = carrier.ReplaceAllStringFunc(line, func(s string) string {
				if strings.HasPrefix(s, "state") {
					return ""
				}
				return "<" + strings.Join(keep(strings.Split(strings.Trim(s, "<>"), ","), "NOARP", "UP"), ",") + ">"
			})
			b.WriteString(strings.Join(strings.Fields(line), " ") + "\n")
		}
	}
	show("host links", "-o", "link", "show", "type", "veth")
	show("host addresses", "-o", "addr", "show")
	show("host routes", "route")
	show("host routes, IPv6", "-6", "route")
	show("host's local routes of ours, IPv6", "-6", "route", "show", "table", "local", "proto", "98")
	show("host neighbours", "neigh", "show", "nud", "permanent")
	for name := range strings.Lines(h.Run(t, "ls", "/run/netns")) {
		name = strings.TrimSpace(name)
		show(name, "-n", name, "-o", "link", "show")
		show(name+" addresses", "-n", name, "-o", "addr", "show")
		show(name+" routes", "-n", name, "route")
		show(name+" routes, IPv6", "-n", name, "-6", "route")
		show(name+" neighbours", "-n", name, "neigh", "show", "nud", "permanent")
	}
	return b.String()
}

func keep(all []string, wanted ...string) []string {
	var out []string
	for _, w := range wanted {
		for _, s := range all {
			if s == w {
				out = append(out, s)
			}
		}
	}
	return out
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *renew {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("%s (-want +got; -update renews it):\n%s", file, d)
	}
}

func sortLines(s string) string {
	lines := strings.Split(s, "\n")
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func diffLines(a, b string) string { return cmp.Diff(strings.Split(a, "\n"), strings.Split(b, "\n")) }
