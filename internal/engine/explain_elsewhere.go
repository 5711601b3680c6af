package engine

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// What becomes of a packet on another host of the cluster, that host explains, of its own plan and with its own loaded program. Its steps are
// put before or after those of here, with its name.

// ExplainQuestion is what a host asks another.
type ExplainQuestion struct {
	Options api.ExplainOptions
	// Part: From, or To, is an address on the overlay, and the other one an endpoint of the host that is asked, which says what it knows itself.
	// Else it explains the whole.
	Part bool
}

// asksOf says which other hosts are asked.
type asksOf uint8

const (
	askNobody   asksOf = iota
	askReceiver        // who asks is the first already
	askAll
)

// The waits for other hosts. Who begins the way may have to ask who ends it.
const (
	waitReceiver = 5 * time.Second
	waitSender   = 12 * time.Second
)

// ExplainFor answers another host.
func (e *Engine) ExplainFor(ctx context.Context, q ExplainQuestion) (api.Explanation, error) {
	q.Options.Probe = false // nobody sends from here who is not here
	if q.Part {
		return e.explain(ctx, q.Options, askNobody)
	}
	return e.explain(ctx, q.Options, askReceiver)
}

// parties finds both ends. A name that nobody here has is looked for on other hosts, on a network of the other end first.
func (e *Engine) parties(p *plan.Plan, q *plan.Inquiry, o *api.ExplainOptions, ask asksOf) error {
	var errs [2]error
	ends, refs := [2]*plan.Party{&q.From, &q.To}, [2]string{o.From, o.To}
	for i, end := range ends {
		if a, err := netip.ParseAddr(refs[i]); err == nil && ask == askNobody { // another host's, whoever has it on other networks here
			*end = plan.Party{Kind: plan.PartyOutside, Name: refs[i], Addr: a.Unmap()}
			continue
		}
		*end, errs[i] = e.party(p, refs[i])
	}
	for i, end := range ends {
		if !api.IsKind(errs[i], api.KindNotFound) {
			continue
		}
		r, err := remoteCalled(p, refs[i], ends[1-i])
		switch {
		case err != nil:
			errs[i] = err
		case r != nil:
			*end, errs[i] = plan.Party{Kind: plan.PartyOutside, Name: refs[i], Remote: r}, nil
		}
	}
	return cmp.Or(errs[0], errs[1])
}

// remoteCalled is the endpoint on another host that a word means: its name, or its ID.
func remoteCalled(p *plan.Plan, ref string, other *plan.Party) (*plan.Remote, error) {
	var all, near []*plan.Remote
	for _, r := range p.Remotes {
		if !slices.Contains(r.Names, strings.ToLower(ref)) && string(r.Endpoint) != strings.ToUpper(ref) {
			continue
		}
		all = append(all, r)
		if other.Remote != nil && other.Remote.Network == r.Network || slices.ContainsFunc(other.Ports, func(o *plan.Port) bool { return o.Network == r.Network }) {
			near = append(near, r)
		}
	}
	if len(near) > 0 {
		all = near
	}
	if len(all) == 0 {
		return nil, nil //nolint:nilnil // nobody has it
	}
	first := slices.MinFunc(all, func(a, b *plan.Remote) int { return strings.Compare(string(a.Endpoint), string(b.Endpoint)) })
	for _, r := range all {
		if r.Network != first.Network || r.Host != first.Host {
			return nil, api.Errorf(api.KindConflict, "%.80q means endpoints of several hosts or networks", ref).Hint("use an ID or an address of bulkhead address ls")
		}
	}
	return first, nil
}

func ofFamily(p *plan.Party, v6 bool) netip.Addr {
	if p.Remote == nil {
		return p.Addr
	}
	for _, a := range p.Remote.Addrs {
		if a.Is6() == v6 {
			return a
		}
	}
	return netip.Addr{}
}

// startsThere is the endpoint on another host that the way begins at, nil for none. An address is one where the other end is on its network.
func (e *Engine) startsThere(p *plan.Plan, q *plan.Inquiry) *plan.Remote {
	if q.From.Remote != nil || q.From.Kind != plan.PartyOutside || !q.From.Addr.IsValid() {
		return q.From.Remote
	}
	for _, o := range q.To.Ports {
		if r := e.view.remote(o.Network, q.From.Addr); r != nil {
			return p.Remotes[r.Endpoint]
		}
	}
	return nil
}

// explainFrom has the host explain it all where the way begins, for it does not end here.
func (e *Engine) explainFrom(ctx context.Context, from *plan.Remote, o api.ExplainOptions, q *plan.Inquiry) (api.Explanation, error) {
	if q.To.Kind == plan.PartyHost {
		return api.Explanation{}, api.Errorf(api.KindInvalid, "%s is on another host, and nothing is on a way from there to this one's stack", o.From).
			Hint("name a container, an endpoint or an address; or ask on that host")
	}
	asks := o
	asks.From = string(from.Endpoint)
	if q.To.Remote != nil {
		asks.To = string(q.To.Remote.Endpoint)
	}
	x, host, err := e.askThere(ctx, from, ExplainQuestion{Options: asks}, waitSender)
	if err != nil {
		return x, api.Errorf(api.KindUnavailable, "explain the way from %s, which begins on host %s: that host could not be asked: %w", o.From, cmp.Or(from.Host, from.Provider.String()), err).
			Hint("bulkhead cluster status; or ask there")
	}
	x.From, x.To = o.From, o.To
	for i := range x.Paths {
		here(&x.Paths[i], host)
	}
	return x, nil
}

// here marks what another host has said with its name.
func here(p *api.ExplainPath, host string) {
	for i := range p.Steps {
		p.Steps[i].Host = cmp.Or(p.Steps[i].Host, host)
	}
	p.Host = cmp.Or(p.Host, host)
	for i, d := range p.Doubts {
		p.Doubts[i] = "on host " + host + ": " + d
	}
	for i, d := range p.Disagreements {
		p.Disagreements[i] = "on host " + host + ": " + d
	}
}

func (e *Engine) askThere(ctx context.Context, r *plan.Remote, q ExplainQuestion, wait time.Duration) (api.Explanation, string, error) {
	if e.opt.Cluster == nil {
		return api.Explanation{}, "", fmt.Errorf("the endpoint is known by its document alone, and this host is in no cluster")
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	return e.opt.Cluster.ExplainThere(ctx, r.Network, r.Endpoint, q)
}

// askOthers adds what other hosts say of their parts of the way.
func (e *Engine) askOthers(ctx context.Context, p *plan.Plan, doc *api.ExplainPath, way *plan.Explanation, q *plan.Inquiry, ask asksOf) {
	e.mu.RLock()
	told := func(r *plan.Remote) bool { // else it is a document's, and no host of the cluster has it
		return r != nil && e.st.toldBy[r.Endpoint] == clusterSource
	}
	from, to := e.startsThere(p, q), (*plan.Remote)(nil)
	if way.Tunnel != nil {
		to = way.Tunnel.To
	}
	if !told(from) {
		from = nil
	}
	if !told(to) {
		to = nil
	}
	e.mu.RUnlock()
	part := func(from, to string, port uint16) ExplainQuestion {
		return ExplainQuestion{Part: true, Options: api.ExplainOptions{From: from, To: to, Protocol: protocolWord(q.Protocol), Port: port, Family: doc.Family}}
	}
	switch {
	case from != nil && ask == askAll:
		e.addPart(ctx, doc, from, part(string(from.Endpoint), way.Dst.String(), q.Port), true)
	case to != nil && way.Reachable:
		e.addPart(ctx, doc, to, part(way.Tunnel.Src.String(), string(to.Endpoint), way.Tunnel.Port), false)
	}
}

// addPart adds what the host of an endpoint says of its part: that before, or after, the steps here.
func (e *Engine) addPart(ctx context.Context, doc *api.ExplainPath, r *plan.Remote, q ExplainQuestion, before bool) {
	x, host, err := e.askThere(ctx, r, q, waitReceiver)
	if err == nil && len(x.Paths) != 1 {
		err = fmt.Errorf("it explains %d ways, and one was asked for", len(x.Paths))
	}
	host = cmp.Or(host, r.Host, r.Provider.String())
	if err != nil {
		doc.Unasked = fmt.Sprintf("host %s could not be asked what it does with the packet: %s", host, err)
		doc.Doubts = append(doc.Doubts, doc.Unasked)
		return
	}
	part := &x.Paths[0]
	here(part, host)
	doc.Confirmed += part.Confirmed
	doc.Disagreements = append(doc.Disagreements, part.Disagreements...)
	doc.Doubts = append(doc.Doubts, part.Doubts...)
	switch {
	case before && part.Reachable:
		doc.Steps = append(part.Steps, doc.Steps...)
		return
	case before:
		doc.Steps, doc.Confirmed = part.Steps, part.Confirmed // it does not come here
	default:
		doc.Steps = append(doc.Steps, part.Steps...)
	}
	doc.Reachable, doc.Reason, doc.Rule, doc.Next, doc.Host = part.Reachable, part.Reason, part.Rule, part.Next, host
	doc.Summary = part.Summary + ", on host " + host
}
