package netdev

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
	"github.com/bulkhead-net/bulkhead/internal/testhost"
)

func TestApplyToEmptyHost(t *testing.T) {
	t.Parallel()
	h, n := open(t)
	p := sample()
	apply(t, n, &plan.Plan{}, p)
	golden(t, "sample.txt", dump(t, h))
	quiet(t, n, p)

	for key, want := range map[string]string{
		"net.ipv4.ip_forward":          "1",
		"net.ipv6.conf.all.forwarding": "1",
		"net.ipv4.conf." + p.Ports[plan.HostPortID(network)].VNIC.Device + ".route_localnet": "1",
		"net.ipv6.conf." + p.Ports[plan.HostPortID(network)].Device + ".disable_ipv6":        "1",
	} {
		if got := h.SysctlValue(key); got != want {
			t.Errorf("%s is %s, want %s", key, got, want)
		}
	}
	got := h.Run(t, "ip", "netns", "exec", "hns-"+guid('C', 2).Lower(), "cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start")
	if got != "0" {
		t.Errorf("sysctl of the compartment is %s, want 0", got)
	}
	if out := h.Run(t, "ip", "-n", "hns-"+guid('C', 1).Lower(), "-6", "addr"); strings.Contains(out, "tentative") {
		t.Errorf("an address is still being probed:\n%s", out)
	}
}

func TestSyncMakesTheHostsOwnThings(t *testing.T) {
	t.Parallel()
	_, n := open(t)
	p := onlyNetwork()
	if _, err := resync(t, n, p); err != nil {
		t.Fatal(err)
	}
	quiet(t, n, p)
}

func TestRestartWritesNothing(t *testing.T) {
	t.Parallel()
	h, n := open(t)
	p := sample()
	apply(t, n, &plan.Plan{}, p)
	n2 := openIn(t, h)
	quiet(t, n2, p)
	// The same change once more is no error either: the daemon may have died before it noted the success.
	if err := tryApply(t, n2, &plan.Plan{}, p); err != nil {
		t.Fatal(err)
	}
	quiet(t, n2, p)
}

func TestRepair(t *testing.T) {
	t.Parallel()
	eth0 := "ip -n hns-" + guid('C', 1).Lower() + " "
	p := sample()
	host, one := p.Ports[plan.HostPortID(network)], p.Ports[plan.EndpointPortID(guid('E', 1))]
	resolver := p.Ports[plan.ResolverPortID(network)]
	cases := []struct {
		name, do, found string
	}{
		{"switch side deleted", "ip link del " + one.Device, "missing"},
		{"switch side down", "ip link set " + one.Device + " down", "down"},
		{"switch side renamed", "ip link set " + one.Device + " name stolen", "missing"},
		{"switch side moved", "ip link set " + one.Device + " netns hns-" + guid('C', 2).Lower(), "missing"},
		{"host port moved", "ip link set " + host.Device + " netns hns-" + guid('C', 2).Lower(), "missing"},
		{"switch side MTU", "ip link set " + one.Device + " mtu 1300", "MTU 1300"},
		{"switch side segments", "ip link set " + one.Device + " gso_max_size 70000", "gso_max_size 70000"},
		{"switch side alias", "ip link set " + one.Device + " alias mine", `alias "mine"`},
		{"switch side ARP", "ip link set " + one.Device + " arp on", "answering ARP"},
		{"vNIC deleted", eth0 + "link del eth0", "missing"},
		{"vNIC down", eth0 + "link set eth0 down", "down"},
		{"vNIC MTU", eth0 + "link set eth0 mtu 1300", "MTU 1300"},
		{"vNIC segments", eth0 + "link set eth0 gro_max_size 9000", "gather gso_max_size 9000"},
		{"vNIC MAC", eth0 + "link set eth0 address 02:99:99:99:99:99", "MAC 02:99:99:99:99:99"},
		{"vNIC renamed", eth0 + "link set eth0 down && " + eth0 + "link set eth0 name lan0", "moved away"},
		{"vNIC renamed, old name kept", eth0 + "link set eth0 down && " + eth0 + "link set eth0 name lan0 && " +
			eth0 + "link property add dev lan0 altname eth0", "moved away"},
		{"vNIC moved", eth0 + "link set eth0 netns 1", "moved away"},
		{"IPv4 address", eth0 + "addr del 10.77.1.1/16 dev eth0", "without address 10.77.1.1/16"},
		{"IPv6 address", eth0 + "addr del fd77::1:1/64 dev eth0", "without address fd77::1:1/64"},
		{"link-local address", eth0 + "addr del fe80::1:ff:fe00:1/64 dev eth0", "without address fe80::1:ff:fe00:1/64"},
		{"IPv4 route", eth0 + "route del default", "without route 0.0.0.0/0 via 10.77.0.1"},
		{"IPv6 route", eth0 + "-6 route del default", "without route ::/0 via fd77::1"},
		{"route of ours changed", eth0 + "route replace default via 10.77.0.9 proto 98", "without route 0.0.0.0/0 via 10.77.0.1"},
		{"connected route", eth0 + "route del 10.77.0.0/16 dev eth0", "without route 10.77.0.0/16"},
		{"connected route, IPv6", eth0 + "-6 route del fd77::/64 dev eth0", "without route fd77::/64"},
		{"routes flushed", eth0 + "route flush table main", "without route 10.77.0.0/16"},
		{"routes flushed, IPv6", eth0 + "-6 route flush table main", "without route fd77::/64"},
		{"local routes flushed", eth0 + "route flush table local dev eth0", "without route 10.77.1.1/32"},
		{"local routes flushed, IPv6", "sleep 1.1; " + eth0 + "-6 route flush table local dev eth0", "without route fd77::1:1/128"},
		{"route replaced", eth0 + "route replace default via 10.77.0.9", "without route 0.0.0.0/0 via 10.77.0.1"},
		{"route replaced, IPv6", eth0 + "-6 route replace default via fd77::9 dev eth0", "without route ::/0 via fd77::1"},
		{"connected route replaced", eth0 + "route replace 10.77.0.0/16 via 10.77.0.1 dev eth0", "without route 10.77.0.0/16"},
		{"connected route replaced, IPv6", eth0 + "-6 route replace blackhole fd77::/64 metric 256", "without route fd77::/64"},
		{"all routes flushed", "sleep 1.1; " + eth0 + "route flush table all dev eth0", "without route 10.77.255.255/32"},
		{"addresses flushed", eth0 + "addr flush dev eth0", "without address 10.77.1.1/16"},
		{"host's connected route", "ip route del 10.77.0.0/16 dev " + host.VNIC.Device, "without route 10.77.0.0/16"},
		{"host vNIC deleted", "ip link del " + host.VNIC.Device, "missing"},
		{"gateway address", "ip addr del 10.77.0.1/16 dev " + host.VNIC.Device, "without address 10.77.0.1/16"},
		{"local route to ::1", "ip -6 route del local ::1 table local dev " + host.VNIC.Device, "without local route ::1/128"},
		{"local route to ::1, other metric", "ip -6 route del local ::1 table local dev " + host.VNIC.Device +
			" && ip -6 route add local ::1 table local dev " + host.VNIC.Device + " metric 77 proto 98", "local route ::1/128 metric 77"},
		{"gateway's neighbour entry", eth0 + "neigh del 10.77.0.1 dev eth0", "without neighbour 10.77.0.1 at 02:00:00:00:00:01"},
		{"gateway's neighbour entry, IPv6", eth0 + "neigh del fd77::1 dev eth0", "without neighbour fd77::1 at 02:00:00:00:00:01"},
		{"gateway's neighbour entry, other MAC", eth0 + "neigh replace 10.77.0.1 lladdr 02:99:99:99:99:99 dev eth0", "without neighbour 10.77.0.1"},
		{"gateway's neighbour entry, ageing", eth0 + "neigh replace fd77::1 lladdr 02:00:00:00:00:01 nud reachable dev eth0", "without neighbour fd77::1"},
		{"neighbour entry that is none's", "ip neigh add 10.77.0.9 lladdr 02:99:99:99:99:99 protocol 98 dev " + host.VNIC.Device, "neighbour 10.77.0.9"},
		{"host's neighbour entry", "ip neigh del 10.77.1.1 dev " + host.VNIC.Device, "without neighbour 10.77.1.1 at 02:01:00:00:00:01"},
		{"host vNIC down", "ip link set " + host.VNIC.Device + " down", "without 4 neighbours"},
		{"host vNIC MAC", "ip link set " + host.VNIC.Device + " address 02:99:99:99:99:99", "MAC 02:99:99:99:99:99"},
		{"resolver's neighbour entry", "ip -n hns-resolver neigh del fd77::1:2 dev " + resolver.VNIC.Device, "without neighbour fd77::1:2"},
		{"resolver's vNIC deleted", "ip -n hns-resolver link del " + resolver.VNIC.Device, "missing"},
		{"forwarding off", "sysctl -w net.ipv4.ip_forward=0", "0"},
		{"forwarding off, IPv6", "sysctl -w net.ipv6.conf.all.forwarding=0", "0"},
		{"route_localnet", "sysctl -w net.ipv4.conf." + host.VNIC.Device + ".route_localnet=0", "0"},
		{"resolver's compartment", "ip netns del hns-resolver", "vanished"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			h, n := open(t)
			apply(t, n, &plan.Plan{}, p)
			before := dump(t, h)
			h.Run(t, "bash", "-c", c.do)
			fine, err := n.Devices().Check(t.Context(), p)
			if off := strings.HasPrefix(c.name, "forwarding off") || c.name == "route_localnet"; err != nil || fine == off {
				t.Errorf("a cheap look says %v, %v", fine, err)
			}
			drift, err := resync(t, n, p)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(fmt.Sprint(drift), c.found) {
				t.Errorf("drift %q, want one with %q", drift, c.found)
			}
			for _, d := range drift {
				if d.ID == "" || d.Object == "" {
					t.Errorf("drift %+v names no object", d)
				}
			}
			if after := dump(t, h); sortLines(after) != sortLines(before) {
				t.Errorf("not repaired:\n%s\nwas\n%s", after, before)
			}
			quiet(t, n, p)
		})
	}
}

// TestFailedRepairIsNoDrift: what could not be repaired is an error of its port, at each try, and not told as repaired.
func TestFailedRepairIsNoDrift(t *testing.T) {
	t.Parallel()
	h, n := open(t)
	p := sample()
	apply(t, n, &plan.Plan{}, p)
	eth0 := "ip -n hns-" + guid('C', 1).Lower() + " "
	ipv6 := func(off string) {
		h.Run(t, "ip", "netns", "exec", "hns-"+guid('C', 1).Lower(), "sysctl", "-w", "net.ipv6.conf.eth0.disable_ipv6="+off)
	}
	ipv6("1") // takes the addresses away, and lets none come back
	h.Run(t, "bash", "-c", eth0+"route del default")
	for try := range 2 {
		drift, err := resync(t, n, p)
		var object *plan.ObjectError
		if !errors.As(err, &object) || object.ID != string(plan.EndpointPortID(guid('E', 1))) || !strings.Contains(err.Error(), "fd77::1:1") {
			t.Errorf("try %d: %v", try, err)
		}
		if len(drift) > 0 {
			t.Errorf("try %d: told as repaired: %v", try, drift)
		}
	}
	ipv6("0")
	if drift, err := resync(t, n, p); err != nil || !strings.Contains(fmt.Sprint(drift), "without address fd77::1:1/64") {
		t.Errorf("when it can be repaired: %v, %v", drift, err)
	}
	quiet(t, n, p)
}

func TestVanishedCompartmentIsLeftToTheEngine(t *testing.T) {
	t.Parallel()
	for name, do := range map[string]string{
		"deleted": "ip netns del NS", "unmounted": "umount /run/netns/NS", "never made": "ip netns del NS; ip link",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h, n := open(t)
			p := sample()
			apply(t, n, &plan.Plan{}, p)
			h.Run(t, "bash", "-c", strings.ReplaceAll(do, "NS", "hns-"+guid('C', 1).Lower()))
			drift, err := resync(t, n, p)
			if err != nil {
				t.Fatal(err)
			}
			want := plan.Drift{Object: "namespace " + plan.NamespacePath(guid('C', 1)), ID: string(guid('C', 1)), Found: "vanished"}
			if len(drift) != 1 || drift[0] != want {
				t.Errorf("drift %+v, want %+v", drift, want)
			}
			one := p.Ports[plan.EndpointPortID(guid('E', 1))]
			err = n.Devices().Update(t.Context(), p, &plan.Delta{Ports: map[plan.PortID]plan.Change[plan.Port]{one.ID: {New: one}}})
			var object *plan.ObjectError
			if !errors.Is(err, ErrVanished) || !errors.As(err, &object) || object.ID != string(one.ID) {
				t.Errorf("attach to it: %v", err)
			}
			// The engine may have it made again.
			apply(t, n, &plan.Plan{}, p)
			quiet(t, n, p)
		})
	}
}

func TestOthersThingsSurvive(t *testing.T) {
	t.Parallel()
	h, n := open(t)
	h.Run(t, "bash", "-c", `set -e
		ip link add br0 type bridge; ip link set br0 up
		ip link add veth0 type veth peer name veth1; ip addr add 10.9.9.1/24 dev veth0; ip link set veth0 up
		ip link add bhp0 type veth peer name x0; ip link set bhp0 alias "someone else"
		ip link add bhh0 type bridge
		ip netns add other; ip netns add hns-other; ip netns add HNS-`+guid('C', 7).Lower()+`; ip route add 10.88.0.0/16 via 10.9.9.9`)
	others := dump(t, h)
	p := sample()
	apply(t, n, &plan.Plan{}, p)
	one := "hns-" + guid('C', 1).Lower()
	mine := "neigh add 10.77.7.7 lladdr 02:77:00:00:00:07 dev "
	h.Run(t, "bash", "-c", "ip -n "+one+" "+mine+"eth0; ip "+mine+p.Ports[plan.HostPortID(network)].VNIC.Device)
	h.Run(t, "bash", "-c", "ip -n "+one+" addr add 10.77.5.5/16 dev eth0; ip -n "+one+" route add 10.99.0.0/16 via 10.77.0.1")
	quiet(t, n, p)
	if out := h.Run(t, "ip", "-n", one, "route"); !strings.Contains(out, "10.99.0.0/16") {
		t.Errorf("the container's own route is gone:\n%s", out)
	}
	if out := h.Run(t, "bash", "-c", "ip -n "+one+" neigh show nud permanent; ip neigh show nud permanent"); strings.Count(out, "02:77:00:00:00:07") != 2 {
		t.Errorf("somebody's own neighbour entries are gone:\n%s", out)
	}
	// A stranger in the dying group keeps it from being deleted as a whole.
	h.Run(t, "ip", "link", "set", "veth0", "group", fmt.Sprint(groupDying))
	if err := n.Reset(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.Run(t, "ip", "link", "set", "veth0", "group", "0")
	if after := dump(t, h); after != others {
		t.Errorf("others' things changed:\n%s\nwere\n%s", after, others)
	}
	left, err := n.Leftovers(t.Context(), &plan.Plan{})
	if err != nil || len(left) > 0 {
		t.Errorf("left over: %v, %v", left, err)
	}
	if got := h.SysctlValue("net.ipv4.ip_forward") + h.SysctlValue("net.ipv6.conf.all.forwarding"); got != "00" {
		t.Errorf("forwarding stays on: %s", got)
	}
}

func TestForeignDeviceInTheWay(t *testing.T) {
	t.Parallel()
	h, n := open(t)
	p := sample()
	one, two := p.Ports[plan.EndpointPortID(guid('E', 1))], p.Ports[plan.EndpointPortID(guid('E', 2))]
	h.Run(t, "ip", "link", "add", one.Device, "type", "bridge")
	h.Run(t, "ip", "netns", "add", "hns-"+guid('C', 2).Lower())
	h.Run(t, "ip", "-n", "hns-"+guid('C', 2).Lower(), "link", "add", "eth0", "type", "bridge")
	d := delta(&plan.Plan{}, p)
	err := n.Devices().Update(t.Context(), p, d)
	for _, want := range []string{
		"port " + string(one.ID) + ": a bridge link " + one.Device + " exists that is not ours",
		"port " + string(two.ID) + ": create veth pair",
		"an interface eth0 that is not ours exists in " + two.VNIC.Namespace,
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v\nwant %s", err, want)
		}
	}
	if err := n.Finish().Update(t.Context(), p, d); err != nil {
		t.Error(err)
	}
	if out := h.Run(t, "ip", "link", "show", one.Device); strings.Contains(out, ",UP") {
		t.Errorf("the foreign device was set up: %s", out)
	}
	apply(t, n, p, &plan.Plan{})
	h.Run(t, "ip", "link", "show", one.Device)
}

func TestDetachAndReattach(t *testing.T) {
	t.Parallel()
	h, n := open(t)
	base, p := onlyNetwork(), sample()
	apply(t, n, &plan.Plan{}, p)
	// A fresh plan shares nothing with the old one: all ports and compartments count as changed.
	for range 3 {
		gone := delta(p, base)
		if err := n.Devices().Update(t.Context(), base, gone); err != nil {
			t.Fatal(err)
		}
		if err := n.Finish().Update(t.Context(), base, gone); err != nil {
			t.Fatal(err)
		}
		// At once again, under the same names, while the reaper may be at work.
		apply(t, n, base, p)
		quiet(t, n, p)
	}
	apply(t, n, p, base)
	apply(t, n, base, base)
	if out := h.Run(t, "ls", "/run/netns"); out != "hns-resolver" {
		t.Errorf("compartments left: %s", out)
	}
	quiet(t, n, base)
}

func TestChangeOfAPort(t *testing.T) {
	t.Parallel()
	h, n := open(t)
	p := sample()
	apply(t, n, &plan.Plan{}, p)
	q := *p
	q.Ports = map[plan.PortID]*plan.Port{}
	maps.Copy(q.Ports, p.Ports)
	changed := *p.Ports[plan.EndpointPortID(guid('E', 2))]
	changed.AltName = "other-name"
	changed.VNIC.MTU = 1300
	changed.MAC, changed.VNIC.MAC = plan.MAC{2, 9}, plan.MAC{2, 9}
	changed.VNIC.Addrs = []netip.Prefix{netip.MustParsePrefix("10.77.9.9/16"), changed.VNIC.Addrs[1]}
	changed.Addrs = []netip.Addr{changed.VNIC.Addrs[0].Addr(), changed.Addrs[1]}
	changed.VNIC.Routes = []plan.Route{{Dst: netip.MustParsePrefix("0.0.0.0/0"), Via: netip.MustParseAddr("10.77.0.254"), Metric: 50}}
	q.Ports[changed.ID] = &changed
	apply(t, n, p, &q)
	quiet(t, n, &q)
	golden(t, "changed.txt", dump(t, h))

	// Into another compartment.
	moved := changed
	moved.VNIC.Namespace, moved.VNIC.Device = plan.NamespacePath(guid('C', 1)), "eth1"
	moved.VNIC.Routes = nil
	r := q
	r.Ports = map[plan.PortID]*plan.Port{moved.ID: &moved}
	for id, v := range q.Ports {
		if id != moved.ID {
			r.Ports[id] = v
		}
	}
	apply(t, n, &q, &r)
	quiet(t, n, &r)
}

func TestCrashLeftovers(t *testing.T) {
	t.Parallel()
	h, n := open(t)
	p := onlyNetwork()
	addEndpoint(p, 1)
	one, gone := p.Ports[plan.EndpointPortID(guid('E', 1))], plan.DeviceName(plan.PortPrefix, "gone")
	dead := "hns-" + guid('C', 1).Lower()
	h.Run(t, "bash", "-c", fmt.Sprintf(`set -e
		touch /run/netns/%[1]s /run/netns/%[6]s                 # killed before the bind
		ip netns add %[7]s                                      # no longer wanted
		ip link add %[2]s group %[4]d type veth peer name half0 # killed before the alias, wanted
		ip link add %[3]s group %[4]d type veth peer name half1 # the same, not wanted
		ip link add bhpdying group %[5]d type veth peer name half2`, dead, one.Device, gone, groupOurs, groupDying,
		"hns-"+guid('C', 8).Lower(), "hns-"+guid('C', 9).Lower()))
	apply(t, n, &plan.Plan{}, p)
	if _, err := resync(t, n, p); err != nil {
		t.Fatal(err)
	}
	quiet(t, n, p)
	if out := h.Run(t, "ls", "-x", "/run/netns"); strings.Join(strings.Fields(out), " ") != dead+" hns-resolver" {
		t.Errorf("compartments: %s", out)
	}
	if out := h.Run(t, "ip", "-o", "link"); strings.Contains(out, "half") || strings.Contains(out, gone) || strings.Contains(out, "dying") {
		t.Errorf("links left over:\n%s", out)
	}
}

// TestPortLeftDying is a daemon that was killed after it had cut a port off and before it deleted it, and whose store
// still wants the port.
func TestPortLeftDying(t *testing.T) {
	t.Parallel()
	h, n := open(t)
	p := onlyNetwork()
	addEndpoint(p, 1)
	apply(t, n, &plan.Plan{}, p)
	quiet(t, n, p)
	for _, id := range []plan.PortID{plan.EndpointPortID(guid('E', 1)), plan.HostPortID(p.Ports[plan.EndpointPortID(guid('E', 1))].Network)} {
		dev := p.Ports[id].Device
		h.Run(t, "ip", "link", "set", dev, "down", "group", fmt.Sprint(groupDying))
		if _, err := resync(t, n, p); err != nil {
			t.Fatalf("%s left dying: %v", id, err)
		}
		quiet(t, n, p)
	}
}

func TestResetLeavesNothing(t *testing.T) {
	t.Parallel()
	h, n := open(t)
	h.Run(t, "bash", "-c", "umount /run/netns; rmdir /run/netns") // a host that no ip netns has touched
	before := h.Run(t, "bash", "-c", "find /proc/sys/net -type f -readable 2>/dev/null | sort | xargs grep -sH . | grep -v '/neigh/\\|random\\|slab\\|count'")
	p := sample()
	apply(t, n, &plan.Plan{}, p)
	left, err := n.Leftovers(t.Context(), &plan.Plan{})
	if err != nil || len(left) < 8 {
		t.Errorf("in use, Leftovers names %v, %v", left, err)
	}
	if err := n.Reset(t.Context()); err != nil {
		t.Fatal(err)
	}
	after := h.Run(t, "bash", "-c", "find /proc/sys/net -type f -readable 2>/dev/null | sort | xargs grep -sH . | grep -v '/neigh/\\|random\\|slab\\|count'")
	if before != after {
		t.Errorf("settings of the host changed:\n%s", diffLines(before, after))
	}
	h.MustFail(t, "ls", "-d", "/run/netns")
	if out := h.Run(t, "ls", "-A", "/var/lib/bulkhead"); out != "" {
		t.Errorf("left in the state directory: %s", out)
	}
}

// The directory of bound namespaces, and a mount there, stay as others left them: a directory that was there is there again, and what somebody has
// made since the host booted is nobody else's.
func TestResetKeepsOthersNetnsDir(t *testing.T) {
	t.Parallel()
	h, n := open(t)
	look := func() string {
		return h.Run(t, "bash", "-c", "stat -c '%A %n' /run/netns; grep -c ' /run/netns ' /proc/self/mountinfo || true")
	}
	h.Run(t, "bash", "-c", "umount /run/netns; mkdir -p /run/netns; chmod 750 /run/netns")
	before := look()
	apply(t, n, &plan.Plan{}, sample())
	// Another start of the daemon, which finds the mount, and one that was cut before it made it.
	if _, err := resync(t, openIn(t, h), sample()); err != nil {
		t.Fatal(err)
	}
	h.Run(t, "umount", "-l", "/run/netns")
	n = openIn(t, h)
	if err := n.prepareDir(); err != nil {
		t.Fatal(err)
	}
	if err := n.Reset(t.Context()); err != nil {
		t.Fatal(err)
	}
	if after := look(); after != before {
		t.Errorf("reset left %q, there was %q", after, before)
	}
	// The mount of an earlier boot went with it, and this one is somebody's.
	apply(t, n, &plan.Plan{}, sample())
	if err := n.home.do(func() error { return n.updateRecord(func(r *record) { r.NetnsBoot = "another" }) }); err != nil {
		t.Fatal(err)
	}
	before = look()
	if err := n.Reset(t.Context()); err != nil {
		t.Fatal(err)
	}
	if after := look(); after != before {
		t.Errorf("reset after a boot left %q, there was %q", after, before)
	}
}

func TestForwardingKeepsRouterAdvertisements(t *testing.T) {
	t.Parallel()
	h, n := open(t)
	h.Run(t, "bash", "-c", "ip link add up0 type veth peer name up1; ip link add fw0 type veth peer name fw1")
	h.Sysctl("net.ipv6.conf.up0.accept_ra", "1")
	h.Sysctl("net.ipv6.conf.fw0.forwarding", "1")
	p := onlyNetwork()
	apply(t, n, &plan.Plan{}, p)
	if got := h.SysctlValue("net.ipv6.conf.up0.accept_ra"); got != "2" {
		t.Errorf("accept_ra of the uplink is %s, want 2", got)
	}
	// A crash in between keeps what is to be put back.
	n2 := openIn(t, h)
	apply(t, n2, p, &plan.Plan{})
	for key, want := range map[string]string{
		"net.ipv6.conf.up0.accept_ra": "1", "net.ipv6.conf.fw0.forwarding": "1", "net.ipv6.conf.up0.forwarding": "0",
		"net.ipv6.conf.all.forwarding": "0", "net.ipv4.ip_forward": "0",
	} {
		if got := h.SysctlValue(key); got != want {
			t.Errorf("%s is %s, want %s as before", key, got, want)
		}
	}
}

func TestForwardingOfOthersStays(t *testing.T) {
	t.Parallel()
	h, n := open(t)
	h.Sysctl("net.ipv4.ip_forward", "1")
	p := onlyNetwork()
	apply(t, n, &plan.Plan{}, p)
	apply(t, n, p, &plan.Plan{})
	if got := h.SysctlValue("net.ipv4.ip_forward"); got != "1" {
		t.Errorf("forwarding that somebody else turned on is %s", got)
	}
}

func TestSettingsOutsideTheCompartmentAreRefused(t *testing.T) {
	t.Parallel()
	_, n := open(t)
	for _, key := range []string{"kernel/panic", "net/../kernel/panic", "net/ipv4/no_such_thing"} {
		p := &plan.Plan{Namespaces: map[hcn.GUID]*plan.Namespace{}}
		id := guid('C', 1)
		p.Namespaces[id] = &plan.Namespace{ID: id, Path: plan.NamespacePath(id), Sysctls: map[string]string{key: "1"}}
		err := tryApply(t, n, &plan.Plan{}, p)
		var object *plan.ObjectError
		if !errors.As(err, &object) || object.Kind != "namespace" || !strings.Contains(err.Error(), key) {
			t.Errorf("%s: error %v, want one of the namespace that names it", key, err)
		}
	}
	if left, err := n.Leftovers(t.Context(), &plan.Plan{}); err != nil || len(left) > 0 {
		t.Errorf("left over: %v, %v", left, err)
	}
}

func TestManyDetachedAtOnce(t *testing.T) {
	t.Parallel()
	h, n := open(t)
	base, p := onlyNetwork(), onlyNetwork()
	for i := range 60 {
		addEndpoint(p, i+1)
	}
	apply(t, n, &plan.Plan{}, p)
	start := time.Now()
	d := delta(p, base)
	if err := errors.Join(n.Devices().Update(t.Context(), base, d), n.Finish().Update(t.Context(), base, d)); err != nil {
		t.Fatal(err)
	}
	caller := time.Since(start)
	testhost.Eventually(t, 5*time.Second, func() error {
		if left := strings.Count(h.Run(t, "ip", "-o", "link"), "bhp"); left > 3 { // the switch sides of host and resolver, and one in "bhh…@bhp…"
			return fmt.Errorf("%d links left", left)
		}
		return nil
	})
	t.Logf("detached 60: %s for the caller", caller)
}

func TestCloseFinishesTheWork(t *testing.T) {
	t.Parallel()
	h := testhost.New(t)
	n := openIn(t, h)
	p := sample()
	apply(t, n, &plan.Plan{}, p)
	if err := n.Finish().Update(context.Background(), &plan.Plan{}, delta(p, &plan.Plan{})); err != nil {
		t.Fatal(err)
	}
	n.Close()
	if out := h.Run(t, "bash", "-c", "ip -o link; ls /run/netns"); strings.Contains(out, "bhp") || strings.Contains(out, "hns") {
		t.Errorf("left behind by Close:\n%s", out)
	}
}

func TestPool(t *testing.T) {
	t.Parallel()
	h := testhost.New(t)
	n := openWith(t, h, Options{StateDir: "/var/lib/bulkhead", Pool: 2})
	testhost.Eventually(t, 5*time.Second, n.pool.filled)
	p := sample()
	addEndpoint(p, 3) // more than the pool holds
	apply(t, n, &plan.Plan{}, p)
	testhost.Eventually(t, 5*time.Second, n.pool.filled) // filling it writes
	quiet(t, n, p)
	apply(t, n, p, &plan.Plan{})
	if left, err := n.Leftovers(t.Context(), &plan.Plan{}); err != nil || len(left) > 0 || n.lobby.spaces != nil {
		t.Errorf("left over: %v, %v, sockets %v", left, err, n.lobby.spaces)
	}
	sample := sample()
	apply(t, n, &plan.Plan{}, sample)
	n.Close() // its pairs go with it
	plain := openIn(t, h)
	quiet(t, plain, sample)
}
