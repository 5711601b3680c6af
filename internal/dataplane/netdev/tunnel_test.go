package netdev

import (
	"net"
	"net/netip"
	"testing"

	"github.com/bulkhead-net/bulkhead/internal/plan"
	"github.com/bulkhead-net/bulkhead/internal/testhost"
)

// TestSealedTunnel: the VXLAN device of encrypted networks is on the host, and its socket in the compartment: the host's port stays free.
// One whose socket is on the host, or in a compartment that is no more, is made anew.
func TestSealedTunnel(t *testing.T) {
	h, n := open(t)
	p := onlyNetwork()
	id := plan.SealedPortID(4789)
	sealed := &plan.Port{
		ID: id, Kind: plan.PortTunnel, UDPPort: 4789, Below: plan.NamespacePath(plan.SecureNamespace),
		Device: plan.DeviceName(plan.TunnelPrefix, id), Alias: plan.Alias("tunnel", "udp", "4789"), VNIC: plan.VNIC{MTU: 65000},
	}
	p.Namespaces[plan.SecureNamespace] = &plan.Namespace{ID: plan.SecureNamespace, Path: sealed.Below}
	p.Ports[id] = sealed
	apply(t, n, &plan.Plan{}, p)
	quiet(t, n, p)
	inside := func(what string) {
		t.Helper()
		if h.Link(sealed.Device).Attrs().Flags&net.FlagUp == 0 {
			t.Errorf("%s: %s is down", what, sealed.Device)
		}
		for where, side := range map[string]struct {
			in    *testhost.Host
			taken bool
		}{"on the host": {h, false}, "in the compartment": {h.Namespace(sealed.Below), true}} {
			side.in.Run(t, "ip", "link", "set", "lo", "up")
			c, err := side.in.ListenPacket("udp", netip.AddrPortFrom(netip.IPv6Unspecified(), 4789).String())
			if err == nil {
				c.Close()
			}
			if taken := err != nil; taken != side.taken {
				t.Errorf("%s: %s the port is taken: %v, want %v", what, where, taken, side.taken)
			}
		}
	}
	inside("at first")
	for what, broken := range map[string]func(){
		"the device deleted":      func() { h.Run(t, "ip", "link", "del", sealed.Device) },
		"the compartment deleted": func() { h.Run(t, "ip", "netns", "del", "hns-wireguard") },
		"one with its socket on the host": func() {
			h.Run(t, "ip", "link", "del", sealed.Device)
			h.Run(t, "ip", "link", "add", sealed.Device, "type", "vxlan", "external", "dstport", "4789")
			h.Run(t, "ip", "link", "set", sealed.Device, "alias", sealed.Alias, "up")
		},
	} {
		broken()
		if drift, err := resync(t, n, p); err != nil || len(drift) == 0 {
			t.Errorf("%s: %v, %v", what, drift, err)
		}
		inside(what)
		quiet(t, n, p)
	}
	without := onlyNetwork()
	apply(t, n, p, without)
	quiet(t, n, without)
	if out := h.Run(t, "sh", "-c", "ip -o link show type vxlan; ls /run/netns | grep wireguard || true"); out != "" {
		t.Errorf("left: %s", out)
	}
}
