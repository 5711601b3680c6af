package vswitch

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// hook is one of our programs at one side of a device.
type hook struct {
	// pin is the name of the link's pin, which is also what a hook is called.
	pin    string
	dev    string
	egress bool
	name   string // of the program
	prog   *ebpf.Program
	id     ebpf.ProgramID
	// handle of the filter of the clsact way.
	handle uint32
}

func (h hook) tcx() ebpf.AttachType {
	if h.egress {
		return ebpf.AttachTCXEgress
	}
	return ebpf.AttachTCXIngress
}

func (h hook) parent() uint32 {
	if h.egress {
		return netlink.HANDLE_MIN_EGRESS
	}
	return netlink.HANDLE_MIN_INGRESS
}

// spot is a hook on the device that has an index now.
type spot struct {
	hook
	index uint32
}

// hooksOf are the places of a port's programs. A port that is ours alone has one at its
// ingress; a NIC has one at either side. bpffs keeps names with dots for itself.
func (a *Applier) hooksOf(kind plan.PortKind, dev string) []hook {
	nic := nicPin(dev)
	switch kind {
	case plan.PortUplink:
		return []hook{
			a.hook(nic+"-in", dev, bpfProgBhFromWire),
			func() hook { h := a.hook(nic+"-out", dev, bpfProgBhFromHost); h.egress = true; return h }(),
		}
	case plan.PortTunnel:
		return []hook{a.hook(dev, dev, bpfProgBhFromTunnel)}
	default:
		return []hook{a.hook(dev, dev, bpfProgBhFromPort)}
	}
}

func (a *Applier) hook(pin, dev, name string) hook {
	h := hook{pin: pin, dev: dev, name: name, prog: *programsOf(&a.objs)[name], id: a.ids[name], handle: filterHandle}
	if name == bpfProgBhFromUnderlay { // beside that of an uplink
		h.handle = underlayHandle
	}
	return h
}

// spotsOf are those places with the indexes of their devices: a tunnel's packets come in by NICs, too.
func (a *Applier) spotsOf(s *portState) []spot {
	var out []spot
	for _, h := range a.hooksOf(s.kind, s.device) {
		out = append(out, spot{h, s.index})
	}
	for _, nic := range s.nics {
		out = append(out, spot{a.hook(underlayPin(nic.name), nic.name, bpfProgBhFromUnderlay), nic.index})
	}
	return out
}

func underlayPin(dev string) string { return nicPin(dev) + "-tun" }

func nicPin(dev string) string { return "nic-" + strings.ReplaceAll(dev, ".", "%") }

// attacher puts programs on devices.
type attacher interface {
	mode() AttachMode
	// ensure attaches if needed and says what it found instead ("" when all was well).
	ensure(spot) (found string, err error)
	// attached looks only: is each program where it belongs?
	attached([]spot) (bool, error)
	// detach undoes ensure; a device that is gone has nothing attached.
	detach(hook) error
	// prune detaches what is pinned under names that keep does not have, and lists them.
	prune(keep map[string]bool) ([]string, error)
	close() error
}

func newAttacher(mode AttachMode, p pins) (attacher, error) {
	if mode == AttachAuto {
		mode = AttachTCX
		if haveTCX() != nil {
			mode = AttachClsact
		}
	}
	switch mode {
	case AttachTCX:
		if err := haveTCX(); err != nil {
			return nil, fmt.Errorf("attach mode tcx: %w", err)
		}
		return &tcx{pins: p}, nil
	case AttachClsact:
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return nil, fmt.Errorf("open netlink: %w", err)
		}
		return &clsact{pins: p, nl: h}, nil
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
type tcx struct{ pins pins }

func (t *tcx) mode() AttachMode { return AttachTCX }

// find gives our attachment on a device, if there is one.
func (t *tcx) find(h spot) (id link.ID, ok bool, err error) {
	res, err := link.QueryPrograms(link.QueryOptions{Target: int(h.index), Attach: h.tcx()})
	if errors.Is(err, unix.ENODEV) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, err
	}
	for _, p := range res.Programs {
		if p.ID == h.id {
			id, _ := p.LinkID()
			return id, true, nil
		}
	}
	return 0, false, nil
}

func (t *tcx) attached(hooks []spot) (bool, error) {
	pinned, err := names(t.pins.links())
	if err != nil {
		return false, err
	}
	have := make(map[string]bool, len(pinned))
	for _, name := range pinned {
		have[name] = true
	}
	for _, h := range hooks {
		if !have[h.pin] {
			return false, nil
		}
		if _, ok, err := t.find(h); !ok || err != nil {
			return false, err
		}
	}
	return true, nil
}

// ensure tries for a moment when the pin has just been removed: until the kernel has let
// go of the dying link, the program is attached, can be neither kept nor attached again.
func (t *tcx) ensure(h spot) (string, error) {
	var found string
	var err error
	for range 50 {
		if found, err = t.ensureOnce(h); !errors.Is(err, fs.ErrExist) && !errors.Is(err, errDying) {
			break
		}
		<-time.After(2 * time.Millisecond)
	}
	return found, err
}

// errDying says that a link has no holder left but still works.
var errDying = errors.New("the link is being removed")

func (t *tcx) ensureOnce(h spot) (string, error) {
	id, ok, err := t.find(h)
	if err != nil {
		return "", err
	}
	pinned := exists(t.pins.link(h.pin))
	switch {
	case ok && pinned:
		return "", nil
	case ok && id != 0:
		return "link not pinned", t.repin(h, id)
	case pinned:
		return t.update(h)
	}
	return "program detached", t.attach(h)
}

// attach goes in front of any other program: one that comes before and says "pass" would
// lead frames around the switch.
func (t *tcx) attach(h spot) error {
	l, err := link.AttachTCX(link.TCXOptions{Interface: int(h.index), Program: h.prog, Attach: h.tcx(), Anchor: link.Head()})
	if err != nil {
		return fmt.Errorf("attach to %s: %w", h.dev, err)
	}
	return errors.Join(l.Pin(t.pins.link(h.pin)), l.Close())
}

// repin finds the link by number when its file is gone but somebody still holds it.
func (t *tcx) repin(h spot, id link.ID) error {
	l, err := link.NewFromID(id)
	if errors.Is(err, fs.ErrNotExist) {
		return errDying
	}
	if err != nil {
		return fmt.Errorf("open link of %s: %w", h.dev, err)
	}
	return errors.Join(l.Pin(t.pins.link(h.pin)), l.Close())
}

// update moves an attachment to this version's program without a gap. A link whose device
// went away (and perhaps came back under another index) is only its file's ghost.
func (t *tcx) update(h spot) (string, error) {
	l, err := link.LoadPinnedLink(t.pins.link(h.pin), nil)
	if err != nil {
		return "", fmt.Errorf("open link of %s: %w", h.dev, err)
	}
	defer l.Close()
	info, err := l.Info()
	if err != nil {
		return "", fmt.Errorf("ask about the link of %s: %w", h.dev, err)
	}
	if x := info.TCX(); x != nil && x.Ifindex == h.index {
		if err := l.Update(h.prog); err != nil {
			return "", fmt.Errorf("replace the program on %s: %w", h.dev, err)
		}
		return "another program", nil
	}
	if err := remove(t.pins.link(h.pin)); err != nil {
		return "", err
	}
	return "program detached", t.attach(h)
}

// detach takes effect before it returns; removing the pin alone would leave the program
// at work until the kernel gets round to it.
func (t *tcx) detach(h hook) error { return detachLink(t.pins.link(h.pin)) }

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
	kept := map[link.ID]bool{}
	for _, dev := range have {
		if !keep[dev] {
			gone = append(gone, dev)
			continue
		}
		id, err := linkID(p.link(dev))
		errs, kept[id] = append(errs, err), true
	}
	for _, dev := range gone {
		id, err := linkID(p.link(dev))
		if err == nil && id != 0 && kept[id] { // of a NIC that has another name by now
			errs = append(errs, remove(p.link(dev)))
			continue
		}
		errs = append(errs, detachLink(p.link(dev)))
	}
	return gone, errors.Join(errs...)
}

// linkID is the number of a pinned link, 0 where nothing is pinned.
func linkID(path string) (link.ID, error) {
	l, err := link.LoadPinnedLink(path, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("open link: %w", err)
	}
	defer l.Close()
	info, err := l.Info()
	if err != nil {
		return 0, fmt.Errorf("ask about a link: %w", err)
	}
	return info.ID, nil
}

// The filter of the clsact way. Priority 1 comes first; the handle tells it from others'.
const (
	filterName     = "bulkhead"
	filterPriority = 1
	filterHandle   = 0xb01c
	underlayHandle = 0xb01e
)

// clsact attaches by a filter on the clsact qdisc, for kernels before 6.6. The filter
// holds the program, so it too outlives the daemon.
type clsact struct {
	pins pins
	nl   *netlink.Handle
}

func (c *clsact) mode() AttachMode { return AttachClsact }

// device stands for a link of which only the index matters.
func device(index uint32) netlink.Link {
	return &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: int(index)}}
}

// find gives our filter at one side of a device, nil if there is none.
func (c *clsact) find(index, parent, handle uint32) (*netlink.BpfFilter, error) {
	filters, err := c.nl.FilterList(device(index), parent)
	// No qdisc to ask, or no device.
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for _, f := range filters {
		if b, ok := f.(*netlink.BpfFilter); ok && b.Handle == handle && b.Priority == filterPriority {
			return b, nil
		}
	}
	return nil, nil
}

func (c *clsact) attached(hooks []spot) (bool, error) {
	for _, h := range hooks {
		if f, err := c.find(h.index, h.parent(), h.handle); f == nil || ebpf.ProgramID(f.Id) != h.id || err != nil {
			return false, err
		}
	}
	return true, nil
}

func (c *clsact) ensure(h spot) (string, error) {
	f, err := c.find(h.index, h.parent(), h.handle)
	if err != nil {
		return "", fmt.Errorf("list filters of %s: %w", h.dev, err)
	}
	found := "program detached"
	if f != nil {
		if ebpf.ProgramID(f.Id) == h.id {
			return "", nil
		}
		found = "another program"
	}
	attrs := netlink.QdiscAttrs{
		LinkIndex: int(h.index), Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
	}
	err = c.nl.QdiscAdd(&netlink.Clsact{QdiscAttrs: attrs})
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return "", fmt.Errorf("add clsact to %s: %w", h.dev, err)
	}
	err = c.nl.FilterReplace(&netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: int(h.index), Parent: h.parent(),
			Handle: h.handle, Priority: filterPriority, Protocol: unix.ETH_P_ALL,
		},
		Fd: h.prog.FD(), Name: filterName, DirectAction: true,
	})
	if err != nil {
		return "", fmt.Errorf("add filter to %s: %w", h.dev, err)
	}
	return found, nil
}

func (c *clsact) detach(h hook) error {
	ifi, err := c.nl.LinkByName(h.dev)
	if _, ok := errors.AsType[netlink.LinkNotFoundError](err); ok {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find device %s: %w", h.dev, err)
	}
	return c.removeFilter(uint32(ifi.Attrs().Index), h.parent(), h.handle)
}

// removeFilter takes our filter off one side of a device.
func (c *clsact) removeFilter(index, parent, handle uint32) error {
	f, err := c.find(index, parent, handle)
	if err != nil || f == nil {
		return err
	}
	if err := c.nl.FilterDel(f); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove filter from device %d: %w", index, err)
	}
	return nil
}

// prune: filters of ports go with their devices; links are left from a time with TCX. A NIC
// stays, and nothing in bpffs names it: so each device that may be one is asked.
func (c *clsact) prune(keep map[string]bool) ([]string, error) {
	gone, err := pruneLinks(c.pins, nil)
	links, lerr := c.nl.LinkList()
	if lerr != nil && !errors.Is(lerr, netlink.ErrDumpInterrupted) {
		return gone, errors.Join(err, fmt.Errorf("list devices: %w", lerr))
	}
	errs := []error{err}
	for _, l := range links {
		name, index := l.Attrs().Name, uint32(l.Attrs().Index)
		if !strings.HasPrefix(name, plan.PortPrefix) && !keep[nicPin(name)+"-in"] && !keep[name] {
			errs = append(errs, c.removeBoth(index))
		}
		if !keep[underlayPin(name)] {
			errs = append(errs, c.removeFilter(index, netlink.HANDLE_MIN_INGRESS, underlayHandle))
		}
	}
	return gone, errors.Join(errs...)
}

func (c *clsact) removeBoth(index uint32) error {
	return errors.Join(c.removeFilter(index, netlink.HANDLE_MIN_INGRESS, filterHandle), c.removeFilter(index, netlink.HANDLE_MIN_EGRESS, filterHandle))
}

func (c *clsact) close() error {
	c.nl.Close()
	return nil
}
