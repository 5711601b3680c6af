package netdev

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// This file asks the kernel what it would do, and sends a packet where that is wanted. It
// is for explanations; nothing is kept.

// HostRoute asks the host's tables for the way to an address.
func (n *Netdev) HostRoute(to netip.Addr) (plan.HostRoute, error) {
	h, err := netlink.NewHandleAt(netns.NsHandle(n.home.net), 0)
	if err != nil {
		return plan.HostRoute{}, fmt.Errorf("open netlink: %w", err)
	}
	defer h.Close()
	routes, err := h.RouteGet(to.AsSlice())
	if err != nil || len(routes) == 0 {
		return plan.HostRoute{}, fmt.Errorf("ask for the route to %s: %w", to, err)
	}
	link, err := h.LinkByIndex(routes[0].LinkIndex)
	if err != nil {
		return plan.HostRoute{}, fmt.Errorf("find the device of the route to %s: %w", to, err)
	}
	r := plan.HostRoute{Device: link.Attrs().Name, Broadcast: routes[0].Type == unix.RTN_BROADCAST}
	if a, ok := netip.AddrFromSlice(routes[0].Gw); ok {
		r.Via = a.Unmap()
	}
	if a, ok := netip.AddrFromSlice(routes[0].Src); ok {
		r.Src = a.Unmap()
	}
	return r, nil
}

// HostForwards tells whether the host forwards what comes in by a device. A device that
// has no such setting forwards nothing.
func (n *Netdev) HostForwards(device string, v6 bool) bool {
	family := "ipv4"
	if v6 {
		family = "ipv6"
	}
	on := false
	_ = n.home.do(func() error { // reading cannot fail but for what is not there
		b, err := os.ReadFile("/proc/sys/net/" + family + "/conf/" + device + "/forwarding")
		on = err == nil && strings.TrimSpace(string(b)) != "0"
		return err
	})
	return on
}

// Dial connects from the compartment bound at path, "" for the host; of TCP from a port of the caller's choice, unless that is 0.
func (n *Netdev) Dial(ctx context.Context, path, network, address string, from uint16) (net.Conn, error) {
	var c net.Conn
	d := net.Dialer{}
	if from != 0 {
		d.LocalAddr = &net.TCPAddr{Port: int(from)}
	}
	dial := func() (err error) {
		c, err = d.DialContext(ctx, network, address)
		return err
	}
	var err error
	if path == "" {
		err = n.home.do(dial)
	} else {
		err = n.Enter(path, dial)
	}
	return c, err
}
