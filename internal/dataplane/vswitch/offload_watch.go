package vswitch

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// offloadWatch notices what may change the way of a flow: rulesets, routes, policy rules,
// addresses, devices, neighbours. It does not ask what the change was: every flow goes
// through the stack once more, which costs each of them a packet.
type offloadWatch struct {
	rules, routes int // sockets
	buf           []byte
	nl            *netlink.Handle
	// running is set while somebody reads the sockets; without, nothing is carried.
	running bool
	// macs remembers the neighbours on uplinks, whose entries change state all the time.
	macs map[neighbourKey]string
}

type neighbourKey struct {
	index uint32
	addr  string
}

// maxNeighbours bounds what is remembered of a large link.
const maxNeighbours = 8192

func newOffloadWatch() (*offloadWatch, error) {
	w := &offloadWatch{rules: -1, routes: -1, buf: make([]byte, 1<<16), macs: map[neighbourKey]string{}}
	var err error
	if w.nl, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	if w.rules, err = listenTo(unix.NETLINK_NETFILTER, nil, unix.NFNLGRP_NFTABLES); err == nil {
		w.routes, err = listenTo(unix.NETLINK_ROUTE, withoutPorts(), unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH,
			unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE,
			unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE)
	}
	if err != nil {
		return nil, errors.Join(err, w.close())
	}
	return w, nil
}

// withoutPorts drops what happens to the switch sides of ports, which have neither addresses nor routes: each endpoint that
// comes would have all devices and routes looked at half a dozen times, by another processor and under the lock that the
// rest of its attach waits for.
func withoutPorts() []unix.SockFilter {
	const headType, firstAttr = 4, unix.SizeofNlMsghdr + unix.SizeofIfInfomsg // the name is a link's first attribute
	swap16 := func(v uint16) uint32 {
		return uint32(binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, v)))
	}
	load := func(size uint16, at uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_ABS | size, K: at}
	}
	equal := func(k uint32, yes, no uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: k, Jt: yes, Jf: no}
	}
	prefix := binary.BigEndian.Uint32([]byte(plan.PortPrefix + "\x00"))
	return []unix.SockFilter{
		load(unix.BPF_H, headType),
		equal(swap16(unix.RTM_NEWLINK), 1, 0),
		equal(swap16(unix.RTM_DELLINK), 0, 5), // accept
		load(unix.BPF_H, firstAttr+2),
		equal(swap16(unix.IFLA_IFNAME), 0, 3),
		load(unix.BPF_W, firstAttr+unix.SizeofRtAttr),
		{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: 0xffffff00},
		equal(prefix, 1, 0), // drop
		{Code: unix.BPF_RET | unix.BPF_K, K: 1 << 16},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
	}
}

func listenTo(protocol int, filter []unix.SockFilter, groups ...int) (int, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
	if err != nil {
		return -1, fmt.Errorf("open netlink: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return -1, errors.Join(fmt.Errorf("bind netlink: %w", err), unix.Close(fd))
	}
	if len(filter) > 0 {
		prog := &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
		if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, prog); err != nil {
			return -1, errors.Join(fmt.Errorf("filter kernel events: %w", err), unix.Close(fd))
		}
	}
	for _, g := range groups {
		if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, g); err != nil {
			return -1, errors.Join(fmt.Errorf("join netlink group %d: %w", g, err), unix.Close(fd))
		}
	}
	return fd, nil
}

func (w *offloadWatch) close() error {
	var errs []error
	for _, fd := range []int{w.rules, w.routes} {
		if fd >= 0 {
			errs = append(errs, unix.Close(fd))
		}
	}
	w.nl.Close()
	return errors.Join(errs...)
}

// uplinks are the devices of the default routes and their MTUs. Devices without Ethernet
// headers and VLAN devices stay on the long way.
func (w *offloadWatch) uplinks() (map[uint32]uint32, error) {
	indexes := map[int]bool{}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := w.nl.RouteList(nil, family)
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		for i := range routes {
			r := &routes[i]
			if r.Type != unix.RTN_UNICAST {
				continue
			}
			if r.Dst != nil {
				if ones, _ := r.Dst.Mask.Size(); ones > 0 {
					continue
				}
			}
			indexes[r.LinkIndex] = true
			for _, hop := range r.MultiPath {
				indexes[hop.LinkIndex] = true
			}
		}
	}
	out := map[uint32]uint32{}
	for index := range indexes {
		l, err := w.nl.LinkByIndex(index)
		if index == 0 || err != nil {
			continue // gone meanwhile
		}
		at := l.Attrs()
		ours := strings.HasPrefix(at.Name, plan.HostVNICPrefix) || strings.HasPrefix(at.Name, plan.LANVNICPrefix) || strings.HasPrefix(at.Name, plan.PortPrefix)
		if at.EncapType == "ether" && l.Type() != "vlan" && !ours {
			out[uint32(index)] = uint32(at.MTU)
		}
	}
	return out, nil
}

// read empties a socket. Messages that were lost say the same as messages.
func read(fd int, buf []byte, each func([]syscall.NetlinkMessage)) error {
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return nil
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ENOBUFS):
			each(nil)
			continue
		case err != nil:
			return fmt.Errorf("read kernel events: %w", err)
		}
		msgs, err := syscall.ParseNetlinkMessage(buf[:n])
		if err != nil {
			msgs = nil
		}
		each(msgs)
	}
}

// concerns tells whether a routing message may change a flow's way, served being the
// devices that flows are carried between.
func (w *offloadWatch) concerns(m syscall.NetlinkMessage, served func(uint32) bool) bool {
	if m.Header.Type != unix.RTM_NEWNEIGH && m.Header.Type != unix.RTM_DELNEIGH {
		return true
	}
	if len(m.Data) < unix.SizeofNdMsg {
		return true
	}
	key := neighbourKey{index: binary.NativeEndian.Uint32(m.Data[4:])}
	state := binary.NativeEndian.Uint16(m.Data[8:])
	if !served(key.index) {
		return false
	}
	var mac string

	for b := m.Data[unix.SizeofNdMsg:]; len(b) >= unix.SizeofRtAttr; {
		size, kind := int(binary.NativeEndian.Uint16(b)), binary.NativeEndian.Uint16(b[2:])
		if size < unix.SizeofRtAttr || size > len(b) {
			break
		}
		switch kind {
		case unix.NDA_DST:
			key.addr = string(b[unix.SizeofRtAttr:size])
		case unix.NDA_LLADDR:
			mac = string(b[unix.SizeofRtAttr:size])
		}
		b = b[min(len(b), (size+3)&^3):]
	}
	if state&(unix.NUD_FAILED|unix.NUD_INCOMPLETE) != 0 {
		mac = ""
	}
	was, known := w.macs[key]
	if len(w.macs) >= maxNeighbours && !known {
		clear(w.macs)
	}
	w.macs[key] = mac
	return known && was != mac
}

// RunOffload watches over the flows that are carried past the host's stack, until ctx ends.
// Nothing is carried unless it runs. It works in the network namespace of its thread, which
// must be the host's.
func (a *Applier) RunOffload(ctx context.Context) error {
	o := a.offload
	if o == nil {
		<-ctx.Done()
		return nil
	}
	asks, err := newAskReader(o.objs.Asks)
	if err != nil {
		return err
	}
	answered := make(chan error, 1)
	go func() { answered <- o.track.answer(asks, o.log) }()
	err = o.run(ctx)
	return errors.Join(err, asks.Close(), <-answered)
}

func (o *offload) run(ctx context.Context) error {
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return fmt.Errorf("open eventfd: %w", err)
	}
	defer unix.Close(wake)
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(ended)
		_, _ = unix.Write(wake, binary.NativeEndian.AppendUint64(nil, 1))
	})
	defer func() {
		if !stop() {
			<-ended
		}
	}()
	if err := o.begin(); err != nil {
		return err
	}
	for ctx.Err() == nil {
		fds := []unix.PollFd{
			{Fd: int32(o.watch.rules), Events: unix.POLLIN},
			{Fd: int32(o.watch.routes), Events: unix.POLLIN},
			{Fd: int32(wake), Events: unix.POLLIN},
		}
		if _, err := unix.Poll(fds, int(offloadBeat.Milliseconds())); err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for kernel events: %w", err)
		}
		if err := o.look(); err != nil {
			return errors.Join(err, o.end())
		}
	}
	return o.end()
}

// begin reads what has come while nobody looked: all of it is old.
func (o *offload) begin() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.watch.running = true
	return errors.Join(o.reconcile(), o.bump())
}

// end lets go at once instead of when the lease has run out.
func (o *offload) end() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.watch.running = false
	return o.bump()
}

// look reads the events, and only then renews the lease.
func (o *offload) look() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	changed, moved := false, false
	err := read(o.watch.rules, o.watch.buf, func([]syscall.NetlinkMessage) { changed = true })
	if err != nil {
		return err
	}
	served := func(index uint32) bool { _, ok := o.links[index]; return ok }
	err = read(o.watch.routes, o.watch.buf, func(msgs []syscall.NetlinkMessage) {
		moved = moved || msgs == nil
		for _, m := range msgs {
			if o.watch.concerns(m, served) {
				changed = true
				moved = moved || m.Header.Type != unix.RTM_NEWNEIGH && m.Header.Type != unix.RTM_DELNEIGH
			}
		}
	})
	if err != nil {
		return err
	}
	if moved {
		// A device that cannot be served is on the long way, which is where it is.
		if err := o.reconcile(); err != nil {
			o.log.Warn("offload", "err", err)
		}
	}
	if changed || moved {
		return o.bump()
	}
	return o.beat()
}
