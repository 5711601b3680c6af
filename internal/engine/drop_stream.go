package engine

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// dropFilter is what DropOptions choose.
type dropFilter struct {
	all     bool
	ports   map[plan.PortID]bool
	names   map[string]bool
	reasons map[string]bool
}

func (f *dropFilter) reason(name string, quiet bool) bool {
	return f.reasons[name] || len(f.reasons) == 0 && !quiet
}

func (f *dropFilter) drop(k keptDrop) bool {
	at := f.all || f.ports[k.port] || f.ports[plan.EndpointPortID(k.drop.Endpoint)] || f.names[k.drop.Name]
	return at && f.reason(k.drop.Reason, false)
}

// dropFilter resolves names. One that belongs to nothing is an error, unless a kept
// drop tells that it once did.
func (e *Engine) dropFilter(o api.DropOptions) (*dropFilter, error) {
	f := &dropFilter{all: len(o.Endpoints) == 0, ports: map[plan.PortID]bool{}, names: map[string]bool{}, reasons: map[string]bool{}}
	for _, r := range o.Reasons {
		if !slices.ContainsFunc(e.opt.Drops.Reasons, func(d DropReason) bool { return d.Name == r }) {
			return nil, api.Errorf(api.KindInvalid, "%.80q is no reason of the switch", r).Hint("use one of %s", e.reasonNames())
		}
		f.reasons[r] = true
	}
	kept, _ := e.drops.after(0)
	e.mu.RLock()
	defer e.mu.RUnlock()
	for _, ref := range o.Endpoints {
		eps, err := e.st.endpointsOf(ref)
		once := ref == "host" || ref == "resolver" || slices.ContainsFunc(kept, func(k keptDrop) bool { return k.drop.Name == ref })
		if err != nil && !once {
			return nil, err
		}
		if once {
			f.names[ref] = true
		}
		for _, ep := range eps {
			f.ports[plan.EndpointPortID(ep.Doc.ID)] = true
		}
	}
	for _, p := range e.view.all() {
		if f.names[portName(p)] {
			f.ports[p.ID] = true
		}
	}
	return f, nil
}

func (e *Engine) reasonNames() string {
	names := make([]string, len(e.opt.Drops.Reasons))
	for i, r := range e.opt.Drops.Reasons {
		names[i] = r.Name
	}
	return strings.Join(names, ", ")
}

// DropLines gives the drops that are kept, what is not shown, and with Follow what
// comes, to a function, until it fails or ctx ends.
func (e *Engine) DropLines(ctx context.Context, o api.DropOptions, each func(api.DropLine) error) error {
	if e.opt.Drops.Samples == nil {
		return api.Errorf(api.KindUnsupported, "read drops: there is no switch").Hint("bulkhead doctor")
	}
	f, err := e.dropFilter(o)
	if err != nil {
		return err
	}
	s := dropStream{e: e, filter: f, each: each, shown: map[dropKey]uint64{}, told: map[dropKey]uint64{}}
	if err := s.past(ctx, o.Tail); err != nil || !o.Follow {
		return err
	}
	return s.follow(ctx)
}

// dropStream is one reader.
type dropStream struct {
	e      *Engine
	filter *dropFilter
	each   func(api.DropLine) error
	seq    uint64
	// shown counts the lines, told the frames that were told of as not shown.
	shown, told map[dropKey]uint64
}

func (s *dropStream) past(ctx context.Context, tail int) error {
	counts, err := s.e.dropCounts(ctx)
	if err != nil {
		return err
	}
	kept, _ := s.e.drops.after(0)
	if len(kept) > 0 {
		s.seq = kept[len(kept)-1].drop.Seq
	}
	kept = slices.DeleteFunc(kept, func(k keptDrop) bool { return !s.filter.drop(k) })
	if tail >= 0 && len(kept) > tail {
		kept = kept[len(kept)-tail:]
	}
	if err := s.show(kept); err != nil {
		return err
	}
	return s.rest(counts)
}

func (s *dropStream) show(kept []keptDrop) error {
	for _, k := range kept {
		s.shown[dropKey{k.port, k.drop.Reason}]++
		if err := s.each(api.DropLine{Drop: &k.drop}); err != nil {
			return err
		}
	}
	return nil
}

// rest tells how many frames were dropped without a line.
func (s *dropStream) rest(counts []DropCount) error {
	counted, _ := s.e.drops.since(counts)
	l := api.DropLine{}
	for _, c := range counts {
		k := dropKey{c.Port, c.Reason}
		if !s.filter.reason(c.Reason, c.Quiet) || !s.filter.all && !s.filter.ports[c.Port] {
			continue
		}
		if known := s.shown[k] + s.told[k]; counted[k] > known {
			n := counted[k] - known
			s.told[k] += n
			l.NotShown += n
			l.NotShownAt = append(l.NotShownAt, s.e.dropRest(k, n))
		}
	}
	if l.NotShown == 0 {
		return nil
	}
	slices.SortStableFunc(l.NotShownAt, func(a, b api.DropRest) int { return cmp.Compare(b.Packets, a.Packets) })
	return s.each(l)
}

func (e *Engine) dropRest(k dropKey, n uint64) api.DropRest {
	r := api.DropRest{Reason: k.reason, Packets: n}
	p := e.view.port(k.port)
	if p == nil {
		return r
	}
	r.Endpoint, r.Name = p.Endpoint, portName(p)
	if sw := e.view.network(p.Network); sw != nil {
		r.Network = sw.Name
	}
	return r
}

// follow tells of the counters with a delay of one tick: by then their samples, if
// there are any, have been shown.
func (s *dropStream) follow(ctx context.Context) error {
	tick := time.NewTicker(dropTick)
	defer tick.Stop()
	var counts []DropCount
	for {
		kept, more := s.e.drops.after(s.seq)
		if len(kept) > 0 {
			s.seq = kept[len(kept)-1].drop.Seq
			if err := s.show(slices.DeleteFunc(kept, func(k keptDrop) bool { return !s.filter.drop(k) })); err != nil {
				return err
			}
			continue
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-more:
		case <-tick.C:
			if err := s.rest(counts); err != nil {
				return err
			}
			var err error
			if counts, err = s.e.opt.Drops.Counts(); err != nil {
				return fmt.Errorf("read the drop counters: %w", err)
			}
		}
	}
}

// dropCounts reads the counters, and gives the log the time to have their samples.
func (e *Engine) dropCounts(ctx context.Context) ([]DropCount, error) {
	counts, err := e.opt.Drops.Counts()
	if err != nil {
		return nil, fmt.Errorf("read the drop counters: %w", err)
	}
	counted, seen := e.drops.since(counts)
	for k, n := range counted {
		if n > seen[k] {
			select {
			case <-ctx.Done():
			case <-time.After(dropSettle):
			}
			break
		}
	}
	return counts, nil
}
