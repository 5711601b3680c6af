package engine

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strconv"
	"syscall"
	"time"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// probeTime is how long an answer is waited for.
const probeTime = 2 * time.Second

// probe sends a packet as an inquiry describes it: from inside the compartment, or from
// the host.
func (e *Engine) probe(ctx context.Context, q *plan.Inquiry, way *plan.Explanation) *api.ExplainProbe {
	path := ""
	switch {
	case e.opt.Explain.Dial == nil || q.From.Kind == plan.PartyOutside:
		return &api.ExplainProbe{Agrees: true, Text: "nothing is sent: a packet from outside has to come from there"}
	case !way.Dst.IsValid():
		return &api.ExplainProbe{Agrees: true, Text: "nothing is sent: there is no address to send to"}
	case way.NoProbe != "":
		return &api.ExplainProbe{Agrees: true, Text: way.NoProbe}
	case q.From.Kind == plan.PartyPorts:
		path = q.From.Ports[0].VNIC.Namespace
	}
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	var p api.ExplainProbe
	known := true
	switch q.Protocol {
	case 6:
		p = e.probeTCP(ctx, path, netip.AddrPortFrom(way.Dst, q.Port))
	case 17:
		p, known = e.probeUDP(ctx, path, netip.AddrPortFrom(way.Dst, q.Port), way)
	case 1:
		p = e.probeEcho(ctx, path, way.Dst)
	default:
		return &api.ExplainProbe{Agrees: true, Text: "nothing is sent: only TCP, UDP and echoes are"}
	}
	p.Agrees = !p.Sent || !known || p.Arrived == way.Reachable
	return &p
}

// meaning of an error of the kernel, after something was sent or because it could not be.
func meaning(err error) api.ExplainProbe {
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return api.ExplainProbe{Sent: true, Arrived: true, Text: "it arrived: refused, for nothing listens there"}
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded), errors.Is(err, syscall.ETIMEDOUT):
		return api.ExplainProbe{Sent: true, Text: fmt.Sprintf("no answer within %s", probeTime)}
	}
	return api.ExplainProbe{Sent: true, Text: "it did not arrive: " + err.Error()}
}

func (e *Engine) probeTCP(ctx context.Context, path string, to netip.AddrPort) api.ExplainProbe {
	c, err := e.opt.Explain.Dial(ctx, path, "tcp", to.String())
	if err != nil {
		return meaning(err)
	}
	c.Close()
	return api.ExplainProbe{Sent: true, Arrived: true, Text: "it arrived: the connection was accepted"}
}

// probeUDP waits for an answer of any kind. Without one, the flow table knows whether the
// datagram went to the last port; beyond the host nobody knows.
func (e *Engine) probeUDP(ctx context.Context, path string, to netip.AddrPort, way *plan.Explanation) (p api.ExplainProbe, known bool) {
	c, err := e.opt.Explain.Dial(ctx, path, "udp", to.String())
	if err != nil {
		return meaning(err), true
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(probeTime / 2)) // cannot fail on an open socket
	if _, err := c.Write([]byte("bulkhead explain")); err != nil {
		return meaning(err), true
	}
	if _, err = c.Read(make([]byte, 2048)); err == nil {
		return api.ExplainProbe{Sent: true, Arrived: true, Text: "it arrived: there is an answer"}, true
	}
	if p = meaning(err); p.Arrived {
		return p, true
	}
	from, _ := netip.ParseAddrPort(c.LocalAddr().String())
	if len(way.Legs) > 0 && e.carried(&way.Legs[len(way.Legs)-1], from.Port()) {
		return api.ExplainProbe{Sent: true, Arrived: true, Text: "the switch carried it to " + way.Dst.String() + "; there is no answer, which UDP need not have"}, true
	}
	return p, !way.Reachable
}

// carried tells whether the flow table has a leg's flow.
func (e *Engine) carried(leg *plan.Leg, source uint16) bool {
	found := false
	if leg.Trace.To == "" || e.opt.Flows.Each == nil {
		return false
	}
	_ = e.opt.Flows.Each(leg.Trace.To, func(r FlowRecord) bool { // no flow, if they cannot be read
		found = r.Protocol == leg.Packet.Protocol && r.Peer.Addr == leg.Packet.Dst && r.Peer.L4 == leg.Packet.DstPort && r.Opener.L4 == source
		return !found
	})
	return found
}

// probeEcho sends an echo request by a raw socket.
func (e *Engine) probeEcho(ctx context.Context, path string, to netip.Addr) api.ExplainProbe {
	network, request, reply := "ip4:icmp", byte(8), byte(0)
	if to.Is6() {
		network, request, reply = "ip6:ipv6-icmp", 128, 129
	}
	c, err := e.opt.Explain.Dial(ctx, path, network, to.String())
	if err != nil {
		return meaning(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(probeTime)) // cannot fail on an open socket
	id := uint16(rand.Uint32())
	if _, err := c.Write(echo(request, id)); err != nil {
		return meaning(err)
	}
	return awaitEcho(c, to, reply, id)
}

func awaitEcho(c net.Conn, to netip.Addr, reply byte, id uint16) api.ExplainProbe {
	b := make([]byte, 2048)
	for {
		n, err := c.Read(b)
		if err != nil {
			return meaning(err)
		}
		m := b[:n]
		if to.Is4() && n > 20 && m[0]>>4 == 4 { // raw sockets of IPv4 give the header too
			m = m[min(int(m[0]&15)*4, n):]
		}
		if len(m) >= 8 && m[0] == reply && binary.BigEndian.Uint16(m[4:]) == id {
			return api.ExplainProbe{Sent: true, Arrived: true, Text: "it arrived: " + to.String() + " answers, " + strconv.Itoa(n) + " bytes"}
		}
	}
}

// echo is a request with its checksum; that of IPv6 is the kernel's to fill in.
func echo(kind byte, id uint16) []byte {
	b := []byte{kind, 0, 0, 0, byte(id >> 8), byte(id), 0, 1}
	sum := uint32(kind)<<8 + uint32(id) + 1
	for sum>>16 > 0 {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(b[2:], ^uint16(sum))
	return b
}
