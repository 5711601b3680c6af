package engine

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

const (
	// defaultFlows and mostFlows bound an answer.
	defaultFlows = 1000
	mostFlows    = 100_000
	// flowTick is how often followers look for flows that began.
	flowTick = time.Second
)

// flowFilter is what FlowOptions choose.
type flowFilter struct {
	o     api.FlowOptions
	all   bool
	ports map[plan.PortID]bool
	names map[string]bool
	addrs map[netip.Addr]bool
}

func (e *Engine) flowFilter(o api.FlowOptions) (*flowFilter, error) {
	f := &flowFilter{
		o: o, all: len(o.Endpoints) == 0, ports: map[plan.PortID]bool{}, names: map[string]bool{}, addrs: map[netip.Addr]bool{},
	}
	if o.Sort != "" && o.Sort != api.SortBytes && o.Sort != api.SortAge {
		return nil, api.Errorf(api.KindInvalid, "flows cannot be sorted by %.40q", o.Sort).Hint("use bytes or age")
	}
	if o.Limit < 0 || o.Limit > mostFlows {
		return nil, api.Errorf(api.KindInvalid, "%d flows cannot be listed: from 1 to %d can", o.Limit, mostFlows).Hint("take fewer, and choose them by name, --proto or --port")
	}
	e.mu.RLock()
	defer e.mu.RUnlock()
	for _, ref := range o.Endpoints {
		if a, err := netip.ParseAddr(ref); err == nil {
			f.addrs[a.Unmap()] = true
			continue
		}
		f.names[ref] = true
		eps, err := e.st.endpointsOf(ref)
		if err != nil && ref != "host" && ref != "resolver" && !e.knownInFlows(ref) {
			return nil, err
		}
		for _, ep := range eps {
			f.ports[plan.EndpointPortID(ep.Doc.ID)] = true
		}
	}
	return f, nil
}

// knownInFlows tells whether an ended flow was of something with this name.
func (e *Engine) knownInFlows(name string) bool {
	kept, _, _ := e.flows.after(0)
	return slices.ContainsFunc(kept, func(k keptFlow) bool { return k.flow.Source.Name == name || k.flow.Destination.Name == name })
}

// only is the one port whose flows are wanted, or "".
func (f *flowFilter) only() plan.PortID {
	if len(f.o.Endpoints) == 1 && len(f.ports) == 1 {
		for id := range f.ports {
			return id
		}
	}
	return ""
}

// record is the part that needs no names, so that those who are not meant cost little.
func (f *flowFilter) record(r *FlowRecord) bool {
	return (f.o.Protocol == "" || f.o.Protocol == protocolWord(r.Protocol)) &&
		(f.o.Port == 0 || r.Opener.L4 == f.o.Port || r.Peer.L4 == f.o.Port) &&
		(f.all || len(f.names) > 0 || f.addrs[r.Opener.Addr] || f.addrs[r.Peer.Addr])
}

func (f *flowFilter) flow(w *api.Flow) bool {
	if f.o.Protocol != "" && f.o.Protocol != w.Protocol || f.o.Port != 0 && w.Source.Port != f.o.Port && w.Destination.Port != f.o.Port {
		return false
	}
	return f.all || f.end(&w.Source) || f.end(&w.Destination)
}

func (f *flowFilter) end(w *api.FlowEnd) bool {
	a, _ := netip.ParseAddr(w.Address)
	return f.names[w.Name] && w.Name != "" || f.addrs[a] || w.Endpoint != "" && f.ports[plan.EndpointPortID(w.Endpoint)]
}

// topFlows keeps the first of an order in bounded memory.
type topFlows struct {
	limit int
	less  func(a, b api.Flow) int
	list  []api.Flow
	total int
}

func newTopFlows(o api.FlowOptions) *topFlows {
	t := &topFlows{limit: cmp.Or(o.Limit, defaultFlows)}
	t.less = func(a, b api.Flow) int {
		return cmp.Or(cmp.Compare(b.BytesSent+b.BytesReceived, a.BytesSent+a.BytesReceived), b.Opened.Compare(a.Opened))
	}
	if o.Sort == api.SortAge {
		t.less = func(a, b api.Flow) int { return b.Opened.Compare(a.Opened) }
	}
	return t
}

func (t *topFlows) add(f api.Flow) {
	t.total++
	if t.list = append(t.list, f); len(t.list) >= 2*t.limit+64 {
		t.cut()
	}
}

func (t *topFlows) cut() {
	slices.SortStableFunc(t.list, t.less)
	t.list = t.list[:min(len(t.list), t.limit)]
}

// FlowLines gives flows to a function: the live ones, with Recent also those that ended
// or were blocked, and with Follow what comes, until it fails or ctx ends.
func (e *Engine) FlowLines(ctx context.Context, o api.FlowOptions, each func(api.FlowLine) error) error {
	if e.opt.Flows.Each == nil {
		return api.Errorf(api.KindUnsupported, "list flows: there is no switch").Hint("bulkhead doctor")
	}
	f, err := e.flowFilter(o)
	if err != nil {
		return err
	}
	s := flowStream{e: e, filter: f, each: each, since: time.Now()}
	if err := s.past(); err != nil || !o.Follow {
		return err
	}
	return s.follow(ctx)
}

// flowStream is one reader.
type flowStream struct {
	e      *Engine
	filter *flowFilter
	each   func(api.FlowLine) error
	// since is what was told of live flows; ended and blocked are the logs' numbers.
	since          time.Time
	ended, blocked uint64
	skipped        uint64
	lost           uint64
}

func (s *flowStream) past() error {
	top := newTopFlows(s.filter.o)
	if err := s.live(time.Time{}, top.add); err != nil {
		return err
	}
	recent := func(api.Flow) {}
	if s.filter.o.Recent {
		recent = top.add
	}
	s.news(recent)
	top.cut()
	for i := range top.list {
		if err := s.each(api.FlowLine{Flow: &top.list[i]}); err != nil {
			return err
		}
	}
	rest := uint64(top.total - len(top.list))
	if s.filter.o.Recent {
		rest += s.skipped
	}
	return s.missing(rest, s.filter.o.Recent)
}

// missing tells of what is not shown, and of what has no line because it was lost since it was told last.
func (s *flowStream) missing(rest uint64, tell bool) error {
	lost, err := s.e.lostFlows()
	if err != nil {
		return err
	}
	l := api.FlowLine{NotShown: rest}
	if tell && lost > s.lost {
		l.Lost = lost - s.lost
	}
	s.lost = lost
	if l == (api.FlowLine{}) {
		return nil
	}
	return s.each(l)
}

// live reads the table for flows that began after a moment.
func (s *flowStream) live(after time.Time, add func(api.Flow)) error {
	err := s.e.opt.Flows.Each(s.filter.only(), func(r FlowRecord) bool {
		if r.Opened.After(after) && s.filter.record(&r) {
			if f := s.e.describeFlow(r, true); s.filter.flow(&f) {
				add(f)
			}
		}
		return true
	})
	if err != nil {
		return fmt.Errorf("read the flow table: %w", err)
	}
	return nil
}

// news gives what ended and what was blocked since it was asked last.
func (s *flowStream) news(add func(api.Flow)) {
	ended, next, skipped := s.e.flows.after(s.ended)
	s.ended, s.skipped = next, skipped
	for _, k := range ended {
		if s.filter.flow(&k.flow) {
			add(k.flow)
		}
	}
	drops, _ := s.e.drops.after(s.blocked)
	for _, k := range drops {
		s.blocked = k.drop.Seq
		if f, ok := s.e.blockedFlow(k); ok && s.filter.flow(&f) {
			add(f)
		}
	}
}

func (s *flowStream) follow(ctx context.Context) error {
	tick := time.NewTicker(flowTick)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		var list []api.Flow
		add := func(f api.Flow) { list = append(list, f) }
		now, skipped := time.Now(), s.skipped
		if err := s.live(s.since, add); err != nil {
			return err
		}
		s.since = now
		s.news(add)
		slices.SortStableFunc(list, func(a, b api.Flow) int { return a.Seen.Compare(b.Seen) })
		rest := s.skipped - skipped
		if n := defaultFlows; len(list) > n {
			rest += uint64(len(list) - n)
			list = list[len(list)-n:]
		}
		for i := range list {
			if err := s.each(api.FlowLine{Flow: &list[i]}); err != nil {
				return err
			}
		}
		if err := s.missing(rest, true); err != nil {
			return err
		}
	}
}
