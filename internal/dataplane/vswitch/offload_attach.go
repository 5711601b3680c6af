package vswitch

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// offloadAttacher puts the offload's programs on a device, last of all: what others have
// there decides first.
type offloadAttacher interface {
	attach(index uint32, role uplinkOffloadRole) error
	detach(index uint32, role uplinkOffloadRole) error
	close() error
}

// offloadPlace is one side of a device.
type offloadPlace struct {
	attach ebpf.AttachType
	parent uint32
	prog   *ebpf.Program
}

func offloadPlaces(role uplinkOffloadRole, objs *offloadObjects) []offloadPlace {
	if role == uplinkOffloadRoleOFFLOAD_HOST {
		return []offloadPlace{{ebpf.AttachTCXEgress, netlink.HANDLE_MIN_EGRESS, objs.LearnIn}}
	}
	return []offloadPlace{
		{ebpf.AttachTCXIngress, netlink.HANDLE_MIN_INGRESS, objs.CarryIn},
		{ebpf.AttachTCXEgress, netlink.HANDLE_MIN_EGRESS, objs.LearnOut},
	}
}

func newOffloadAttacher(mode AttachMode, objs *offloadObjects) (offloadAttacher, error) {
	if mode == AttachTCX {
		return &offloadTCX{objs: objs, links: map[uint32][]link.Link{}}, nil
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	if err := removeAllOffloadFilters(h); err != nil {
		h.Close()
		return nil, err
	}
	return &offloadClsact{objs: objs, nl: h}, nil
}

// offloadTCX holds its links open and pins none: they end with the process, whatever ends
// it.
type offloadTCX struct {
	objs  *offloadObjects
	links map[uint32][]link.Link
}

func (t *offloadTCX) attach(index uint32, role uplinkOffloadRole) error {
	for _, p := range offloadPlaces(role, t.objs) {
		l, err := link.AttachTCX(link.TCXOptions{Interface: int(index), Program: p.prog, Attach: p.attach, Anchor: link.Tail()})
		if err != nil {
			return errors.Join(fmt.Errorf("attach the offload to device %d: %w", index, err), t.detach(index, role))
		}
		t.links[index] = append(t.links[index], l)
	}
	return nil
}

func (t *offloadTCX) detach(index uint32, _ uplinkOffloadRole) error {
	var errs []error
	for _, l := range t.links[index] {
		// The device may be gone, and the attachment with it.
		if err := l.Detach(); err != nil && !errors.Is(err, unix.ENOLINK) && !errors.Is(err, unix.ENODEV) {
			errs = append(errs, fmt.Errorf("detach the offload from device %d: %w", index, err))
		}
		errs = append(errs, l.Close())
	}
	delete(t.links, index)
	return errors.Join(errs...)
}

func (t *offloadTCX) close() error {
	var errs []error
	for index := range t.links {
		errs = append(errs, t.detach(index, 0))
	}
	return errors.Join(errs...)
}

// The offload's filters of the clsact way come after others'.
const (
	offloadFilterName     = "bulkhead-offload"
	offloadFilterPriority = 0xbffe
	offloadFilterHandle   = 0xb01d
)

// offloadClsact attaches by filters, which stay behind when the process is killed. They
// do nothing then, and the next one replaces them.
type offloadClsact struct {
	objs *offloadObjects
	nl   *netlink.Handle
}

func (c *offloadClsact) attach(index uint32, role uplinkOffloadRole) error {
	err := c.nl.QdiscAdd(&netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: int(index), Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
	}})
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("add clsact to device %d: %w", index, err)
	}
	for _, p := range offloadPlaces(role, c.objs) {
		err := c.nl.FilterReplace(&netlink.BpfFilter{
			FilterAttrs: offloadFilter(index, p.parent), Fd: p.prog.FD(), Name: offloadFilterName, DirectAction: true,
		})
		if err != nil {
			return errors.Join(fmt.Errorf("add the offload's filter to device %d: %w", index, err), c.detach(index, role))
		}
	}
	return nil
}

func offloadFilter(index, parent uint32) netlink.FilterAttrs {
	return netlink.FilterAttrs{
		LinkIndex: int(index), Parent: parent, Handle: offloadFilterHandle, Priority: offloadFilterPriority, Protocol: unix.ETH_P_ALL,
	}
}

func (c *offloadClsact) detach(index uint32, _ uplinkOffloadRole) error {
	return removeOffloadFilters(c.nl, index)
}

// removeOffloadFilters takes our filters off one device. The qdisc stays: others may have
// come to use it.
func removeOffloadFilters(h *netlink.Handle, index uint32) error {
	var errs []error
	for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
		filters, err := h.FilterList(device(index), parent)
		if err != nil {
			continue // no qdisc to ask, or no device
		}
		for _, f := range filters {
			b, ok := f.(*netlink.BpfFilter)
			if !ok || b.Handle != offloadFilterHandle || b.Priority != offloadFilterPriority {
				continue
			}
			if err := h.FilterDel(b); err != nil && !errors.Is(err, unix.ENOENT) {
				errs = append(errs, fmt.Errorf("remove the offload's filter from device %d: %w", index, err))
			}
		}
	}
	return errors.Join(errs...)
}

// removeAllOffloadFilters finds them wherever a process that was killed left them.
func removeAllOffloadFilters(h *netlink.Handle) error {
	links, err := h.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return fmt.Errorf("list devices: %w", err)
	}
	var errs []error
	for _, l := range links {
		errs = append(errs, removeOffloadFilters(h, uint32(l.Attrs().Index)))
	}
	return errors.Join(errs...)
}

func (c *offloadClsact) close() error {
	c.nl.Close()
	return nil
}
