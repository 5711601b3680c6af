package netdev

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/bulkhead-net/bulkhead/internal/plan"
	"github.com/bulkhead-net/bulkhead/internal/testhost"
)

// addMacvlan puts an endpoint that is a macvlan device of nic1 into the plan.
func addMacvlan(p *plan.Plan) *plan.Port {
	ns, ep := addEndpoint(p, 9)
	ep.Kind, ep.KnownOn, ep.VNIC.Neighbours, ep.VNIC.Lower, ep.VNIC.MTU = plan.PortMacvlan, nil, nil, "nic1", 1400
	ep.VNIC.Alias = plan.Alias("endpoint", string(ns.ID), "m")
	ep.VNIC.Addrs = []netip.Prefix{netip.MustParsePrefix("10.59.0.9/24"), netip.MustParsePrefix("fd59::9/64")}
	ep.VNIC.Routes = []plan.Route{{Dst: netip.MustParsePrefix("0.0.0.0/0"), Via: netip.MustParseAddr("10.59.0.1")}}
	return ep
}

// macvlans lists the devices of the kind in a compartment.
func macvlans(t *testing.T, h *testhost.Host, ep *plan.Port) string {
	t.Helper()
	return h.Run(t, "nsenter", "--net="+ep.VNIC.Namespace, "ip", "-d", "-o", "addr", "show", "type", "macvlan")
}

// TestMacvlan: the device is made with all that it has to have, and nothing at its NIC; a second comparison writes nothing; what
// somebody takes away is put back; what a dead daemon left goes, and what is somebody else's stays; it goes with its port, and by a reset.
func TestMacvlan(t *testing.T) {
	h, n := open(t)
	h.Run(t, "sh", "-c", "ip link add nic1 type veth peer name wire1 && ip link set nic1 up && ip link set wire1 up")
	before, p := onlyNetwork(), onlyNetwork()
	apply(t, n, &plan.Plan{}, before)
	ep := addMacvlan(p)
	apply(t, n, before, p)
	has := func(want ...string) {
		t.Helper()
		got := macvlans(t, h, ep)
		for _, w := range want {
			if !strings.Contains(got, w) {
				t.Errorf("no %s in:\n%s", w, got)
			}
		}
	}
	all := []string{"10.59.0.9/24", "fd59::9/64", ep.VNIC.LinkLocal.String()}
	has(all...)
	if got := h.Run(t, "nsenter", "--net="+ep.VNIC.Namespace, "ip", "-d", "link", "show", "eth0"); !strings.Contains(got, "mode bridge") || !strings.Contains(got, ep.MAC.String()) || !strings.Contains(got, ep.VNIC.Alias) {
		t.Errorf("the device is %s", got)
	}
	quiet(t, n, p)

	// A restart writes nothing either, once it has looked for what its predecessor left.
	h.Run(t, "nsenter", "--net="+ep.VNIC.Namespace, "sh", "-c", `ip link add link eth0 name left type macvlan && ip link set left alias "bulkhead endpoint X gone" && ip link add link eth0 name theirs type macvlan`)
	n.Close()
	n = openIn(t, h)
	if _, err := resync(t, n, p); err != nil {
		t.Fatal(err)
	}
	if got := macvlans(t, h, ep) + h.Run(t, "nsenter", "--net="+ep.VNIC.Namespace, "ip", "-o", "link"); strings.Contains(got, "left") || !strings.Contains(got, "theirs") {
		t.Errorf("what a dead daemon left has to go, and what is the container's own to stay:\n%s", got)
	}
	quiet(t, n, p)

	for what, command := range map[string]string{
		"deleted": "ip link del eth0", "down": "ip link set eth0 down", "without an address": "ip addr del 10.59.0.9/24 dev eth0",
		"without its route": "ip route del default", "another MAC": "ip link set eth0 address 02:00:00:00:00:99", "another MTU": "ip link set eth0 mtu 1300",
	} {
		h.Run(t, "nsenter", "--net="+ep.VNIC.Namespace, "sh", "-c", command)
		drift, err := resync(t, n, p)
		if err != nil || len(drift) == 0 {
			t.Errorf("%s: drift %v, error %v", what, drift, err)
		}
		has(all...)
		quiet(t, n, p)
	}

	apply(t, n, p, &plan.Plan{Host: before.Host, Namespaces: p.Namespaces, Ports: before.Ports})
	if got := macvlans(t, h, ep); strings.Contains(got, "eth0") {
		t.Errorf("detached, it is still there:\n%s", got)
	}
	apply(t, n, &plan.Plan{Host: before.Host, Namespaces: p.Namespaces, Ports: before.Ports}, p)
	has(all...)
	if err := n.Reset(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := h.Run(t, "ip", "-o", "link"); strings.Contains(got, "bh") {
		t.Errorf("after the reset:\n%s", got)
	}
}
