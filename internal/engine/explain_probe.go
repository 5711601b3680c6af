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
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

const (
	// probeTime is how long an answer is waited for.
	probeTime = 2 * time.Second
	// traceTime is how long a trace may take to begin: a turn may have to be waited for.
	traceTime = 10 * time.Second
	// probePorts is how many ports are tried that others may have.
	probePorts = 4
)

// prober sends one packet, and has the host's tables traced meanwhile.
type prober struct {
	e    *Engine
	path string // of the compartment, "" for the host
	vm   string // the container in the VM that the compartment's vNICs are plugged into, if they are
	way  *plan.Explanation
	stop func() ([]plan.HostVerdict, error)
	// untraced says why the tables could not be traced.
	untraced error
}

// probe sends a packet as an inquiry describes it: from inside the compartment, or from
// the host. The verdicts are those of the host's tables.
func (e *Engine) probe(ctx context.Context, q *plan.Inquiry, way *plan.Explanation) (*api.ExplainProbe, []plan.HostVerdict) {
	s := prober{e: e, way: way}
	switch {
	case e.opt.Explain.Dial == nil || q.From.Kind == plan.PartyOutside:
		return &api.ExplainProbe{Agrees: true, Text: "nothing is sent: a packet from outside has to come from there"}, nil
	case !way.Dst.IsValid():
		return &api.ExplainProbe{Agrees: true, Text: "nothing is sent: there is no address to send to"}, nil
	case way.NoProbe != "":
		return &api.ExplainProbe{Agrees: true, Text: way.NoProbe}, nil
	case q.From.Kind == plan.PartyPorts:
		s.path, s.vm = q.From.Ports[0].VNIC.Namespace, e.vmBehind(q.From.Ports[0])
	}
	var p api.ExplainProbe
	known := true
	switch q.Protocol {
	case 6:
		p = s.tcp(ctx, netip.AddrPortFrom(way.Dst, q.Port))
	case 17:
		p, known = s.udp(ctx, netip.AddrPortFrom(way.Dst, q.Port))
	case 1:
		p = s.echo(ctx, way.Dst)
	default:
		return &api.ExplainProbe{Agrees: true, Text: "nothing is sent: only TCP, UDP and echoes are"}, nil
	}
	verdicts := signs(s.finish(), &p)
	if i := slices.IndexFunc(verdicts, func(v plan.HostVerdict) bool { return v.Drops() }); i >= 0 {
		// A refusal may be the firewall's own.
		p.Arrived, known = verdicts[i].Answer, known && verdicts[i].Own()
		p.Text = "it did not arrive: " + verdictText(&verdicts[i])
		if p.Arrived {
			p.Text = "it arrived, but the answer did not: " + verdictText(&verdicts[i])
		}
	}
	if s.untraced != nil {
		p.Untraced = s.untraced.Error()
	}
	p.Agrees = !p.Sent || !known || p.Arrived == way.Reachable || way.Outside && !p.Arrived
	return &p, verdicts
}

// vmBehind is the ID of the container in a VM that a port's vNIC belongs to; "" without one.
func (e *Engine) vmBehind(p *plan.Port) string {
	e.mu.RLock()
	defer e.mu.RUnlock()
	ep := e.st.endpoints[p.Endpoint]
	if ep == nil || e.st.namespaces[ep.Doc.HostComputeNamespace] == nil {
		return ""
	}
	for _, id := range e.st.namespaces[ep.Doc.HostComputeNamespace].Containers {
		if c := e.st.containers[id]; c != nil && c.Doc.Spec.Isolation == isolationVM {
			return id
		}
	}
	return ""
}

// trace begins to trace a packet that is sent next.
func (s *prober) trace(ctx context.Context, f plan.HostFlow) {
	if s.e.opt.Explain.Trace != nil {
		ctx, cancel := context.WithTimeout(ctx, traceTime)
		defer cancel()
		s.stop, s.untraced = s.e.opt.Explain.Trace(ctx, f)
	}
}

func (s *prober) finish() []plan.HostVerdict {
	if s.stop == nil || s.untraced != nil {
		return nil
	}
	list, err := s.stop()
	s.untraced = err
	return list
}

// dial waits for no longer than a probe may take.
func (s *prober) dial(ctx context.Context, network, to string, port uint16) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	if s.vm != "" { // whose stack has the addresses, and gets the answers
		c, err := s.e.opt.Sandbox.DialNet(ctx, s.vm, network, to, port)
		if _, kernels := errors.AsType[syscall.Errno](err); err != nil && !kernels && ctx.Err() == nil {
			err = fmt.Errorf("%w: %w", errNotSent, err)
		}
		return c, err
	}
	return s.e.opt.Explain.Dial(ctx, s.path, network, to, port)
}

// errNotSent is of what could not be asked of a VM.
var errNotSent = errors.New("nothing is sent")

// refused is the text of a refusal, which may be that of a firewall.
const refused = "it arrived: refused, for nothing listens there"

// signs leaves out what has only counted packets where another rule stopped the probe, or where it was answered: then they were
// other packets.
func signs(all []plan.HostVerdict, p *api.ExplainProbe) []plan.HostVerdict {
	answered := p.Arrived && p.Text != refused
	traced := slices.ContainsFunc(all, func(v plan.HostVerdict) bool { return v.Drops() && v.Counted == 0 })
	if !answered && !traced {
		return all
	}
	return slices.DeleteFunc(all, func(v plan.HostVerdict) bool { return v.Counted > 0 })
}

// meaning of an error of the kernel, after something was sent or because it could not be.
func meaning(err error) api.ExplainProbe {
	switch {
	case errors.Is(err, errNotSent):
		return api.ExplainProbe{Text: err.Error()}
	case errors.Is(err, syscall.ECONNREFUSED):
		return api.ExplainProbe{Sent: true, Arrived: true, Text: refused}
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded), errors.Is(err, syscall.ETIMEDOUT):
		return api.ExplainProbe{Sent: true, Text: fmt.Sprintf("no answer within %s", probeTime)}
	}
	return api.ExplainProbe{Sent: true, Text: "it did not arrive: " + err.Error()}
}

// tcp connects from a port that is known before, for the trace has to begin before the first packet. The address is that of
// a socket which sends nothing.
func (s *prober) tcp(ctx context.Context, to netip.AddrPort) api.ExplainProbe {
	c, err := s.dial(ctx, "udp", to.String(), 0)
	if err != nil {
		return meaning(err)
	}
	from, _ := netip.ParseAddrPort(c.LocalAddr().String()) // invalid: not traced
	c.Close()
	for range probePorts {
		port := 61000 + uint16(rand.Uint32N(4000)) // where the kernel does not pick its own by default
		if from.IsValid() && s.stop == nil && s.untraced == nil {
			s.trace(ctx, plan.HostFlow{Src: from.Addr().Unmap().WithZone(""), Dst: to.Addr(), Protocol: 6, SrcPort: port, DstPort: to.Port()})
		}
		if c, err = s.dial(ctx, "tcp", to.String(), port); !errors.Is(err, syscall.EADDRINUSE) {
			break
		}
		s.finish()
		s.stop = nil
	}
	if err != nil {
		return meaning(err)
	}
	c.Close()
	return api.ExplainProbe{Sent: true, Arrived: true, Text: "it arrived: the connection was accepted"}
}

// udp waits for an answer of any kind. Without one, the flow table knows whether the
// datagram went to the last port; beyond the host nobody knows.
func (s *prober) udp(ctx context.Context, to netip.AddrPort) (p api.ExplainProbe, known bool) {
	c, err := s.dial(ctx, "udp", to.String(), 0)
	if err != nil {
		return meaning(err), true
	}
	defer c.Close()
	from, _ := netip.ParseAddrPort(c.LocalAddr().String())
	if from.IsValid() {
		s.trace(ctx, plan.HostFlow{Src: from.Addr().Unmap().WithZone(""), Dst: to.Addr(), Protocol: 17, SrcPort: from.Port(), DstPort: to.Port()})
	}
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
	if way := s.way; len(way.Legs) > 0 && s.e.carried(&way.Legs[len(way.Legs)-1], from.Port()) {
		return api.ExplainProbe{Sent: true, Arrived: true, Text: "the switch carried it to " + s.way.Dst.String() + "; there is no answer, which UDP need not have"}, true
	}
	return p, !s.way.Reachable
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

// echo sends an echo request by a raw socket.
func (s *prober) echo(ctx context.Context, to netip.Addr) api.ExplainProbe {
	network, request, reply := "ip4:icmp", byte(8), byte(0)
	if to.Is6() {
		network, request, reply = "ip6:ipv6-icmp", 128, 129
	}
	c, err := s.dial(ctx, network, to.String(), 0)
	if err != nil {
		return meaning(err)
	}
	defer c.Close()
	id := uint16(rand.Uint32())
	if from, err := netip.ParseAddr(c.LocalAddr().String()); err == nil {
		s.trace(ctx, plan.HostFlow{Src: from.Unmap().WithZone(""), Dst: to, Protocol: 1, SrcPort: id})
	}
	_ = c.SetDeadline(time.Now().Add(probeTime)) // cannot fail on an open socket
	if _, err := c.Write(echoRequest(request, id)); err != nil {
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

// echoRequest is a request with its checksum; that of IPv6 is the kernel's to fill in.
func echoRequest(kind byte, id uint16) []byte {
	b := []byte{kind, 0, 0, 0, byte(id >> 8), byte(id), 0, 1}
	sum := uint32(kind)<<8 + uint32(id) + 1
	for sum>>16 > 0 {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(b[2:], ^uint16(sum))
	return b
}
