package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/sandbox/vm/proto"
)

// CompartmentPath is where the container's network namespace is bound.
const CompartmentPath = "/run/netns/compartment"

// nics looks after the interfaces: in the pen, where they come in, and in the compartment.
type nics struct {
	mu      sync.Mutex
	pen     *netlink.Handle
	box     *netlink.Handle
	boxF    int
	fetched int
	told    map[string][]proto.Neighbour // by MAC: what the host had us make
	gone    map[int]bool                 // by index: what the host takes out, which may be there for a while yet
}

func newNICs(pen int) (*nics, error) {
	n := &nics{told: map[string][]proto.Neighbour{}, gone: map[int]bool{}}
	var err error
	// The families are named, as the kernel need not have all.
	if n.pen, err = netlink.NewHandleAt(netns.NsHandle(pen), unix.NETLINK_ROUTE); err != nil {
		return nil, fmt.Errorf("reach into the holding pen: %w", err)
	}
	if n.boxF, err = makeCompartment(); err != nil {
		return nil, err
	}
	if n.box, err = netlink.NewHandleAt(netns.NsHandle(n.boxF), unix.NETLINK_ROUTE); err != nil {
		return nil, fmt.Errorf("reach into the compartment: %w", err)
	}
	lo, err := n.box.LinkByName("lo")
	if err == nil {
		err = n.box.LinkSetUp(lo)
	}
	if err != nil {
		return nil, fmt.Errorf("set lo up: %w", err)
	}
	return n, nil
}

// makeCompartment makes a network namespace and binds it where the OCI runtime finds it. Its thread stays as it is, and ends.
func makeCompartment() (fd int, err error) {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return err
			}
			// Addresses and routes come from the host alone.
			_ = os.WriteFile("/proc/sys/net/ipv6/conf/default/accept_ra", []byte("0"), 0)
			if fd, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
				return err
			}
			if err := os.MkdirAll("/run/netns", 0o755); err != nil {
				return err
			}
			if err := os.WriteFile(CompartmentPath, nil, 0o444); err != nil {
				return err
			}
			return unix.Mount("/proc/thread-self/ns/net", CompartmentPath, "", unix.MS_BIND, "")
		}()
	}()
	if err = <-done; err != nil {
		return -1, fmt.Errorf("make the compartment: %w", err)
	}
	return fd, nil
}

// nicWait is how long a NIC that was plugged in may take to show.
const nicWait = 10 * time.Second

// byMAC finds a NIC by the address that it was made with. The container may have given it another, and the host may have put another with
// the same in the place of one that is not gone yet.
func (n *nics) byMAC(h *netlink.Handle, mac net.HardwareAddr) (netlink.Link, error) {
	links, err := h.LinkList()
	if err != nil {
		return nil, err
	}
	for _, l := range links {
		a := l.Attrs()
		if h == n.box && n.gone[a.Index] {
			continue
		}
		if bytes.Equal(a.PermHWAddr, mac) || len(a.PermHWAddr) == 0 && bytes.Equal(a.HardwareAddr, mac) {
			return l, nil
		}
	}
	return nil, nil
}

// set brings an interface to where it belongs, and to what it is to be.
func (n *nics) set(ctx context.Context, c proto.NIC) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	mac, err := net.ParseMAC(c.MAC)
	if err != nil {
		return fmt.Errorf("set up NIC: %w", err)
	}
	l, err := n.byMAC(n.box, mac)
	if err == nil && l == nil {
		if err = n.fetch(ctx, mac); err == nil {
			l, err = n.byMAC(n.box, mac)
		}
	}
	if err == nil && l == nil {
		err = errors.New("it is lost on its way")
	}
	if err == nil {
		err = n.configure(l, c)
	}
	if err != nil {
		return fmt.Errorf("set up NIC %s: %w", c.MAC, err)
	}
	return nil
}

// fetch takes an interface out of the pen.
func (n *nics) fetch(ctx context.Context, mac net.HardwareAddr) error {
	for deadline := time.Now().Add(nicWait); ; pause() {
		l, err := n.byMAC(n.pen, mac)
		if err != nil {
			return err
		}
		if l != nil {
			// The kernel named it as the first of its kind, and one of that name may be in the compartment.
			n.fetched++
			if err := n.pen.LinkSetName(l, fmt.Sprintf("fetched%d", n.fetched)); err != nil {
				return err
			}
			return n.pen.LinkSetNsFd(l, n.boxF)
		}
		if ctx.Err() != nil || time.Now().After(deadline) {
			return fmt.Errorf("no such NIC was plugged in within %v", nicWait)
		}
	}
}

// remove ends an interface's traffic before the host unplugs it.
func (n *nics) remove(c proto.NIC) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	mac, err := net.ParseMAC(c.MAC)
	if err != nil {
		return fmt.Errorf("take NIC down: %w", err)
	}
	delete(n.told, c.MAC)
	l, err := n.byMAC(n.box, mac)
	if err != nil || l == nil {
		return err
	}
	index := l.Attrs().Index
	n.gone[index] = true
	err = n.box.LinkSetDown(l)
	if err == nil { // its name is for the next one
		err = n.box.LinkSetName(l, fmt.Sprintf("gone%d", index))
	}
	if err != nil {
		return fmt.Errorf("take NIC %s down: %w", c.MAC, err)
	}
	return nil
}

func (n *nics) configure(l netlink.Link, c proto.NIC) error {
	a := l.Attrs()
	if a.Name != c.Name {
		if err := n.box.LinkSetDown(l); err != nil {
			return err
		}
		if err := n.box.LinkSetName(l, c.Name); err != nil {
			return fmt.Errorf("name it %s: %w", c.Name, err)
		}
	}
	if a.MTU != c.MTU && c.MTU > 0 {
		if err := n.box.LinkSetMTU(l, c.MTU); err != nil {
			return fmt.Errorf("set MTU %d: %w", c.MTU, err)
		}
	}
	// The host gives it all of its addresses, the link-local one too.
	const none = 1
	if err := n.box.LinkSetIP6AddrGenMode(l, none); err != nil && !errors.Is(err, unix.EAFNOSUPPORT) {
		return fmt.Errorf("turn off its own link-local address: %w", err)
	}
	if err := n.box.LinkSetUp(l); err != nil {
		return err
	}
	return errors.Join(n.addresses(l, c.Addresses), n.routes(l, c.Routes), n.neighbours(l, c))
}

func (n *nics) addresses(l netlink.Link, want []proto.Address) error {
	have, err := n.box.AddrList(l, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	var errs []error
	there := map[proto.Address]bool{}
	for _, h := range have {
		p, ok := prefixOf(h.IPNet)
		if !ok {
			continue
		}
		a := proto.Address{Prefix: p, Alone: h.Flags&unix.IFA_F_NOPREFIXROUTE != 0}
		if slices.Contains(want, a) {
			there[a] = true
			continue
		}
		errs = append(errs, n.box.AddrDel(l, &h))
	}
	for _, w := range want {
		if there[w] {
			continue
		}
		a := &netlink.Addr{IPNet: ipNet(w.Prefix)}
		if w.Prefix.Addr().Is6() {
			a.Flags |= unix.IFA_F_NODAD // the host gave it to nobody else
		}
		if w.Alone {
			a.Flags |= unix.IFA_F_NOPREFIXROUTE
		}
		if err := n.box.AddrAdd(l, a); err != nil {
			errs = append(errs, fmt.Errorf("add address %s: %w", w.Prefix, err))
		}
	}
	return errors.Join(errs...)
}

// routes replaces those with the mark of the host's, beside which there are the kernel's and what the container made.
func (n *nics) routes(l netlink.Link, want []proto.Route) error {
	const (
		ours      = 98
		ip6Metric = 1024 // the kernel's word for none
	)
	index := l.Attrs().Index
	have, err := n.box.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{LinkIndex: index, Protocol: ours}, netlink.RT_FILTER_OIF|netlink.RT_FILTER_PROTOCOL)
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	var errs []error
	// What is on the link first: a gateway has to be reachable before a route by it can be made.
	slices.SortStableFunc(want, func(a, b proto.Route) int { return boolInt(a.Via.IsValid()) - boolInt(b.Via.IsValid()) })
	keep := map[string]bool{}
	for _, w := range want {
		r := &netlink.Route{LinkIndex: index, Dst: ipNet(w.Dst), Protocol: ours, Priority: w.Metric}
		if w.Via.IsValid() {
			r.Gw = w.Via.AsSlice()
			if w.OnLink {
				r.SetFlag(netlink.FLAG_ONLINK)
			}
		} else {
			r.Scope = netlink.SCOPE_LINK
		}
		if err := n.box.RouteReplace(r); err != nil {
			errs = append(errs, fmt.Errorf("add route %s: %w", w.Dst, err))
		}
		keep[fmt.Sprint(w.Dst, w.Via, w.Metric)] = true
	}
	for _, h := range have {
		dst, ok := prefixOf(h.Dst)
		if !ok {
			dst = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
			if h.Family == unix.AF_INET6 {
				dst = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
			}
		}
		via, _ := netip.AddrFromSlice(h.Gw)
		metric := h.Priority
		if dst.Addr().Is6() && metric == ip6Metric && !keep[fmt.Sprint(dst, via.Unmap(), metric)] {
			metric = 0
		}
		if !keep[fmt.Sprint(dst, via.Unmap(), metric)] {
			if err := n.box.RouteDel(&h); err != nil && !errors.Is(err, unix.ESRCH) { // it was replaced, or is gone with its address
				errs = append(errs, fmt.Errorf("remove route %s: %w", dst, err))
			}
		}
	}
	return errors.Join(errs...)
}

// neighbours makes what the host wants, and takes away what it wanted before: others are the container's own.
func (n *nics) neighbours(l netlink.Link, c proto.NIC) error {
	var errs []error
	for _, old := range n.told[c.MAC] {
		if !slices.ContainsFunc(c.Neighbours, func(w proto.Neighbour) bool { return w.Addr == old.Addr }) {
			err := n.box.NeighDel(&netlink.Neigh{LinkIndex: l.Attrs().Index, IP: old.Addr.AsSlice()})
			if err != nil && !errors.Is(err, unix.ENOENT) {
				errs = append(errs, fmt.Errorf("remove neighbour %s: %w", old.Addr, err))
			}
		}
	}
	n.told[c.MAC] = c.Neighbours
	for _, w := range c.Neighbours {
		mac, err := net.ParseMAC(w.MAC)
		if err == nil {
			err = n.box.NeighSet(&netlink.Neigh{LinkIndex: l.Attrs().Index, State: netlink.NUD_PERMANENT, IP: w.Addr.AsSlice(), HardwareAddr: mac})
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("add neighbour %s: %w", w.Addr, err))
		}
	}
	return errors.Join(errs...)
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), bits), ok
}
