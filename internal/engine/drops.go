package engine

import (
	"cmp"
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// The switch tells of drops in two ways: it counts them all, by port and reason, and
// it gives samples, so that a flood costs neither it nor us more than a bounded
// amount. What people see is the samples, and next to them how many there were
// besides: the counters less the samples.

const (
	// keptDrops is how many samples are kept for those who ask later.
	keptDrops = 2048
	// dropTick is how often followers are told of what is not shown.
	dropTick = time.Second
	// dropSettle is how long a sample may take from the switch to the log.
	dropSettle = 100 * time.Millisecond
	// dropRetry is the wait before the samples are asked for again.
	dropRetry = 5 * time.Second
)

// DropSample is a dropped frame as the switch tells of it: the Drop has no names yet.
type DropSample struct {
	Port   plan.PortID // "" for a device that is no port
	Switch uint32
	Rule   uint32 // 0: none decided
	// SrcMAC and DstMAC say which way the frame went.
	SrcMAC, DstMAC plan.MAC
	Dst            netip.Addr // invalid where the frame has none
	Drop           api.Drop
}

// DropCount is how many frames were dropped at a port for a reason.
type DropCount struct {
	Port   plan.PortID
	Reason string
	// Quiet reasons are of traffic that every stack sends: no loss, and no samples.
	Quiet          bool
	Packets, Bytes uint64
}

// DropReason is a reason of the switch, for those who filter by it.
type DropReason struct {
	Name  string
	Quiet bool
}

// Drops is the switch as a source of drops.
type Drops struct {
	// Samples gives dropped frames until ctx ends.
	Samples func(ctx context.Context) (<-chan DropSample, error)
	// Counts reads the counters of all ports.
	Counts  func() ([]DropCount, error)
	Reasons []DropReason
}

type dropKey struct {
	port   plan.PortID
	reason string
}

type keptDrop struct {
	port plan.PortID
	drop api.Drop
}

// dropLog keeps the newest samples, and counts them.
type dropLog struct {
	mu   sync.Mutex
	seq  uint64
	ring []keptDrop // by seq modulo keptDrops
	// seen counts samples, base is what the counters were when we began.
	seen, base map[dropKey]uint64
	// more is closed when a sample comes.
	more chan struct{}
}

func newDropLog() *dropLog {
	return &dropLog{seen: map[dropKey]uint64{}, more: make(chan struct{})}
}

func (l *dropLog) add(port plan.PortID, d api.Drop) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seq++
	d.Seq = l.seq
	if len(l.ring) < keptDrops {
		l.ring = append(l.ring, keptDrop{port, d})
	} else {
		l.ring[(l.seq-1)%keptDrops] = keptDrop{port, d}
	}
	l.seen[dropKey{port, d.Reason}]++
	close(l.more)
	l.more = make(chan struct{})
}

// after gives the samples after a number, oldest first, and a channel that is closed
// when there are more.
func (l *dropLog) after(seq uint64) ([]keptDrop, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	first := max(seq, l.seq-uint64(len(l.ring)))
	out := make([]keptDrop, 0, l.seq-first)
	for n := first; n < l.seq; n++ {
		out = append(out, l.ring[n%keptDrops])
	}
	return out, l.more
}

// begin sets where counting starts; what is not there any more is forgotten.
func (l *dropLog) begin(counts []DropCount) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.base = map[dropKey]uint64{}
	for _, c := range counts {
		l.base[dropKey{c.Port, c.Reason}] = c.Packets
	}
}

// since gives how many frames were dropped since the beginning, and how many of them
// were told of.
func (l *dropLog) since(counts []DropCount) (counted, seen map[dropKey]uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	counted, seen = map[dropKey]uint64{}, map[dropKey]uint64{}
	for _, c := range counts {
		k := dropKey{c.Port, c.Reason}
		if c.Packets < l.base[k] {
			delete(l.base, k) // the port was made anew, and its counters with it
		}
		counted[k], seen[k] = c.Packets-l.base[k], l.seen[k]
	}
	// The log is bounded by what there is, not by what there has been.
	if len(l.seen) > 2*len(counts)+64 {
		for k := range l.seen {
			if _, there := counted[k]; !there {
				delete(l.seen, k)
			}
		}
	}
	return counted, seen
}

// watchDrops fills the log until ctx ends.
func (e *Engine) watchDrops(ctx context.Context) {
	if e.opt.Drops.Samples == nil {
		return
	}
	if counts, err := e.opt.Drops.Counts(); err != nil {
		e.log.Warn("read the drop counters", "error", err)
	} else {
		e.drops.begin(counts)
	}
	for ctx.Err() == nil {
		samples, err := e.opt.Drops.Samples(ctx)
		if err != nil {
			e.log.Warn("read the switch's drops", "error", err)
		} else {
			for s := range samples {
				e.drops.add(s.Port, e.describeDrop(s))
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(dropRetry):
		}
	}
}

// describeDrop adds the names to a sample, as they are now.
func (e *Engine) describeDrop(s DropSample) api.Drop {
	d := s.Drop
	at := e.view.port(s.Port)
	d.Direction = api.DirectionOut
	var rule *plan.Rule
	var layer *plan.Port
	if at != nil {
		if isReceiver(at, &s) {
			d.Direction = api.DirectionIn
		}
		rule, layer = findRule(at.Policy, d.Direction, s.Rule), at
	}
	// What is dropped before anybody is asked is the sender's, who may have it addressed to anyone.
	if to := e.view.byMAC(s.Switch, s.DstMAC); rule == nil && to != nil && to != at {
		if rule = findRule(to.Policy, api.DirectionIn, s.Rule); rule != nil {
			layer, d.Direction = to, api.DirectionIn
		}
	}
	if layer != nil {
		d.Endpoint, d.Name, d.NetworkID = layer.Endpoint, portName(layer), documented(layer.Network)
		if n := e.view.network(layer.Network); n != nil {
			d.Network = n.Name
		}
	}
	if at != nil && at.Kind == plan.PortTunnel { // which serves several networks
		d.NetworkID, d.Network = "", ""
		if n := e.view.numbered(s.Switch); n != nil {
			d.NetworkID, d.Network = documented(n.Network), n.Name
		}
	}
	if s.Rule != 0 {
		d.Rule = ruleDoc(s.Rule, rule)
	}
	d.Next = nextAfterDrop(&d, s.Dst)
	return d
}

// isReceiver tells whether a frame was on its way to the port at which it was dropped. A copy of a broadcast bears no MAC that
// would tell, and a sender that lies about its own is dropped for that alone.
func isReceiver(at *plan.Port, s *DropSample) bool {
	switch s.Drop.Reason {
	case "policy-in", "rate-in":
		return true
	case "isolated", "fragment", "flow-table":
		return s.SrcMAC != at.MAC
	}
	return s.DstMAC == at.MAC && s.SrcMAC != at.MAC
}

func portName(p *plan.Port) string {
	switch p.Kind {
	case plan.PortHost:
		return "host"
	case plan.PortResolver:
		return "resolver"
	case plan.PortUplink:
		return p.Device
	default:
	}
	return cmp.Or(p.Name, string(p.Endpoint))
}

func findRule(p plan.Policy, direction string, number uint32) *plan.Rule {
	list := p.Out
	if direction == api.DirectionIn {
		list = p.In
	}
	if list == nil || number == 0 {
		return nil
	}
	i := slices.IndexFunc(list.Rules, func(r plan.Rule) bool { return r.Number == number })
	if i < 0 {
		return nil
	}
	return &list.Rules[i]
}

// layerWord names the layer for people.
func layerWord(l plan.Layer) string {
	switch l {
	case plan.LayerHost:
		return "host"
	case plan.LayerTier:
		return "tier"
	case plan.LayerNetwork:
		return "network"
	case plan.LayerEndpoint:
		return "endpoint"
	}
	return ""
}

func ruleDoc(number uint32, r *plan.Rule) *api.DropRule {
	if r == nil {
		return &api.DropRule{Number: number}
	}
	s := r.Source
	return &api.DropRule{
		Number: number, ID: s.ID, Layer: layerWord(s.Layer), Tier: s.Tier, Priority: s.Priority, Text: s.Text, Default: s.Implied,
	}
}

// nextAfterDrop is the command that shows what a drop is about.
func nextAfterDrop(d *api.Drop, dst netip.Addr) string {
	switch {
	case d.Endpoint == "" && d.Name == "":
		return "bulkhead doctor"
	case d.Endpoint == "" && d.NetworkID == "":
		return "bulkhead loadbalancer ls"
	case d.Rule != nil && d.Rule.Layer == "network":
		return "bulkhead network inspect " + string(d.NetworkID)
	case d.Endpoint == "":
		return "bulkhead network inspect " + string(d.NetworkID)
	case d.Rule != nil || d.Reason == "policy-out" || d.Reason == "policy-in":
		return "bulkhead rules " + string(d.Endpoint)
	case d.Reason == "unknown-address" && dst.IsValid():
		return "bulkhead address who " + dst.String()
	}
	return "bulkhead endpoint inspect " + string(d.Endpoint)
}
