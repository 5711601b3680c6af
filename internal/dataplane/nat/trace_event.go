package nat

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// traceEvent is one NFT_MSG_TRACE: what one rule, a return or a policy did to a packet.
type traceEvent struct {
	family       nftables.TableFamily
	id           uint32 // of the packet, for as long as it is in one network namespace
	table, chain string
	handle       uint64
	kind         uint32 // unix.NFT_TRACETYPE_*
	verdict      int32  // of netfilter (NF_DROP …) or, when negative, of nftables (NFT_JUMP …)
	header       packetHeader
	answer       bool // set by who knows which packet it is
}

// packetHeader is what the first event of a packet in a chain says about it.
type packetHeader struct {
	src, dst netip.Addr
	protocol uint8
	dstPort  uint16
}

// The verdicts of include/uapi/linux/netfilter.h.
const (
	nfDrop   = 0
	nfAccept = 1
	nfStolen = 2
	nfQueue  = 3
)

// errShortTrace is said of a message that lacks what every trace has.
var errShortTrace = errors.New("a trace event without packet, table or chain")

// parseTrace decodes what follows the netlink header. It takes nothing for granted: what is too short for its kind is an
// error, what is not known is left out.
func parseTrace(data []byte) (traceEvent, error) {
	var ev traceEvent
	ad, err := attributes(data)
	if err != nil {
		return ev, err
	}
	ev.family = nftables.TableFamily(data[0])
	var network, transport []byte
	hasID := false
	for ad.Next() {
		switch ad.Type() {
		case unix.NFTA_TRACE_ID:
			ev.id, hasID = ad.Uint32(), true
		case unix.NFTA_TRACE_TABLE:
			ev.table = ad.String()
		case unix.NFTA_TRACE_CHAIN:
			ev.chain = ad.String()
		case unix.NFTA_TRACE_RULE_HANDLE:
			ev.handle = ad.Uint64()
		case unix.NFTA_TRACE_TYPE:
			ev.kind = ad.Uint32()
		case unix.NFTA_TRACE_VERDICT:
			ad.Nested(func(v *netlink.AttributeDecoder) error { return ev.readVerdict(v) })
		case unix.NFTA_TRACE_POLICY:
			ev.verdict = int32(ad.Uint32())
		case unix.NFTA_TRACE_NETWORK_HEADER:
			network = ad.Bytes()
		case unix.NFTA_TRACE_TRANSPORT_HEADER:
			transport = ad.Bytes()
		}
	}
	if err := ad.Err(); err != nil {
		return ev, fmt.Errorf("decode a trace event: %w", err)
	}
	if !hasID || ev.table == "" || ev.chain == "" {
		return ev, errShortTrace
	}
	ev.header = parseHeader(network, transport)
	return ev, nil
}

func (ev *traceEvent) readVerdict(v *netlink.AttributeDecoder) error {
	for v.Next() {
		if v.Type() == unix.NFTA_VERDICT_CODE {
			ev.verdict = int32(v.Uint32())
		}
	}
	return v.Err()
}

// parseHeader reads addresses and ports; what is missing stays empty. The kernel gives the transport header apart, past any
// extension headers, so only its protocol is looked for here.
func parseHeader(network, transport []byte) packetHeader {
	var h packetHeader
	switch {
	case len(network) >= 20 && network[0]>>4 == 4:
		h.src, h.dst = netip.AddrFrom4([4]byte(network[12:16])), netip.AddrFrom4([4]byte(network[16:20]))
		h.protocol = network[9]
	case len(network) >= 40 && network[0]>>4 == 6:
		h.src, h.dst = netip.AddrFrom16([16]byte(network[8:24])), netip.AddrFrom16([16]byte(network[24:40]))
		h.protocol = network[6]
	}
	if (h.protocol == unix.IPPROTO_TCP || h.protocol == unix.IPPROTO_UDP) && len(transport) >= 4 {
		h.dstPort = binary.BigEndian.Uint16(transport[2:])
	}
	return h
}

// word is a verdict that ends a packet's way through a base chain, empty for the others: jumps, returns and rules that go on.
func (ev *traceEvent) word() string {
	if ev.kind != unix.NFT_TRACETYPE_RULE && ev.kind != unix.NFT_TRACETYPE_POLICY || ev.verdict < 0 {
		return ""
	}
	switch ev.verdict & 0xff { // a queue's number and an error are above
	case nfDrop:
		return "drop"
	case nfAccept:
		return "accept"
	case nfStolen:
		return "stolen"
	case nfQueue:
		return "queue"
	}
	return ""
}
