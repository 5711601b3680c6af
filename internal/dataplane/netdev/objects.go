package netdev

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// link, address and route are what is read of the kernel's objects: the fields that we set, and those by which we know
// what is ours.

type link struct {
	index      int
	name, kind string
	alias      string
	altNames   []string
	flags      uint32
	mtu        int
	mac        plan.MAC
	group      uint32
	segments   plan.Segments // zero where the kernel has no such setting
	gather     plan.Segments // the same, for what it puts together of received packets (GRO)
	most       int           // what its driver can be given
	below      int           // number of the namespace that it is tied to, in this one; -1: none
	peer       int           // index of a veth's other end, in that end's namespace
	master     int           // index of the bridge or bond that it is a member of
	hwType     uint16        // ARPHRD_ETHER, …
	burntIn    plan.MAC      // of a device that has one, whatever its MAC is now
	event      uint32        // IFLA_EVENT_NOTIFY_PEERS, …: what a message about it was sent for, where that is no change of it
}

type address struct {
	index  int
	prefix netip.Prefix // address and length, not masked
	flags  uint32
	proto  uint8
	made   uint32 // since the host started, in hundredths of a second
}

// age is how long an address has been there.
func (a address) age() time.Duration {
	var now unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &now) != nil {
		return 0
	}
	return time.Duration(now.Nano()) - time.Duration(a.made)*10*time.Millisecond
}

type route struct {
	dst    netip.Prefix
	via    netip.Addr
	oif    int
	metric int
	onLink bool
	proto  uint8
	kind   uint8 // RTN_UNICAST, …
	table  int
}

const (
	// groupOurs marks our links in the host's namespace from their birth; groupDying those that are being deleted.
	groupOurs  = 0x62680001
	groupDying = 0x62680002
	// protoOurs marks the addresses (IFA_PROTO) and routes that we set in a compartment. Nobody has registered it.
	protoOurs = 98
	// ifaProto is IFA_PROTO, which came with Linux 5.18.
	ifaProto = 11
	// metric6 is what the kernel makes of an IPv6 route's metric 0.
	metric6 = 1024
)

// ours tells whether a link of the host's namespace was made by us: by its name and one of the marks, or by both
// marks when somebody has renamed it.
func (l link) ours() bool {
	if l.kind != "veth" && l.kind != "vxlan" {
		return false
	}
	marked := l.group == groupOurs || l.group == groupDying
	aliased := strings.HasPrefix(l.alias, "bulkhead ")
	return marked && aliased || ourName(l.name) && (marked || aliased)
}

func (l link) up() bool { return l.flags&unix.IFF_UP != 0 }

func ourName(name string) bool {
	return strings.HasPrefix(name, plan.HostVNICPrefix) || strings.HasPrefix(name, plan.LANVNICPrefix) || strings.HasPrefix(name, plan.PortPrefix) ||
		strings.HasPrefix(name, plan.TunnelPrefix) || strings.HasPrefix(name, plan.ParkedPrefix)
}

func parseLink(m []byte) link {
	if len(m) < unix.SizeofIfInfomsg {
		return link{}
	}
	ne := nl.NativeEndian()
	head := nl.DeserializeIfInfomsg(m)
	l := link{index: int(head.Index), flags: head.Flags, hwType: head.Type, below: -1}
	eachAttr(m[unix.SizeofIfInfomsg:], func(kind uint16, v []byte) {
		switch kind {
		case unix.IFLA_IFNAME:
			l.name = unix.ByteSliceToString(v)
		case unix.IFLA_IFALIAS:
			l.alias = unix.ByteSliceToString(v)
		case unix.IFLA_MTU:
			l.mtu = int(ne.Uint32(v))
		case unix.IFLA_ADDRESS:
			copy(l.mac[:], v)
		case unix.IFLA_PERM_ADDRESS:
			if len(v) == len(l.burntIn) {
				copy(l.burntIn[:], v)
			}
		case iflaGSOMaxSize:
			l.segments.IP6 = int(ne.Uint32(v))
		case iflaGROMaxSize:
			l.gather.IP6 = int(ne.Uint32(v))
		case iflaGSOIPv4MaxSize:
			l.segments.IP4 = int(ne.Uint32(v))
		case iflaGROIPv4MaxSize:
			l.gather.IP4 = int(ne.Uint32(v))
		case iflaTSOMaxSize:
			l.most = int(ne.Uint32(v))
		case unix.IFLA_GROUP:
			l.group = ne.Uint32(v)
		case unix.IFLA_MASTER:
			l.master = int(ne.Uint32(v))
		case unix.IFLA_LINK_NETNSID:
			l.below = int(int32(ne.Uint32(v)))
		case unix.IFLA_LINK:
			l.peer = int(ne.Uint32(v))
		case unix.IFLA_EVENT:
			l.event = ne.Uint32(v)
		case unix.IFLA_LINKINFO:
			eachAttr(v, func(kind uint16, v []byte) {
				if kind == unix.IFLA_INFO_KIND {
					l.kind = unix.ByteSliceToString(v)
				}
			})
		case unix.IFLA_PROP_LIST:
			eachAttr(v, func(kind uint16, v []byte) {
				if kind == unix.IFLA_ALT_IFNAME {
					l.altNames = append(l.altNames, unix.ByteSliceToString(v))
				}
			})
		}
	})
	return l
}

func parseAddress(m []byte) address {
	if len(m) < unix.SizeofIfAddrmsg {
		return address{}
	}
	head := nl.DeserializeIfAddrmsg(m)
	a := address{index: int(head.Index)}
	var local, addr netip.Addr
	eachAttr(m[unix.SizeofIfAddrmsg:], func(kind uint16, v []byte) {
		switch kind {
		case unix.IFA_LOCAL:
			local, _ = netip.AddrFromSlice(v)
		case unix.IFA_ADDRESS:
			addr, _ = netip.AddrFromSlice(v)
		case unix.IFA_FLAGS:
			a.flags = nl.NativeEndian().Uint32(v)
		case ifaProto:
			a.proto = v[0]
		case unix.IFA_CACHEINFO:
			if len(v) >= unix.SizeofIfaCacheinfo {
				a.made = nl.NativeEndian().Uint32(v[8:]) // cstamp
			}
		}
	})
	if !local.IsValid() {
		local = addr
	}
	a.prefix = netip.PrefixFrom(local, int(head.Prefixlen))
	return a
}

// parseRoute reads a route; of a multipath route it keeps the first hop.
func parseRoute(m []byte) route {
	if len(m) < unix.SizeofRtMsg {
		return route{}
	}
	ne := nl.NativeEndian()
	head := nl.DeserializeRtMsg(m)
	zero := netip.IPv4Unspecified()
	if head.Family == unix.AF_INET6 {
		zero = netip.IPv6Unspecified()
	}
	r := route{
		dst: netip.PrefixFrom(zero, 0), proto: head.Protocol, kind: head.Type, table: int(head.Table),
		onLink: head.Flags&unix.RTNH_F_ONLINK != 0,
	}
	eachAttr(m[unix.SizeofRtMsg:], func(kind uint16, v []byte) {
		switch kind {
		case unix.RTA_DST:
			a, _ := netip.AddrFromSlice(v)
			r.dst = netip.PrefixFrom(a, int(head.Dst_len))
		case unix.RTA_GATEWAY:
			r.via, _ = netip.AddrFromSlice(v)
		case unix.RTA_OIF:
			r.oif = int(ne.Uint32(v))
		case unix.RTA_PRIORITY:
			r.metric = int(ne.Uint32(v))
		case unix.RTA_TABLE:
			r.table = int(ne.Uint32(v))
		case unix.RTA_MULTIPATH:
			if len(v) >= unix.SizeofRtNexthop {
				r.oif = int(ne.Uint32(v[4:]))
			}
		}
	})
	return r
}

func (c *conn) linkByName(name string) (link, bool, error) {
	msgs, err := c.request(unix.RTM_GETLINK, 0, nl.NewIfInfomsg(unix.AF_UNSPEC),
		attrUint32(unix.IFLA_EXT_MASK, noStats), attrName(name))
	if errors.Is(err, unix.ENODEV) {
		return link{}, false, nil
	}
	if err != nil || len(msgs) == 0 {
		return link{}, false, err
	}
	return parseLink(msgs[0]), true, nil
}

func (c *conn) listLinks() ([]link, error) {
	msgs, err := c.dump(unix.RTM_GETLINK, nl.NewIfInfomsg(unix.AF_UNSPEC), attrUint32(unix.IFLA_EXT_MASK, noStats))
	return parseAll(msgs, parseLink), err
}

func (c *conn) listAddresses() ([]address, error) {
	msgs, err := c.dump(unix.RTM_GETADDR, nl.NewIfAddrmsg(unix.AF_UNSPEC))
	return parseAll(msgs, parseAddress), err
}

// listRoutes lists the routes of all tables and both families, without cached ones.
func (c *conn) listRoutes() ([]route, error) {
	msgs, err := c.dump(unix.RTM_GETROUTE, &nl.RtMsg{RtMsg: unix.RtMsg{Family: unix.AF_UNSPEC}})
	msgs = slices.DeleteFunc(msgs, func(m []byte) bool {
		if len(m) < unix.SizeofRtMsg {
			return true
		}
		head := nl.DeserializeRtMsg(m)
		return head.Family != unix.AF_INET && head.Family != unix.AF_INET6 || head.Flags&unix.RTM_F_CLONED != 0
	})
	return parseAll(msgs, parseRoute), err
}

func parseAll[T any](msgs [][]byte, parse func([]byte) T) []T {
	out := make([]T, len(msgs))
	for i, m := range msgs {
		out[i] = parse(m)
	}
	return out
}
