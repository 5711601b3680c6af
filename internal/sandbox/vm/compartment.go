package vm

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/sandbox/vm/proto"
)

// The compartment on the host has the container's vNICs, as that of any container. A tap stands beside each, and two programs of four
// instructions hand every frame from one to the other before anything else of the compartment has seen it: what the switch delivers
// goes to the guest, and what the guest sends comes to the port with its policy as if the vNIC had sent it. The compartment's own
// stack never gets a frame, but it keeps the addresses and routes that the daemon writes and mends there, and the guest is told of
// each change.

// tapPrefix begins the names of our taps.
const tapPrefix = "bht"

// compartment is the network namespace that we are in.
type compartment struct {
	nl      *netlink.Handle
	guest   guest
	machine *Machine
	syncing sync.Mutex       // held while the guest is told
	plugged map[int]*plugged // by the index of the vNIC
	plugs   int              // so far
	told    toldNICs
}

// plugged is a vNIC that the guest has.
type plugged struct {
	id   string // in QEMU
	slot int
	tap  *os.File
	told proto.NIC
}

func openCompartment(m *Machine) (*compartment, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("look at the compartment: %w", err)
	}
	return &compartment{nl: h, guest: m.Guest, machine: m, plugged: map[int]*plugged{}}, nil
}

func (c *compartment) close() {
	for _, p := range c.plugged {
		_ = p.tap.Close()
	}
	c.nl.Close()
}

// sync makes the guest's NICs what the compartment's are.
func (c *compartment) sync(ctx context.Context) error {
	c.syncing.Lock()
	defer c.syncing.Unlock()
	err := c.compare(ctx)
	if !errors.Is(err, netlink.ErrDumpInterrupted) { // it is looked at again
		c.told.set(c.plugged, err)
	}
	return err
}

func (c *compartment) compare(ctx context.Context) error {
	links, err := c.nl.LinkList()
	if err != nil {
		return fmt.Errorf("look at the compartment: %w", err)
	}
	var errs []error
	there := map[int]netlink.Link{}
	for _, l := range links {
		a := l.Attrs()
		if a.Flags&unix.IFF_LOOPBACK == 0 && !strings.HasPrefix(a.Name, tapPrefix) && len(a.HardwareAddr) == 6 && a.Flags&unix.IFF_UP != 0 {
			there[a.Index] = l
		}
	}
	// What goes goes first: what comes in its place has the same MAC.
	for index, p := range c.plugged {
		if there[index] == nil {
			errs = append(errs, c.unplug(ctx, index, p))
		}
	}
	for _, l := range links {
		if there[l.Attrs().Index] == nil {
			continue
		}
		if err := c.tell(ctx, l); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", l.Attrs().Name, err))
		}
	}
	return errors.Join(errs...)
}

// tell plugs a NIC in where there is none yet, and tells the guest how it is to be, where that is new.
func (c *compartment) tell(ctx context.Context, l netlink.Link) error {
	nic, err := c.describe(l)
	if err != nil {
		return err
	}
	p := c.plugged[l.Attrs().Index]
	if p != nil && p.told.MAC != nic.MAC { // its MAC is the device's, so it is another
		if err := c.unplug(ctx, l.Attrs().Index, p); err != nil {
			return err
		}
		p = nil
	}
	if p == nil {
		if p, err = c.plug(ctx, l); err != nil {
			return err
		}
	}
	if reflect.DeepEqual(p.told, nic) {
		return nil
	}
	p.told = proto.NIC{MAC: nic.MAC} // a guest that fails has done some of it, so even what it had before is to be told anew
	if err := c.guest.Call(ctx, proto.OpNIC, nic, nil); err != nil {
		return err
	}
	p.told = nic
	return nil
}

// describe reads what the daemon has made of a vNIC.
func (c *compartment) describe(l netlink.Link) (proto.NIC, error) {
	a := l.Attrs()
	nic := proto.NIC{MAC: a.HardwareAddr.String(), Name: a.Name, MTU: a.MTU}
	addrs, err := c.nl.AddrList(l, netlink.FAMILY_ALL)
	if err != nil {
		return nic, fmt.Errorf("list addresses: %w", err)
	}
	for _, h := range addrs {
		if ip, ok := netip.AddrFromSlice(h.IP); ok {
			bits, _ := h.Mask.Size()
			nic.Addresses = append(nic.Addresses, proto.Address{
				Prefix: netip.PrefixFrom(ip.Unmap(), bits), Alone: h.Flags&unix.IFA_F_NOPREFIXROUTE != 0,
			})
		}
	}
	routes, err := c.nl.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{LinkIndex: a.Index, Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_OIF|netlink.RT_FILTER_TABLE)
	if err != nil {
		return nic, fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		if r.Protocol != unix.RTPROT_KERNEL { // which the guest's kernel makes by itself
			nic.Routes = append(nic.Routes, routeOf(r))
		}
	}
	neighbours, err := c.nl.NeighList(a.Index, netlink.FAMILY_ALL)
	if err != nil {
		return nic, fmt.Errorf("list neighbours: %w", err)
	}
	for _, n := range neighbours {
		if ip, ok := netip.AddrFromSlice(n.IP); ok && n.State&netlink.NUD_PERMANENT != 0 && len(n.HardwareAddr) == 6 {
			nic.Neighbours = append(nic.Neighbours, proto.Neighbour{Addr: ip.Unmap(), MAC: n.HardwareAddr.String()})
		}
	}
	slices.SortFunc(nic.Neighbours, func(x, y proto.Neighbour) int { return x.Addr.Compare(y.Addr) })
	return nic, nil
}

func routeOf(r netlink.Route) proto.Route {
	out := proto.Route{OnLink: r.Flags&int(netlink.FLAG_ONLINK) != 0, Metric: r.Priority}
	out.Via, _ = netip.AddrFromSlice(r.Gw)
	out.Via = out.Via.Unmap()
	switch {
	case r.Dst != nil:
		ip, _ := netip.AddrFromSlice(r.Dst.IP)
		bits, _ := r.Dst.Mask.Size()
		out.Dst = netip.PrefixFrom(ip.Unmap(), bits)
	case r.Family == unix.AF_INET6:
		out.Dst = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	default:
		out.Dst = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return out
}

// plug makes a tap, joins it with a vNIC and plugs its NIC into the VM.
func (c *compartment) plug(ctx context.Context, l netlink.Link) (_ *plugged, err error) {
	index := l.Attrs().Index
	slot, err := c.freeSlot()
	if err != nil {
		return nil, err
	}
	name := fmt.Sprintf("%s%d", tapPrefix, c.plugs)
	id := fmt.Sprintf("nic%d", c.plugs)
	c.plugs++
	tap, err := openTap(name)
	if err != nil {
		return nil, err
	}
	p := &plugged{id: id, slot: slot, tap: tap, told: proto.NIC{MAC: l.Attrs().HardwareAddr.String()}}
	defer func() {
		if err != nil {
			_ = tap.Close()
		}
	}()
	if err := c.join(name, l); err != nil {
		return nil, err
	}
	q := c.machine.QMP
	if err := q.SendFile(ctx, id, int(tap.Fd())); err != nil {
		return nil, err
	}
	if err := q.Do(ctx, "netdev_add", map[string]any{"type": "tap", "id": id, "fd": id}, nil); err != nil {
		return nil, err
	}
	device := map[string]any{
		"driver": "virtio-net-pci", "id": "device-" + id, "netdev": id, "mac": l.Attrs().HardwareAddr.String(), "bus": fmt.Sprintf("slot%d", slot), "romfile": "",
	}
	if err := q.Do(ctx, "device_add", device, nil); err != nil {
		return nil, errors.Join(err, q.Do(ctx, "netdev_del", map[string]any{"id": id}, nil))
	}
	c.plugged[index] = p
	return p, nil
}

// freeSlot takes turns: a slot is not free at once when its NIC is taken out, for the guest has a say in it.
func (c *compartment) freeSlot() (int, error) {
	for i := range slots {
		slot := (c.plugs + i) % slots
		if !slices.ContainsFunc(values(c.plugged), func(p *plugged) bool { return p.slot == slot }) {
			return slot, nil
		}
	}
	return 0, fmt.Errorf("a VM has at most %d NICs", slots)
}

func values[K comparable, V any](m map[K]V) []V {
	out := make([]V, 0, len(m))
	for _, v := range m {
		out = append(out, v)
	}
	return out
}

// unplug takes a NIC out. Its device lets go of it when the guest agrees; the tap is down from now on in any case.
func (c *compartment) unplug(ctx context.Context, index int, p *plugged) error {
	delete(c.plugged, index)
	id := p.id
	err := c.guest.Call(ctx, proto.OpNoNIC, proto.NIC{MAC: p.told.MAC}, nil)
	err = errors.Join(err, c.machine.QMP.Do(ctx, "device_del", map[string]any{"id": "device-" + id}, nil))
	err = errors.Join(err, c.machine.QMP.Do(ctx, "netdev_del", map[string]any{"id": id}, nil))
	return errors.Join(err, p.tap.Close())
}

// openTap makes a tap. It is gone when all have closed it.
func openTap(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("make a tap: %w", err)
	}
	req, err := unix.NewIfreq(name)
	if err == nil {
		// With the header of virtio a segment passes whole, which is most of the speed.
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("make the tap %s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// join hands every frame from the one to the other.
func (c *compartment) join(name string, vnic netlink.Link) error {
	tap, err := c.nl.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find the tap %s: %w", name, err)
	}
	// The compartment says nothing of its own to the guest.
	const none = 1
	if err := c.nl.LinkSetIP6AddrGenMode(tap, none); err != nil && !errors.Is(err, unix.EAFNOSUPPORT) {
		return fmt.Errorf("set up the tap %s: %w", name, err)
	}
	if err := c.nl.LinkSetMTU(tap, vnic.Attrs().MTU); err != nil {
		return fmt.Errorf("set up the tap %s: %w", name, err)
	}
	if err := c.nl.LinkSetARPOff(tap); err != nil {
		return fmt.Errorf("set up the tap %s: %w", name, err)
	}
	if err := errors.Join(c.redirect(tap, vnic), c.redirect(vnic, tap)); err != nil {
		return err
	}
	if err := c.nl.LinkSetUp(tap); err != nil {
		return fmt.Errorf("set up the tap %s: %w", name, err)
	}
	return nil
}

// redirect sends what comes in by one device out by another.
func (c *compartment) redirect(from, to netlink.Link) error {
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "bh_join", Type: ebpf.SchedCLS, License: "Dual MIT/GPL",
		Instructions: asm.Instructions{
			asm.Mov.Imm(asm.R1, int32(to.Attrs().Index)), asm.Mov.Imm(asm.R2, 0), asm.FnRedirect.Call(), asm.Return(),
		},
	})
	if err != nil {
		return fmt.Errorf("join %s and %s: %w", from.Attrs().Name, to.Attrs().Name, err)
	}
	defer prog.Close()
	index := from.Attrs().Index
	qdisc := &netlink.GenericQdisc{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}, QdiscType: "clsact",
	}
	if err := c.nl.QdiscAdd(qdisc); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("join %s and %s: %w", from.Attrs().Name, to.Attrs().Name, err)
	}
	err = c.nl.FilterReplace(&netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: index, Parent: netlink.HANDLE_MIN_INGRESS, Handle: 1, Protocol: unix.ETH_P_ALL, Priority: 1},
		Fd:          prog.FD(), Name: "bh_join", DirectAction: true,
	})
	if err != nil {
		return fmt.Errorf("join %s and %s: %w", from.Attrs().Name, to.Attrs().Name, err)
	}
	return nil
}

// watch has changed called at first, for what changed before there was somebody to see it, and soon after something changed. It
// returns when the context ends, or when events were lost: they come by sockets that are of no use any more then.
func (c *compartment) watch(ctx context.Context, changed func()) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := ctx.Done()
	links := make(chan netlink.LinkUpdate)
	addrs := make(chan netlink.AddrUpdate)
	routes := make(chan netlink.RouteUpdate)
	neighbours := make(chan netlink.NeighUpdate)
	err := errors.Join(
		netlink.LinkSubscribeWithOptions(links, done, netlink.LinkSubscribeOptions{}),
		netlink.AddrSubscribeWithOptions(addrs, done, netlink.AddrSubscribeOptions{}),
		netlink.RouteSubscribeWithOptions(routes, done, netlink.RouteSubscribeOptions{}),
		netlink.NeighSubscribeWithOptions(neighbours, done, netlink.NeighSubscribeOptions{}),
	)
	// Their goroutines have to get rid of what they have read before they see that they are to end.
	defer func() { go drain(links); go drain(addrs); go drain(routes); go drain(neighbours) }()
	if err != nil {
		return fmt.Errorf("watch the compartment: %w", err)
	}
	for ok := true; ok; {
		changed()
		select {
		case <-ctx.Done():
			return nil
		case _, ok = <-links:
		case _, ok = <-addrs:
		case _, ok = <-routes:
		case _, ok = <-neighbours:
		}
	}
	return nil
}

func drain[T any](ch <-chan T) {
	for range ch {
		continue // until it is closed
	}
}
