package vswitch

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"github.com/mdlayher/netlink"
	"github.com/ti-mo/netfilter"
	"golang.org/x/sys/unix"
)

// tracker prepares conntrack's entries of connections that will be carried. Of those it
// sees only a packet now and then, so it must not call the next one invalid for its
// sequence number. The kernel's own flow offload says the same to it; per connection, so
// that the host stays as strict as its administrator wants with all others.
type tracker struct {
	conn *netfilter.Conn
}

// Numbers of include/uapi/linux/netfilter/nfnetlink_conntrack.h and nf_conntrack_tcp.h.
const (
	ctNew                                      = 0
	ctaTupleOrig, ctaProtoInfo                 = 1, 4
	ctaTupleIP, ctaTupleProto                  = 1, 2
	ctaIPv4Src, ctaIPv4Dst                     = 1, 2
	ctaIPv6Src, ctaIPv6Dst                     = 3, 4
	ctaProtoNum, ctaProtoSrc, ctaProtoDst      = 1, 2, 3
	ctaProtoInfoTCP                            = 1
	ctaTCPFlagsOriginal, ctaTCPFlagsReply      = 4, 5
	tcpFlagBeLiberal, tcpFlagMaxAckSet    byte = 0x08, 0x20
)

func newTracker() (*tracker, error) {
	c, err := netfilter.Dial(nil)
	if err != nil {
		return nil, fmt.Errorf("open conntrack: %w", err)
	}
	return &tracker{conn: c}, nil
}

func (t *tracker) close() error { return t.conn.Close() }

// prepare sets the flags of one connection. One that has ended meanwhile is no error.
func (t *tracker) prepare(a *uplinkOffloadAsk) error {
	m, err := prepareMessage(a)
	if err != nil {
		return err
	}
	if _, err := t.conn.Query(m); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("prepare the conntrack entry %s: %w", describeAsk(a), err)
	}
	return nil
}

func describeAsk(a *uplinkOffloadAsk) string {
	end := func(ip [16]uint8, port uint16) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom16(ip).Unmap(), port)
	}
	return fmt.Sprintf("tcp %v to %v", end(a.Src, a.Sport), end(a.Dst, a.Dport))
}

func prepareMessage(a *uplinkOffloadAsk) (netlink.Message, error) {
	family, src, dst := netfilter.ProtoIPv6, uint16(ctaIPv6Src), uint16(ctaIPv6Dst)
	from, to := a.Src[:], a.Dst[:]
	if a.V6 == 0 {
		family, src, dst = netfilter.ProtoIPv4, ctaIPv4Src, ctaIPv4Dst
		from, to = from[12:], to[12:]
	}
	be := func(n uint16) []byte { return binary.BigEndian.AppendUint16(nil, n) }
	nest := func(kind uint16, children ...netfilter.Attribute) netfilter.Attribute {
		return netfilter.Attribute{Type: kind, Nested: true, Children: children}
	}
	flags := []byte{tcpFlagBeLiberal, tcpFlagBeLiberal | tcpFlagMaxAckSet} // values, and which are meant
	m, err := netfilter.MarshalNetlink(netfilter.Header{
		SubsystemID: netfilter.NFSubsysCTNetlink, MessageType: ctNew, Family: family, Flags: netlink.Request | netlink.Acknowledge,
	}, []netfilter.Attribute{
		nest(ctaTupleOrig,
			nest(ctaTupleIP, netfilter.Attribute{Type: src, Data: from}, netfilter.Attribute{Type: dst, Data: to}),
			nest(ctaTupleProto, netfilter.Attribute{Type: ctaProtoNum, Data: []byte{unix.IPPROTO_TCP}},
				netfilter.Attribute{Type: ctaProtoSrc, Data: be(a.Sport)}, netfilter.Attribute{Type: ctaProtoDst, Data: be(a.Dport)})),
		nest(ctaProtoInfo, nest(ctaProtoInfoTCP,
			netfilter.Attribute{Type: ctaTCPFlagsOriginal, Data: flags}, netfilter.Attribute{Type: ctaTCPFlagsReply, Data: flags})),
	})
	if err != nil {
		return m, fmt.Errorf("encode a conntrack entry: %w", err)
	}
	return m, nil
}

// answer prepares what the programs ask for, until the reader is closed.
func (t *tracker) answer(r *ringbuf.Reader, log *slog.Logger) error {
	var record ringbuf.Record
	for {
		if err := r.ReadInto(&record); err != nil {
			if errors.Is(err, os.ErrClosed) {
				return nil
			}
			return fmt.Errorf("read what the offload asks for: %w", err)
		}
		var a uplinkOffloadAsk
		if len(record.RawSample) < int(unsafe.Sizeof(a)) {
			continue
		}
		if _, err := binary.Decode(record.RawSample, binary.NativeEndian, &a); err != nil {
			return fmt.Errorf("decode what the offload asks for: %w", err)
		}
		// The flow stays on the long way; its next packet asks again.
		if err := t.prepare(&a); err != nil {
			log.Debug("offload", "err", err)
		}
	}
}

func newAskReader(m *ebpf.Map) (*ringbuf.Reader, error) {
	r, err := ringbuf.NewReader(m)
	if err != nil {
		return nil, fmt.Errorf("open what the offload asks for: %w", err)
	}
	return r, nil
}
