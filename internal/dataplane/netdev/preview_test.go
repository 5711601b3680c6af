package netdev

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/plan"
	"github.com/bulkhead-net/bulkhead/internal/testhost"
)

// kernelState lists what of ours the kernel holds, in the words of a preview.
func kernelState(t *testing.T, h *testhost.Host, n *Netdev) map[string]bool {
	t.Helper()
	out := map[string]bool{}
	add := func(object, format string, args ...any) { out[object+": "+fmt.Sprintf(format, args...)] = true }
	paths, err := n.listNamespaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range append([]string{""}, paths...) {
		ps := n.newPass(t.Context(), false)
		s, err := ps.space(path)
		if err == nil {
			err = s.list()
		}
		if err != nil {
			t.Fatal(err)
		}
		links, err := s.conn.listLinks()
		if err != nil {
			t.Fatal(err)
		}
		neighbours, err := s.conn.listNeighbours()
		if err != nil {
			t.Fatal(err)
		}
		if path != "" {
			add("netns "+path, "network namespace")
		}
		for _, l := range links {
			if path == "" && strings.HasPrefix(l.name, plan.PortPrefix) && l.ours() {
				add("link "+l.name, "veth")
			}
			object := "link " + l.name + " in " + place(path)
			for _, a := range s.addrs {
				if a.index == l.index && a.proto == protoOurs {
					add(object, "address %s", a.prefix)
				}
			}
			for _, r := range s.routes {
				if r.oif == l.index && r.proto == protoOurs && r.table == unix.RT_TABLE_MAIN {
					add(object, "route %s", routeText(plan.Route{Dst: r.dst, Via: r.via}))
				}
			}
			for _, e := range neighbours {
				if e.index == l.index && e.proto == protoOurs {
					add(object, "neighbour %s at %s", e.Addr, e.MAC)
				}
			}
		}
		ps.close()
	}
	for _, key := range []string{"net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"} {
		add("sysctl in the host", "%s = %s", key, h.SysctlValue(key))
	}
	return out
}

// foretold brings the steps into the same words. What goes with its link or its compartment is
// not told one by one.
func foretold(t *testing.T, n *Netdev, old, p *plan.Plan) (adds, removes map[string]bool) {
	t.Helper()
	adds, removes = map[string]bool{}, map[string]bool{}
	d := delta(old, p)
	steps, err := n.Devices().Preview(t.Context(), p, d)
	if err != nil {
		t.Fatal(err)
	}
	more, err := n.Finish().Preview(t.Context(), p, d)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range append(steps, more...) {
		text := s.Text
		if strings.HasPrefix(text, "veth, ") {
			text = "veth"
		}
		if before, _, ok := strings.Cut(text, " metric "); ok && strings.HasPrefix(text, "route ") {
			text = before
		}
		line := s.Object + ": " + text
		switch {
		case strings.HasPrefix(text, "further name "), strings.HasPrefix(text, "local route "), s.Sign == plan.Changes && !strings.Contains(text, "ip_forward") && !strings.Contains(text, "all.forwarding"):
		case s.Sign == plan.Removes:
			removes[line] = true
		default:
			adds[line] = true
		}
	}
	return adds, removes
}

// TestPreview: what is told of a change is what the change then does, for a plan that begins,
// changes in all that it can, and ends; and telling it writes nothing.
func TestPreview(t *testing.T) {
	t.Parallel()
	h, n := open(t)
	first := sample()
	second := &plan.Plan{Host: first.Host, Namespaces: maps.Clone(first.Namespaces), Ports: maps.Clone(first.Ports)}
	one := *first.Ports[plan.EndpointPortID(guid('E', 1))]
	one.VNIC.MTU = 1300
	one.VNIC.Addrs = append([]netip.Prefix{netip.MustParsePrefix("10.77.9.9/16")}, one.VNIC.Addrs[1:]...)
	one.VNIC.Routes = append(slices.Clone(one.VNIC.Routes), plan.Route{Dst: netip.MustParsePrefix("203.0.113.0/24"), Via: netip.MustParseAddr("10.77.0.1")})
	one.Addrs = []netip.Addr{netip.MustParseAddr("10.77.9.9"), one.Addrs[1]}
	second.Ports[one.ID] = &one
	third := onlyNetwork()
	third.Ports = maps.Clone(first.Ports)
	maps.DeleteFunc(third.Ports, func(_ plan.PortID, p *plan.Port) bool { return p.Kind == plan.PortContainer })
	old := &plan.Plan{}
	for i, p := range []*plan.Plan{first, second, third, {}} {
		before, wrote, shown := kernelState(t, h, n), n.writes.Load(), dump(t, h)
		adds, removes := foretold(t, n, old, p)
		again, _ := foretold(t, n, old, p)
		if !maps.Equal(adds, again) {
			t.Errorf("step %d: told %v, and then %v", i, adds, again)
		}
		if n.writes.Load() != wrote {
			t.Errorf("step %d: telling wrote %d times", i, n.writes.Load()-wrote)
		}
		if d := diffLines(shown, dump(t, h)); d != "" {
			t.Errorf("step %d: telling changed the kernel (-before +after):\n%s", i, d)
		}
		apply(t, n, old, p)
		if _, err := resync(t, n, p); err != nil { // the kernel takes routes along with an address
			t.Fatal(err)
		}
		after := kernelState(t, h, n)
		for line := range after {
			if !before[line] && !adds[line] {
				t.Errorf("step %d: not told that there would be %q", i, line)
			}
		}
		for line := range adds {
			if !after[line] || before[line] {
				t.Errorf("step %d: told that there would be %q (before %t, after %t)", i, line, before[line], after[line])
			}
		}
		for line := range before {
			object, _, _ := strings.Cut(line, ": ")
			if !after[line] && !removes[line] && goneWith(removes, first, object) == "" && object != "sysctl in the host" {
				t.Errorf("step %d: not told that %q would go", i, line)
			}
		}
		for line := range removes {
			if after[line] {
				t.Errorf("step %d: told that %q would go, and it stays", i, line)
			}
		}
		old = p
	}
}

// goneWith names what takes an object along.
func goneWith(removes map[string]bool, p *plan.Plan, object string) string {
	for _, port := range p.Ports {
		if object == "link "+port.VNIC.Device+" in "+place(port.VNIC.Namespace) && removes["link "+port.Device+": veth"] {
			return port.Device
		}
	}
	return ""
}

// TestPreviewRefuses: what is in the way of the change is in the way of the preview, in the same words.
func TestPreviewRefuses(t *testing.T) {
	t.Parallel()
	h, n := open(t)
	p := onlyNetwork()
	host := p.Ports[plan.HostPortID(network)]
	for _, name := range []string{host.Device, host.VNIC.Device} {
		h.Run(t, "ip", "link", "add", name, "type", "bridge")
		_, told := n.Devices().Preview(t.Context(), p, delta(&plan.Plan{}, p))
		done := n.Devices().Update(t.Context(), p, delta(&plan.Plan{}, p))
		if told == nil || done == nil || !strings.Contains(done.Error(), lastPart(told.Error())) {
			t.Errorf("with %s in the way: told %v, done %v", name, told, done)
		}
		h.Run(t, "ip", "link", "del", name)
	}
}

func lastPart(s string) string {
	parts := strings.SplitAfterN(s, "exists", 2)
	return parts[len(parts)-1]
}
