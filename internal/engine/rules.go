package engine

import (
	"fmt"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// Rules gives the rules of a container's or an endpoint's ports as the switch evaluates
// them, with what each has counted.
func (e *Engine) Rules(ref string) ([]api.EndpointRules, error) {
	e.mu.RLock()
	ports, err := e.attachedPorts(ref)
	e.mu.RUnlock()
	if err != nil {
		return nil, err
	}
	var out []api.EndpointRules
	for _, p := range ports {
		counts := map[uint32]RuleCount{}
		if e.opt.Flows.Rules != nil {
			if counts, err = e.opt.Flows.Rules(p.ID); err != nil {
				return nil, fmt.Errorf("count for the rules of %s: %w", portName(p), err)
			}
		}
		out = append(out, e.PortRules(p, counts))
	}
	return out, nil
}

// PortRules are those of one port, with what they have counted.
func (e *Engine) PortRules(p *plan.Port, counts map[uint32]RuleCount) api.EndpointRules {
	r := api.EndpointRules{
		Endpoint: p.Endpoint, Name: portName(p), Isolated: p.Policy.Isolated, RateOut: p.Policy.RateOut, RateIn: p.Policy.RateIn,
		Rules: []api.Rule{},
	}
	if n := e.view.network(p.Network); n != nil {
		r.Network = n.Name
	}
	var lists [2][]api.Rule
	lists[0], r.DefaultOut = listDoc(p.Policy.Out, api.DirectionOut, counts)
	lists[1], r.DefaultIn = listDoc(p.Policy.In, api.DirectionIn, counts)
	r.Rules = append(append(r.Rules, lists[0]...), lists[1]...)
	return r
}

func listDoc(l *plan.RuleList, direction string, counts map[uint32]RuleCount) (out []api.Rule, fallback string) {
	if l == nil {
		return nil, plan.Allow.String()
	}
	for i := range l.Rules {
		r := &l.Rules[i]
		c := counts[r.Number]
		out = append(out, api.Rule{
			DropRule: *ruleDoc(r.Number, r), Direction: direction, Action: r.Action.String(),
			Matches: c.Matches, Packets: c.Packets, Bytes: c.Bytes,
		})
	}
	return out, l.Default.String()
}
