package vswitch

import (
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// attacher puts the program on the ingress of a port's device.
type attacher interface {
	mode() AttachMode
	// ensure attaches if needed and says what it found instead ("" when all was well).
	ensure(dev string, index uint32) (found string, err error)
	// attached looks only: is the program on each of these devices (name → index)?
	attached(devs map[string]uint32) (bool, error)
	// detach undoes ensure; a device that is gone has nothing attached.
	detach(dev string) error
	// prune detaches what is pinned for devices that keep does not name, and lists them.
	prune(keep map[string]bool) ([]string, error)
	close() error
}

func newAttacher(mode AttachMode, p pins, prog *ebpf.Program) (attacher, error) {
	if mode == AttachAuto {
		mode = AttachTCX
		if haveTCX() != nil {
			mode = AttachClsact
		}
	}
	info, err := prog.Info()
	if err != nil {
		return nil, fmt.Errorf("ask about the switch program: %w", err)
	}
	id, _ := info.ID()
	switch mode {
	case AttachTCX:
		if err := haveTCX(); err != nil {
			return nil, fmt.Errorf("attach mode tcx: %w", err)
		}
		return &tcx{pins: p, prog: prog, id: id}, nil
	case AttachClsact:
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return nil, fmt.Errorf("open netlink: %w", err)
		}
		return &clsact{pins: p, prog: prog, id: id, nl: h}, nil
	default:
	}
	return nil, fmt.Errorf("attach mode %q: want tcx or clsact", mode)
}

// haveTCX asks the loopback device, which every namespace has.
func haveTCX() error {
	if _, err := link.QueryPrograms(link.QueryOptions{Target: 1, Attach: ebpf.AttachTCXIngress}); err != nil {
		return fmt.Errorf("this kernel has no TCX (since 6.6): %w", err)
	}
	return nil
}

// tcx attaches by BPF link. The pin keeps the link, and with it the attachment, while no
// process holds it; removing the pin detaches.
type tcx struct {
	pins pins
	prog *ebpf.Program
	id   ebpf.ProgramID
}

func (t *tcx) mode() AttachMode { return AttachTCX }

// find gives our attachment on a device, if there is one.
func (t *tcx) find(index uint32) (id link.ID, ok bool, err error) {
	res, err := link.QueryPrograms(link.QueryOptions{Target: int(index), Attach: ebpf.AttachTCXIngress})
	if errors.Is(err, unix.ENODEV) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, err
	}
	for _, p := range res.Programs {
		if p.ID == t.id {
			id, _ := p.LinkID()
			return id, true, nil
		}
	}
	return 0, false, nil
}

func (t *tcx) attached(devs map[string]uint32) (bool, error) {
	pinned, err := names(t.pins.links())
	if err != nil {
		return false, err
	}
	n := 0
	for _, dev := range pinned {
		index, ok := devs[dev]
		if !ok {
			continue
		}
		if _, ok, err := t.find(index); !ok || err != nil {
			return false, err
		}
		n++
	}
	return n == len(devs), nil
}

// ensure tries for a moment when the pin has just been removed: until the kernel has let
// go of the dying link, the program is attached, can be neither kept nor attached again.
func (t *tcx) ensure(dev string, index uint32) (string, error) {
	var found string
	var err error
	for range 50 {
		if found, err = t.ensureOnce(dev, index); !errors.Is(err, fs.ErrExist) && !errors.Is(err, errDying) {
			break
		}
		<-time.After(2 * time.Millisecond)
	}
	return found, err
}

// errDying says that a link has no holder left but still works.
var errDying = errors.New("the link is being removed")

func (t *tcx) ensureOnce(dev string, index uint32) (string, error) {
	id, ok, err := t.find(index)
	if err != nil {
		return "", err
	}
	pinned := exists(t.pins.link(dev))
	switch {
	case ok && pinned:
		return "", nil
	case ok && id != 0:
		return "link not pinned", t.repin(dev, id)
	case pinned:
		return t.update(dev, index)
	}
	return "program detached", t.attach(dev, index)
}

// attach goes in front of any other program: one that comes before and says "pass" would
// lead frames around the switch.
func (t *tcx) attach(dev string, index uint32) error {
	l, err := link.AttachTCX(link.TCXOptions{
		Interface: int(index), Program: t.prog, Attach: ebpf.AttachTCXIngress, Anchor: link.Head(),
	})
	if err != nil {
		return fmt.Errorf("attach to %s: %w", dev, err)
	}
	return errors.Join(l.Pin(t.pins.link(dev)), l.Close())
}

// repin finds the link by number when its file is gone but somebody still holds it.
func (t *tcx) repin(dev string, id link.ID) error {
	l, err := link.NewFromID(id)
	if errors.Is(err, fs.ErrNotExist) {
		return errDying
	}
	if err != nil {
		return fmt.Errorf("open link of %s: %w", dev, err)
	}
	return errors.Join(l.Pin(t.pins.link(dev)), l.Close())
}

// update moves an attachment to this version's program without a gap. A link whose device
// went away (and perhaps came back under another index) is only its file's ghost.
func (t *tcx) update(dev string, index uint32) (string, error) {
	l, err := link.LoadPinnedLink(t.pins.link(dev), nil)
	if err != nil {
		return "", fmt.Errorf("open link of %s: %w", dev, err)
	}
	defer l.Close()
	info, err := l.Info()
	if err != nil {
		return "", fmt.Errorf("ask about the link of %s: %w", dev, err)
	}
	if x := info.TCX(); x != nil && x.Ifindex == index {
		if err := l.Update(t.prog); err != nil {
			return "", fmt.Errorf("replace the program on %s: %w", dev, err)
		}
		return "another program", nil
	}
	if err := remove(t.pins.link(dev)); err != nil {
		return "", err
	}
	return "program detached", t.attach(dev, index)
}

// detach takes effect before it returns; removing the pin alone would leave the program
// at work until the kernel gets round to it.
func (t *tcx) detach(dev string) error { return detachLink(t.pins.link(dev)) }

func detachLink(path string) error {
	l, err := link.LoadPinnedLink(path, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open link: %w", err)
	}
	defer l.Close()
	// A link whose device is gone has nothing to detach from.
	if err := l.Detach(); err != nil && !errors.Is(err, unix.ENOLINK) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("detach link: %w", err)
	}
	return remove(path)
}

func (t *tcx) prune(keep map[string]bool) ([]string, error) { return pruneLinks(t.pins, keep) }

func (t *tcx) close() error { return nil }

func pruneLinks(p pins, keep map[string]bool) ([]string, error) {
	have, err := names(p.links())
	if err != nil {
		return nil, err
	}
	var gone []string
	var errs []error
	for _, dev := range have {
		if !keep[dev] {
			errs = append(errs, detachLink(p.link(dev)))
			gone = append(gone, dev)
		}
	}
	return gone, errors.Join(errs...)
}

// The filter of the clsact way. Priority 1 comes first; the handle tells it from others'.
const (
	filterName     = "bulkhead"
	filterPriority = 1
	filterHandle   = 0xb01c
)

// clsact attaches by a filter on the clsact qdisc, for kernels before 6.6. The filter
// holds the program, so it too outlives the daemon.
type clsact struct {
	pins pins
	prog *ebpf.Program
	id   ebpf.ProgramID
	nl   *netlink.Handle
}

func (c *clsact) mode() AttachMode { return AttachClsact }

// device stands for a link of which only the index matters.
func device(index uint32) netlink.Link {
	return &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: int(index)}}
}

// find gives our filter, nil if there is none.
func (c *clsact) find(index uint32) (*netlink.BpfFilter, error) {
	filters, err := c.nl.FilterList(device(index), netlink.HANDLE_MIN_INGRESS)
	// No qdisc to ask, or no device.
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for _, f := range filters {
		if b, ok := f.(*netlink.BpfFilter); ok && b.Handle == filterHandle && b.Priority == filterPriority {
			return b, nil
		}
	}
	return nil, nil
}

func (c *clsact) attached(devs map[string]uint32) (bool, error) {
	for _, index := range devs {
		if f, err := c.find(index); f == nil || ebpf.ProgramID(f.Id) != c.id || err != nil {
			return false, err
		}
	}
	return true, nil
}

func (c *clsact) ensure(dev string, index uint32) (string, error) {
	f, err := c.find(index)
	if err != nil {
		return "", fmt.Errorf("list filters of %s: %w", dev, err)
	}
	found := "program detached"
	if f != nil {
		if ebpf.ProgramID(f.Id) == c.id {
			return "", nil
		}
		found = "another program"
	}
	attrs := netlink.QdiscAttrs{
		LinkIndex: int(index), Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
	}
	err = c.nl.QdiscAdd(&netlink.Clsact{QdiscAttrs: attrs})
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return "", fmt.Errorf("add clsact to %s: %w", dev, err)
	}
	err = c.nl.FilterReplace(&netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: int(index), Parent: netlink.HANDLE_MIN_INGRESS,
			Handle: filterHandle, Priority: filterPriority, Protocol: unix.ETH_P_ALL,
		},
		Fd: c.prog.FD(), Name: filterName, DirectAction: true,
	})
	if err != nil {
		return "", fmt.Errorf("add filter to %s: %w", dev, err)
	}
	return found, nil
}

func (c *clsact) detach(dev string) error {
	ifi, err := c.nl.LinkByName(dev)
	if _, ok := errors.AsType[netlink.LinkNotFoundError](err); ok {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find device %s: %w", dev, err)
	}
	f, err := c.find(uint32(ifi.Attrs().Index))
	if err != nil || f == nil {
		return err
	}
	if err := c.nl.FilterDel(f); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove filter from %s: %w", dev, err)
	}
	return nil
}

// prune: filters go with their devices; links are left from a time with TCX.
func (c *clsact) prune(map[string]bool) ([]string, error) { return pruneLinks(c.pins, nil) }

func (c *clsact) close() error {
	c.nl.Close()
	return nil
}
