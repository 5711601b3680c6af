package engine

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// A rehearsal runs an operation up to its transaction, compiles what that would make of the
// plan, and takes it back before anybody sees it: nothing reaches the store or the loop. What
// the kernel would be given is asked of the appliers. So a rehearsal refuses what the
// operation refuses, with the same words, and there is no second account of what it does.

// Previewer is an Applier that can say what an Update would write, and writes nothing.
type Previewer interface {
	Preview(ctx context.Context, p *plan.Plan, d *plan.Delta) ([]plan.Write, error)
}

// rehearsal is what an operation would change.
type rehearsal struct {
	plan  *plan.Plan
	delta *plan.Delta
}

type rehearsalKey struct{}

// Rehearsing tells whether nothing may be done but what the engine takes back: whoever has a part in a change outside of the engine asks.
func (*Engine) Rehearsing(ctx context.Context) bool { return rehearsing(ctx) != nil }

// errRehearsed ends an operation after its transaction.
var errRehearsed = errors.New("rehearsed")

func rehearsing(ctx context.Context) *rehearsal {
	r, _ := ctx.Value(rehearsalKey{}).(*rehearsal)
	return r
}

// Plan says what a change would do. The change is an operation that is called with the context
// given to it; its error is returned when it is refused.
func (e *Engine) Plan(ctx context.Context, change func(ctx context.Context) error) (api.Plan, error) {
	r := &rehearsal{}
	err := change(context.WithValue(ctx, rehearsalKey{}, r))
	if r.delta == nil {
		return api.Plan{Objects: []api.PlanObject{}}, err
	}
	var steps []plan.Write
	for _, a := range e.appliers() {
		if p, ok := a.(Previewer); ok {
			s, err := p.Preview(ctx, r.plan, r.delta)
			if err != nil {
				return api.Plan{}, hcn.Errorf(hcn.ErrUnspecified, "the kernel would refuse the change: %w", err)
			}
			steps = append(steps, s...)
		}
	}
	return r.describe(steps), nil
}

// commitOr is commit, or a rehearsal of it.
func (e *Engine) commitOr(ctx context.Context, fn func(*txn) error) (uint64, error) {
	if w := tentatively(ctx); w != nil {
		plain := fn
		fn = func(t *txn) error { t.tentative = w; return plain(t) }
	}
	if r := rehearsing(ctx); r != nil {
		return 0, e.rehearse(r, fn)
	}
	return e.commitFor(ctx, fn)
}

func (e *Engine) rehearse(r *rehearsal, fn func(*txn) error) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	var t *txn
	p := plan.Compile(e.st.intent(), &e.facts)
	// What a change leaves behind when it is taken back, too, would change what the next one picks.
	seq, last, full := e.st.seq, maps.Clone(e.st.lastAddr), map[subnetKey]bool{}
	begin := func() {
		t = &txn{e: e, st: e.st, dirty: emptyDirty(), facts: &e.facts, dry: true, full: full}
		e.st.seq, e.st.lastAddr = seq, maps.Clone(last)
	}
	begin()
	defer func() {
		t.rollBack()
		e.st.seq, e.st.lastAddr = seq, last
	}()
	var lacked []*needBlock
	for {
		err := fn(t)
		if err == nil {
			break
		}
		need, lacks := errors.AsType[*needBlock](err)
		if !lacks || len(lacked) == mostLeases {
			return err
		}
		t.rollBack()
		begin()
		lacked = append(lacked, need)
		for _, need := range lacked {
			if err := t.pretendBlock(need); err != nil {
				return err
			}
		}
	}
	r.delta = p.Recompile(e.st.intent(), t.facts, t.dirty)
	r.plan = p
	return errRehearsed
}

// describe puts the steps together by what they touch.
func (r *rehearsal) describe(steps []plan.Write) api.Plan {
	out := api.Plan{Objects: []api.PlanObject{}}
	at := map[string]int{}
	for _, s := range steps {
		i, ok := at[s.Object]
		if !ok {
			i = len(out.Objects)
			at[s.Object] = i
			out.Objects = append(out.Objects, api.PlanObject{Object: s.Object})
		}
		out.Objects[i].Changes = append(out.Objects[i].Changes, api.PlanChange{Action: s.Sign.Action(), Text: s.Text, For: r.owner(s.Owner)})
	}
	slices.SortStableFunc(out.Objects, func(a, b api.PlanObject) int {
		if d := rank(a.Object) - rank(b.Object); d != 0 {
			return d
		}
		return strings.Compare(a.Object, b.Object)
	})
	return out
}

// rank orders objects as a host is built up: settings, compartments, devices, the rest.
func rank(object string) int {
	kind, _, _ := strings.Cut(object, " ")
	if i := slices.Index([]string{"netns", "sysctl", "link", "table", "map"}, kind); i >= 0 {
		return i
	}
	return 9
}

// owner resolves whom a step is for.
func (r *rehearsal) owner(id string) *api.PlanOwner {
	if id == "" {
		return nil
	}
	port := r.plan.Ports[plan.PortID(id)]
	if port == nil {
		port = r.delta.Ports[plan.PortID(id)].Old
	}
	network := hcn.GUID(id)
	if port != nil {
		if port.Endpoint != "" {
			return &api.PlanOwner{Kind: "endpoint", ID: string(port.Endpoint), Name: port.Name}
		}
		network = port.Network
	}
	sw := r.plan.Switches[network]
	if sw == nil {
		sw = r.delta.Switches[network].Old
	}
	if sw != nil {
		return &api.PlanOwner{Kind: "network", ID: string(network), Name: sw.Name}
	}
	return &api.PlanOwner{Kind: "namespace", ID: id}
}
