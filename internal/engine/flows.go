package engine

import (
	"cmp"
	"context"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

const (
	// keptFlows is how many ended flows are kept for those who ask later.
	keptFlows = 4096
	// flowsPerSecond is how many of them one port may add in a second: a flood of short
	// flows takes the place of its own, not of everybody's.
	flowsPerSecond = 100
	// flowRetry is the wait before the log is asked for again.
	flowRetry = 5 * time.Second
)

// FlowEnd is one side of a flow as the switch has it.
type FlowEnd struct {
	Port plan.PortID // "": on no switch any more
	Addr netip.Addr
	L4   uint16
}

// FlowRecord is a flow as the switch has it: without names.
type FlowRecord struct {
	Switch          uint32
	Protocol        uint8
	Opener, Peer    FlowEnd
	State           string // one of api.Flow…
	Opened, Seen    time.Time
	Packets, Bytes  [2]uint64 // by the opener, and back
	RuleOut, RuleIn uint32
}

// RuleCount is how often a rule decided, and about how much.
type RuleCount struct{ Matches, Packets, Bytes uint64 }

// Flows is the switch's flow table.
type Flows struct {
	// Each hands flows to a function until it wants no more: those of one port, or all.
	Each func(port plan.PortID, each func(FlowRecord) bool) error
	// Ended hands flows that have ended to a function until ctx ends.
	Ended func(ctx context.Context, each func(FlowRecord)) error
	// Lost counts those that have ended and that Ended could not tell of.
	Lost func() (uint64, error)
	// Rules counts for the rules of a port.
	Rules func(port plan.PortID) (map[uint32]RuleCount, error)
}

type keptFlow struct {
	ports [2]plan.PortID
	flow  api.Flow
}

// flowLog keeps the newest ended flows.
type flowLog struct {
	mu   sync.Mutex
	seq  uint64
	ring []keptFlow // by seq modulo keptFlows
	// skipped counts those that were not kept; window and used are the budgets.
	skipped uint64
	window  int64
	used    map[plan.PortID]int
	// lost is what Flows.Lost was when we began.
	lost uint64
}

func newFlowLog() *flowLog { return &flowLog{used: map[plan.PortID]int{}} }

// budget tells whether a port may add one now.
func (l *flowLog) budget(port plan.PortID, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if w := now.Unix(); w != l.window {
		l.window, l.used = w, map[plan.PortID]int{}
	}
	if l.used[port] >= flowsPerSecond {
		l.skipped++
		return false
	}
	l.used[port]++
	return true
}

func (l *flowLog) add(f keptFlow) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.ring) < keptFlows {
		l.ring = append(l.ring, f)
	} else {
		l.ring[l.seq%keptFlows] = f
	}
	l.seq++
}

// after gives what was added after a number, oldest first, the number to go on from, and
// how many were skipped so far.
func (l *flowLog) after(seq uint64) (out []keptFlow, next, skipped uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for n := max(seq, l.seq-uint64(len(l.ring))); n < l.seq; n++ {
		out = append(out, l.ring[n%keptFlows])
	}
	return out, l.seq, l.skipped
}

// watchFlows fills the log until ctx ends.
func (e *Engine) watchFlows(ctx context.Context) {
	if e.opt.Flows.Ended == nil {
		return
	}
	if err := e.beginLost(); err != nil {
		e.log.Warn("read the switch's lost flows", "error", err)
	}
	for ctx.Err() == nil {
		err := e.opt.Flows.Ended(ctx, func(r FlowRecord) {
			if e.flows.budget(cmp.Or(r.Opener.Port, r.Peer.Port), time.Now()) {
				e.flows.add(keptFlow{[2]plan.PortID{r.Opener.Port, r.Peer.Port}, e.describeFlow(r, false)})
			}
		})
		if err != nil {
			e.log.Warn("read the switch's ended flows", "error", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(flowRetry):
		}
	}
}

func (e *Engine) beginLost() error {
	if e.opt.Flows.Lost == nil {
		return nil
	}
	n, err := e.opt.Flows.Lost()
	e.flows.mu.Lock()
	defer e.flows.mu.Unlock()
	e.flows.lost = n
	return err
}

// lostFlows counts the ended flows that nobody was told of since the daemon began.
func (e *Engine) lostFlows() (uint64, error) {
	if e.opt.Flows.Lost == nil {
		return 0, nil
	}
	n, err := e.opt.Flows.Lost()
	if err != nil {
		return 0, err
	}
	e.flows.mu.Lock()
	defer e.flows.mu.Unlock()
	if n < e.flows.lost {
		e.flows.lost = 0 // the switch was made anew
	}
	return n - e.flows.lost, nil
}

// MissingFlows are ended flows that bulkhead flows does not have: those for which the kernel's buffer had no room, and those
// that were more than one port may add in a second.
func (e *Engine) MissingFlows() (lost, skipped uint64, err error) {
	_, _, skipped = e.flows.after(^uint64(0))
	lost, err = e.lostFlows()
	return lost, skipped, err
}

// describeFlow adds the names, as they are now.
func (e *Engine) describeFlow(r FlowRecord, live bool) api.Flow {
	from, to := e.view.port(r.Opener.Port), e.view.port(r.Peer.Port)
	f := api.Flow{
		Protocol: protocolWord(r.Protocol), State: r.State, Live: live, Opened: r.Opened.UTC(), Seen: r.Seen.UTC(),
		Source: e.flowEnd(from, r.Opener), Destination: e.flowEnd(to, r.Peer),
		PacketsSent: r.Packets[0], BytesSent: r.Bytes[0], PacketsReceived: r.Packets[1], BytesReceived: r.Bytes[1],
	}
	if from != nil && r.RuleOut != 0 {
		f.RuleOut = ruleDoc(r.RuleOut, findRule(from.Policy, api.DirectionOut, r.RuleOut))
	}
	if to != nil && r.RuleIn != 0 {
		f.RuleIn = ruleDoc(r.RuleIn, findRule(to.Policy, api.DirectionIn, r.RuleIn))
	}
	here := cmp.Or(from, to)
	if here != nil && here.Kind == plan.PortTunnel {
		here = cmp.Or(to, from) // a tunnel serves several networks
	}
	if p := here; p != nil {
		for _, end := range []*api.FlowEnd{&f.Source, &f.Destination} {
			e.nameRemote(p, end)
		}
		f.NetworkID = documented(p.Network)
		if n := e.view.network(p.Network); n != nil {
			f.Network = n.Name
		}
	}
	return f
}

// documented is the ID of a network for those who look for its document, "" for the host's own switch, which has none.
func documented(id hcn.GUID) hcn.GUID {
	if id == plan.ServicesNetwork {
		return ""
	}
	return id
}

// flowEnd names an end. What comes and goes by the host's port is the host only under an
// address of the host.
func (e *Engine) flowEnd(p *plan.Port, end FlowEnd) api.FlowEnd {
	out := api.FlowEnd{Address: end.Addr.String(), Port: end.L4}
	if p == nil {
		return out
	}
	out.Endpoint = p.Endpoint
	if p.Kind == plan.PortTunnel {
		return out // see nameRemote
	}
	if p.Kind == plan.PortUplink { // the host and all others of the LAN are behind it
		if e.hostAddress(end.Addr) {
			out.Name = "host"
		}
		return out
	}
	if p.Kind != plan.PortHost || slices.Contains(p.Addrs, end.Addr) || p.LinkLocal == end.Addr || e.hostAddress(end.Addr) {
		out.Name = portName(p)
	}
	return out
}

// nameRemote names an end on another host.
func (e *Engine) nameRemote(here *plan.Port, end *api.FlowEnd) {
	a, err := netip.ParseAddr(end.Address)
	if err != nil || end.Name != "" || end.Endpoint != "" {
		return
	}
	if r := e.view.remote(here.Network, a); r != nil {
		end.Endpoint = r.Endpoint
		if len(r.Names) > 0 {
			end.Name = r.Names[0]
		}
	}
}

// hostAddress tells whether an address is one of the host's own, besides the gateways.
func (e *Engine) hostAddress(a netip.Addr) bool {
	e.mu.RLock()
	defer e.mu.RUnlock()
	return slices.ContainsFunc(e.facts.HostAddrs, func(p netip.Prefix) bool { return p.Addr() == a })
}

// protocolWord is a protocol as people write it.
func protocolWord(p uint8) string {
	return strings.TrimPrefix(strings.ToLower(plan.ProtocolName(p)), "protocol ")
}

// blockedFlow is a drop as the flow that it kept from coming about; false for a drop that
// no policy is the reason of.
func (e *Engine) blockedFlow(k keptDrop) (api.Flow, bool) {
	d := &k.drop
	if d.Reason != "policy-out" && d.Reason != "policy-in" && d.Reason != "isolated" {
		return api.Flow{}, false
	}
	f := api.Flow{
		Network: d.Network, NetworkID: d.NetworkID, Protocol: d.Protocol, State: api.FlowBlocked, Opened: d.Time, Seen: d.Time,
		Source: addressEnd(d.Source), Destination: addressEnd(d.Destination), PacketsSent: 1, BytesSent: uint64(d.Length), Reason: d.Reason,
	}
	me := &f.Source
	if d.Direction == api.DirectionIn {
		me, f.RuleIn = &f.Destination, d.Rule
	} else {
		f.RuleOut = d.Rule
	}
	me.Name, me.Endpoint = d.Name, d.Endpoint
	for _, end := range []*api.FlowEnd{&f.Source, &f.Destination} {
		if end != me {
			e.nameByAddress(end, k)
		}
	}
	return f, true
}

// nameByAddress names an end by who has its address on the network of a drop.
func (e *Engine) nameByAddress(end *api.FlowEnd, k keptDrop) {
	a, err := netip.ParseAddr(end.Address)
	if err != nil {
		return
	}
	for _, p := range e.view.all() {
		if p.Network == k.drop.NetworkID && p.Kind != plan.PortResolver && slices.Contains(p.Addrs, a) {
			end.Name, end.Endpoint = portName(p), p.Endpoint
		}
	}
}

func addressEnd(s string) api.FlowEnd {
	if ap, err := netip.ParseAddrPort(s); err == nil {
		return api.FlowEnd{Address: ap.Addr().String(), Port: ap.Port()}
	}
	return api.FlowEnd{Address: s}
}
