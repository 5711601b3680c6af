package vswitch

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"

	"github.com/cilium/ebpf/features"
	"github.com/vishvananda/netlink"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
	"github.com/bulkhead-net/bulkhead/internal/testhost"
)

// lab is a host with switches and ports, their devices made the way netdev makes them:
//
//	host namespace                                    compartments
//	  bhh… (10.n.0.1, fd00:n::1) ── bhp… [program]
//	                                bhp… [program] ── eth0 in "a" (10.n.0.10)
//	                                bhp… [program] ── eth0 in "b" (10.n.0.11)
//	                                bhp… [program] ── bhr… in the resolver's (10.n.0.1)
type lab struct {
	t    testing.TB
	host *testhost.Host
	plan *plan.Plan
	a    *Applier
	ns   map[plan.PortID]*testhost.Host
	mode AttachMode
	// offload has flows carried past the host's stack.
	offload bool
	// room is what tables that grow begin with, 0 for the usual.
	room uint32
	// most bounds every table, 0 for the usual.
	most uint32
}

// mostInTests is more than tests put into a table; those with more set lab.most.
const mostInTests = 1 << 14

func newLab(t testing.TB, mode AttachMode) *lab {
	t.Helper()
	return newLabWith(t, mode, false)
}

func newLabWith(t testing.TB, mode AttachMode, offload bool) *lab {
	t.Helper()
	if mode == AttachTCX {
		needTCX(t)
	}
	l := &lab{
		t: t, host: testhost.New(t), mode: mode, offload: offload, ns: map[plan.PortID]*testhost.Host{},
		plan: &plan.Plan{Switches: map[hcn.GUID]*plan.Switch{}, Ports: map[plan.PortID]*plan.Port{}},
	}
	if _, ok := t.(*testing.T); ok {
		l.most = mostInTests
	}
	l.open()
	t.Cleanup(func() { l.a.Close() })
	return l
}

// needTCX skips on a kernel from before TCX; a later one that lacks it is a failure.
func needTCX(t testing.TB) {
	t.Helper()
	testhost.RequireRoot(t)
	err := haveTCX()
	if err == nil {
		return
	}
	if v, verr := features.LinuxVersionCode(); verr == nil && v < 6<<16|6<<8 {
		t.Skip(err)
	}
	t.Fatal(err)
}

// open starts an applier; a second call is a restarted daemon.
func (l *lab) open() {
	l.t.Helper()
	l.in(func() error {
		var err error
		l.a, err = New(Options{Attach: l.mode, Offload: l.offload, firstRoom: l.room, most: l.most})
		return err
	})
}

// in runs fn in the host; an error ends the test.
func (l *lab) in(fn func() error) {
	l.t.Helper()
	var err error
	l.host.DoMount(func() { err = fn() })
	if err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) sync() []plan.Drift {
	l.t.Helper()
	var drift []plan.Drift
	l.in(func() (err error) {
		drift, err = l.a.Sync(context.Background(), l.plan)
		return err
	})
	return drift
}

func (l *lab) update(d *plan.Delta) {
	l.t.Helper()
	l.in(func() error { return l.a.Update(context.Background(), l.plan, d) })
}

func (l *lab) run(port plan.PortID, frame []byte) Result {
	l.t.Helper()
	return l.runAt(Place{Port: port}, frame)
}

func (l *lab) runAt(at Place, frame []byte) Result {
	l.t.Helper()
	var r Result
	l.in(func() (err error) {
		r, err = l.a.RunAt(at, frame)
		return err
	})
	return r
}

func network(n int) hcn.GUID { return hcn.GUID(fmt.Sprintf("net-%d", n)) }

func gateway4(n int) netip.Addr { return netip.MustParseAddr(fmt.Sprintf("10.%d.0.1", n)) }
func gateway6(n int) netip.Addr { return netip.MustParseAddr(fmt.Sprintf("fd00:%d::1", n)) }

// nat adds a NAT switch with host port and resolver. Devices come with up.
func (l *lab) nat(n int) {
	sw := &plan.Switch{
		Number: uint32(n), Network: network(n), Mode: plan.ModeNAT, MTU: 1500,
		HostPort: plan.HostPortID(network(n)), ResolverPort: plan.ResolverPortID(network(n)),
		DNS: plan.DNS{Listen: []netip.Addr{gateway4(n), gateway6(n)}},
	}
	sw.HostDevice = plan.DeviceName(plan.HostVNICPrefix, sw.HostPort)
	l.plan.Switches[network(n)] = sw
	mac := plan.MAC{2, 0, 0, 0, byte(n), 1}
	gw := []netip.Addr{gateway4(n), gateway6(n)}
	l.port(n, sw.HostPort, plan.PortHost, mac, sw.HostDevice, gw...)
	l.port(n, sw.ResolverPort, plan.PortResolver, mac, plan.DeviceName(plan.ResolverPrefix, sw.ResolverPort), gw...)
}

// container adds container number i to switch n, without devices.
func (l *lab) container(n, i int) *plan.Port {
	l.t.Helper()
	id := plan.PortID(fmt.Sprintf("%d-%d", n, i))
	hi, lo := byte(i>>8), byte(i)
	return l.port(n, id, plan.PortContainer, plan.MAC{2, 0, byte(n), 1, hi, lo}, "eth0",
		netip.AddrFrom4([4]byte{10, byte(n), hi, lo}),
		netip.MustParseAddr(fmt.Sprintf("fd00:%d::%x:%x", n, 1, i)))
}

func (l *lab) port(n int, id plan.PortID, kind plan.PortKind, mac plan.MAC, vnic string, addrs ...netip.Addr) *plan.Port {
	p := &plan.Port{
		ID: id, Kind: kind, Network: network(n), Switch: uint32(n),
		Device: plan.DeviceName(plan.PortPrefix, id), MAC: mac, Addrs: addrs, LinkLocal: mac.LinkLocal(),
		VNIC: plan.VNIC{Device: vnic, MAC: mac},
	}
	if kind != plan.PortHost {
		p.VNIC.Namespace = "/run/netns/" + p.Device
	}
	l.plan.Ports[id] = p
	return p
}

// devices makes the veth pair of a port; the switch side stays down until up.
func (l *lab) devices(p *plan.Port) {
	l.t.Helper()
	l.devicesAt(p, 0)
}

// devicesAt does so with a certain index for the switch side, if it is not 0.
func (l *lab) devicesAt(p *plan.Port, index uint32) {
	l.t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Index = int(index)
	attrs.Name, attrs.NumTxQueues, attrs.NumRxQueues = p.Device, 1, 1
	attrs.Alias = "bulkhead port"
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: p.VNIC.Device, PeerHardwareAddr: p.VNIC.MAC[:]}
	if p.VNIC.Namespace != "" {
		l.ns[p.ID] = l.host.NewNamespace(p.Device)
		f, err := os.Open(l.ns[p.ID].NetnsPath())
		if err != nil {
			l.t.Fatal(err)
		}
		defer f.Close()
		veth.PeerNamespace = netlink.NsFd(f.Fd())
	} else {
		l.ns[p.ID] = l.host
	}
	if err := l.host.Netlink().LinkAdd(veth); err != nil {
		l.t.Fatalf("make %s: %v", p.Device, err)
	}
	l.host.Sysctl("net.ipv6.conf."+p.Device+".disable_ipv6", "1")
	l.host.Sysctl("net.ipv4.conf."+p.Device+".rp_filter", "1")
}

// up gives the vNIC its addresses and sets both ends up.
func (l *lab) up(p *plan.Port) {
	l.t.Helper()
	ns := l.ns[p.ID]
	ns.Up(p.VNIC.Device)
	for _, a := range p.Addrs {
		bits := 16
		if a.Is6() {
			bits = 64
		}
		if isGuest(p) {
			bits = a.BitLen()
		}
		ns.Addr(p.VNIC.Device, netip.PrefixFrom(a, bits).String())
	}
	l.host.Up(p.Device)
	if p.Kind == plan.PortContainer && !isGuest(p) {
		n := int(p.Switch)
		if l.plan.Switches[p.Network].HostPort != "" {
			ns.Route("default", gateway4(n).String())
			ns.Route("default", gateway6(n).String())
		}
	}
}

// live makes all devices, applies the plan, and sets everything up.
func (l *lab) live() {
	l.t.Helper()
	for _, p := range l.plan.Ports {
		if p.Kind != plan.PortUplink {
			l.devices(p)
		}
	}
	l.sync()
	for _, p := range l.plan.Ports {
		if p.Kind != plan.PortUplink {
			l.up(p)
		}
	}
}

func hw(m plan.MAC) testhost.MAC { return net.HardwareAddr(m[:]) }

// change is a delta of one port.
func change(old, next *plan.Port) *plan.Delta {
	id := plan.PortID("")
	if old != nil {
		id = old.ID
	} else {
		id = next.ID
	}
	return &plan.Delta{Ports: map[plan.PortID]plan.Change[plan.Port]{id: {Old: old, New: next}}}
}
