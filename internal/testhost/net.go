package testhost

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Cable says what the two ends of a veth pair are called and which addresses they have. Empty names are "eth0".
type Cable struct {
	Dev, PeerDev     string
	Addrs, PeerAddrs []string // prefixes: "192.0.2.1/24", "2001:db8::1/64"
	MTU              int      // 0 is the kernel's default
}

// Connect lays a cable from h to other and sets both ends up; it is ready for traffic when Connect returns.
func (h *Host) Connect(other *Host, c Cable) {
	h.t.Helper()
	if c.Dev == "" {
		c.Dev = "eth0"
	}
	if c.PeerDev == "" {
		c.PeerDev = "eth0"
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = c.Dev, c.MTU
	veth := &netlink.Veth{
		LinkAttrs: attrs, PeerName: c.PeerDev, PeerNamespace: netlink.NsFd(other.netns.Fd()), PeerMTU: uint32(c.MTU),
	}
	if err := h.handle.LinkAdd(veth); err != nil {
		h.t.Fatalf("cable %s %s to %s %s: %v", h.name, c.Dev, other.name, c.PeerDev, err)
	}
	h.Up(c.Dev)
	other.Up(c.PeerDev)
	h.awaitCarrier(c.Dev)
	other.awaitCarrier(c.PeerDev)
	h.Addr(c.Dev, c.Addrs...)
	other.Addr(c.PeerDev, c.PeerAddrs...)
}

// Link finds a device; it must exist.
func (h *Host) Link(dev string) netlink.Link {
	h.t.Helper()
	l, err := h.handle.LinkByName(dev)
	if err != nil {
		h.t.Fatalf("%s: find device %s: %v", h.name, dev, err)
	}
	return l
}

// Up sets a device up.
func (h *Host) Up(dev string) {
	h.t.Helper()
	if err := h.handle.LinkSetUp(h.Link(dev)); err != nil {
		h.t.Fatalf("%s: set %s up: %v", h.name, dev, err)
	}
}

// awaitCarrier waits until the kernel has taken notice that both ends of a cable are up, which it does in the
// background. Before that IPv6 is deaf on the device, and a frame sent by a test would be lost.
func (h *Host) awaitCarrier(dev string) {
	h.t.Helper()
	Eventually(h.t, 5*time.Second, func() error {
		if state := h.Link(dev).Attrs().OperState; state != netlink.OperUp {
			return fmt.Errorf("%s: %s is %s, want up", h.name, dev, state)
		}
		return nil
	})
}

// awaitLocal waits until the kernel takes packets for an IPv6 address, for which it adds a route in the background.
func (h *Host) awaitLocal(addr netip.Addr) {
	h.t.Helper()
	Eventually(h.t, 5*time.Second, func() error {
		routes, err := h.handle.RouteGet(addr.AsSlice())
		if err == nil && (len(routes) != 1 || routes[0].Type != unix.RTN_LOCAL) {
			err = errors.New("no local route yet")
		}
		if err != nil {
			return fmt.Errorf("%s: take %s as local: %w", h.name, addr, err)
		}
		return nil
	})
}

// Addr adds addresses to a device. On one that is up they work when Addr returns: there is no duplicate address detection.
func (h *Host) Addr(dev string, prefixes ...string) {
	h.t.Helper()
	for _, p := range prefixes {
		prefix := netip.MustParsePrefix(p)
		a, err := netlink.ParseAddr(p)
		if err != nil {
			h.t.Fatalf("%s: parse %s: %v", h.name, p, err)
		}
		if prefix.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD
		}
		if err := h.handle.AddrAdd(h.Link(dev), a); err != nil {
			h.t.Fatalf("%s: add %s to %s: %v", h.name, p, dev, err)
		}
		if prefix.Addr().Is6() && h.Link(dev).Attrs().OperState == netlink.OperUp {
			h.awaitLocal(prefix.Addr())
		}
	}
}

// Route adds a route. dst is a prefix, or "default" for all of via's family.
func (h *Host) Route(dst, via string) {
	h.t.Helper()
	gw := netip.MustParseAddr(via)
	if dst == "default" {
		dst = "0.0.0.0/0"
		if gw.Is6() {
			dst = "::/0"
		}
	}
	ipnet, err := netlink.ParseIPNet(dst)
	if err != nil {
		h.t.Fatalf("%s: parse %s: %v", h.name, dst, err)
	}
	if err := h.handle.RouteAdd(&netlink.Route{Dst: ipnet, Gw: gw.AsSlice()}); err != nil {
		h.t.Fatalf("%s: route %s via %s: %v", h.name, dst, via, err)
	}
}

// MAC is a device's hardware address.
func (h *Host) MAC(dev string) MAC {
	h.t.Helper()
	return h.Link(dev).Attrs().HardwareAddr
}

// Sysctl sets a setting in the host, such as net.ipv4.ip_forward. A dot in a device name is written as a slash.
func (h *Host) Sysctl(name, value string) {
	h.t.Helper()
	var err error
	h.DoMount(func() { err = os.WriteFile(sysctlPath(name), []byte(value), 0o644) })
	if err != nil {
		h.t.Fatalf("%s: set %s to %s: %v", h.name, name, value, err)
	}
}

// SysctlValue reads a setting of the host.
func (h *Host) SysctlValue(name string) string {
	h.t.Helper()
	v, err := h.ReadFile(sysctlPath(name))
	if err != nil {
		h.t.Fatalf("%s: read %s: %v", h.name, name, err)
	}
	return strings.TrimSpace(v)
}

// sysctlPath follows sysctl(8): dots separate, a slash stands for a dot within a name.
func sysctlPath(name string) string {
	return "/proc/sys/" + strings.NewReplacer(".", "/", "/", ".").Replace(name)
}

// Forwarding turns IP forwarding of both families on or off.
func (h *Host) Forwarding(on bool) {
	h.t.Helper()
	v := "0"
	if on {
		v = "1"
	}
	h.Sysctl("net.ipv4.ip_forward", v)
	h.Sysctl("net.ipv6.conf.all.forwarding", v)
}

// LAN is an outer switch: a Linux bridge in a host of its own, where hosts plug in.
type LAN struct {
	*Host
	ports atomic.Int32
}

// Switch makes a LAN. It forwards at once and floods all multicast.
func Switch(t testing.TB, opts ...Option) *LAN {
	t.Helper()
	s := &LAN{Host: New(t, opts...)}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "br0"
	snooping := false
	if err := s.handle.LinkAdd(&netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snooping}); err != nil {
		t.Fatalf("make switch: %v", err)
	}
	s.Up("br0")
	return s
}

// Plug connects a host's new device dev to the LAN, with the given addresses. It returns the LAN's name for that port.
func (s *LAN) Plug(h *Host, dev string, addrs ...string) string {
	s.t.Helper()
	port := fmt.Sprintf("p%d", s.ports.Add(1))
	s.Connect(h, Cable{Dev: port, PeerDev: dev, PeerAddrs: addrs})
	if err := s.handle.LinkSetMaster(s.Link(port), s.Link("br0")); err != nil {
		s.t.Fatalf("plug %s %s: %v", h.name, dev, err)
	}
	return port
}
