package nat

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/mdlayher/netlink"
	"github.com/ti-mo/netfilter"
	vnetlink "github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// A flow keeps the translation it got with its first packet, for as long as packets come. So whenever a translation
// changes, the entries that carry the old one are deleted: after the new rules are in place, or the next packet would
// make the same entry again. This must hit nothing else: other flows on the host live in the same table.

// flush selects conntrack entries. Invalid addresses and zero ports match all.
type flush struct {
	proto            uint8
	origSrc, origDst netip.Addr
	origPort         uint16 // destination port of the original direction
	replySrc         netip.Addr
	replyPort        uint16 // source port of the reply direction
	local            bool   // not translated and to any of the host's addresses of family v4 or v6
	v4               bool
}

// flushesOf lists what has to go because forwards went and came. An entry of a forward that went leads to its target.
// A forward that came over UDP finds entries of senders that did not wait for it, which lead to the host itself; TCP
// has none, since the host has refused those connections.
func flushesOf(gone, come elements) []flush {
	var out []flush
	for _, k := range gone.sorted() {
		if f, ok := parseForward(k, gone[k]); ok {
			w := flush{proto: f.Protocol, origPort: f.Port, replySrc: f.To.Addr(), replyPort: f.To.Port()}
			if f.Scope == plan.ScopeAddress {
				w.origDst = f.Bind
			}
			out = append(out, w)
		}
	}
	for _, k := range come.sorted() {
		f, ok := parseForward(k, come[k])
		if !ok || f.Protocol != unix.IPPROTO_UDP {
			continue
		}
		w := flush{proto: f.Protocol, origPort: f.Port, replyPort: f.Port}
		if f.Scope == plan.ScopeAddress {
			w.origDst, w.replySrc = f.Bind, f.Bind
		} else {
			w.local, w.v4 = true, f.Is4()
		}
		out = append(out, w)
	}
	return out
}

// flushesOfGone lists the addresses that no endpoint has any more: whatever they talked to is over, and the next
// owner of the address must not inherit it.
func flushesOfGone(d *plan.Delta) []flush {
	var out []flush
	for _, c := range d.Ports {
		if c.Old == nil || c.Old.Kind != plan.PortContainer {
			continue
		}
		kept := map[netip.Addr]bool{}
		if c.New != nil {
			for _, addr := range c.New.Addrs {
				kept[addr] = true
			}
		}
		for _, addr := range c.Old.Addrs {
			if !kept[addr] {
				out = append(out, flush{origSrc: addr}, flush{replySrc: addr})
			}
		}
	}
	return out
}

// parseForward reads an element of the port maps back.
func parseForward(k elemKey, e elem) (plan.Forward, bool) {
	var f plan.Forward
	switch k.set {
	case mapAddress4, mapAddress6:
		f.Scope = plan.ScopeAddress
	case mapAll4, mapAll6:
		f.Scope = plan.ScopeAll
	case mapLAN4, mapLAN6:
		f.Scope = plan.ScopeLAN
	default:
		return f, false
	}
	key, val := []byte(k.key), []byte(e.val)
	if len(key) < 8 || len(val) < 8 {
		return f, false
	}
	tail := len(key) - 8
	f.Bind, _ = netip.AddrFromSlice(key[:tail])
	f.Protocol, f.Port = key[tail], binary.BigEndian.Uint16(key[tail+4:])
	to, ok := netip.AddrFromSlice(val[:len(val)-4])
	f.To = netip.AddrPortFrom(to, binary.BigEndian.Uint16(val[len(val)-4:]))
	return f, ok
}

// flush deletes the entries that any of the flushes selects.
//
// For IPv4 the kernel walks its table and deletes what matches a filter, one message for each flush (since 6.11). For
// IPv6 that cannot be used: the comparison of addresses in its filter is inverted (seen on 6.18), so it would delete
// every flow but the ones meant. Those entries are listed once, compared here and deleted one by one.
func (a *Applier) flush(fs []flush) []error {
	if len(fs) == 0 || a.noEntries() {
		return nil
	}
	fs, err := a.expandLocal(fs)
	if err != nil {
		return []error{err}
	}
	c, err := netfilter.Dial(&netlink.Config{NetNS: a.k.netns})
	if err != nil {
		return []error{fmt.Errorf("open conntrack: %w", err)}
	}
	defer c.Close()
	var four, six []flush
	for _, f := range fs {
		if f.is4() {
			four = append(four, f)
		} else {
			six = append(six, f)
		}
	}
	errs := flushByListing(c, netfilter.ProtoIPv6, six)
	for _, f := range four {
		if err := f.delete(c); err != nil {
			a.log.Debug("conntrack cannot delete by filter; listing all entries", "err", err)
			return append(errs, flushByListing(c, netfilter.ProtoIPv4, four)...)
		}
	}
	return errs
}

// noEntries tells that the host's namespace tracks nothing, which saves the walks.
func (a *Applier) noEntries() bool {
	none := false
	_ = a.inNetns(func() error {
		none = settingIs("net/netfilter/nf_conntrack_count", "0")
		return nil
	})
	return none
}

// expandLocal turns "any of the host's addresses" into one flush for each.
func (a *Applier) expandLocal(fs []flush) ([]flush, error) {
	var out []flush
	var local []netip.Addr
	for _, f := range fs {
		if !f.local {
			out = append(out, f)
			continue
		}
		if local == nil {
			var err error
			if local, err = a.localAddrs(); err != nil {
				return nil, err
			}
		}
		for _, addr := range local {
			if addr.Is4() == f.v4 {
				one := f
				one.local, one.origDst, one.replySrc = false, addr, addr
				out = append(out, one)
			}
		}
	}
	return out, nil
}

func (a *Applier) localAddrs() ([]netip.Addr, error) {
	ns := netns.None()
	if a.netns != nil {
		ns = netns.NsHandle(a.netns.Fd())
	}
	h, err := vnetlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open rtnetlink: %w", err)
	}
	defer h.Close()
	var list []vnetlink.Addr
	for range 5 { // a dump may be interrupted by a change
		if list, err = h.AddrList(nil, vnetlink.FAMILY_ALL); !errors.Is(err, vnetlink.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("list the host's addresses: %w", err)
	}
	var out []netip.Addr
	for _, l := range list {
		if addr, ok := netip.AddrFromSlice(l.IP); ok {
			out = append(out, addr.Unmap())
		}
	}
	return out, nil
}

// Numbers of include/uapi/linux/netfilter/nfnetlink_conntrack.h that the libraries lack.
const (
	ctaTupleOrig, ctaTupleReply, ctaFilter  = 1, 2, 25
	ctaTupleIP, ctaTupleProto               = 1, 2
	ctaProtoNum, ctaProtoSrc, ctaProtoDst   = 1, 2, 3
	ctaFilterOrigFlags, ctaFilterReplyFlags = 1, 2
	filterIPSrc, filterIPDst                = 1 << 0, 1 << 1
	filterProtoNum, filterSrc, filterDst    = 1 << 3, 1 << 4, 1 << 5
	ctaZone, ctaID                          = 18, 12
	ctaIPv4Src, ctaIPv6Src                  = 1, 3
	ctGet, ctDelete                         = 1, 2
)

// delete asks the kernel to delete the IPv4 entries that the flush selects.
func (f flush) delete(c *netfilter.Conn) error {
	orig, origFlags := tuple(ctaTupleOrig, f.proto, f.origSrc, f.origDst, 0, f.origPort)
	reply, replyFlags := tuple(ctaTupleReply, f.proto, f.replySrc, netip.Addr{}, f.replyPort, 0)
	attrs := []netfilter.Attribute{{Type: ctaFilter, Nested: true, Children: []netfilter.Attribute{
		{Type: ctaFilterOrigFlags, Data: binary.NativeEndian.AppendUint32(nil, origFlags)},
		{Type: ctaFilterReplyFlags, Data: binary.NativeEndian.AppendUint32(nil, replyFlags)},
	}}}
	if origFlags != 0 {
		attrs = append(attrs, orig)
	}
	if replyFlags != 0 {
		attrs = append(attrs, reply)
	}
	// Version 1 says that the family is meant; version 0 ignores it.
	m, err := netfilter.MarshalNetlink(netfilter.Header{
		SubsystemID: netfilter.NFSubsysCTNetlink, MessageType: ctDelete, Family: netfilter.ProtoIPv4, Version: 1,
		Flags: netlink.Request | netlink.Acknowledge,
	}, attrs)
	if err != nil {
		return fmt.Errorf("encode conntrack filter: %w", err)
	}
	_, err = c.Query(m)
	return err
}

func (f flush) is4() bool {
	for _, addr := range []netip.Addr{f.origSrc, f.origDst, f.replySrc} {
		if addr.IsValid() {
			return addr.Is4()
		}
	}
	return f.v4
}

func tuple(kind uint16, proto uint8, src, dst netip.Addr, sport, dport uint16) (netfilter.Attribute, uint32) {
	var flags uint32
	ip := netfilter.Attribute{Type: ctaTupleIP, Nested: true}
	for i, addr := range []netip.Addr{src, dst} {
		if !addr.IsValid() {
			continue
		}
		ip.Children = append(ip.Children, netfilter.Attribute{Type: ctaIPv4Src + uint16(i), Data: addr.AsSlice()})
		flags |= filterIPSrc << i
	}
	p := netfilter.Attribute{Type: ctaTupleProto, Nested: true}
	if proto != 0 {
		flags |= filterProtoNum
		p.Children = append(p.Children, netfilter.Attribute{Type: ctaProtoNum, Data: []byte{proto}})
		if sport != 0 {
			flags |= filterSrc
			p.Children = append(p.Children, netfilter.Attribute{Type: ctaProtoSrc, Data: port(sport)})
		}
		if dport != 0 {
			flags |= filterDst
			p.Children = append(p.Children, netfilter.Attribute{Type: ctaProtoDst, Data: port(dport)})
		}
	}
	out := netfilter.Attribute{Type: kind, Nested: true}
	for _, part := range []netfilter.Attribute{ip, p} {
		if len(part.Children) > 0 {
			out.Children = append(out.Children, part)
		}
	}
	return out, flags
}

// entry is a conntrack entry as listed: what identifies it, and both its tuples.
type entry struct {
	identity    []netfilter.Attribute
	orig, reply entryTuple
}

type entryTuple struct {
	proto        uint8
	src, dst     netip.Addr
	sport, dport uint16
}

// flushByListing lists all entries of a family and deletes those that any of the flushes selects. Its time grows with
// the table.
func flushByListing(c *netfilter.Conn, family netfilter.ProtoFamily, fs []flush) []error {
	if len(fs) == 0 {
		return nil
	}
	header := netfilter.Header{SubsystemID: netfilter.NFSubsysCTNetlink, MessageType: ctGet, Family: family, Flags: netlink.Request | netlink.Dump}
	m, err := netfilter.MarshalNetlink(header, nil)
	if err != nil {
		return []error{fmt.Errorf("encode conntrack dump: %w", err)}
	}
	msgs, err := c.Query(m)
	if err != nil {
		return []error{fmt.Errorf("list conntrack: %w", err)}
	}
	header.MessageType, header.Flags = ctDelete, netlink.Request|netlink.Acknowledge
	var errs []error
	for _, m := range msgs {
		e, err := parseEntry(m.Data)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if !slices.ContainsFunc(fs, func(f flush) bool { return f.selects(e) }) {
			continue
		}
		del, err := netfilter.MarshalNetlink(header, e.identity)
		if err == nil {
			_, err = c.Query(del)
		}
		if err != nil && !errors.Is(err, unix.ENOENT) { // it ended by itself
			errs = append(errs, fmt.Errorf("delete conntrack entry %v: %w", e.orig, err))
		}
	}
	return errs
}

func (f flush) selects(e entry) bool {
	addr := func(want, got netip.Addr) bool { return !want.IsValid() || want == got }
	number := func(want, got uint16) bool { return want == 0 || want == got }
	return (f.proto == 0 || f.proto == e.orig.proto) &&
		addr(f.origSrc, e.orig.src) && addr(f.origDst, e.orig.dst) && addr(f.replySrc, e.reply.src) &&
		number(f.origPort, e.orig.dport) && number(f.replyPort, e.reply.sport)
}

func parseEntry(data []byte) (entry, error) {
	var e entry
	ad, err := attributes(data)
	if err != nil {
		return e, err
	}
	for ad.Next() {
		switch ad.Type() {
		case ctaTupleOrig:
			e.identity = append(e.identity, netfilter.Attribute{Type: ctaTupleOrig | unix.NLA_F_NESTED, Data: ad.Bytes()})
			ad.Nested(e.orig.decode)
		case ctaTupleReply:
			ad.Nested(e.reply.decode)
		case ctaZone, ctaID:
			e.identity = append(e.identity, netfilter.Attribute{Type: ad.Type(), Data: ad.Bytes()})
		}
	}
	if err := ad.Err(); err != nil {
		return e, fmt.Errorf("decode conntrack entry: %w", err)
	}
	return e, nil
}

func (t *entryTuple) decode(ad *netlink.AttributeDecoder) error {
	for ad.Next() {
		kind := ad.Type()
		if kind != ctaTupleIP && kind != ctaTupleProto {
			continue // the zone
		}
		ad.Nested(func(part *netlink.AttributeDecoder) error {
			for part.Next() {
				switch {
				case kind == ctaTupleIP && (part.Type() == ctaIPv4Src || part.Type() == ctaIPv6Src):
					t.src, _ = netip.AddrFromSlice(part.Bytes())
				case kind == ctaTupleIP:
					t.dst, _ = netip.AddrFromSlice(part.Bytes())
				case kind == ctaTupleProto && part.Type() == ctaProtoNum:
					t.proto = part.Uint8()
				case kind == ctaTupleProto && part.Type() == ctaProtoSrc:
					t.sport = part.Uint16()
				case kind == ctaTupleProto && part.Type() == ctaProtoDst:
					t.dport = part.Uint16()
				}
			}
			return part.Err()
		})
	}
	return ad.Err()
}
