package wireguard

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// compartment is the network namespace of the devices, opened.
type compartment struct {
	fd int
	h  *netlink.Handle
}

func openCompartment(fd int) (*compartment, error) {
	h, err := netlink.NewHandleAt(netns.NsHandle(fd), unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink in the compartment of WireGuard: %w", err)
	}
	if err := h.SetSocketTimeout(opTimeout); err != nil {
		h.Close()
		return nil, err
	}
	return &compartment{fd, h}, nil
}

func (c *compartment) close() {
	c.h.Close()
	unix.Close(c.fd)
}

// open opens a compartment by its path.
func (a *Applier) open(path string) (*compartment, error) {
	fd, err := a.opt.Open(path)
	if err != nil {
		return nil, err
	}
	c, err := openCompartment(fd)
	if err != nil {
		unix.Close(fd)
	}
	return c, err
}

// hold keeps the compartment that the kernel's devices are in. Those in one that has been replaced go, for they have the UDP ports.
func (a *Applier) hold(c *compartment, inKernel bool) error {
	if !inKernel {
		return nil
	}
	if same, err := sameNamespace(a.held, c.fd); err != nil || same {
		return err
	}
	if err := a.letGo(); err != nil {
		return err
	}
	fd, err := unix.FcntlInt(uintptr(c.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("keep the compartment of WireGuard open: %w", err)
	}
	a.held = fd
	return nil
}

func sameNamespace(a, b int) (bool, error) {
	if a < 0 {
		return false, nil
	}
	var x, y unix.Stat_t
	if err := errors.Join(unix.Fstat(a, &x), unix.Fstat(b, &y)); err != nil {
		return false, fmt.Errorf("look at the compartment of WireGuard: %w", err)
	}
	return x.Dev == y.Dev && x.Ino == y.Ino, nil
}

// letGo removes the kernel's devices in the compartment that is held, and lets go of that.
func (a *Applier) letGo() error {
	if a.held < 0 {
		return nil
	}
	c, err := openCompartment(a.held)
	if err != nil {
		return err
	}
	defer c.h.Close()
	if err := c.removeOthers(nil); err != nil {
		return err
	}
	unix.Close(a.held)
	a.held = -1
	return nil
}

// sweep removes the kernel's devices in a compartment that may be there.
func (a *Applier) sweep(path string) error {
	c, err := a.open(path)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EINVAL) { // no file, or one that no namespace is bound to
			return nil
		}
		return fmt.Errorf("open WireGuard's compartment: %w", err)
	}
	defer c.close()
	return c.removeOthers(nil)
}

// ofKernel are the kernel's devices that are ours.
func (c *compartment) ofKernel() (out []netlink.Link) {
	for n := range uint32(2) {
		if l, err := c.link(plan.SecureDeviceName(n)); err == nil && l != nil && l.Type() == kernelKind {
			out = append(out, l)
		}
	}
	return out
}

// removeOthers removes those that a plan does not want; without one, all.
func (c *compartment) removeOthers(s *plan.Secure) error {
	var errs []error
	for _, l := range c.ofKernel() {
		if s == nil || !s.Wants(l.Attrs().Name) {
			errs = append(errs, c.remove(l))
		}
	}
	return errors.Join(errs...)
}

func (c *compartment) remove(l netlink.Link) error {
	if err := c.h.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove the device %s: %w", l.Attrs().Name, err)
	}
	return nil
}

// link finds a device; nil: there is none.
func (c *compartment) link(name string) (netlink.Link, error) {
	l, err := c.h.LinkByName(name)
	if _, ok := errors.AsType[netlink.LinkNotFoundError](err); ok {
		return nil, nil
	}
	return l, err
}

// address makes the host's own address that of the compartment: of its loopback, so that it is there whatever becomes of devices.
func (c *compartment) address(addr netip.Addr) (found string, err error) {
	lo, err := c.h.LinkByName("lo")
	if err != nil {
		return "", err
	}
	if lo.Attrs().Flags&net.FlagUp == 0 {
		found = "lo down"
		if err := c.h.LinkSetUp(lo); err != nil {
			return found, fmt.Errorf("set lo up: %w", err)
		}
	}
	all, err := c.h.AddrList(lo, netlink.FAMILY_V6)
	if err != nil {
		return found, err
	}
	has := false
	for i := range all {
		ip, _ := netip.AddrFromSlice(all[i].IP)
		switch {
		case ip == addr:
			has = true
		case !ip.IsLoopback():
			if err := c.h.AddrDel(lo, &all[i]); err != nil {
				return found, fmt.Errorf("remove the address %s: %w", ip, err)
			}
		}
	}
	if has {
		return found, nil
	}
	a := &netlink.Addr{IPNet: &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(128, 128)}, Flags: unix.IFA_F_NODAD}
	if err := c.h.AddrReplace(lo, a); err != nil {
		return found, fmt.Errorf("add the address %s: %w", addr, err)
	}
	return "address " + addr.String() + " missing", nil
}

// ready sets a device up, with its MTU.
func (c *compartment) ready(l netlink.Link, mtu int) (found string, err error) {
	if l.Attrs().MTU != mtu {
		found = fmt.Sprintf("mtu %d", l.Attrs().MTU)
		if err := c.h.LinkSetMTU(l, mtu); err != nil {
			return found, fmt.Errorf("set the MTU of %s: %w", l.Attrs().Name, err)
		}
	}
	if l.Attrs().Flags&net.FlagUp == 0 {
		found = "down"
		if err := c.h.LinkSetUp(l); err != nil {
			return found, fmt.Errorf("set %s up: %w", l.Attrs().Name, err)
		}
	}
	return found, nil
}

// routes makes the ways to hosts exactly these: by the index of a device.
func (c *compartment) routes(want map[netip.Addr]int) (found []string, err error) {
	all, err := c.h.RouteListFiltered(netlink.FAMILY_V6, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return nil, fmt.Errorf("list the routes of WireGuard's compartment: %w", err)
	}
	var errs []error
	have := map[netip.Addr]int{}
	for i := range all {
		r := &all[i]
		var dst netip.Prefix
		if r.Dst != nil {
			a, _ := netip.AddrFromSlice(r.Dst.IP)
			ones, _ := r.Dst.Mask.Size()
			dst = netip.PrefixFrom(a, ones)
		}
		if dst.IsSingleIP() && want[dst.Addr()] == r.LinkIndex && r.Type == unix.RTN_UNICAST && have[dst.Addr()] == 0 {
			have[dst.Addr()] = r.LinkIndex
		}
	}
	for addr, index := range want {
		if have[addr] == index {
			continue
		}
		found = append(found, "route to "+addr.String()+" missing")
		r := &netlink.Route{LinkIndex: index, Dst: &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(128, 128)}, Protocol: protoOurs, Priority: metric, Table: unix.RT_TABLE_MAIN}
		if err := c.h.RouteReplace(r); err != nil {
			errs = append(errs, fmt.Errorf("add the route to %s: %w", addr, err))
		}
	}
	for i := range all {
		r := &all[i]
		if r.Protocol != protoOurs || r.Dst == nil {
			continue
		}
		if a, ok := netip.AddrFromSlice(r.Dst.IP); ok && want[a] == 0 {
			if err := c.h.RouteDel(r); err != nil && !errors.Is(err, unix.ESRCH) {
				errs = append(errs, fmt.Errorf("remove the route to %s: %w", a, err))
			}
		}
	}
	return found, errors.Join(errs...)
}

const (
	protoOurs = 98 // as netdev's
	metric    = 1024
)

// hasRoutes tells that the ways to hosts are there.
func (c *compartment) hasRoutes(want map[netip.Addr]int) (bool, error) {
	all, err := c.h.RouteListFiltered(netlink.FAMILY_V6, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return false, err
	}
	n := 0
	for i := range all {
		if all[i].Dst == nil {
			continue
		}
		if a, ok := netip.AddrFromSlice(all[i].Dst.IP); ok && want[a] == all[i].LinkIndex {
			n++
		}
	}
	return n >= len(want), nil
}
