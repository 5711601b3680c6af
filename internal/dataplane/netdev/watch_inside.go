package netdev

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// What happens inside compartments is watched by one socket in the host's namespace, however many there are: with
// NETLINK_LISTEN_ALL_NSID the kernel delivers the events of every namespace that the host's has a number for, and it gives
// one to each that the far end of a veth pair is in. A socket in each compartment would cost a file descriptor and the
// time of an attach.
//
// A program on the socket drops what we do ourselves before it is queued, and nearly all that the kernel adds to it, so
// an attach is not read again here. What is left is suspicion: something of ours was taken away. It is collected for
// a moment, since a flush is many messages and a link that goes takes its addresses along, and then wakes the engine once.

const (
	// gather is how long suspicion is collected before the engine is woken.
	gather = 30 * time.Millisecond
	// calm is the time between two wakes for compartments in the long run: a container that may change its own network could
	// otherwise keep the engine busy. After a rest there are burst of them without it, so that what is broken once in a while,
	// or by hand a few times in a row, is repaired at once.
	calm  = time.Second
	burst = 5
	// growing is how long after its birth a vNIC's events may be those of its birth, read late.
	growing = time.Second
)

// insideGroups are what is heard of compartments.
var insideGroups = []int{
	unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE,
}

// inside collects suspicion.
type inside struct {
	conn *conn
	// suspects are devices by namespace number and index, with what was seen; index 0 stands for all.
	suspects map[[2]int]string
	due      time.Time // of the next wake; zero: none
	paid     time.Time // when all wakes so far would have been made, one each calm
}

// openInside opens the socket, on the calling thread's host.
func (w *watcher) openInside() (err error) {
	if w.inside.conn, err = w.n.openConn(); err != nil {
		return err
	}
	w.inside.suspects = map[[2]int]string{}
	fd := w.inside.conn.fd
	if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_LISTEN_ALL_NSID, 1); err != nil {
		return fmt.Errorf("listen to compartments: %w", err)
	}
	filter := insideFilter(uint32(unix.Getpid()))
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}); err != nil {
		return fmt.Errorf("filter what compartments tell: %w", err)
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20)
	for _, g := range insideGroups {
		if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, g); err != nil {
			return fmt.Errorf("join netlink group %d: %w", g, err)
		}
	}
	return nil
}

// insideFilter drops what a process's sockets did, which are bound to its ID, and of what nobody did (port 0) all but
// links, and addresses that go: the kernel does not say who takes an IPv6 address away. A process in a container whose
// ID in there happens to be the daemon's is overlooked; the periodic comparison finds what it does.
func insideFilter(pid uint32) []unix.SockFilter {
	const headType, headPort = 4, 12 // offsets in struct nlmsghdr; loads are big-endian
	swap16 := func(v uint16) uint32 {
		return uint32(binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, v)))
	}
	swap32 := func(v uint32) uint32 { return binary.BigEndian.Uint32(binary.NativeEndian.AppendUint32(nil, v)) }
	load := func(size uint16, at uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_ABS | size, K: at}
	}
	equal := func(k uint32, yes, no uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: k, Jt: yes, Jf: no}
	}
	return []unix.SockFilter{
		load(unix.BPF_W, headPort),
		equal(swap32(pid), 6, 0), // drop
		equal(0, 0, 4),           // somebody's: accept
		load(unix.BPF_H, headType),
		equal(swap16(unix.RTM_NEWLINK), 2, 0),
		equal(swap16(unix.RTM_DELLINK), 1, 0),
		equal(swap16(unix.RTM_DELADDR), 0, 1),
		{Code: unix.BPF_RET | unix.BPF_K, K: 1 << 16},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
	}
}

// readInside reads what is on the socket, but lets others have their turn in a storm.
func (w *watcher) readInside() error {
	c := w.inside.conn
	if c.buf == nil {
		c.buf = make([]byte, 64<<10)
	}
	oob := make([]byte, 64)
	for range 1024 {
		size, oobSize, _, _, err := unix.Recvmsg(c.fd, c.buf, oob, unix.MSG_DONTWAIT)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return nil
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.ENOBUFS):
			w.suspect(-1, 0, "events of compartments were lost")
		case err != nil:
			return fmt.Errorf("read events of compartments: %w", err)
		default:
			w.judgeDatagram(c.buf[:size], oob[:oobSize])
		}
	}
	return nil
}

// judgeDatagram leaves alone what comes without the number of a namespace: that is the host's own, which the other socket
// tells of.
func (w *watcher) judgeDatagram(b, oob []byte) {
	nsid, ok := namespaceNumber(oob)
	if !ok {
		return
	}
	msgs, err := syscall.ParseNetlinkMessage(b)
	if err != nil {
		return // not netlink as we know it: nothing of ours
	}
	for _, m := range msgs {
		w.judgeInside(nsid, m)
	}
}

func namespaceNumber(oob []byte) (int, bool) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return 0, false
	}
	for _, m := range msgs {
		if m.Header.Level == unix.SOL_NETLINK && m.Header.Type == unix.NETLINK_LISTEN_ALL_NSID && len(m.Data) >= 4 {
			return int(int32(nl.NativeEndian().Uint32(m.Data))), true
		}
	}
	return 0, false
}

// judgeInside notes what looks as if something of ours had been taken away.
func (w *watcher) judgeInside(nsid int, m syscall.NetlinkMessage) {
	switch m.Header.Type {
	case unix.RTM_NEWLINK:
		if l := parseLink(m.Data); w.n.known.disturbed(l, time.Now().Add(-growing)) {
			w.suspect(nsid, l.index, "link "+l.name+" in a compartment changed")
		}
	case unix.RTM_DELLINK:
		// It went, and its addresses with it. The other end tells whether that was our doing; a macvlan device has none.
		l := parseLink(m.Data)
		delete(w.inside.suspects, [2]int{nsid, l.index})
		if l.kind == macvlanKind && strings.HasPrefix(l.alias, "bulkhead ") {
			w.suspect(nsid, 0, "link "+l.name+" in a compartment went")
		}
	case unix.RTM_DELADDR:
		if a := parseAddress(m.Data); a.proto == protoOurs {
			w.suspect(nsid, a.index, fmt.Sprintf("address %s in a compartment changed", a.prefix))
		}
	case unix.RTM_DELROUTE, unix.RTM_NEWROUTE:
		r := parseRoute(m.Data)
		// A route that takes the place of ours comes without a word of the one that goes.
		gone := m.Header.Type == unix.RTM_DELROUTE && (r.proto == protoOurs || r.proto == unix.RTPROT_KERNEL)
		if gone || m.Header.Type == unix.RTM_NEWROUTE && m.Header.Flags&unix.NLM_F_REPLACE != 0 {
			w.suspect(nsid, r.oif, fmt.Sprintf("route %s in a compartment changed", r.dst))
		}
	}
}

func (w *watcher) suspect(nsid, index int, what string) {
	s := &w.inside
	if key := [2]int{nsid, index}; s.suspects[key] == "" {
		s.suspects[key] = what // the first is the cause of the rest
	}
	if s.due.IsZero() {
		s.due = time.Now().Add(gather)
		if next := s.paid.Add(-burst * calm); next.After(s.due) {
			s.due = next
		}
	}
}

// wait is how long to wait for events, in milliseconds.
func (s *inside) wait() int {
	if s.due.IsZero() {
		return int(time.Hour.Milliseconds())
	}
	return int(max(0, time.Until(s.due).Milliseconds()+1))
}

// raise wakes the engine for what was collected, when that is due.
func (w *watcher) raise() {
	s := &w.inside
	if s.due.IsZero() || time.Now().Before(s.due) {
		return
	}
	for _, what := range s.suspects {
		w.wake(what)
		break // one says enough: everything is compared
	}
	if now := time.Now(); len(s.suspects) > 0 {
		if s.paid.Before(now) {
			s.paid = now
		}
		s.paid = s.paid.Add(calm)
	}
	clear(s.suspects)
	s.due = time.Time{}
}
