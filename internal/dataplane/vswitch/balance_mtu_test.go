package vswitch

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/plan"
	th "github.com/bulkhead-net/bulkhead/internal/testhost"
)

// routers are on the way, in neither network.
var routers = [2]netip.Addr{netip.MustParseAddr("198.51.100.9"), netip.MustParseAddr("2001:db8:9::9")}

const smallMTU = 1300

// TestBalanceSourcePathMTU: a router's word that packets are too large for its way reaches who sends them, in each direction of a connection
// to a back end elsewhere, where both ends are rewritten: the kernel takes it only if it quotes what that end has sent.
func TestBalanceSourcePathMTU(t *testing.T) {
	b := newBalanced(t, AttachAuto)
	b.acquaint()
	b.far(8080, plan.SpreadFlow)
	dev := b.plan.Switches[network(1)].HostDevice
	for family := range insides {
		service, end := netip.AddrPortFrom(insides[family], 80), netip.AddrPortFrom(farEnds[family], 8080)
		b.host.Run(t, "ip", "route", "replace", routers[family].String(), "dev", dev) // they have to be believed
		c, err := b.dial(b.host, "udp", service)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, sees, err := whoIs(c)
		if err != nil {
			t.Fatalf("IPv%d: %v", 4+2*family, err)
		}
		client, source := netip.MustParseAddrPort(c.LocalAddr().String()), netip.MustParseAddrPort(sees)
		// On the way to the back end.
		b.host.SendFrame(dev, b.tooLarge(source, end, source.Addr()))
		th.Eventually(t, 5*time.Second, func() error {
			if got := pathMTU(t, c, family); got != smallMTU {
				return fmt.Errorf("IPv%d: the client sends packets of %d bytes, want %d", 4+2*family, got, smallMTU)
			}
			return nil
		})
		// On the way from there to the client.
		b.host.SendFrame(dev, b.tooLarge(service, client, service.Addr()))
		th.Eventually(t, 5*time.Second, func() error {
			got := b.host.Run(t, "ip", "route", "get", source.Addr().String(), "from", end.Addr().String())
			if want := fmt.Sprintf("mtu %d", smallMTU); !strings.Contains(got, want) {
				return fmt.Errorf("IPv%d: the back end sends by %q, want %q", 4+2*family, got, want)
			}
			return nil
		})
	}
}

// tooLarge is what a router says to someone of a datagram between two.
func (b *balanced) tooLarge(src, dst netip.AddrPort, to netip.Addr) []byte {
	b.t.Helper()
	ip := func(from, to netip.Addr) th.Layer {
		if from.Is4() {
			return th.IPv4{Src: from, Dst: to}
		}
		return th.IPv6{Src: from, Dst: to}
	}
	quoted := th.Frame(th.Ethernet{Src: th.MAC{2, 1, 1, 1, 1, 1}, Dst: th.MAC{2, 1, 1, 1, 1, 2}}, ip(src.Addr(), dst.Addr()),
		th.UDP{SrcPort: src.Port(), DstPort: dst.Port()}, th.Text(strings.Repeat("x", 64)))[14:]
	family, said := 0, th.ICMP{Type: 3, Code: 4, Body: binary.BigEndian.AppendUint32(nil, smallMTU)}
	if src.Addr().Is6() {
		family, said.Type, said.Code = 1, 2, 0
	}
	mac := th.MAC{2, 0x62, 0x75, 0x6c, 0x6b, 0x68}
	if to == sources[family] {
		mac = th.MAC(sourceMAC[:])
	}
	dev := b.plan.Switches[network(1)].HostDevice
	return th.Frame(th.Ethernet{Src: b.host.MAC(dev), Dst: mac}, ip(routers[family], to), said, th.Raw(quoted))
}

// pathMTU is how large the kernel lets a connection's packets be.
func pathMTU(t *testing.T, c net.Conn, family int) (mtu int) {
	t.Helper()
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	level, option := unix.IPPROTO_IP, unix.IP_MTU
	if family == 1 {
		level, option = unix.IPPROTO_IPV6, unix.IPV6_MTU
	}
	if controlErr := raw.Control(func(fd uintptr) { mtu, err = unix.GetsockoptInt(int(fd), level, option) }); controlErr != nil || err != nil {
		t.Fatal(controlErr, err)
	}
	return mtu
}
