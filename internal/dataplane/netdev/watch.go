package netdev

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// watchState is shared by the watcher and those whose doings it shall overlook.
type watchState struct {
	mu      sync.Mutex
	running int
	// expected holds compartments that the reaper removes.
	expected map[string]bool
}

// expect tells the watcher that a compartment is removed by us.
func (w *watchState) expect(path string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.running == 0 {
		return
	}
	if w.expected == nil {
		w.expected = map[string]bool{}
	}
	w.expected[path] = true
}

func (w *watchState) wasExpected(path string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	was := w.expected[path]
	delete(w.expected, path)
	return was
}

// watcher turns kernel events into wake-ups. It remembers which device indices are ours, only to tell events apart:
// nothing that it learns goes into the engine.
type watcher struct {
	n       *Netdev
	wake    func(cause string)
	moved   func(nic string)
	netlink *conn
	// look is for questions: on the socket of the appliers they would wait for each other.
	look    *conn
	inotify int
	end     int // readable when the context ends
	ours    map[int]bool
	inside  inside
	// changed are the links of ours that were told of and not judged yet, by index: of several events of one the last
	// counts.
	changed map[int]linkEvent
}

type linkEvent struct {
	link
	event uint16
	byUs  bool
}

// calmDown is how long events gather before they are read: an attach makes a dozen, and who reads each when it comes does
// so on the processor, and under the lock, that the rest of the attach needs.
const calmDown = 5 * time.Millisecond

var watchGroups = []int{
	unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE,
	unix.RTNLGRP_NEIGH,
}

// Watch calls wake whenever something happens to devices, addresses or routes of ours, to the host facts, or to our
// compartments, until ctx ends. Our own routine changes do not wake. What happened has to be looked up: events may be
// lost, and a loss wakes as well. moved is told of links whose neighbours the kernel has just reminded of them. ready, unless
// nil, is closed once events are caught.
func (n *Netdev) Watch(ctx context.Context, wake func(cause string), moved func(nic string), ready chan<- struct{}) error {
	w := &watcher{n: n, wake: wake, moved: moved, inotify: -1, end: -1, ours: map[int]bool{}, changed: map[int]linkEvent{}}
	if err := n.home.do(w.open); err != nil {
		w.close()
		return fmt.Errorf("watch the host's network: %w", err)
	}
	defer w.close()
	n.watch.mu.Lock()
	n.watch.running++
	n.watch.mu.Unlock()
	defer func() {
		n.watch.mu.Lock()
		n.watch.running--
		n.watch.expected = nil
		n.watch.mu.Unlock()
	}()
	w.learn()
	if ready != nil {
		close(ready)
	}
	var ending sync.Mutex
	closed := false
	stop := context.AfterFunc(ctx, func() {
		ending.Lock()
		defer ending.Unlock()
		if !closed {
			_, _ = unix.Write(w.end, binary.NativeEndian.AppendUint64(nil, 1))
		}
	})
	defer func() {
		stop()
		ending.Lock()
		closed = true
		ending.Unlock()
	}()
	return w.run(ctx)
}

func (w *watcher) open() (err error) {
	if w.netlink, err = w.n.openConn(); err != nil {
		return err
	}
	if w.look, err = w.n.openConn(); err != nil {
		return err
	}
	for _, g := range watchGroups {
		if err := unix.SetsockoptInt(w.netlink.fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, g); err != nil {
			return fmt.Errorf("join netlink group %d: %w", g, err)
		}
	}
	// A burst of a thousand devices fits; without the privilege the default has to do.
	_ = unix.SetsockoptInt(w.netlink.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20)
	if err := w.openInside(); err != nil {
		return err
	}
	if w.end, err = unix.Eventfd(0, unix.EFD_CLOEXEC); err != nil {
		return fmt.Errorf("open eventfd: %w", err)
	}
	if err := w.n.prepareDir(); err != nil {
		return err
	}
	if w.inotify, err = unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK); err != nil {
		return fmt.Errorf("open inotify: %w", err)
	}
	const mask = unix.IN_DELETE | unix.IN_MOVED_FROM | unix.IN_MOVED_TO | unix.IN_DELETE_SELF
	if _, err := unix.InotifyAddWatch(w.inotify, w.n.opts.NetnsDir, mask); err != nil {
		return fmt.Errorf("watch %s: %w", w.n.opts.NetnsDir, err)
	}
	return nil
}

func (w *watcher) close() {
	for _, c := range []*conn{w.netlink, w.look, w.inside.conn} {
		if c != nil {
			c.close()
		}
	}
	for _, fd := range []int{w.inotify, w.end} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

// learn notes which devices are ours now.
func (w *watcher) learn() {
	links, err := w.look.listLinks()
	if err != nil {
		return // unknown devices count as foreign and wake: too often rather than too rarely
	}
	clear(w.ours)
	for _, l := range links {
		if l.ours() {
			w.ours[l.index] = true
		}
	}
}

func (w *watcher) run(ctx context.Context) error {
	for {
		fds := []unix.PollFd{
			{Fd: int32(w.netlink.fd), Events: unix.POLLIN},
			{Fd: int32(w.inotify), Events: unix.POLLIN},
			{Fd: int32(w.end), Events: unix.POLLIN},
			{Fd: int32(w.inside.conn.fd), Events: unix.POLLIN},
		}
		n, err := unix.Poll(fds, w.inside.wait())
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for kernel events: %w", err)
		}
		if n > 0 && fds[2].Revents == 0 {
			select {
			case <-ctx.Done():
			case <-time.After(calmDown):
			}
		}
		if fds[2].Revents != 0 || ctx.Err() != nil {
			return ctx.Err()
		}
		if fds[0].Revents != 0 {
			if err := w.readNetlink(); err != nil {
				return err
			}
		}
		if fds[1].Revents != 0 {
			if err := w.readInotify(); err != nil {
				return err
			}
		}
		if fds[3].Revents != 0 {
			if err := w.readInside(); err != nil {
				return err
			}
		}
		w.raise()
	}
}

// readNetlink reads what there is, but lets others have their turn in a storm.
func (w *watcher) readNetlink() error {
	defer w.judgeLinks()
	for range 1024 {
		msgs, err := w.netlink.poll()
		switch {
		case errors.Is(err, unix.EAGAIN):
			return nil
		case errors.Is(err, unix.ENOBUFS):
			w.learn()
			w.wake("kernel events were lost")
			continue
		case err != nil:
			return fmt.Errorf("read kernel events: %w", err)
		}
		for _, m := range msgs {
			if cause := w.judge(m); cause != "" {
				w.wake(cause)
			}
		}
	}
	return nil
}

// judge says why a message should wake the engine, or nothing.
func (w *watcher) judge(m syscall.NetlinkMessage) string {
	byUs := m.Header.Pid != 0 && (m.Header.Pid == w.n.host.portID || m.Header.Pid == w.n.grim.portID || m.Header.Pid == w.n.pool.conn.portID)
	switch m.Header.Type {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		return w.judgeLink(m, byUs)
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		a := parseAddress(m.Data)
		if byUs || w.ours[a.index] && m.Header.Pid == 0 {
			return "" // the kernel's own follow-ups to what we did
		}
		return fmt.Sprintf("address %s changed", a.prefix)
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		r := parseRoute(m.Data)
		// But for what is ours, the local table only repeats the addresses.
		repeats := r.table == unix.RT_TABLE_LOCAL && r.proto != protoOurs
		if byUs || repeats || w.ours[r.oif] && m.Header.Pid == 0 {
			return ""
		}
		return fmt.Sprintf("route %s changed", r.dst)
	case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
		nb := parseNeighbour(m.Data)
		if filterEvent(m) {
			return fmt.Sprintf("the unicast filter of link %d changed", nb.index)
		}
		// What the kernel does by itself is a device going down, which is an event too, or the life of its own entries.
		if byUs || !w.ours[nb.index] || m.Header.Pid == 0 {
			return ""
		}
		return fmt.Sprintf("neighbour %s changed", nb.Addr)
	}
	return ""
}

// judgeLink judges an event of a link that is not ours; one of ours is only noted.
func (w *watcher) judgeLink(m syscall.NetlinkMessage, byUs bool) string {
	l := parseLink(m.Data)
	whole := nl.DeserializeIfInfomsg(m.Data).Family == unix.AF_UNSPEC
	if !l.ours() && !w.ours[l.index] {
		if byUs || !whole {
			return "" // the latter are a device's bridge and IPv6 details
		}
		if l.event == unix.IFLA_EVENT_NOTIFY_PEERS {
			w.moved(l.name)
		}
		return "link " + l.name + " changed"
	}
	w.ours[l.index] = m.Header.Type == unix.RTM_NEWLINK
	if _, ok := w.changed[l.index]; whole || !ok {
		w.changed[l.index] = linkEvent{link: l, event: m.Header.Type, byUs: byUs}
	}
	return ""
}

// judgeLinks judges the links of ours that were told of by how they are now: an event may be old, and the kernel does not
// say whose doing most of them are. One that shows its link as it should be is no cause to look, for should it be otherwise
// now, another event says so.
func (w *watcher) judgeLinks() {
	for _, ev := range w.changed {
		if cause := w.judgeOurs(ev); cause != "" {
			w.wake(cause)
		}
	}
	clear(w.changed)
}

func (w *watcher) judgeOurs(l linkEvent) string {
	if l.group == groupDying || w.n.pool.has(l.name) {
		return ""
	}
	if l.event == unix.RTM_NEWLINK {
		if right, ok := w.n.known.judge(l.link); ok && right {
			return ""
		}
	}
	now, exists, err := w.look.linkByName(l.name)
	switch {
	case err != nil:
		return "link " + l.name + " cannot be looked at"
	case !exists && w.n.known.has(l.name):
		return "link " + l.name + " was deleted"
	case !exists, now.group == groupDying:
		return ""
	}
	if right, ok := w.n.known.judge(now); right || !ok && l.byUs {
		return ""
	}
	return "link " + l.name + " changed"
}

func (w *watcher) readInotify() error {
	var buf [4096]byte
	size, err := unix.Read(w.inotify, buf[:])
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read events of %s: %w", w.n.opts.NetnsDir, err)
	}
	for b := buf[:size]; len(b) >= unix.SizeofInotifyEvent; {
		mask := binary.NativeEndian.Uint32(b[4:])
		end := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(b[12:]))
		name := unix.ByteSliceToString(b[unix.SizeofInotifyEvent:end])
		b = b[end:]
		path := filepath.Join(w.n.opts.NetnsDir, name)
		switch {
		case mask&(unix.IN_Q_OVERFLOW|unix.IN_DELETE_SELF) != 0:
			w.wake("events of " + w.n.opts.NetnsDir + " were lost")
		case !plan.IsNamespaceName(name), w.n.watch.wasExpected(path):
		default:
			w.wake("compartment " + path + " changed")
		}
	}
	return nil
}
