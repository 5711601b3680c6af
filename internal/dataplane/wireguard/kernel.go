package wireguard

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// The kernel's devices. One is made by a message from the host's namespace and is born in the compartment: its UDP sockets stay where the
// message came from. It needs no process, and nothing of the daemon's.

// kernelKind is the kind of such a link.
const kernelKind = "wireguard"

// newInKernel makes a device in a compartment, with its sockets in the namespace of the caller.
func newInKernel(fd int, name string, mtu int) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink on the host: %w", err)
	}
	defer h.Close()
	if err := h.SetSocketTimeout(opTimeout); err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.Namespace = name, mtu, netlink.NsFd(fd)
	return h.LinkAdd(&netlink.Wireguard{LinkAttrs: attrs})
}

// leadsOut tells whether a device of the kernel's has its sockets on the host, where its UDP port is taken then. One that somebody made
// inside has them there, with no way out; nothing but that tells the two apart.
func leadsOut(l netlink.Link, have *state) bool {
	return l.Attrs().Flags&net.FlagUp == 0 || have.port == 0 || portIsFree(have.port) != nil
}

// kernelDevice is a device of the kernel's, by which it is configured. WireGuard looks for it in the namespace that asks.
type kernelDevice struct {
	name string
	cl   *wgctrl.Client
}

func openKernelDevice(fd int, name string) (*kernelDevice, error) {
	d := &kernelDevice{name: name}
	err := inside(fd, func() (err error) { d.cl, err = wgctrl.New(); return err })
	if err != nil {
		return nil, fmt.Errorf("open netlink for the device %s: %w", name, err)
	}
	return d, nil
}

func (d *kernelDevice) close() { d.cl.Close() }

func (d *kernelDevice) get() (*state, error) {
	dev, err := d.cl.Device(d.name)
	if err != nil {
		return nil, fmt.Errorf("ask the kernel for its device: %w", err)
	}
	if dev.Type != wgtypes.LinuxKernel {
		return nil, fmt.Errorf("ask the kernel for its device: %w", os.ErrNotExist) // a process has one of that name
	}
	s := &state{private: plan.Secret(dev.PrivateKey), port: uint16(dev.ListenPort), peers: make(map[plan.Key]peerState, len(dev.Peers))}
	for i := range dev.Peers {
		p := &dev.Peers[i]
		have := peerState{
			keepAlive: int(p.PersistentKeepaliveInterval / time.Second), received: uint64(max(p.ReceiveBytes, 0)), sent: uint64(max(p.TransmitBytes, 0)),
		}
		if p.LastHandshakeTime.Unix() > 0 { // the kernel says 0 for none
			have.handshake = p.LastHandshakeTime
		}
		if p.Endpoint != nil {
			at := p.Endpoint.AddrPort()
			have.endpoint = netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
		}
		for _, a := range p.AllowedIPs {
			addr, _ := netip.AddrFromSlice(a.IP)
			ones, _ := a.Mask.Size()
			have.allowed = append(have.allowed, netip.PrefixFrom(addr, ones))
		}
		s.peers[plan.Key(p.PublicKey)] = have
	}
	return s, nil
}

func (d *kernelDevice) set(c *change) error {
	err := d.cl.ConfigureDevice(d.name, c.config())
	if errors.Is(err, unix.EADDRINUSE) {
		return errPortInUse
	}
	return err
}

// config is a change as the kernel takes it.
func (c *change) config() (out wgtypes.Config) {
	if c.private != nil {
		k := wgtypes.Key(*c.private)
		out.PrivateKey = &k
	}
	if c.port != nil {
		n := int(*c.port)
		out.ListenPort = &n
	}
	for i := range c.peers {
		p := &c.peers[i]
		if p.remove {
			out.Peers = append(out.Peers, wgtypes.PeerConfig{PublicKey: wgtypes.Key(p.key), Remove: true})
			continue
		}
		every := time.Duration(p.keepAlive) * time.Second
		peer := wgtypes.PeerConfig{
			PublicKey: wgtypes.Key(p.key), Endpoint: net.UDPAddrFromAddrPort(p.endpoint), PersistentKeepaliveInterval: &every, ReplaceAllowedIPs: true,
		}
		for _, a := range p.allowed {
			peer.AllowedIPs = append(peer.AllowedIPs, net.IPNet{IP: a.Addr().AsSlice(), Mask: net.CIDRMask(a.Bits(), a.Addr().BitLen())})
		}
		out.Peers = append(out.Peers, peer)
	}
	return out
}

// ProbeKernel makes a device in a namespace that goes away with it. nil: the kernel has WireGuard.
func ProbeKernel() error {
	return onThread(func() error { return unix.Unshare(unix.CLONE_NEWNET) }, func() error {
		fd, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("try the kernel's WireGuard: %w", err)
		}
		defer unix.Close(fd)
		name := plan.SecureDeviceName(0)
		if err := newInKernel(fd, name, 1420); err != nil {
			if errors.Is(err, unix.EOPNOTSUPP) {
				return errors.New("the kernel has no WireGuard (CONFIG_WIREGUARD), or its module cannot be loaded")
			}
			return fmt.Errorf("try to make a WireGuard device of the kernel's: %w", err)
		}
		d, err := openKernelDevice(fd, name)
		if err != nil {
			return err
		}
		defer d.close()
		if _, err := d.get(); err != nil {
			return err
		}
		return nil
	})
}

// onThread runs fn on a thread of its own, which ends with it, after enter has put that where it is to be.
func onThread(enter, fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() { // the first thread cannot end
			done <- onThread(enter, fn)
			runtime.UnlockOSThread()
			return
		}
		if err := enter(); err != nil {
			done <- fmt.Errorf("enter the compartment: %w", err)
			return
		}
		done <- fn()
	}()
	return <-done
}
