package netdev

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// Whether the host can still be reached by a NIC is asked of those on its link: routers first,
// then who spoke with the host lately. Questions and answers are frames of our own: they go
// the way of all frames, by the programs at the NIC as well, and change no neighbour entry.

// maxAsked bounds whom we ask: a table may hold thousands.
const maxAsked = 8

// Neighbours lists who on the link of a NIC is worth asking whether the host can be reached:
// the next hops of its routes, and others that the kernel has heard of lately.
func (n *Netdev) Neighbours(ctx context.Context, nic string) (routers, others []netip.Addr, err error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	l, ok, err := n.host.linkByName(nic)
	if err != nil || !ok {
		return nil, nil, err
	}
	routes, err := n.host.listRoutes()
	if err != nil {
		return nil, nil, fmt.Errorf("list routes: %w", err)
	}
	slices.SortStableFunc(routes, func(a, b route) int { return a.dst.Bits() - b.dst.Bits() }) // the default ones first
	add := func(list []netip.Addr, a netip.Addr) []netip.Addr {
		a = a.Unmap()
		if !a.IsValid() || a.IsMulticast() || a.IsUnspecified() || len(routers)+len(others) == maxAsked ||
			slices.Contains(routers, a) || slices.Contains(others, a) {
			return list
		}
		return append(list, a)
	}
	for _, r := range routes {
		if r.oif == l.index {
			routers = add(routers, r.via)
		}
	}
	known, err := n.host.listNeighbours()
	if err != nil {
		return nil, nil, fmt.Errorf("list neighbours: %w", err)
	}
	const heard = unix.NUD_REACHABLE | unix.NUD_STALE | unix.NUD_DELAY | unix.NUD_PROBE
	for _, e := range known {
		if e.index == l.index && e.state&heard != 0 {
			others = add(others, e.Addr)
		}
	}
	return routers, others, nil
}

// Ask asks on the link of a NIC for addresses, and gives those that answered within a time.
func (n *Netdev) Ask(ctx context.Context, nic string, who []netip.Addr, within time.Duration) ([]netip.Addr, error) {
	l, ok, err := n.host.linkByName(nic)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, nil // nobody answers behind a NIC that is gone
	}
	addrs, err := n.host.listAddresses()
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	a := asking{nic: l, who: who, heard: map[netip.Addr]bool{}}
	for _, x := range addrs {
		if x.index == l.index && x.flags&unix.IFA_F_TENTATIVE == 0 {
			a.own = append(a.own, x.prefix)
		}
	}
	if err := n.home.do(a.open); err != nil {
		return nil, fmt.Errorf("ask by %s: %w", nic, err)
	}
	defer a.close()
	err = a.run(ctx, within)
	var out []netip.Addr
	for _, w := range who {
		if a.heard[w] {
			out = append(out, w)
		}
	}
	if err != nil {
		return out, fmt.Errorf("ask by %s: %w", nic, err)
	}
	return out, nil
}

// asking is one round of questions. Each family has a socket of its own protocol: one for all
// protocols would see the answers before the programs at the NIC do.
type asking struct {
	nic   link
	own   []netip.Prefix
	who   []netip.Addr
	heard map[netip.Addr]bool
	fds   [2]int // of ARP and IPv6
}

func (a *asking) open() error {
	a.fds = [2]int{-1, -1}
	for i, proto := range []uint16{unix.ETH_P_ARP, unix.ETH_P_IPV6} {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			a.close()
			return fmt.Errorf("open a packet socket: %w", err)
		}
		a.fds[i] = fd
		if proto == unix.ETH_P_IPV6 {
			err = onlyAdverts(fd)
		}
		if err == nil {
			err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: proto<<8 | proto>>8, Ifindex: a.nic.index})
		}
		if err != nil {
			a.close()
			return fmt.Errorf("set up a packet socket: %w", err)
		}
	}
	return nil
}

func (a *asking) close() {
	for _, fd := range a.fds {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

// onlyAdverts keeps everything but neighbour advertisements from a socket: on a busy NIC there is much else.
func onlyAdverts(fd int) error {
	code := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: 20}, // next header
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 3, K: unix.IPPROTO_ICMPV6},
		{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: 54}, // type
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: neighbourAdvert},
		{Code: unix.BPF_RET | unix.BPF_K, K: 1 << 16},
		{Code: unix.BPF_RET | unix.BPF_K},
	}
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(code)), Filter: unsafe.SliceData(code)})
}

const (
	neighbourSolicit = 135
	neighbourAdvert  = 136
	// askAgain is the time between two questions for one that has not answered.
	askAgain = 200 * time.Millisecond
)

// run asks until all have answered or their time is over, which begins with the first question: a busy host may take long to send it.
func (a *asking) run(ctx context.Context, within time.Duration) error {
	var next, until time.Time
	for len(a.heard) < len(a.who) {
		now := time.Now()
		if !until.IsZero() && !now.Before(until) {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if !now.Before(next) {
			if err := a.ask(); err != nil {
				return err
			}
			next = time.Now().Add(askAgain)
		}
		if until.IsZero() {
			until = time.Now().Add(within)
		}
		wait := min(time.Until(next), time.Until(until))
		polled := []unix.PollFd{{Fd: int32(a.fds[0]), Events: unix.POLLIN}, {Fd: int32(a.fds[1]), Events: unix.POLLIN}}
		if _, err := unix.Poll(polled, int(max(wait, 0)/time.Millisecond)+1); err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for answers: %w", err)
		}
		a.hear()
	}
	return nil
}

// ask sends a question for each that has not answered. What cannot be sent now is not heard.
func (a *asking) ask() error {
	for _, w := range a.who {
		if a.heard[w] {
			continue
		}
		i, frame := 0, arpQuestion(a.nic.mac, a.source(w), w)
		if w.Is6() {
			i, frame = 1, solicitation(a.nic.mac, a.source(w), w)
		}
		to := &unix.SockaddrLinklayer{Ifindex: a.nic.index}
		err := unix.Sendto(a.fds[i], frame, 0, to)
		if err != nil && !errors.Is(err, unix.ENETDOWN) && !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.ENXIO) {
			return fmt.Errorf("send a question for %s: %w", w, err)
		}
	}
	return nil
}

// source is an address of the NIC's to ask with: one that is in a subnet with the other, else any of the family.
func (a *asking) source(w netip.Addr) netip.Addr {
	var other netip.Addr
	for _, p := range a.own {
		if p.Addr().Is4() != w.Is4() {
			continue
		}
		if p.Contains(w) {
			return p.Addr()
		}
		other = p.Addr()
	}
	if !other.IsValid() && w.Is4() {
		return netip.IPv4Unspecified()
	}
	return other
}

func (a *asking) hear() {
	var buf [256]byte
	for i, fd := range a.fds {
		for {
			n, _, err := unix.Recvfrom(fd, buf[:], 0)
			if err != nil {
				break
			}
			b := buf[:n]
			switch {
			case i == 0 && n >= 42 && binary.BigEndian.Uint16(b[20:]) == 2:
				a.heard[netip.AddrFrom4([4]byte(b[28:32]))] = true
			case i == 1 && n >= 78 && b[54] == neighbourAdvert:
				a.heard[netip.AddrFrom16([16]byte(b[62:78]))] = true
			}
		}
	}
	for w := range a.heard {
		if !slices.Contains(a.who, w) {
			delete(a.heard, w) // somebody else's answer
		}
	}
}

// arpQuestion asks who has an address. Without an address of its own it is a probe (RFC 5227).
func arpQuestion(mac plan.MAC, from, to netip.Addr) []byte {
	b := make([]byte, 0, 42)
	b = append(b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)
	b = append(b, mac[:]...)
	b = append(b, 0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1)
	b = append(b, mac[:]...)
	b = append(b, from.AsSlice()...)
	b = append(b, 0, 0, 0, 0, 0, 0)
	return append(b, to.AsSlice()...)
}

// solicitation asks for a neighbour by the multicast address made of its own (RFC 4861).
func solicitation(mac plan.MAC, from, to netip.Addr) []byte {
	if !from.IsValid() {
		from = mac.LinkLocal()
	}
	target := to.As16()
	group := [16]byte{0: 0xff, 1: 2, 11: 1, 12: 0xff, 13: target[13], 14: target[14], 15: target[15]}
	body := append([]byte{neighbourSolicit, 0, 0, 0, 0, 0, 0, 0}, target[:]...)
	body = append(append(body, 1, 1), mac[:]...)
	src := from.As16()
	binary.BigEndian.PutUint16(body[2:], icmp6Sum(src, group, body))
	b := []byte{0x33, 0x33, group[12], group[13], group[14], group[15]}
	b = append(b, mac[:]...)
	b = append(b, 0x86, 0xdd, 0x60, 0, 0, 0, 0, byte(len(body)), unix.IPPROTO_ICMPV6, 255)
	b = append(append(b, src[:]...), group[:]...)
	return append(b, body...)
}

// icmp6Sum is the checksum over a message and its pseudo header.
func icmp6Sum(src, dst [16]byte, body []byte) uint16 {
	all := append(append([]byte{}, src[:]...), dst[:]...)
	all = append(all, 0, 0, 0, byte(len(body)), 0, 0, 0, unix.IPPROTO_ICMPV6)
	all = append(all, body...)
	var sum uint32
	for i := 0; i+1 < len(all); i += 2 {
		sum += uint32(all[i])<<8 | uint32(all[i+1])
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
